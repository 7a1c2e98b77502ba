"""Which detection found which labelled box: by the rules of VOC, of COCO, and across classes.

ground_truth and detections are GroundTruth and DetectionTable (utils/evaluation/types.py), checked: M labelled boxes, D
detections. No Python loop over images or boxes.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100  # of one image and class count, the highest-scoring
# Areas in pixels of the boxes that have to be found.
AREAS = {"AP": (0, 1e10), "AP_small": (0, 32**2), "AP_medium": (32**2, 96**2), "AP_large": (96**2, 1e10)}


class Matches(NamedTuple):
    """What became of the detections and boxes at K thresholds of IoU; a detection else is a false positive."""

    true_positive: np.ndarray  # (K, D) bool, the highest-scoring that found a counted box
    ignored: np.ndarray  # (K, D) bool, neither right nor wrong
    counted: np.ndarray  # (M,) bool, the box has to be found


def match_voc(ground_truth, detections, num_classes, iou=0.5, plus_one=False):
    """Matches at one IoU: each detection goes to the box of highest IoU in its image and class (VOCevaldet.m).

    iou: from it on, a difficult box makes the detection ignored; another is a true positive for the detection of the
    highest score and a false positive for the later ones. plus_one: pixels are counted as the VOC kit does
    (width = x2 - x1 + 1).
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
    return Matches(true_positive[None], ignored[None], ~ground_truth.difficult)


def match_coco(ground_truth, detections, num_classes):
    """{name of AREAS: Matches at IOUS}, by the rules of pycocotools (cocoeval.py, evaluateImg).

    In the order of their scores, each detection takes the free box of highest IoU. Boxes that are difficult or of
    another size are only taken where no counted one is left, and make the detection ignored, as does its own size where
    it takes none.
    """
    areas, areas_found = areas_of(ground_truth), _areas(detections.boxes_xyxy)
    pairs = overlapping_pairs(ground_truth, detections, num_classes)
    beyond_max = _rank(detections, np.arange(len(detections.scores)), num_classes) >= MAX_DETECTIONS
    matches = {}
    for name, (smallest, largest) in AREAS.items():
        counted = ~ground_truth.difficult & (areas >= smallest) & (areas <= largest)
        true_positive, taken = _take_boxes(pairs, detections, num_classes, counted, ground_truth.difficult, beyond_max)
        outside = (areas_found < smallest) | (areas_found > largest)
        matches[name] = Matches(true_positive, ~true_positive & (taken | outside | beyond_max), counted)
    return matches


def confusion_matrix(ground_truth, detections, num_classes, confidences, iou=0.5):
    """(C + 1, C + 1) int64: how many boxes of a true class (row) were detected as a class (column).

    The last row counts detections of background, the last column boxes that were not found. confidences: (C,) or one
    number, from which on a detection counts. iou: as in match_any_class. A difficult box is in no row, and a detection
    that takes no box but overlaps one of them is left out.
    """
    detections, _ = sure_detections(detections, confidences, num_classes)
    matched, matched_box, ignored = match_any_class(ground_truth, detections, iou)
    true_class = np.full(len(detections.scores), num_classes)
    true_class[matched] = ground_truth.classes[matched_box]
    missed = ~ground_truth.difficult
    missed[matched_box] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (true_class[~ignored], detections.classes[~ignored]), 1)
    np.add.at(matrix, (ground_truth.classes[missed], num_classes), 1)
    return matrix


def sure_detections(detections, confidences, num_classes):
    """Those from a confidence on, and their rows (N,) among all. confidences: (C,), or one number for all classes."""
    confidences = np.broadcast_to(confidences, num_classes)
    rows = np.flatnonzero(detections.scores >= confidences[detections.classes])
    return type(detections)(*(column[rows] for column in detections)), rows


