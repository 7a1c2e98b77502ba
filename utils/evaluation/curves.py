"""The curves of precision and recall behind an average precision, and the numbers that are read from them."""

from typing import NamedTuple

import numpy as np

from utils.evaluation.average_precision import detections_by_class

# False positives per image at which the miss rate is read (Dollar et al., Pedestrian Detection, 2012, section 3.1).
REFERENCE_FALSE_POSITIVES = np.logspace(-2, 0, 9)


class Curves(NamedTuple):
    """Quality of C classes at one IoU. NaN: the class has no counted box, or nothing was detected to be precise about.

    precision, recall, f1, confidence: (C,) at the confidence of the best F1; detections from it on count
    miss_rate: (C,) log-average miss rate, 0 is perfect
    confidences: (S,) axis of precision_at, recall_at and f1_at, each (C, S)
    recalls: (R,) axis of precision_over_recall (C, R), the best precision at this recall or a higher one
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    confidence: np.ndarray
    miss_rate: np.ndarray
    confidences: np.ndarray
    precision_at: np.ndarray
    recall_at: np.ndarray
    f1_at: np.ndarray
    recalls: np.ndarray
    precision_over_recall: np.ndarray


def mean_over_classes(values):
    """Mean over the first axis, (C, ...) -> (...), of what is not NaN; NaN where nothing is."""
    defined = np.isfinite(values)
    return np.where(defined, values, 0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)


def pr_curves(matches, ground_truth, detections, num_classes, num_images, steps=101):
    """The Curves at the first threshold of Matches. steps: points on each axis."""
    scores = detections.scores
    axis = np.linspace(min(0.0, scores.min(initial=0)), max(1.0, scores.max(initial=1)), steps)
    recalls = np.linspace(0, 1, steps)
    numbers, lines = np.full((5, num_classes), np.nan), np.full((4, num_classes, steps), np.nan)
    for class_id, rows, truth in detections_by_class(matches, ground_truth, detections, num_classes):
        rows = rows[~matches.ignored[0, rows]]
        ordered, boxes, counted = scores[rows], len(truth), np.arange(len(rows) + 1)
        found = np.concatenate([[0], np.cumsum(matches.true_positive[0, rows])])
        # Row n stands for the n highest-scoring detections; equal scores stay together.
        f1 = 2 * found / (counted + boxes)
        apart = np.concatenate([[True], ordered[1:] < ordered[:-1], [True]])[: len(f1)]
        best = int(np.argmax(np.where(apart, f1, 0)))
        misses = 1 - found / boxes
        last = np.searchsorted((counted - found) / num_images, REFERENCE_FALSE_POSITIVES, "right") - 1
        miss_rate = np.exp(np.log(np.maximum(misses[last], 1e-10)).mean())
        precision = np.divide(found, counted, out=np.full(len(f1), np.nan), where=counted > 0)
        confidence = ordered[best - 1] if best else np.nan
        precision_there = precision[best or min(1, len(rows))]
        numbers[:, class_id] = precision_there, 1 - misses[best], f1[best], confidence, miss_rate
        kept = np.searchsorted(-ordered, -axis, "right")
        envelope = np.append(np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1], 0)
        first = np.searchsorted(found / boxes, recalls)
        lines[:, class_id] = precision[kept], 1 - misses[kept], f1[kept], envelope[first]
    return Curves(*numbers, axis, *lines[:3], recalls, lines[3])
