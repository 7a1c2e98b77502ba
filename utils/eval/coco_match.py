"""The matching of COCO for all images at once: what each detection is, to score the same detections many times.

It gives the numbers of utils/eval/coco.py, which can only say them for all images together.
"""

from itertools import pairwise

import numpy as np

from utils.eval.curves import Outcome, average_precision
from utils.eval.voc import paired_iou, same_class_pairs

IOUS = np.linspace(0.5, 0.95, 10)
MAX_BOXES = 100  # of one image and class count, the surest
# Areas in pixels of the boxes that have to be found.
AREAS = {"AP": (0, 1e10), "AP_small": (0, 32**2), "AP_medium": (32**2, 96**2), "AP_large": (96**2, 1e10)}


def coco_average_precisions(ground_truth, detections, num_classes, weights):
    """AP of each class: {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large": (C, B)}, NaN where no box counts.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py), checked. weights: (I, B), see
    average_precision.
    """
    scores = {}
    for name, outcome in coco_outcomes(ground_truth, detections, num_classes).items():
        (by_iou,) = average_precision(outcome, ground_truth, detections, num_classes, (101,), weights)
        scores[name] = by_iou.mean(1)
        if name == "AP":
            scores |= {"AP50": by_iou[:, 0], "AP75": by_iou[:, 5]}
    return scores


def coco_outcomes(ground_truth, detections, num_classes):
    """{name of AREAS: Outcome at IOUS}, by the rules of pycocotools (cocoeval.py, evaluateImg).

    From the surest on, a detection takes the free box of highest IoU. Boxes that are difficult or of another size are
    only taken where no wanted one is left, and make the detection ignored, as does its own size where it takes none.
    """
    areas = areas_of(ground_truth)
    areas_found = _areas(detections.boxes_xyxy)
    pairs = _overlapping(ground_truth, detections, num_classes)
    late = _rank(detections, np.arange(len(detections.scores)), num_classes) >= MAX_BOXES
    outcomes = {}
    for name, (smallest, largest) in AREAS.items():
        wanted = ~ground_truth.difficult & (areas >= smallest) & (areas <= largest)
        right, taken = _match(pairs, detections, num_classes, wanted, ground_truth.difficult, late)
        outside = (areas_found < smallest) | (areas_found > largest)
        outcomes[name] = Outcome(right, ~right & (taken | outside | late), wanted)
    return outcomes


def areas_of(ground_truth):
    """(M,) areas by which boxes count as small, medium or large: of outlines where these are known, else their own."""
    return _areas(ground_truth.boxes_xyxy) if ground_truth.areas is None else ground_truth.areas


def _areas(boxes_xyxy):
    return (boxes_xyxy[:, 2:].astype(np.float64) - boxes_xyxy[:, :2]).prod(1)


def _rank(detections, rows, num_classes):
    """(N,) place of each of these detections among those of its image and class, the surest 0."""
    group = detections.image_ids[rows] * num_classes + detections.classes[rows]
    order = np.lexsort((-detections.scores[rows], group))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(group[order], group[order])
    return ranks


def _overlapping(ground_truth, detections, num_classes):
    """Pairs of an image and class that overlap enough to match: detection, ground-truth box, IoU; each (P,)."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, truth in same_class_pairs(ground_truth, detections, num_classes):
        difficult = ground_truth.difficult[truth]
        overlap = paired_iou(ground_truth.boxes_xyxy[truth], detections.boxes_xyxy[rows], of_b=difficult)
        near = overlap >= IOUS[0]
        found.append((rows[near], truth[near], overlap[near]))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _match(pairs, detections, num_classes, wanted, difficult, late):
    """Who takes which box: right, and took one that is not wanted; both (K, D) bool."""
    rows, truth, overlap = (part[~late[pairs[0]]] for part in pairs)
    numbers = np.unique(rows)
    ranks = np.zeros(len(late), np.int64)
    ranks[numbers] = _rank(detections, numbers, num_classes)
    # The best pair of a detection comes last: a wanted box, then the higher IoU, then the later box.
    order = np.lexsort((truth, overlap, wanted[truth], rows, ranks[rows]))
    rows, truth, overlap = rows[order], truth[order], overlap[order]
    is_near = overlap >= IOUS[:, None]
    right, others = (np.zeros((len(IOUS), len(late)), bool) for _ in range(2))
    taken = np.zeros((len(IOUS), len(wanted)), bool)
    bounds = np.searchsorted(ranks[rows], np.arange(ranks.max(initial=0) + 2))
    # Round n lets the n-th detection of every image and class choose, at all thresholds.
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        part, box = rows[start:stop], truth[start:stop]
        possible = is_near[:, start:stop] & (difficult[box] | ~taken[:, box])
        firsts = np.flatnonzero(np.diff(part, prepend=-1))
        choice = np.maximum.reduceat(np.where(possible, np.arange(len(part)), -1), firsts, axis=1)
        level, place = np.nonzero(choice >= 0)
        chosen, chooser = box[choice[level, place]], part[firsts][place]
        taken[level, chosen] = True
        right[level, chooser] = wanted[chosen]
        others[level, chooser] = ~wanted[chosen]
    return right, others
