"""From which confidence on the boxes of a class are as precise as they should be, by a labelled validation set."""

from typing import NamedTuple

import numpy as np

from utils.evaluation.matching import match_voc

# The interval holds the true precision four times in five, so that it lies below its lower end once in ten.
WILSON_Z = 1.2816


class ClassThreshold(NamedTuple):
    """confidence: from which on the boxes of a class are precise enough, NaN where they nowhere are. Of these boxes:
    boxes: how many there are on the validation set; precision: the share of right ones; low, high: its 80 % interval;
    recall: the share of labelled objects that they find. Where confidence is NaN all of these are of the confidence
    whose lower end is highest; without any box they are NaN, and boxes is 0.
    """

    confidence: float
    boxes: int
    precision: float
    low: float
    high: float
    recall: float


def wilson_interval(right, total):
    """(low, high) of a share `right` out of `total`, arrays or numbers, total above 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    right, total, square = np.asarray(right, np.float64), np.asarray(total, np.float64), WILSON_Z**2
    middle = (right + square / 2) / (total + square)
    half = WILSON_Z / (total + square) * np.sqrt(right * (total - right) / total + square / 4)
    return middle - half, middle + half


def class_thresholds(ground_truth, detections, num_classes, precision):
    """The ClassThreshold of each class: the lowest confidence from which on the lower end of the interval is at least
    `precision`, a share below 1. Boxes that found something difficult are neither right nor wrong; a box is right from
    an IoU of 0.5 on."""
    matches = match_voc(ground_truth, detections, num_classes)
    thresholds = []
    for class_id in range(num_classes):
        rows = np.flatnonzero((detections.classes == class_id) & ~matches.ignored[0])
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
        objects = int(np.sum(matches.counted & (ground_truth.classes == class_id)))
        thresholds.append(_threshold(detections.scores[rows], matches.true_positive[0, rows], objects, precision))
    return thresholds


def _threshold(scores, is_right, objects, precision):
    """scores: (N,), falling; is_right: (N,) bool; objects: how many there are to find."""
    # Boxes of one score stay together: a row stands for all boxes up to the last of its score.
    ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(scores)])
    if not len(ends):
        return ClassThreshold(np.nan, 0, np.nan, np.nan, np.nan, np.nan)
    right, total = np.cumsum(is_right)[ends], ends + 1
    low, high = wilson_interval(right, total)
    enough = np.flatnonzero(low >= precision)
    at = enough[-1] if len(enough) else int(np.argmax(low))
    confidence = float(scores[ends[at]]) if len(enough) else np.nan
    shares = right[at] / total[at], low[at], high[at], right[at] / max(objects, 1)
    return ClassThreshold(confidence, int(total[at]), *map(float, shares))
