"""PASCAL VOC average precision, by the rules of the VOC development kit (VOCevaldet.m)."""

from typing import NamedTuple

import numpy as np

from utils.eval.inputs import check_inputs


class VocScores(NamedTuple):
    """VOC scores of C classes; NaN stands where a number is not defined.

    map: mean of ap over the classes with a non-difficult box; NaN where there is none at all
    ap, recall: NaN for a class without a non-difficult box
    precision: NaN for a class without a detection that counts at the confidence
    f1: NaN for a class with neither
    boxes: non-difficult ground-truth boxes
    """

    map: float
    ap: np.ndarray  # (C,)
    precision: np.ndarray  # (C,)
    recall: np.ndarray  # (C,)
    f1: np.ndarray  # (C,)
    boxes: np.ndarray  # (C,) int64


class Matches(NamedTuple):
    """What became of each of D detections, in the order in which they were given."""

    best_iou: np.ndarray  # (D,) IoU with best_index; 0 where image and class hold no ground truth
    best_index: np.ndarray  # (D,) ground-truth box of highest IoU in the same image and class; -1 for none
    true_positive: np.ndarray  # (D,) bool
    ignored: np.ndarray  # (D,) bool, found a difficult box; every other detection is a false positive


def voc_average_precision(
    ground_truth, detections, num_classes, iou=0.5, plus_one=False, eleven_point=False, confidence=0.5
):
    """Score detections by the rules of the VOC development kit.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py)
    iou: a detection is right from this IoU on, iou included
    plus_one: count pixels as the kit does (width = x2 - x1 + 1)
    eleven_point: mean precision at recall 0, 0.1, ... 1 (VOC2007) instead of the area under the curve (VOC2010 on)
    confidence: detections with at least this score count for precision, recall and F1
    Returns VocScores. Classes that occur only in detections do not count. Raises ValueError, see check_inputs.
    """
    check_inputs(ground_truth, detections, num_classes)
    matches = match_detections(ground_truth, detections, num_classes, iou, plus_one)
    boxes = np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=num_classes)

    # One stable sort for all classes: by class, then by descending score, ties in the order given.
    counted = np.flatnonzero(~matches.ignored)
    counted = counted[np.lexsort((-detections.scores[counted], detections.classes[counted]))]
    classes, right = detections.classes[counted], matches.true_positive[counted]
    bounds = np.searchsorted(classes, np.arange(num_classes + 1))
    ap = np.full(num_classes, np.nan)
    for class_id in np.flatnonzero(boxes):
        ap[class_id] = _average_precision(right[bounds[class_id] : bounds[class_id + 1]], boxes[class_id], eleven_point)

    confident = detections.scores[counted] >= confidence
    found = np.bincount(classes[confident], minlength=num_classes)
    found_right = np.bincount(classes[confident & right], minlength=num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that VocScores promises
        precision, recall, f1 = found_right / found, found_right / boxes, 2 * found_right / (found + boxes)
    recall[boxes == 0] = np.nan
    return VocScores(float(ap[boxes > 0].mean()) if boxes.any() else np.nan, ap, precision, recall, f1, boxes)


def match_detections(ground_truth, detections, num_classes, iou=0.5, plus_one=False):
    """Match each detection to the ground-truth box of highest IoU in its image and class.

    From that IoU on, a difficult box makes the detection ignored; another is a true positive for the detection of
    the highest score and a false positive for the later ones. Returns Matches; no Python loop over images or boxes.
    """
    best_iou, best_index = _best_boxes(ground_truth, detections, num_classes, plus_one)
    hit = (best_index >= 0) & (best_iou >= iou)
    ignored = np.zeros(len(hit), bool)
    ignored[hit] = ground_truth.difficult[best_index[hit]]
    candidates = np.flatnonzero(hit & ~ignored)
    candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
    true_positive = np.zeros(len(hit), bool)
    true_positive[candidates[np.unique(best_index[candidates], return_index=True)[1]]] = True
    return Matches(best_iou, best_index, true_positive, ignored)


def _best_boxes(ground_truth, detections, num_classes, plus_one):
    """Highest IoU (D,) and its ground-truth index (D,) within the image and class of each detection."""
    group_of_truth = ground_truth.image_ids * num_classes + ground_truth.classes
    group_of_detection = detections.image_ids * num_classes + detections.classes
    order = np.argsort(group_of_truth, kind="stable")
    start, stop = (np.searchsorted(group_of_truth[order], group_of_detection, side) for side in ("left", "right"))
    best_iou = np.zeros(len(start))
    best_index = np.where(stop > start, order[np.minimum(start, len(order) - 1)] if len(order) else -1, -1)
    # The loop runs over the first, second, ... box of every group at once, so it is as long as the fullest group.
    for offset in range(int((stop - start).max(initial=0))):
        rows = np.flatnonzero(start + offset < stop)
        candidate = order[start[rows] + offset]
        overlap = _paired_iou(ground_truth.boxes_xyxy[candidate], detections.boxes_xyxy[rows], plus_one)
        better = overlap > best_iou[rows]
        best_iou[rows[better]], best_index[rows[better]] = overlap[better], candidate[better]
    return best_iou, best_index


def _paired_iou(boxes_a_xyxy, boxes_b_xyxy, plus_one):
    """IoU (N,) of row n of one (N, 4) array with row n of the other; 0 where neither has an area."""
    extra = 1.0 if plus_one else 0.0
    a, b = boxes_a_xyxy.astype(np.float64), boxes_b_xyxy.astype(np.float64)
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra).clip(0).prod(1)
    union = (a[:, 2:] - a[:, :2] + extra).prod(1) + (b[:, 2:] - b[:, :2] + extra).prod(1) - inner
    return inner / np.where(union > 0, union, 1)


def _average_precision(right, boxes, eleven_point):
    """AP of one class from its detections in descending score: right (D,) bool, boxes > 0 to be found."""
    true_positives = np.cumsum(right)
    recall = true_positives / boxes
    precision = true_positives / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if eleven_point:
        first = np.searchsorted(recall, np.arange(11) / 10)
        return float(np.append(envelope, 0.0)[first].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
