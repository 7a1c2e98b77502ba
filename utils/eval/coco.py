"""COCO average precision through faster-coco-eval, whose numbers equal those of pycocotools."""

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from utils.eval.inputs import check_inputs

# What each number is called here, and its place in the list of statistics that COCO prints.
_PLACES = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR100": 8}


def coco_average_precision(ground_truth, detections, class_names, sizes_hw):
    """Score detections as COCO does, with at most 100 detections per image and class.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py); image id i names row i of sizes_hw
    sizes_hw: (I, 2) height and width of each image
    Returns {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"}: floats in [0, 1]. NaN where no box
    counts (no ground truth, or none of that size), 0.0 where boxes exist and nothing is found. Difficult boxes are
    COCO crowds: they need not be found, and what lies on them is no error. Raises ValueError, see check_inputs.
    """
    check_inputs(ground_truth, detections, len(class_names), len(sizes_hw))
    if ground_truth.difficult.all():
        return dict.fromkeys(_PLACES, float("nan"))
    dataset = {
        "images": [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(sizes_hw)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }
    truth = COCO(dataset | {"annotations": _annotations(ground_truth, iscrowd=ground_truth.difficult.astype(int))})
    found = COCO(dataset | {"annotations": _annotations(detections, score=detections.scores)})
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_silent)
    evaluation.run()
    numbers = {name: float(evaluation.stats[place]) for name, place in _PLACES.items()}
    return {name: float("nan") if number < 0 else number for name, number in numbers.items()}


def _annotations(arrays, **extra):
    """COCO annotation dicts, one per box, with ids from 1 (0 means "not matched" to COCO)."""
    boxes_xyxy = np.asarray(arrays.boxes_xyxy, np.float64)
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)
    columns = {
        "id": range(1, len(boxes_xywh) + 1),
        "image_id": arrays.image_ids.tolist(),
        "category_id": arrays.classes.tolist(),
        "bbox": boxes_xywh.tolist(),
        "area": boxes_xywh[:, 2:].prod(1).tolist(),
        "iscrowd": [0] * len(boxes_xywh),
    } | {name: values.tolist() for name, values in extra.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _silent(*_):
    pass
