"""COCO average precision through faster-coco-eval, whose numbers equal those of pycocotools."""

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

# In the order of COCO's list of statistics.
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NAMES += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def coco_average_precision(ground_truth, detections, class_names, num_images):
    """Score detections as COCO does, with at most 100 detections per image and class.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py), checked; images are 0..num_images - 1
    Returns ({name of NAMES: float in [0, 1]}, (C,) AP of each class). NaN where no box counts (no ground truth, or none
    of that size), 0.0 where boxes exist and nothing is found. Difficult boxes are COCO crowds: they need not be found,
    and what lies on them is no error.
    """
    if ground_truth.difficult.all():
        return dict.fromkeys(NAMES, float("nan")), np.full(len(class_names), np.nan)
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
    stats = np.array(evaluation.stats[: len(NAMES)], np.float64)
    stats, by_class = (np.where(numbers < 0, np.nan, numbers) for numbers in (stats, by_class))
    return dict(zip(NAMES, stats.tolist(), strict=True)), by_class


def coco_annotations(arrays, image_ids=None, category_ids=None):
    """COCO annotation dicts of GroundTruth or Detections, with ids from 1 (0 means "not matched" to COCO).

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