def match_any_class(ground_truth, detections, iou):
    """Which detection takes which box of its image, of whatever class: (detections, boxes, ignored).

    The first two are rows that belong together, (P,) each: from an IoU on, iou included, the highest-scoring detection
    chooses first, the free box that it overlaps most. ignored: (D,) bool, detections that take no box and overlap a
    difficult one, which nothing takes.
    """
    # As if there were one class.
    anything = (part._replace(classes=np.zeros_like(part.classes)) for part in (ground_truth, detections))
    found, box, overlap = overlapping_pairs(*anything, 1, iou, crowds=False)
    is_difficult = ground_truth.difficult[box]
    counted = found[~is_difficult], box[~is_difficult], overlap[~is_difficult]
    matched, matched_box = take_boxes_once(*counted, detections.scores)
    ignored = np.zeros(len(detections.scores), bool)
    ignored[found[is_difficult]] = True
    ignored[matched] = False
    return matched, matched_box, ignored


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

    of_b: (N,) bool or False; where True, the fraction of box b that lies in box a instead.
    """
    extra = 1.0 if plus_one else 0.0
    a, b = boxes_a_xyxy.astype(np.float64), boxes_b_xyxy.astype(np.float64)
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra).clip(0).prod(1)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + extra).prod(1) for box in (a, b))
    union = np.where(of_b, area_b, area_a + area_b - inner)
    return inner / np.where(union > 0, union, 1)


def areas_of(ground_truth):
    """(M,) areas by which boxes count as small, medium or large: of outlines where these are known, else their own."""
    return _areas(ground_truth.boxes_xyxy) if ground_truth.areas is None else ground_truth.areas


def _areas(boxes_xyxy):
    return (boxes_xyxy[:, 2:].astype(np.float64) - boxes_xyxy[:, :2]).prod(1)


def _rank(detections, rows, num_classes):
    """(N,) place of each of these detections among those of its image and class, the highest score 0."""
    group = detections.image_ids[rows] * num_classes + detections.classes[rows]
    order = np.lexsort((-detections.scores[rows], group))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(group[order], group[order])
    return ranks


def overlapping_pairs(ground_truth, detections, num_classes, iou=IOUS[0], crowds=True):
    """Pairs of an image and class that overlap enough to match: detection, ground-truth box, IoU; each (P,).

    crowds: for a difficult box, which may stand for many objects, the fraction of the detection that lies in it.
    """
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, truth in same_class_pairs(ground_truth, detections, num_classes):
        of_b = crowds & ground_truth.difficult[truth]
        overlap = paired_iou(ground_truth.boxes_xyxy[truth], detections.boxes_xyxy[rows], of_b=of_b)
        near = overlap >= iou
        found.append((rows[near], truth[near], overlap[near]))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _take_boxes(pairs, detections, num_classes, counted, difficult, beyond_max):
    """Who takes which box: (took a counted one, took another one), both (K, D) bool."""
    rows, truth, overlap = (part[~beyond_max[pairs[0]]] for part in pairs)
    numbers = np.unique(rows)
    ranks = np.zeros(len(beyond_max), np.int64)
    ranks[numbers] = _rank(detections, numbers, num_classes)
    # The best pair of a detection comes last: a counted box, then the higher IoU, then the later box.
    order = np.lexsort((truth, overlap, counted[truth], rows, ranks[rows]))
    rows, truth, overlap = rows[order], truth[order], overlap[order]
    is_near = overlap >= IOUS[:, None]
    true_positive, others = (np.zeros((len(IOUS), len(beyond_max)), bool) for _ in range(2))
    taken = np.zeros((len(IOUS), len(counted)), bool)
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
        true_positive[level, chooser] = counted[chosen]
        others[level, chooser] = ~counted[chosen]
    return true_positive, others


def take_boxes_once(found, box, overlap, scores):
    """One box per detection at most, and the reverse: (detections, boxes), chosen by score and then by overlap."""
    order = np.lexsort((-overlap, found, -scores[found]))
    found, box, matches = found[order], box[order], [(found[:0], box[:0])]
    while len(found):
        # A pair is certain if it is the first left of its detection and no higher-scoring detection wants the box.
        certain = np.intersect1d(np.unique(found, return_index=True)[1], np.unique(box, return_index=True)[1])
        matches.append((found[certain], box[certain]))
        left = ~(np.isin(found, found[certain]) | np.isin(box, box[certain]))
        found, box = found[left], box[left]
    return [np.concatenate(part) for part in zip(*matches, strict=True)]
