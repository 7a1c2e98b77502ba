"""What can be seen of a data set before its images are opened: paths, boxes and classes that harm a training."""

import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from utils.data.annotations import Annotations
from utils.data.augment import MIN_SIDE
from utils.data.quality.findings import Finding

# Input pixels. The finest map of the networks has a cell every 8: a side under half of that leaves next to no trace.
TINY_SIDE = 4.0
# The root of a box's area in input pixels: below the first few are found, with the second most are. From this share of
# small boxes on it is a matter of the whole data set.
SMALL_SIDE, GOOD_SIDE, MANY_SMALL = 10, 16, 0.25
# No input is larger for any usual network, and sides are multiples of a step.
LARGEST_INPUT, SIDE_STEP = 1280, 32
# Longer side by shorter side. Of 815 boxes of COCO two are thinner, knives seen edge-on; most are slips of the hand.
THIN_ASPECT = 20.0
# Two objects do not share so much of their boxes; two drawings of one object do.
DUPLICATE_IOU = 0.95
# Under FEW_BOXES nothing is learned. Under RARE_BOXES it is a matter of what else there is: a class that the largest
# one outnumbers 1 / RARE_SHARE times is hardly ever in a batch.
FEW_BOXES, RARE_BOXES, RARE_SHARE = 10, 100, 0.01


def quick_findings(
    train_annotations: Annotations,
    val_annotations: Annotations,
    class_names: Sequence[str],
    input_shape: Sequence[int],
    keep_difficult: bool = False,
    tile: int = 0,
) -> list[Finding]:
    """All that a look at the annotations shows; no file is opened. A second for 100,000 images and 800,000 boxes.

    input_shape: (height, width); sizes of boxes are judged after the letterbox. keep_difficult: whether boxes marked
    difficult are learned; as something to validate on they never count. tile: as in TileOptions. Returns one Finding
    per box, image or class.
    """
    learned = train_annotations if keep_difficult else train_annotations.without_difficult()
    findings = _class_balance(learned, val_annotations, class_names, train_annotations)
    findings += _same_paths(train_annotations, val_annotations)
    findings += _small_boxes(learned, input_shape, tile)
    for annotations in (train_annotations, val_annotations):
        sizes_wh = box_sizes_at_input(annotations, input_shape, tile)
        findings += _duplicate_boxes(annotations, class_names, input_shape, sizes_wh)
        findings += _odd_boxes(annotations, class_names, input_shape, sizes_wh)
    return findings


def box_sizes_at_input(annotations: Annotations, input_shape: Sequence[int], tile: int = 0) -> np.ndarray:
    """(M, 2) width and height of each box in pixels of an input of (height, width), aspect ratio kept.

    tile: as in TileOptions; then of the tiles, in which boxes are largest.
    """
    boxes_xyxy = annotations.boxes_xyxy.astype(np.float64)
    sizes_hw = np.minimum(annotations.sizes_hw, tile or np.inf)
    scale = (np.asarray(input_shape) / np.maximum(sizes_hw, 1)).min(axis=1, initial=np.inf)
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * np.repeat(scale, np.diff(annotations.offsets))[:, None]


def class_counts(annotations: Annotations, class_count: int, scored: bool = False) -> np.ndarray:
    """(class_count,) boxes of each class; with scored only those that are not marked difficult."""
    return np.bincount(
        annotations.classes[~annotations.difficult] if scored else annotations.classes, minlength=class_count
    )


def same_boxes(annotations: Annotations, index: int, others: Annotations, other_index: int) -> bool:
    """Whether two images have the same boxes of the same classes, in whatever order."""
    first, second = (
        np.column_stack([part.labels(at), part.boxes(at)]) for part, at in ((annotations, index), (others, other_index))
    )
    return first.shape == second.shape and bool((first[np.lexsort(first.T)] == second[np.lexsort(second.T)]).all())


