"""What scoring costs on this machine, after the forward passes: stage by stage, on random boxes.

python benchmarks/evaluation.py [--images=1000 --detections=100 --classes=20 ...]
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np
import torch

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.evaluation.average_precision import coco_scores, voc_average_precisions
from utils.evaluation.bootstrap import with_intervals
from utils.evaluation.curves import pr_curves
from utils.evaluation.matching import match_coco, match_voc
from utils.evaluation.scores import score_detections
from utils.evaluation.types import DetectionTable, GroundTruth
from utils.runtime import device as machine
from utils.visualize.curves import draw_curves

# ----------------------------------------------------------------------------------------------------------------------
#   images       Images of the random set.
#   classes      Classes of the random set.
#   detections   Detected boxes of each image. Two of five lie near a labelled box.
#   labelled     Labelled boxes of each image.
#   resamplings  For the intervals that tools/get_map.py adds.
#   repeats      The fastest of so many runs is shown.
# ----------------------------------------------------------------------------------------------------------------------
images = 1000
classes = 20
detections = 100
labelled = 10
resamplings = 1000
repeats = 3


def random_boxes(settings):
    """GroundTruth and DetectionTable, always the same."""
    random = np.random.default_rng(0)
    count = settings.images * settings.labelled
    corner, size = random.uniform(0, 400, (count, 2)), np.exp(random.uniform(2, 6, (count, 2)))
    truth = GroundTruth(
        np.repeat(np.arange(settings.images), settings.labelled),
        np.concatenate([corner, corner + size], 1),
        random.integers(settings.classes, size=count),
        random.random(count) < 0.02,
    )
    image_ids = np.repeat(np.arange(settings.images), settings.detections)
    near = random.random(len(image_ids)) < 0.4
    source = image_ids * settings.labelled + random.integers(settings.labelled, size=len(image_ids))
    shift = random.normal(0, 0.1, (len(image_ids), 4)) * np.tile(size[source], 2)
    elsewhere = np.where(near, 0, random.uniform(-400, 400, len(image_ids)))[:, None]
    boxes_xyxy = np.sort((truth.boxes_xyxy[source] + shift + elsewhere).reshape(-1, 2, 2), 1).reshape(-1, 4)
    scores = random.random(len(image_ids)) * 0.6 + near * 0.3
    found = DetectionTable(image_ids, boxes_xyxy.astype(np.float32), scores.astype(np.float32), truth.classes[source])
    return truth, found


def fastest(repeats, stage):
    """Seconds of the fastest run, and what it returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = stage()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main(settings):
    """Print the table."""
    for name, text in machine.describe(torch.device("cpu")):
        print(f"{name:14s} {text}")
    truth, found = random_boxes(settings)
    names, count = [f"class {number}" for number in range(settings.classes)], settings.images
    size = f"{count} images, {len(found.scores)} detections, {len(truth.classes)} labelled boxes, {len(names)} classes"
    print(f"\n{size}\n\n{'stage':44s} {'seconds':>8s}")

    def run(stage, call):
        seconds, result = fastest(settings.repeats, call)
        print(f"{stage:44s} {seconds:8.3f}")
        return result

    ones = np.ones((count, 1))
    run("  VOC: matching and AP, two rules", lambda: voc_average_precisions(truth, found, len(names), ones))
    matches = run("  VOC: matching", lambda: match_voc(truth, found, len(names)))
    curves = run("  curves, best F1, miss rate", lambda: pr_curves(matches, truth, found, len(names), count))
    run("  COCO by faster-coco-eval", lambda: coco_scores(truth, found, names, count))
    scores = run("all scores, as after each epoch", lambda: score_detections(truth, found, names, count))
    run("  COCO: matching for the intervals", lambda: match_coco(truth, found, len(names)))
    run("intervals", lambda: with_intervals(scores, truth, found, settings.resamplings))
    with tempfile.TemporaryDirectory() as folder:
        values = [row["map50"] for row in scores["classes"]]
        run("pictures of the curves", lambda: draw_curves(curves, names, values, folder))


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
