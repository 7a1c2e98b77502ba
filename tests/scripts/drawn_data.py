"""A data set that a network learns within seconds, and errors in its labels."""

from pathlib import Path

import numpy as np

from tests.scripts.programs import CLASSES
from utils.data.annotations import read_annotations
from utils.evaluation.matching import paired_iou
from utils.image.codec import write_image

SIDE, COLOURS = 64, ((220, 40, 40), (40, 200, 60), (50, 70, 230))


def draw_data(folder, splits, seed):
    """Draw images with one or two rectangles, whose colours are their classes, and a list file NAME.txt of each split.

    splits: {name: number of images}.
    """
    random = np.random.default_rng(seed)
    for split, count in splits.items():
        lines = []
        for number in range(count):
            image_rgb = (114 + random.normal(0, 8, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
            path, boxes = folder / f"{split}{number}.png", []
            for x1, y1, x2, y2 in _apart(random, random.integers(1, 3)):
                class_id = random.integers(len(CLASSES))
                image_rgb[y1:y2, x1:x2] = COLOURS[class_id]
                boxes.append(f"{x1},{y1},{x2},{y2},{class_id}")
            write_image(str(path), image_rgb)
            lines.append(" ".join([str(path), *boxes]))
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")


def _apart(random, count):
    """Up to so many boxes that do not overlap: x1, y1, x2, y2."""
    boxes = []
    for _ in range(20):
        width, height = random.integers(18, 34, 2)
        x1, y1 = random.integers(SIDE - width), random.integers(SIDE - height)
        box = x1, y1, x1 + width, y1 + height
        if len(boxes) < count and all(
            box[0] >= other[2] or box[2] <= other[0] or box[1] >= other[3] or box[3] <= other[1] for other in boxes
        ):
            boxes.append(box)
    return boxes


def plant_errors(annotation_path, list_path, random, share):
    """Write the labels of a set into a list file, a share of them removed, moved by half of their size or renamed.

    Returns [(image, box before, box after or None)] of those.
    """
    annotations, _ = read_annotations(str(annotation_path), CLASSES)
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    boxes_xyxy, classes = annotations.boxes_xyxy.copy(), annotations.classes.copy()
    planted, kept = [], np.ones(len(images), bool)
    for number, row in enumerate(random.permutation(len(images))[: round(share * len(images))]):
        before = boxes_xyxy[row].copy()
        if number % 3 == 0:
            kept[row] = False
        elif number % 3 == 1:
            height, width = annotations.sizes_hw[images[row]]
            half = (before[2:] - before[:2]) / 2
            # Towards the middle of the image, so that it stays within.
            direction = np.where((before[:2] + before[2:]) / 2 < (width / 2, height / 2), 1, -1)
            boxes_xyxy[row] += np.tile(direction * half * [1, 0], 2)
        else:
            classes[row] = (classes[row] + random.integers(1, 3)) % 3
        planted.append((annotations.path(images[row]), before, boxes_xyxy[row] if kept[row] else None))
    with open(list_path, "w", encoding="utf-8") as file:
        for image in range(len(annotations)):
            rows = np.flatnonzero((images == image) & kept)
            boxes = (",".join(f"{value:.0f}" for value in [*boxes_xyxy[row], classes[row]]) for row in rows)
            file.write(" ".join([annotations.path(image), *boxes]) + "\n")
    return planted


def is_planted(row, planted):
    """Whether a row of suspects.csv is about one of the planted errors: the label itself, or the one that is gone."""
    corners = ("x1", "y1", "x2", "y2")
    label_xyxy, found_xyxy = (
        np.array([float(row[f"{name}_{corner}"]) for corner in corners]) if row[name] else None
        for name in ("label", "found")
    )
    for image, before_xyxy, after_xyxy in planted:
        if Path(image).name != Path(row["image"]).name:
            continue
        if label_xyxy is not None:
            if after_xyxy is not None and np.abs(label_xyxy - after_xyxy).max() < 1:
                return True
        elif paired_iou(before_xyxy[None], found_xyxy[None])[0] >= 0.5:
            return True
    return False
