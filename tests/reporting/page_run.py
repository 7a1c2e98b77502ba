"""A small run with mistakes of every kind, and its page."""

from types import SimpleNamespace

import numpy as np

import train
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.data.annotations import Annotations
from utils.evaluation.evaluate import Evaluation, ground_truth
from utils.evaluation.scores import score_detections
from utils.evaluation.types import DetectionTable
from utils.image.codec import write_image
from utils.reporting.hints import Run
from utils.reporting.page import report_page

EVIL = "<script>alert(1)</script>"
NAMES = ["cat", EVIL]
# Image 0: one right, one missed. 1: another class. 2: a bad place. 3: found where nothing is. 4 to 11: all right.
BOXES = [[8, 8, 40, 40], [50, 50, 60, 60], *([8, 8, 40, 40] for _ in range(10))]
IMAGES, CLASSES = [0, 0, 1, 2, *range(4, 12)], [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
FOUND_BOXES = [BOXES[0], BOXES[2], [8, 8, 18, 40], [8, 8, 40, 40], *BOXES[4:]]
FOUND_IMAGES, FOUND_CLASSES = [0, 1, 2, 3, *range(4, 12)], [0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1]


def row(epoch, map50):
    scores = dict.fromkeys(("map50", "ap", "precision", "recall"), map50)
    losses = {"loss": 5.0 - epoch, "loss_box": 1.0, "val_loss": 5.5 - epoch}
    return {"epoch": epoch, "phase": "unfrozen", **losses, "lr": 1e-3, "data_wait": 0.0, "seconds": 1.0, **scores}


def annotations_of(folder, images=IMAGES, boxes=BOXES, classes=CLASSES, name="{}.png"):
    """Annotations of twelve noisy images of 64 x 64."""
    paths = [str(folder / name.format(number)) for number in range(12)]
    for number, path in enumerate(paths):
        write_image(path, np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8))
    return Annotations(paths, [(64, 64)] * 12, np.bincount(images, minlength=12), boxes, classes)


def run_of(annotations, **changes):
    settings = fill_in(read_constants(vars(train)) | {"resume": ""} | changes)
    machine, findings = [("device", "a CPU")], [("warning", "3", "small & thin box", "learns it", f"{EVIL}.jpg")]
    return Run(SimpleNamespace(**settings), NAMES, annotations, annotations, {}, 0, machine, findings)


def page_of(annotations, found=(FOUND_IMAGES, FOUND_BOXES, FOUND_CLASSES), **changes):
    """The text of report.html after two epochs, the second of which was evaluated."""
    images, classes = (np.array(column, int) for column in (found[0], found[2]))
    boxes_xyxy = np.array(found[1], float).reshape(-1, 4)
    detections = DetectionTable(images, boxes_xyxy, np.full(len(images), 0.75), classes)
    scores = score_detections(ground_truth(annotations), detections, NAMES, len(annotations))
    evaluation = Evaluation(3.5, scores, [], detections)
    rows = [row(1, None), row(2, 0.5)]
    hints = {"few boxes": f"Few training boxes: {EVIL}"}
    return report_page("loss_1", run_of(annotations, **changes), rows, evaluation, hints, 2)["report"]
