"""From matched detections to average precision, and to the curves of precision and recall behind it."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Numbers held at a time while many resamplings are scored; a processor's cache shall hold them.
MAX_NUMBERS = 2_500_000
# False positives per image at which the miss rate is read (Dollar et al., Pedestrian Detection, 2012, section 3.1).
REFERENCE_FALSE_POSITIVES = np.logspace(-2, 0, 9)


class Outcome(NamedTuple):
    """What became of D detections and M labelled boxes at K thresholds of IoU; a detection else is a false positive."""

    right: np.ndarray  # (K, D) bool, the surest that found a wanted box
    ignored: np.ndarray  # (K, D) bool, neither right nor wrong
    wanted: np.ndarray  # (M,) bool, has to be found


class Curves(NamedTuple):
    """Quality of C classes at one IoU. NaN: the class has no wanted box, or nothing was detected to be precise about.

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


def average_precision(outcome, ground_truth, detections, num_classes, points, weights):
    """AP by each rule of each class, threshold and resampling: (P, C, K, B); NaN where a class has no wanted box.

    points: P rules; n averages the precision at n recalls from 0 to 1: 11 (VOC2007), 101 (COCO); 0 takes the area under
        the curve (VOC2010 on)
    weights: (I, B) how often each image counts; ones (I, 1) for the score itself, columns of counts for resamplings.
        float64 gives exact numbers; float32 is faster, and off by a hundredth where a recall is reached exactly.
    """
    result = np.full((len(points), num_classes, len(outcome.right), weights.shape[1]), np.nan)
    for class_id, rows, truth in _by_class(outcome, ground_truth, detections, num_classes):
        rows = rows[~outcome.ignored[:, rows].all(0)]
        right, ignored = outcome.right[:, rows], outcome.ignored[:, rows]
        step = max(1, MAX_NUMBERS // (len(rows) + 1))
        for first in range(0, weights.shape[1], step):
            some = weights[:, first : first + step]
            boxes = some[ground_truth.image_ids[truth]].sum(0)
            areas = _areas(right, ignored, some[detections.image_ids[rows]], boxes, points)
            result[:, class_id, :, first : first + step] = np.where(boxes > 0, areas, np.nan)
    return result


def _by_class(outcome, ground_truth, detections, num_classes):
    """(class, its detections from the surest on, its wanted boxes) of each class with a wanted box; index arrays."""
    # Among equal scores the order of the images decides, as in COCO, so that no machine gives another number.
    order = np.lexsort((detections.image_ids, -detections.scores, detections.classes))
    bounds = np.searchsorted(detections.classes[order], np.arange(num_classes + 1))
    wanted = np.flatnonzero(outcome.wanted)
    for class_id in np.unique(ground_truth.classes[wanted]):
        truth = wanted[ground_truth.classes[wanted] == class_id]
        yield class_id, order[bounds[class_id] : bounds[class_id + 1]], truth


def _areas(right, ignored, weights, boxes, points):
    """AP (P, K, B) of a class from its detections in falling score: right, ignored (K, D), weights (D, B); boxes (B,)
    is how many there are to find.
    """
    areas = np.empty((len(points), len(right), len(boxes)))
    counted = _running(np.add, weights.copy())
    for level, (right_here, ignored_here) in enumerate(zip(right, ignored, strict=True)):
        # Precision only rises where a detection is right, so the curve is known from these rows alone.
        hits, left_out = np.flatnonzero(right_here), np.flatnonzero(ignored_here)
        precision = _running(np.add, weights[hits])
        recall, before = precision / np.maximum(boxes, 1), counted[hits]
        if len(left_out):
            sums = _running(np.add, np.insert(weights[left_out], 0, 0, 0))
            before -= sums[np.searchsorted(left_out, hits)]
        precision /= np.maximum(before, 1)
        _running(np.maximum, precision[::-1])  # the best precision at this recall or a higher one
        for rule, number in enumerate(points):
            reached = _share_reached(recall, number) if number else recall
            areas[rule, level] = np.einsum("db,db->b", np.diff(reached, axis=0, prepend=0), precision)
    return areas


def _share_reached(recall, number):
    """The share of so many recalls from 0 to 1 that each recall (D, B) reaches."""
    recalls = np.linspace(0, 1, number).astype(recall.dtype)
    # The same as np.searchsorted(recalls, recall, "right"), several times faster.
    below = (recall * (number - 1) + 1e-4).astype(np.int32)
    return (below + (recalls[below] <= recall)) / recall.dtype.type(number)


def _running(operation, rows):
    """The running sum or maximum down the rows, in place; many times faster than accumulate where rows are long."""
    if rows.shape[1] < 32:
        return operation.accumulate(rows, 0, out=rows)
    for above, here in pairwise(rows):
        operation(above, here, out=here)
    return rows


def mean_over_classes(values):
    """Mean over the first axis, (C, ...) -> (...), of what is not NaN; NaN where nothing is."""
    defined = np.isfinite(values)
    return np.where(defined, values, 0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)


def draw_from(outcome, ground_truth, detections, num_classes, num_images, steps=101):
    """The Curves of an Outcome's first threshold. steps: points on each axis."""
    scores = detections.scores
    axis = np.linspace(min(0.0, scores.min(initial=0)), max(1.0, scores.max(initial=1)), steps)
    recalls = np.linspace(0, 1, steps)
    numbers, lines = np.full((5, num_classes), np.nan), np.full((4, num_classes, steps), np.nan)
    for class_id, rows, truth in _by_class(outcome, ground_truth, detections, num_classes):
        rows = rows[~outcome.ignored[0, rows]]
        sure, boxes, counted = scores[rows], len(truth), np.arange(len(rows) + 1)
        found = np.concatenate([[0], np.cumsum(outcome.right[0, rows])])
        # Row n stands for the n surest detections; equal scores stay together.
        f1 = 2 * found / (counted + boxes)
        apart = np.concatenate([[True], sure[1:] < sure[:-1], [True]])[: len(f1)]
        best = int(np.argmax(np.where(apart, f1, 0)))
        misses = 1 - found / boxes
        last = np.searchsorted((counted - found) / num_images, REFERENCE_FALSE_POSITIVES, "right") - 1
        miss_rate = np.exp(np.log(np.maximum(misses[last], 1e-10)).mean())
        precision = np.divide(found, counted, out=np.full(len(f1), np.nan), where=counted > 0)
        confidence = sure[best - 1] if best else np.nan
        precision_there = precision[best or min(1, len(rows))]
        numbers[:, class_id] = precision_there, 1 - misses[best], f1[best], confidence, miss_rate
        kept = np.searchsorted(-sure, -axis, "right")
        envelope = np.append(np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1], 0)
        first = np.searchsorted(found / boxes, recalls)
        lines[:, class_id] = precision[kept], 1 - misses[kept], f1[kept], envelope[first]
    return Curves(*numbers, axis, *lines[:3], recalls, lines[3])
