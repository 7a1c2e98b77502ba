import math

import numpy as np
import pytest

from tests.test_eval_voc import ORACLES, found, needs_oracles, read_folders, truth
from utils.eval.coco import coco_average_precision


@needs_oracles
def test_public_sample_of_many_classes():
    """Categories, image ids or areas handed over wrongly move the numbers that pycocotools gives."""
    ground_truth, detections, names, images = read_folders(ORACLES / "cartucho_gt", ORACLES / "cartucho_det", "xyxy")
    scores = coco_average_precision(ground_truth, detections, names, [(500, 500)] * images)
    assert scores["AP"] == pytest.approx(0.149298, abs=1e-6)
    assert scores["AP50"] == pytest.approx(0.311953, abs=1e-6)
    assert scores["AP75"] == pytest.approx(0.122181, abs=1e-6)


def test_sizes_and_thresholds_by_hand(capfd, caplog):
    """A medium box found exactly, a large one with IoU 0.8: it counts at 0.5 ... 0.8, 7 of the 10 thresholds."""
    caplog.set_level("DEBUG")
    ground_truth = truth([0, 0, 0, 50, 50, 0, 0], [1, 0, 0, 100, 100, 1, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [1, 0, 0, 100, 80, 0.9, 1])
    scores = coco_average_precision(ground_truth, detections, ["a", "b", "c"], [(200, 200)] * 3)
    assert {name: pytest.approx(value) for name, value in scores.items() if name != "AP_small"} == {
        "AP": 0.85,
        "AP50": 1.0,
        "AP75": 1.0,
        "AP_medium": 1.0,
        "AP_large": 0.7,
        "AR100": 0.85,
    }
    assert math.isnan(scores["AP_small"])
    assert capfd.readouterr() == ("", "") and "valuat" not in caplog.text  # the library's own report stays out


def test_first_detection_and_first_image_can_match():
    """COCO takes id 0 for "not matched", so ids that start at 0 lose the first box."""
    scores = coco_average_precision(truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0]), ["a"], [(60, 60)])
    assert scores["AP"] == 1.0


def test_difficult_boxes_need_not_be_found_and_are_no_error():
    """Without the crowd mark the unfound difficult box halves recall, and the found one is a false positive."""
    ground_truth = truth([0, 0, 0, 50, 50, 0, 1], [0, 100, 100, 150, 150, 0, 1], [0, 200, 200, 250, 250, 0, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [0, 0, 0, 50, 49, 0.8, 0], [0, 200, 200, 250, 250, 0.7, 0])
    scores = coco_average_precision(ground_truth, detections, ["a"], [(300, 300)])
    assert (scores["AP"], scores["AR100"]) == (1.0, 1.0)


def test_empty_inputs_have_a_stated_result():
    """Nothing found is 0; nothing to find is NaN, where COCO itself says -1, which would be averaged."""
    box, hit = truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0])
    nothing_found = coco_average_precision(box, found(), ["a"], [(60, 60)])
    assert (nothing_found["AP"], nothing_found["AP50"], nothing_found["AR100"]) == (0.0, 0.0, 0.0)
    for ground_truth in (truth(), truth([0, 0, 0, 50, 50, 0, 1])):
        for detections in (hit, found()):
            scores = coco_average_precision(ground_truth, detections, ["a"], [(60, 60)])
            assert len(scores) == 7 and np.isnan(list(scores.values())).all()
    assert math.isnan(coco_average_precision(truth(), found(), [], [])["AP"])


def test_unknown_images_are_refused():
    """A detection of an image that is not evaluated is a mix-up of two sets."""
    with pytest.raises(ValueError, match="image id 1 is unknown"):
        coco_average_precision(truth(), found([1, 0, 0, 50, 50, 0.9, 0]), ["a"], [(60, 60)])
