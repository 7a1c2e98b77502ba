"""Which detection found which labelled box: by the rules of VOC, of COCO, and across classes."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """What became of D detections and M labelled boxes at K thresholds of IoU; a detection else is a false positive."""

    right: np.ndarray  # (K, D) bool, the surest that found a wanted box
    ignored: np.ndarray  # (K, D) bool, neither right nor wrong
    wanted: np.ndarray  # (M,) bool, has to be found


class Matches(NamedTuple):
    """What became of each of D detections, in the order in which they were given."""

    best_iou: np.ndarray  # (D,) IoU with best_index; 0 where image and class hold no ground truth
    best_index: np.ndarray  # (D,) ground-truth box of highest IoU in the same image and class; -1 for none
    true_positive: np.ndarray  # (D,) bool
    ignored: np.ndarray  # (D,) bool, found a difficult box; every other detection is a false positive


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


IOUS = np.linspace(0.5, 0.95, 10)

MAX_BOXES = 100  # of one image and class count, the surest

# Areas in pixels of the boxes that have to be found.
AREAS = {"AP": (0, 1e10), "AP_small": (0, 32**2), "AP_medium": (32**2, 96**2), "AP_large": (96**2, 1e10)}


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


def confusion_matrix(ground_truth, detections, num_classes, confidences, iou=0.5):
    """(C + 1, C + 1) int64: how many boxes of a true class (row) were detected as a class (column).

    The last row counts detections of background, the last column boxes that were not found.
    ground_truth, detections: see utils/eval/inputs.py. confidences: (C,) or one number, from which on a detection
    counts. iou: from it on, iou included, a detection may take a box of its image, of whatever class. The surest
    detection chooses first, the free box that it overlaps most. A difficult box is in no row, and a detection that
    takes no box but overlaps one of them is left out.
    """
    confidences = np.broadcast_to(confidences, num_classes)
    kept = detections.scores >= confidences[detections.classes]
    detections = type(detections)(*(column[kept] for column in detections))
    found, box, overlap = _pairs(ground_truth, detections, iou)
    is_difficult = ground_truth.difficult[box]
    wanted = found[~is_difficult], box[~is_difficult], overlap[~is_difficult]
    matched, matched_box = _match_any_class(*wanted, detections.scores)
    true = np.full(len(detections.scores), num_classes)
    true[matched] = ground_truth.classes[matched_box]
    counted = np.ones(len(true), bool)
    counted[found[is_difficult]] = False
    counted[matched] = True
    missed = ~ground_truth.difficult
    missed[matched_box] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (true[counted], detections.classes[counted]), 1)
    np.add.at(matrix, (ground_truth.classes[missed], num_classes), 1)
    return matrix


def _pairs(ground_truth, detections, iou):
    """(detection, box, IoU) of all pairs of an image that overlap enough, as three arrays."""
    sets = (part._replace(classes=np.zeros_like(part.classes)) for part in (ground_truth, detections))
    nothing = np.zeros(0, np.int64)
    pairs = [(nothing, nothing), *same_class_pairs(*sets, 1)]
    found, box = (np.concatenate(part) for part in zip(*pairs, strict=True))
    overlap = paired_iou(ground_truth.boxes_xyxy[box], detections.boxes_xyxy[found])
    near = overlap >= iou
    return found[near], box[near], overlap[near]


def _match_any_class(found, box, overlap, scores):
    """One box per detection at most, and the reverse: (detections, boxes), chosen by score and then by overlap."""
    order = np.lexsort((-overlap, found, -scores[found]))
    found, box, matches = found[order], box[order], [(found[:0], box[:0])]
    while len(found):
        # A pair is certain if it is the first left of its detection and no surer detection wants the box.
        sure = np.intersect1d(np.unique(found, return_index=True)[1], np.unique(box, return_index=True)[1])
        matches.append((found[sure], box[sure]))
        left = ~(np.isin(found, found[sure]) | np.isin(box, box[sure]))
        found, box = found[left], box[left]
    return [np.concatenate(part) for part in zip(*matches, strict=True)]
