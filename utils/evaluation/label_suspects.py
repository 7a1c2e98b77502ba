"""Where a detector and the labels contradict each other, so that the labels may be wrong.

The idea, and three of the four kinds, are those of Tkachenko et al. 2023, "ObjectLab: Automated Diagnosis of Mislabeled
Images in Object Detection Data", section 3; the scores are ours.
"""

from typing import NamedTuple

import numpy as np

from utils.evaluation.matching import same_class_pairs

# IoU: boxes below NEAR have nothing to do with each other, from SAME on they are of one object, and from TIGHT on their
# places agree: the boxes of a good detector reach 0.8 to 0.95.
_NEAR, _SAME, _TIGHT = 0.1, 0.5, 0.75
# Detections of a lower score do not even say that a label was found.
LOWEST_CONFIDENCE = 0.05
# A detector of a lower mAP@0.5 names mostly errors of its own.
TRUSTED_MAP = 0.7
# What stands against a suspicion before anything is known, in units of a detection's score: it keeps a detection of
# 0.05 that nothing contradicts from being as suspicious as one of 0.9.
_DOUBT = 0.1
# Of a suspect as a row, see row_of.
COLUMNS = (
    *("score", "kind", "image", "label", "label_x1", "label_y1", "label_x2", "label_y2"),
    *("found", "confidence", "found_x1", "found_y1", "found_x2", "found_y2", "iou"),
)


class Suspect(NamedTuple):
    """A probable error. score: 0 to 1; kind: "no label", "not found", "other class" or "loose box"; label and
    detection: rows of GroundTruth and of Detections, -1 for none; iou: of the two.
    """

    score: float
    kind: str
    label: int
    detection: int
    iou: float


class Pairs(NamedTuple):
    """Labels and detections that overlap, each (P,). The last entry is no pair: index -1 means that there is none.

    covered: the share of the smaller box that lies in the larger. alike: whether the classes are the same.
    """

    label: np.ndarray
    detection: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    covered: np.ndarray
    alike: np.ndarray


def find_suspects(labels, detections, num_classes, lowest_score=0.0):
    """The Suspects among the labels and detections of a set, the highest score first; a label is in one at most.

    labels, detections: GroundTruth and Detections, these from LOWEST_CONFIDENCE on. Labels that are marked difficult
    are none, and what is found in them is none. Suspects below lowest_score are left out.
    """
    pairs = overlapping(labels, detections)
    by_label = suspicious_labels(pairs, labels, detections, num_classes)
    named = {item.detection for item in by_label if item.score > 0}
    suspects = [*by_label, *unlabelled(pairs, labels, detections, named, lowest_score)]
    return sorted((item for item in suspects if item.score >= lowest_score), key=lambda item: -item.score)


def overlapping(labels, detections):
    """The Pairs of all images."""
    nothing = np.zeros(0, np.int64)
    parts = [(nothing, nothing, np.zeros(0), np.zeros(0))]
    of_any_class = (arrays._replace(classes=np.zeros_like(arrays.classes)) for arrays in (labels, detections))
    for detection, label in same_class_pairs(*of_any_class, 1):
        first, second = (
            boxes.astype(np.float64) for boxes in (labels.boxes_xyxy[label], detections.boxes_xyxy[detection])
        )
        shared = (np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])).clip(0).prod(1)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
        touch = shared > 0
        iou = shared[touch] / (sum(areas) - shared)[touch]
        parts.append((label[touch], detection[touch], iou, shared[touch] / np.minimum(*areas)[touch]))
    label, detection, iou, covered = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    alike = labels.classes[label] == detections.classes[detection]
    pairs = label, detection, detections.scores[detection], iou, covered, alike
    return Pairs(*(np.append(column, end) for column, end in zip(pairs, (-1, -1, 0.0, 0.0, 0.0, False), strict=True)))


def surest(wanted, places, values, count):
    """For each of so many places the pair of the highest value among those wanted (P,), -1 for none: (count,)."""
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(values[rows], kind="stable")]
    best = np.full(count, -1)
    best[places[rows]] = rows
    return best


