"""All numbers about detections on a set of images at once, and as a table."""

import numpy as np

from utils.evaluation.average_precision import coco_scores, voc_average_precisions
from utils.evaluation.curves import mean_over_classes, pr_curves
from utils.evaluation.matching import match_voc
from utils.evaluation.types import check_inputs
from utils.io.text import counted, display_width, format_table


def score_detections(ground_truth, detections, class_names, num_images, iou=0.5, plus_one=False):
    """Score detections by the rules of VOC and of COCO.

    ground_truth, detections: GroundTruth and DetectionTable, image ids 0..num_images - 1
    iou: from it on a box is right, for all but the COCO numbers
    Returns a dict:
        map50, map50_11_point: VOC mAP at iou; with plus_one also both with _plus_one, see voc_average_precisions
        AP, AP50, ... AR_large: the names of utils.evaluation.average_precision.COCO_NAMES
        precision, recall, f1, miss_rate: means over the classes
        classes: [{"name", "boxes" (non-difficult), "map50", "AP", "precision", "recall", "f1", "confidence",
            "miss_rate"}], where precision, recall and F1 are those at the confidence of the best F1 (see Curves)
        iou, images
    NaN marks what is not defined, such as all numbers of a class without boxes; no mean counts it, nor a class that
    occurs in detections only. Raises ValueError, see check_inputs.
    """
    count = len(class_names)
    check_inputs(ground_truth, detections, count, num_images)
    voc = voc_average_precisions(ground_truth, detections, count, np.ones((num_images, 1)), iou, plus_one)
    coco, coco_by_class = coco_scores(ground_truth, detections, class_names, num_images)
    matches = match_voc(ground_truth, detections, count, iou)
    curves = pr_curves(matches, ground_truth, detections, count, num_images)._asdict()
    columns = {
        "name": list(class_names),
        "boxes": np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=count).tolist(),
        "map50": voc["map50"][:, 0].tolist(),
        "AP": coco_by_class.tolist(),
        **{name: curves[name].tolist() for name in ("precision", "recall", "f1", "confidence", "miss_rate")},
    }
    return {
        **{name: float(mean_over_classes(values[:, 0])) for name, values in voc.items()},
        **coco,
        **{
            name: float(mean_over_classes(np.array(columns[name])))
            for name in ("precision", "recall", "f1", "miss_rate")
        },
        "iou": iou,
        "images": num_images,
        "classes": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def format_scores(scores):
    """Lay out the dict of score_detections as aligned lines; "-" stands for NaN.

    Where with_intervals has been there, each mAP has its interval beside it: `0.874 [0.842, 0.903]`.
    """
    iou, rows = f"{scores['iou']:g}", scores["classes"]
    columns = ("map50", "AP", "precision", "recall", "f1", "confidence", "miss_rate")
    header = ["class", "boxes", f"AP@{iou}", "AP", "precision", "recall", "F1", "confidence", "miss rate"]
    total = {"name": "all", "boxes": sum(row["boxes"] for row in rows), "confidence": float("nan"), **scores}
    table = [[row["name"], str(row["boxes"]), *(_number(row, name) for name in columns)] for row in (*rows, total)]
    lines = format_table([header, *table], right=range(1, len(header))).split("\n")
    shown = [(label.format(iou), names) for label, names in _SUMMARY if names[0] in scores]
    width = max(len(label) for label, _ in shown)
    summary = [f"{label:{width}}  " + "  ".join(_number(scores, name) for name in names) for label, names in shown]
    notes = [
        f"{counted(scores['images'], 'image')}; precision, recall, F1: at the confidence where F1 of the class is best"
    ]
    if scores.get("intervals"):
        resamplings = f"{scores['resamplings']} resamplings of the images"
        notes.append(f"[low, high]: 95 % interval, by {resamplings}; with few images it holds in about 90 % of cases")
    elif "intervals" in scores:
        notes.append("too few images with boxes for an interval")
    return "\n".join([lines[0], "-" * max(map(display_width, lines)), *lines[1:], *notes, "", *summary])


_SUMMARY = (
    ("VOC mAP@{}, area under the curve", ("map50",)),
    ("VOC mAP@{}, 11-point", ("map50_11_point",)),
    ("VOC mAP@{}, area, +1 pixel", ("map50_plus_one",)),
    ("VOC mAP@{}, 11-point, +1 pixel", ("map50_11_point_plus_one",)),
    ("COCO AP, mean of IoU 0.5 to 0.95", ("AP",)),
    ("COCO AP50", ("AP50",)),
    ("COCO AP75", ("AP75",)),
    ("COCO AP small, area up to 32 x 32", ("AP_small",)),
    ("COCO AP medium", ("AP_medium",)),
    ("COCO AP large, area from 96 x 96", ("AP_large",)),
    ("COCO AR at 1, 10, 100 boxes", ("AR1", "AR10", "AR100")),
    ("COCO AR small, medium, large", ("AR_small", "AR_medium", "AR_large")),
)


def _number(numbers, name):
    """One number to three digits, with its interval where there is one."""
    if np.isnan(numbers[name]):
        return "-"
    between = numbers.get("intervals", {}).get(name)
    return f"{numbers[name]:.3f}" + (f" [{between[0]:.3f}, {between[1]:.3f}]" if between else "")
