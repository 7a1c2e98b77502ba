"""What every evaluation takes in: flat arrays over all images, and the checks that keep wrong ones out."""

from typing import NamedTuple

import numpy as np

from utils.io.errors import UserError


class GroundTruth(NamedTuple):
    """The M labelled boxes of all images. Boxes are x1, y1, x2, y2 in pixels of the original image."""

    image_ids: np.ndarray  # (M,) int64
    boxes_xyxy: np.ndarray  # (M, 4) float
    classes: np.ndarray  # (M,) int64
    difficult: np.ndarray  # (M,) bool; finding such a box is neither right nor wrong
    areas: np.ndarray | None = None  # (M,) what makes a box small, medium or large to COCO; None: width * height


class DetectionTable(NamedTuple):
    """The D detected boxes of all images. Boxes are x1, y1, x2, y2 in pixels of the original image."""

    image_ids: np.ndarray  # (D,) int64
    boxes_xyxy: np.ndarray  # (D, 4) float
    scores: np.ndarray  # (D,) float, higher is surer
    classes: np.ndarray  # (D,) int64


def check_inputs(ground_truth, detections, num_classes, num_images=None):
    """Raise ValueError where the arrays would give a number that means nothing.

    num_images: image ids must lie in [0, num_images); None accepts any.
    Refused: arrays of unequal length, classes outside [0, num_classes), ids of unknown images, coordinates or scores
    that are NaN or infinite, boxes with x2 < x1 or y2 < y1. Boxes without area pass.
    """
    for kind, arrays in (("ground truth", ground_truth), ("detections", detections)):
        count = len(arrays.image_ids)
        for field, values in arrays._asdict().items():
            expected = (count, 4) if field == "boxes_xyxy" else (count,)
            if values is not None and np.shape(values) != expected:
                raise UserError(f"{kind}: {field} has the shape {np.shape(values)}, expected {expected}.")
        _refuse_any(
            (arrays.classes < 0) | (arrays.classes >= num_classes),
            f"{kind}: class {{}} is not in 0..{num_classes - 1}, the classes of the class list",
            arrays.classes,
        )
        if num_images is not None:
            _refuse_any(
                (arrays.image_ids < 0) | (arrays.image_ids >= num_images),
                f"{kind}: image id {{}} is unknown, expected 0..{num_images - 1}, one of the evaluated images",
                arrays.image_ids,
            )
        boxes = arrays.boxes_xyxy
        _refuse_any(~np.isfinite(boxes).all(1), f"{kind}: the box {{}} holds NaN or infinity", boxes)
        _refuse_any((boxes[:, 2:] < boxes[:, :2]).any(1), f"{kind}: the box {{}} has x2 < x1 or y2 < y1", boxes)
    _refuse_any(~np.isfinite(detections.scores), "detections: the score {} is no finite number", detections.scores)


def _refuse_any(bad, message, values):
    if bad.any():
        first = int(np.argmax(bad))
        value = np.asarray(values[first]).tolist()
        raise UserError(f"{message.format(value)} (entry {first}; {bad.sum()} such in all).")