def suspicious_labels(pairs, labels, detections, num_classes):
    """For each label the most probable of three errors, as a Suspect; its score is 0 where nothing speaks for one.

    With the scores of the surest detections that fit, `own` of the label's class and `rival` of another one at an IoU
    from SAME on, and `near` of its class, which overlaps no label more than this one:
        not found     (1 - the highest of the three) * mean own of the class, which is how sure labels of it are found
        other class   rival / (rival + own + DOUBT)
        loose box     near / (near + own + DOUBT), own only where near's IoU is below SAME; and the score falls to 0
                      as that IoU rises from SAME to TIGHT, or in the same proportion to what is usual for the class
    """
    count = len(labels.classes)
    own, rival = (
        surest(wanted & (pairs.iou >= _SAME), pairs.label, pairs.score, count) for wanted in (pairs.alike, ~pairs.alike)
    )
    closest = np.zeros(len(pairs.iou), bool)
    closest[surest(pairs.iou >= _NEAR, pairs.detection, pairs.iou, len(detections.scores))] = True
    near = surest(closest & pairs.alike, pairs.label, pairs.score, count)
    own_score, rival_score, near_score = (pairs.score[rows] for rows in (own, rival, near))
    against = np.where(pairs.iou[near] < _SAME, own_score, 0)
    tight = usual_iou(pairs.iou[near], labels.classes, num_classes)[labels.classes]
    looseness = ((tight - pairs.iou[near]) / (tight - _SAME / _TIGHT * tight)).clip(0, 1)
    sums = np.bincount(labels.classes, own_score, num_classes)
    certainty = sums / np.maximum(np.bincount(labels.classes, minlength=num_classes), 1)
    scores = np.array(
        [
            (1 - np.maximum.reduce([own_score, rival_score, near_score])) * certainty[labels.classes],
            rival_score / (rival_score + own_score + _DOUBT),
            looseness * near_score / (near_score + against + _DOUBT),
        ]
    )
    chosen, rows = scores.argmax(0), np.array([np.full(count, -1), rival, near])
    kinds = ("not found", "other class", "loose box")
    return [
        Suspect(
            float(scores[chosen[label], label]),
            kinds[chosen[label]],
            int(label),
            int(pairs.detection[rows[chosen[label], label]]),
            float(pairs.iou[rows[chosen[label], label]]),
        )
        for label in np.flatnonzero(~labels.difficult)
    ]


def usual_iou(ious, classes, num_classes):
    """(C,) the IoU that three quarters of the labels of a class reach, TIGHT at most: poor detectors place all badly.

    ious: (M,) of each label with what was found near it, 0 for nothing. classes: (M,).
    """
    usual = np.full(num_classes, _TIGHT)
    for class_id in np.unique(classes[ious > 0]):
        usual[class_id] = min(_TIGHT, np.quantile(ious[(classes == class_id) & (ious > 0)], 0.25))
    return usual


def unlabelled(pairs, labels, detections, named, lowest_score=0.0):
    """Detections without a label as Suspects. named: detections that a suspicious label has to do with already.
    lowest_score: of a Suspect.

    The score is the detection's, times the share of it that no label explains, one of its class or a difficult one; a
    label at the same place explains all of it. Of detections that share more than half of the smaller one the surest
    stands for all.
    """
    covered, real = np.zeros(len(detections.scores)), Pairs(*(column[:-1] for column in pairs))
    is_same = real.iou >= _SAME
    explains = real.alike | is_same | labels.difficult[real.label]
    np.maximum.at(covered, real.detection[explains], np.where(is_same, 1, real.covered)[explains])
    scores, kept, suspects = detections.scores * (1 - covered), {}, []
    order = np.argsort(-scores, kind="stable")
    for row in order[scores[order] >= lowest_score].tolist():
        others = kept.setdefault(int(detections.image_ids[row]), [])
        box_xyxy = detections.boxes_xyxy[row]
        if row not in named and scores[row] > 0 and not any(shares_half(box_xyxy, other) for other in others):
            others.append(box_xyxy)
            suspects.append(Suspect(float(scores[row]), "no label", -1, row, 0.0))
    return suspects


def shares_half(first_xyxy, second_xyxy):
    """Whether two boxes (4,) share more than half of the smaller one."""
    shared = (np.minimum(first_xyxy[2:], second_xyxy[2:]) - np.maximum(first_xyxy[:2], second_xyxy[:2])).clip(0).prod()
    return shared > 0.5 * min((box[2:] - box[:2]).prod() for box in (first_xyxy, second_xyxy))


def row_of(suspect, labels, detections, annotations, class_names):
    """A Suspect as a dict of COLUMNS; None stands where nothing is labelled, or nothing found."""
    row = dict.fromkeys(COLUMNS) | {"score": suspect.score, "kind": suspect.kind}
    for name, index, arrays in (("label", suspect.label, labels), ("found", suspect.detection, detections)):
        if index >= 0:
            row |= {"image": annotations.path(arrays.image_ids[index]), name: class_names[arrays.classes[index]]}
            corners = zip(("x1", "y1", "x2", "y2"), arrays.boxes_xyxy[index].tolist(), strict=True)
            row |= {f"{name}_{corner}": value for corner, value in corners}
    if suspect.detection >= 0:
        row["confidence"] = float(detections.scores[suspect.detection])
    return row | {"iou": suspect.iou} if row["label"] and row["found"] else row
