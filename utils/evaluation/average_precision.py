"""From matched detections to average precision, by the rules of VOC and COCO."""

from itertools import pairwise

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from utils.evaluation.matching import match_coco, match_voc

# Numbers held at a time while many resamplings are scored; a processor's cache shall hold them.
MAX_NUMBERS = 2_500_000
# In the order of COCO's list of statistics.
COCO_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
COCO_NAMES += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def average_precision(matches, ground_truth, detections, num_classes, points, weights):
    """AP by each rule of each class, threshold and resampling: (P, C, K, B); NaN where a class has no counted box.

    points: P rules; n averages the precision at n recalls from 0 to 1: 11 (VOC2007), 101 (COCO); 0 takes the area under
        the curve (VOC2010 on)
    weights: (I, B) how often each image counts; ones (I, 1) for the score itself, columns of counts for resamplings.
        float64 gives exact numbers; float32 is faster, and off by a hundredth where a recall is reached exactly.
    """
    result = np.full((len(points), num_classes, len(matches.true_positive), weights.shape[1]), np.nan)
    for class_id, rows, truth in detections_by_class(matches, ground_truth, detections, num_classes):
        rows = rows[~matches.ignored[:, rows].all(0)]
        true_positive, ignored = matches.true_positive[:, rows], matches.ignored[:, rows]
        step = max(1, MAX_NUMBERS // (len(rows) + 1))
        for first in range(0, weights.shape[1], step):
            some = weights[:, first : first + step]
            boxes = some[ground_truth.image_ids[truth]].sum(0)
            areas = _areas_under_curve(true_positive, ignored, some[detections.image_ids[rows]], boxes, points)
            result[:, class_id, :, first : first + step] = np.where(boxes > 0, areas, np.nan)
    return result


def detections_by_class(matches, ground_truth, detections, num_classes):
    """(class, its detections in falling score, its counted boxes) of each class with a counted box; index arrays."""
    # Among equal scores the order of the images decides, as in COCO, so that no machine gives another number.
    order = np.lexsort((detections.image_ids, -detections.scores, detections.classes))
    bounds = np.searchsorted(detections.classes[order], np.arange(num_classes + 1))
    counted = np.flatnonzero(matches.counted)
    for class_id in np.unique(ground_truth.classes[counted]):
        truth = counted[ground_truth.classes[counted] == class_id]
        yield class_id, order[bounds[class_id] : bounds[class_id + 1]], truth


def _areas_under_curve(true_positive, ignored, weights, boxes, points):
    """AP (P, K, B) of a class from its detections in falling score: true_positive, ignored (K, D), weights (D, B);
    boxes (B,) is how many there are to find.
    """
    areas = np.empty((len(points), len(true_positive), len(boxes)))
    counted = _running(np.add, weights.copy())
    for level, (right_here, ignored_here) in enumerate(zip(true_positive, ignored, strict=True)):
        # Precision only rises where a detection is right, so the curve is known from these rows alone.
        hits, left_out = np.flatnonzero(right_here), np.flatnonzero(ignored_here)
        found = _running(np.add, weights[hits])
        recall, before = found / np.maximum(boxes, 1), counted[hits]
        if len(left_out):
            sums = _running(np.add, np.insert(weights[left_out], 0, 0, 0))
            before -= sums[np.searchsorted(left_out, hits)]
        precision = np.divide(found, np.maximum(before, 1), out=found)
        _running(np.maximum, precision[::-1])  # the best precision at this recall or a higher one
        for rule, number in enumerate(points):
            reached = _fraction_reached(recall, number) if number else recall
            areas[rule, level] = np.einsum("db,db->b", np.diff(reached, axis=0, prepend=0), precision)
    return areas


def _fraction_reached(recall, number):
    """The fraction of so many recalls from 0 to 1 that each recall (D, B) reaches."""
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


def voc_average_precisions(ground_truth, detections, num_classes, weights, iou=0.5, plus_one=False):
    """AP of each class as people compute it: {name: (C, B)}, NaN without a non-difficult box.

    ground_truth, detections: GroundTruth and DetectionTable, checked. weights: (I, B), see average_precision. iou: a
    detection is right from this IoU on, iou included. plus_one: also with pixels counted as the VOC kit does.
    Names: map50, the area under the curve; map50_11_point, the mean of eleven precisions; both with _plus_one.
    """
    scores = {}
    for suffix in ("", "_plus_one")[: 1 + plus_one]:
        matches = match_voc(ground_truth, detections, num_classes, iou, plus_one=suffix != "")
        area, eleven = average_precision(matches, ground_truth, detections, num_classes, (0, 11), weights)[:, :, 0]
        scores |= {f"map50{suffix}": area, f"map50_11_point{suffix}": eleven}
    return scores


def coco_average_precisions(ground_truth, detections, num_classes, weights):
    """AP of each class: {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large": (C, B)}, NaN where no box counts.

    ground_truth, detections: GroundTruth and DetectionTable, checked. weights: (I, B), see
    average_precision.
    """
    scores = {}
    for name, matches in match_coco(ground_truth, detections, num_classes).items():
        (by_iou,) = average_precision(matches, ground_truth, detections, num_classes, (101,), weights)
        scores[name] = by_iou.mean(1)
        if name == "AP":
            scores |= {"AP50": by_iou[:, 0], "AP75": by_iou[:, 5]}
    return scores


def coco_scores(ground_truth, detections, class_names, num_images):
    """Score detections as COCO does, with at most 100 detections per image and class.

    ground_truth, detections: GroundTruth and DetectionTable, checked; images are 0..num_images - 1 Returns ({name of
    COCO_NAMES: float in [0, 1]}, (C,) AP of each class). NaN where no box counts (no ground truth, or none of that
    size), 0.0 where boxes exist and nothing is found. Difficult boxes are COCO crowds: they need not be found, and what
    lies on them is no error.
    """
    if ground_truth.difficult.all():
        return dict.fromkeys(COCO_NAMES, float("nan")), np.full(len(class_names), np.nan)
    dataset = {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names)],
    }
    truth, found = coco_annotations(ground_truth), coco_annotations(detections)
    truth, found = (COCO(dataset | {"annotations": part}) for part in (truth, found))
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_silent)
    evaluation.run()
    # Its axes: IoU, recall, class, area (0: all), detections per image (2: 100). -1 stands for "not defined".
    by_class = evaluation.eval["precision"][:, :, :, 0, 2].mean((0, 1))
    stats = np.array(evaluation.stats[: len(COCO_NAMES)], np.float64)
    stats, by_class = (np.where(numbers < 0, np.nan, numbers) for numbers in (stats, by_class))
    return dict(zip(COCO_NAMES, stats.tolist(), strict=True)), by_class


def coco_annotations(arrays, image_ids=None, category_ids=None):
    """COCO annotation dicts of GroundTruth or DetectionTable, with ids from 1 (0 means "not matched" to COCO).

    image_ids, category_ids: the ids to write for image and class 0, 1, ...; None writes 0, 1, ...
    """
    boxes_xyxy = np.asarray(arrays.boxes_xyxy, np.float64)
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)
    images, classes = arrays.image_ids.tolist(), arrays.classes.tolist()
    areas = getattr(arrays, "areas", None)
    columns = {
        "id": range(1, len(boxes_xywh) + 1),
        "image_id": images if image_ids is None else [image_ids[image] for image in images],
        "category_id": classes if category_ids is None else [category_ids[number] for number in classes],
        "bbox": boxes_xywh.tolist(),
        "area": (boxes_xywh[:, 2:].prod(1) if areas is None else areas).tolist(),
    }
    if hasattr(arrays, "scores"):
        columns["score"] = arrays.scores.tolist()
    else:
        columns["iscrowd"] = arrays.difficult.astype(int).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _silent(*_):
    pass
