"""PASCAL VOC average precision, by the rules of the VOC development kit (VOCevaldet.m)."""

from typing import NamedTuple

import numpy as np

from utils.eval.curves import Outcome, average_precision


class Matches(NamedTuple):
    """What became of each of D detections, in the order in which they were given."""

    best_iou: np.ndarray  # (D,) IoU with best_index; 0 where image and class hold no ground truth
    best_index: np.ndarray  # (D,) ground-truth box of highest IoU in the same image and class; -1 for none
    true_positive: np.ndarray  # (D,) bool
    ignored: np.ndarray  # (D,) bool, found a difficult box; every other detection is a false positive


def voc_average_precisions(ground_truth, detections, num_classes, weights, iou=0.5):
    """AP of each class in the four ways in which people compute it: {name: (C, B)}, NaN without a non-difficult box.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py), checked. weights: (I, B), see
    average_precision. iou: a detection is right from this IoU on, iou included.
    Names: map50, the area under the curve; map50_11_point, the mean of eleven precisions; both also with _plus_one,
    where pixels are counted as the kit does (width = x2 - x1 + 1).
    """
    scores = {}
    for suffix in ("", "_plus_one"):
        outcome = voc_outcome(ground_truth, detections, num_classes, iou, plus_one=suffix != "")
        area, eleven = average_precision(outcome, ground_truth, detections, num_classes, (0, 11), weights)[:, :, 0]
        scores |= {f"map50{suffix}": area, f"map50_11_point{suffix}": eleven}
    return scores


def voc_outcome(ground_truth, detections, num_classes, iou=0.5, plus_one=False):
    """The Outcome of match_detections, with which it shares its arguments."""
    matches = match_detections(ground_truth, detections, num_classes, iou, plus_one)
    return Outcome(matches.true_positive[None], matches.ignored[None], ~ground_truth.difficult)


def match_detections(ground_truth, detections, num_classes, iou=0.5, plus_one=False):
    """Match each detection to the ground-truth box of highest IoU in its image and class.

    iou: from it on, a difficult box makes the detection ignored; another is a true positive for the detection of the
    highest score and a false positive for the later ones. plus_one: see voc_average_precisions.
    Returns Matches; no Python loop over images or boxes.
    """
    best_iou = np.zeros(len(detections.scores))
    best_index = np.full(len(best_iou), -1)
    for rows, candidate in same_class_pairs(ground_truth, detections, num_classes):
        overlap = paired_iou(ground_truth.boxes_xyxy[candidate], detections.boxes_xyxy[rows], plus_one)
        better = (overlap > best_iou[rows]) | (best_index[rows] < 0)
        best_iou[rows[better]], best_index[rows[better]] = overlap[better], candidate[better]
    hit = (best_index >= 0) & (best_iou >= iou)
    ignored = np.zeros(len(hit), bool)
    ignored[hit] = ground_truth.difficult[best_index[hit]]
    candidates = np.flatnonzero(hit & ~ignored)
    candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
    true_positive = np.zeros(len(hit), bool)
    true_positive[candidates[np.unique(best_index[candidates], return_index=True)[1]]] = True
    return Matches(best_iou, best_index, true_positive, ignored)


def same_class_pairs(ground_truth, detections, num_classes):
    """Yield (detections, a ground-truth box of the same image and class for each): every pair once, as index arrays."""
    group_of_truth = ground_truth.image_ids * num_classes + ground_truth.classes
    group_of_detection = detections.image_ids * num_classes + detections.classes
    order = np.argsort(group_of_truth, kind="stable")
    start, stop = (np.searchsorted(group_of_truth[order], group_of_detection, side) for side in ("left", "right"))
    # The first, second, ... box of every group at once: as many rounds as the fullest group has boxes.
    for offset in range(int((stop - start).max(initial=0))):
        rows = np.flatnonzero(start + offset < stop)
        yield rows, order[start[rows] + offset]


def paired_iou(boxes_a_xyxy, boxes_b_xyxy, plus_one=False, of_b=False):
    """IoU (N,) of row n of one (N, 4) array with row n of the other; 0 where neither has an area.

    of_b: (N,) bool or False; where True, the share of box b that lies in box a instead.
    """
    extra = 1.0 if plus_one else 0.0
    a, b = boxes_a_xyxy.astype(np.float64), boxes_b_xyxy.astype(np.float64)
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra).clip(0).prod(1)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + extra).prod(1) for box in (a, b))
    union = np.where(of_b, area_b, area_a + area_b - inner)
    return inner / np.where(union > 0, union, 1)
