"""Labelled boxes and detections as evaluation takes them, from rows that are easy to write down."""

import numpy as np

from utils.evaluation.types import DetectionTable, GroundTruth


def truth(*rows):
    """Rows of image, x1, y1, x2, y2, class, difficult."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return GroundTruth(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5].astype(np.int64), table[:, 6] > 0)


def found(*rows):
    """Rows of image, x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return DetectionTable(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5], table[:, 6].astype(np.int64))


def random_set(seed, images=6, labelled=8, per_image=60, classes=3):
    """Boxes of all sizes, many detections of each, some difficult; odd seeds have many equal scores and boxes."""
    random = np.random.default_rng(seed)
    count, step = images * labelled, 10 if seed % 2 else 0.1
    corner = random.uniform(0, 300, (count, 2))
    boxes = np.concatenate([corner, corner + np.exp(random.uniform(2, 5.5, (count, 2)))], 1)
    boxes = np.round(boxes / step) * step
    ids, labels = random.integers(images, size=count), random.integers(classes, size=count)
    ground_truth = GroundTruth(ids, boxes, labels, random.random(count) < 0.15)
    source = random.integers(count, size=images * per_image)
    size = np.tile(boxes[source, 2:] - boxes[source, :2], 2)
    shifted = np.round((boxes[source] + random.normal(0, 0.12, size.shape) * size) / step) * step
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2])
    scores = random.random(len(source))
    return ground_truth, DetectionTable(ids[source], shifted, scores.round(1) if seed % 2 else scores, labels[source])