def same_images(
    train_annotations: Annotations, val_annotations: Annotations, train_keys: Sequence, val_keys: Sequence
) -> Iterable[Finding]:
    """Findings on images that share a key, which stands for the image: its path, or a hash of its file; None for none.

    train_keys, val_keys: one for each image. Repetitions in a set count from the second time on.
    """
    first_in_train = {}
    for is_val, annotations, keys in ((False, train_annotations, train_keys), (True, val_annotations, val_keys)):
        first_in_set = {}
        for index, key in enumerate(keys):
            if key is None:
                continue
            for kinds, others, earlier in (
                (("repeated_image", "conflicting_labels"), annotations, first_in_set.get(key)),
                (("leaked_image", "leaked_image"), train_annotations, first_in_train.get(key) if is_val else None),
            ):
                if earlier is not None:
                    agrees = same_boxes(annotations, index, others, earlier)
                    path, other = annotations.path(index), others.path(earlier)
                    detail = ("" if other == path else f"same as {other}, ") + f"{'same' if agrees else 'other'} boxes"
                    yield Finding(kinds[0] if agrees else kinds[1], path, detail)
            first_in_set.setdefault(key, index)
        first_in_train = first_in_set


def path_keys(annotations: Annotations) -> list[str]:
    """For each image the one spelling that all spellings of its path share."""
    return [os.path.normcase(os.path.abspath(annotations.path(index))) for index in range(len(annotations))]


def _same_paths(train_annotations: Annotations, val_annotations: Annotations) -> list[Finding]:
    return list(
        same_images(train_annotations, val_annotations, path_keys(train_annotations), path_keys(val_annotations))
    )


def _class_balance(
    train_annotations: Annotations, val_annotations: Annotations, class_names: Sequence[str], whole: Annotations
) -> list[Finding]:
    """whole: the training annotations with the boxes that are left out because they are marked difficult."""
    train = class_counts(train_annotations, len(class_names))
    val = class_counts(val_annotations, len(class_names), scored=True)
    findings = []
    left_out = class_counts(whole, len(class_names)) - train
    if left_out.any() and not train.any():
        findings.append(
            Finding("only_difficult", "", f"{left_out.sum()} boxes, which keep_difficult = False leaves out")
        )
    elif not train.any():
        findings.append(Finding("no_boxes_at_all", "", f"{len(train_annotations)} training images, no box"))
    if not val.any():
        findings.append(Finding("no_val_boxes", "", f"{len(val_annotations)} validation images, no box that counts"))
    counts = zip(class_names, train.tolist(), val.tolist(), left_out.tolist(), strict=True)
    for name, train_count, val_count, difficult_count in counts:
        if train.any() and not train_count:
            detail = f"{name}: 0 in training, {val_count} in validation"
            if difficult_count:
                detail += f"; {difficult_count} are marked difficult, or crowds: keep_difficult = True learns them"
            findings.append(Finding("class_without_boxes", "", detail))
        elif train_count < FEW_BOXES and train_count:
            findings.append(Finding("rare_class", "", f"{name}: only {train_count} (under {FEW_BOXES})"))
        elif train_count < min(RARE_BOXES, RARE_SHARE * train.max()):
            detail = f"{name}: only {train_count} (under {RARE_SHARE:.0%} of the largest class, {train.max()})"
            findings.append(Finding("rare_class", "", detail))
        if val.any() and train_count and not val_count:
            findings.append(Finding("class_not_validated", "", f"{name}: {train_count} in training, 0 in validation"))
    return findings


def _duplicate_boxes(
    annotations: Annotations, class_names: Sequence[str], input_shape: Sequence[int], sizes_wh: np.ndarray
) -> list[Finding]:
    """Each box that an earlier one of its image covers, whichever its class."""
    earlier = duplicates(annotations)
    rows = np.flatnonzero(earlier >= 0)
    findings = _box_findings("duplicate_box", annotations, rows, class_names, input_shape, sizes_wh)
    classes = annotations.classes
    return [
        finding._replace(detail=f"{finding.detail}; also labelled {class_names[classes[earlier[row]]]}")
        if classes[row] != classes[earlier[row]]
        else finding
        for finding, row in zip(findings, rows, strict=True)
    ]


