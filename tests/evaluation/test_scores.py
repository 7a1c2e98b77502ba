import math
import time

import numpy as np
import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.bootstrap import with_intervals
from utils.evaluation.scores import format_scores, score_detections
from utils.evaluation.types import DetectionTable, GroundTruth, check_inputs


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (found([0, 0, 0, 10, 10, np.nan, 0]), "score nan is no finite number"),
        (found([0, 0, 0, 10, np.inf, 0.5, 0]), "NaN or infinity"),
        (found([0, 10, 0, 0, 10, 0.5, 0]), "x2 < x1"),
        (found([0, 0, 0, 10, 10, 0.5, 2]), r"class 2 is not in 0\.\.1"),
        (found([3, 0, 0, 10, 10, 0.5, 0]), r"image id 3 is unknown, expected 0\.\.2"),
        (found([0, 0, 0, 9, 9, 0.5, 0])._replace(scores=np.zeros(2)), r"scores has the shape \(2,\), expected \(1,\)"),
    ],
)
def test_impossible_input_is_an_error(detections, message):
    """Each of these would give a number, and a wrong one."""
    with pytest.raises(ValueError, match=message):
        score_detections(truth([0, 0, 0, 10, 10, 0, 0]), detections, ["a", "b"], 3)
    with pytest.raises(ValueError, match="ground truth"):
        check_inputs(truth([0, 0, 0, 10, 10, 5, 0]), found(), 2)


def test_areas_have_the_length_of_the_boxes():
    """Prevents areas that belong to other boxes."""
    with pytest.raises(ValueError, match=r"areas has the shape \(2,\), expected \(1,\)"):
        check_inputs(truth([0, 0, 0, 10, 10, 0, 0])._replace(areas=np.ones(2)), found(), 1)


def test_means_leave_out_what_is_not_defined():
    """A class without boxes, and one that is detected but nowhere labelled, must not lower a mean."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [1, 0, 0, 10, 10, 1, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.9, 2])
    scores = score_detections(ground_truth, detections, ["a", "b", "c", "d"], 2)
    assert (scores["map50"], scores["AP"], scores["recall"], scores["precision"]) == (0.5, 0.5, 0.5, 1.0)
    assert [row["boxes"] for row in scores["classes"]] == [1, 1, 0, 0]
    assert all(math.isnan(row[name]) for row in scores["classes"][2:] for name in ("map50", "AP", "f1", "miss_rate"))


def test_table_is_aligned_and_says_what_it_shows():
    """Chinese names take two columns per character, and NaN must not appear as a number."""
    ground_truth = truth([0, 0, 0, 100, 100, 0, 0])
    scores = score_detections(ground_truth, found([0, 0, 0, 100, 100, 0.9, 0]), ["红细胞", "dog"], 1, plus_one=True)
    assert scores["map50"] == 1.0 and scores["classes"][0]["AP"] == 1.0 and scores["images"] == 1
    lines = format_scores(scores).splitlines()
    assert lines == [
        "class   boxes  AP@0.5     AP  precision  recall     F1  confidence  miss rate",
        "-----------------------------------------------------------------------------",
        "红细胞      1   1.000  1.000      1.000   1.000  1.000       0.900      0.000",
        "dog         0       -      -          -       -      -           -          -",
        "all         1   1.000  1.000      1.000   1.000  1.000           -      0.000",
        "1 image; precision, recall, F1: at the confidence where F1 of the class is best",
        "",
        "VOC mAP@0.5, area under the curve  1.000",
        "VOC mAP@0.5, 11-point              1.000",
        "VOC mAP@0.5, area, +1 pixel        1.000",
        "VOC mAP@0.5, 11-point, +1 pixel    1.000",
        "COCO AP, mean of IoU 0.5 to 0.95   1.000",
        "COCO AP50                          1.000",
        "COCO AP75                          1.000",
        "COCO AP small, area up to 32 x 32  -",
        "COCO AP medium                     -",
        "COCO AP large, area from 96 x 96   1.000",
        "COCO AR at 1, 10, 100 boxes        1.000  1.000  1.000",
        "COCO AR small, medium, large       -  -  1.000",
    ]
    usual = score_detections(ground_truth, found([0, 0, 0, 100, 100, 0.9, 0]), ["红细胞", "dog"], 1)
    assert format_scores(usual).splitlines() == [line for line in lines if "+1 pixel" not in line]
    empty = format_scores(score_detections(truth(), found(), ["dog"], 0)).splitlines()
    assert empty[3].split() == ["all", "0", *"-------"] and empty[4].startswith("0 images")


def test_intervals_stand_beside_every_map():
    """Prevents a score that looks more exact than it is. Half of 8 images are perfect, half are missed."""
    ground_truth = truth(*[[image, 0, 0, 100, 100, 0, 0] for image in range(8)])
    detections = found(*[[image, 0, 0, 100, 100, 0.9, 0] for image in range(4)])
    scores = score_detections(ground_truth, detections, ["a"], 8, plus_one=True)
    lines = format_scores(with_intervals(scores, ground_truth, detections, 200)).splitlines()
    assert lines[2].startswith("a          8  0.500 [0.250, 0.875]")
    assert lines[3].startswith("all        8  0.500 [0.250, 0.875]")
    few = "with few images it holds in about 90 % of cases"
    assert lines[5] == f"[low, high]: 95 % interval, by 200 resamplings of the images; {few}"
    assert [line[35:] for line in lines[7:11]] == ["0.500 [0.250, 0.875]", "0.545 [0.364, 0.909]"] * 2
    assert [line[35:40] + line[41:42] for line in lines[11:17]] == ["0.505["] * 3 + ["-"] * 2 + ["0.505["]


def test_large_sets_are_scored_without_a_loop_over_boxes():
    """A Python loop over 100,000 detections takes minutes after each epoch; CPU time, because machines are busy."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 500, (107_000, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 150, (107_000, 2))], 1)
    images, classes = random.integers(0, 1000, 107_000), random.integers(0, 20, 107_000)
    ground_truth = GroundTruth(images[:7000], boxes[:7000], classes[:7000], np.zeros(7000, bool))
    detections = DetectionTable(images[7000:], boxes[7000:], random.random(100_000), classes[7000:])
    start = time.process_time()
    score_detections(ground_truth, detections, [str(number) for number in range(20)], 1000)
    assert time.process_time() - start < 3.0
