"""All numbers about detections on a set of images at once, and as a table."""

import unicodedata

import numpy as np

from utils.eval.coco import coco_average_precision
from utils.eval.inputs import check_inputs
from utils.eval.voc import voc_average_precision


def score_detections(ground_truth, detections, class_names, sizes_hw, iou=0.5, confidence=0.5):
    """Score detections by the rules of VOC and of COCO.

    ground_truth, detections: GroundTruth and Detections (utils/eval/inputs.py); image id i names row i of sizes_hw
    sizes_hw: (I, 2) height and width of each image
    iou: threshold of the VOC numbers; confidence: detections from this score on count for precision, recall and F1
    Returns a dict: map50 (VOC mAP at iou, area under the curve, no +1 pixel), the numbers of coco_average_precision,
    iou, confidence, images, and classes: a list of {"name", "boxes", "AP50", "precision", "recall", "f1"}, where boxes
    counts the non-difficult ones and AP50 is the VOC AP at iou. NaN marks what is not defined (VocScores says when).
    Raises ValueError on NaN scores, unknown images or classes and impossible boxes.
    """
    check_inputs(ground_truth, detections, len(class_names), len(sizes_hw))
    voc = voc_average_precision(ground_truth, detections, len(class_names), iou, confidence=confidence)
    columns = (class_names, voc.boxes.tolist(), *(a.tolist() for a in (voc.ap, voc.precision, voc.recall, voc.f1)))
    names = ("name", "boxes", "AP50", "precision", "recall", "f1")
    return {
        "map50": float(voc.map),
        **coco_average_precision(ground_truth, detections, class_names, sizes_hw),
        "iou": iou,
        "confidence": confidence,
        "images": len(sizes_hw),
        "classes": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def format_scores(scores):
    """Lay out the dict of score_detections as an aligned table of several lines; "-" stands for NaN."""
    rows = scores["classes"]
    header = ["class", "boxes", f"AP@{scores['iou']:g}", "precision", "recall", "F1"]
    cells = [[row["name"], str(row["boxes"]), *map(_number, list(row.values())[2:])] for row in rows]
    means = [_number(_mean([row[key] for row in rows])) for key in ("precision", "recall", "f1")]
    total = ["all", str(sum(row["boxes"] for row in rows)), _number(scores["map50"]), *means]
    widths = [max(map(_width, column)) for column in zip(header, *cells, total, strict=True)]
    lines = [_align(row, widths) for row in (header, *cells, total)]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    coco = {
        name: _number(scores[name]) for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
    }
    return "\n".join(
        [
            *lines,
            f"precision, recall and F1 at confidence >= {scores['confidence']:g}; {scores['images']} images",
            f"VOC  mAP@{scores['iou']:g} {_number(scores['map50'])}",
            f"COCO AP {coco['AP']}  AP50 {coco['AP50']}  AP75 {coco['AP75']}  AR100 {coco['AR100']}",
            f"     AP by size: small {coco['AP_small']}, medium {coco['AP_medium']}, large {coco['AP_large']}",
        ]
    )


def _number(value):
    return "-" if np.isnan(value) else f"{value:.3f}"


def _mean(values):
    values = [value for value in values if not np.isnan(value)]
    return sum(values) / len(values) if values else float("nan")


def _width(text):
    """Columns that a terminal needs; Chinese characters take two each."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _align(row, widths):
    """First cell to the left, the others to the right."""
    gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:], strict=True))]).rstrip()