def duplicates(annotations: Annotations) -> np.ndarray:
    """(M,) for each box the first of its image that it overlaps by more than DUPLICATE_IOU, -1 for none before it."""
    boxes_xyxy = annotations.boxes_xyxy.astype(np.float64)
    image_index = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    earlier = np.full(len(image_index), len(image_index))
    order = np.lexsort((boxes_xyxy[:, 0], image_index))
    sorted_xyxy, sorted_owner = boxes_xyxy[order], image_index[order]
    sides = sorted_xyxy[:, 2:] - sorted_xyxy[:, :2]
    # An IoU over t leaves less than 1 - t of a box's width to its left. So, sorted by left edges, duplicates follow
    # closely, and each pass compares boxes one step further apart that are still in reach, until none is: no n x n
    # pairs.
    reach = sorted_xyxy[:, 0] + (1 - DUPLICATE_IOU) * sides[:, 0]
    first, step = np.arange(len(order)), 1
    while len(first):
        first = first[first + step < len(order)]
        second = first + step
        near = (sorted_owner[first] == sorted_owner[second]) & (sorted_xyxy[second, 0] <= reach[first])
        first, second = first[near], second[near]
        top_left = np.maximum(sorted_xyxy[first, :2], sorted_xyxy[second, :2])
        bottom_right = np.minimum(sorted_xyxy[first, 2:], sorted_xyxy[second, 2:])
        overlap = (bottom_right - top_left).clip(0).prod(axis=1)
        union = sides[first].prod(axis=1) + sides[second].prod(axis=1) - overlap
        pairs = np.stack([order[first], order[second]], axis=1)[overlap > DUPLICATE_IOU * union]
        np.minimum.at(earlier, pairs.max(axis=1), pairs.min(axis=1))
        step += 1
    return np.where(earlier < len(image_index), earlier, -1)


def _small_boxes(annotations: Annotations, input_shape: Sequence[int], tile: int) -> list[Finding]:
    """One Finding where many of the boxes are too small in the input to be found, with what would make them larger."""
    sides = np.sqrt(box_sizes_at_input(annotations, input_shape, tile).prod(axis=1))
    share = float((sides < SMALL_SIDE).mean()) if len(sides) else 0.0
    if share < MANY_SMALL:
        return []
    wanted = GOOD_SIDE / max(float(np.percentile(sides, 25, method="lower")), 0.1)
    drawn = np.sqrt((annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]).prod(axis=1, dtype=np.float64))
    # A square tile is scaled by the shorter side of the input.
    smaller = int(min(input_shape) * np.percentile(drawn, 25, method="lower") / GOOD_SIDE / SIDE_STEP) * SIDE_STEP
    larger = [math.ceil(side * wanted / SIDE_STEP) * SIDE_STEP for side in input_shape]
    ways = [f"tile = {smaller}"] if smaller else []
    ways += [f"input_shape = {larger}"] if max(larger) <= LARGEST_INPUT else []
    advice = f"; three quarters have {GOOD_SIDE} pixels with {', or with '.join(ways)}" if ways else ""
    return [Finding("small_boxes", "", f"{share:.0%} of {len(sides)} in training{advice}")]


def _odd_boxes(
    annotations: Annotations, class_names: Sequence[str], input_shape: Sequence[int], sizes_wh: np.ndarray
) -> list[Finding]:
    shorter, longer = sizes_wh.min(axis=1, initial=np.inf), sizes_wh.max(axis=1, initial=0)
    findings = []
    for kind, is_odd in (
        ("vanishing_box", shorter < MIN_SIDE),
        ("tiny_box", (shorter >= MIN_SIDE) & (shorter < TINY_SIDE)),
        ("thin_box", longer > THIN_ASPECT * shorter),
        ("difficult_box", annotations.difficult),
    ):
        findings += _box_findings(kind, annotations, np.flatnonzero(is_odd), class_names, input_shape, sizes_wh)
    return findings


def _box_findings(
    kind: str,
    annotations: Annotations,
    rows: np.ndarray,
    class_names: Sequence[str],
    input_shape: Sequence[int],
    sizes_wh: np.ndarray,
) -> list[Finding]:
    """One Finding for each of these rows of the box arrays, with what it takes to find the box in its image."""
    owners = np.searchsorted(annotations.offsets, rows, side="right") - 1
    found = annotations.boxes_xyxy[rows].tolist(), sizes_wh[rows].tolist()
    columns = zip(owners, annotations.classes[rows], *found, strict=True)
    findings = []
    for image_index, class_id, box_xyxy, (width, height) in columns:
        corners = ",".join(f"{value:.6g}" for value in box_xyxy)
        at_input = f"{width:.1f} x {height:.1f} at {input_shape[0]}x{input_shape[1]}"
        findings.append(Finding(kind, annotations.path(image_index), f"{class_names[class_id]} {corners} ({at_input})"))
    return findings
