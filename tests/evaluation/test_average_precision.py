import math

import numpy as np
import pytest

from tests.evaluation.test_matching_voc import found, truth
from utils.evaluation.average_precision import coco_annotations, coco_average_precision


def test_sizes_and_thresholds_by_hand(capfd, caplog):
    """A medium box found exactly, a large one with IoU 0.8: it counts at 0.5 ... 0.8, 7 of the 10 thresholds."""
    caplog.set_level("DEBUG")
    ground_truth = truth([0, 0, 0, 50, 50, 0, 0], [1, 0, 0, 100, 100, 1, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [1, 0, 0, 100, 80, 0.9, 1])
    scores, by_class = coco_average_precision(ground_truth, detections, ["a", "b", "c"], 3)
    assert by_class[:2] == pytest.approx([1.0, 0.7]) and math.isnan(by_class[2])
    assert {name: pytest.approx(value) for name, value in scores.items() if name[-5:] != "small"} == {
        "AP": 0.85,
        "AP50": 1.0,
        "AP75": 1.0,
        "AP_medium": 1.0,
        "AP_large": 0.7,
        "AR1": 0.85,
        "AR10": 0.85,
        "AR100": 0.85,
        "AR_medium": 1.0,
        "AR_large": 0.7,
    }
    assert math.isnan(scores["AP_small"]) and math.isnan(scores["AR_small"])
    assert capfd.readouterr() == ("", "") and "valuat" not in caplog.text  # the library's own report stays out


def test_first_detection_and_first_image_can_match():
    """COCO takes id 0 for "not matched", so ids that start at 0 lose the first box."""
    scores, _ = coco_average_precision(truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0]), ["a"], 1)
    assert scores["AP"] == 1.0


def test_difficult_boxes_need_not_be_found_and_are_no_error():
    """Without the crowd mark the unfound difficult box halves recall, and the found one is a false positive."""
    ground_truth = truth([0, 0, 0, 50, 50, 0, 1], [0, 100, 100, 150, 150, 0, 1], [0, 200, 200, 250, 250, 0, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [0, 0, 0, 50, 49, 0.8, 0], [0, 200, 200, 250, 250, 0.7, 0])
    scores, _ = coco_average_precision(ground_truth, detections, ["a"], 1)
    assert (scores["AP"], scores["AR100"]) == (1.0, 1.0)


def test_areas_of_outlines_decide_the_size():
    """Prevents other numbers than pycocotools gives for COCO's own files, whose areas are not width * height."""
    box, hit = truth([0, 0, 0, 100, 100, 0, 0]), found([0, 0, 0, 100, 100, 0.9, 0])
    assert coco_average_precision(box, hit, ["a"], 1)[0]["AP_large"] == 1.0
    scores, _ = coco_average_precision(box._replace(areas=np.array([900.0])), hit, ["a"], 1)
    assert math.isnan(scores["AP_large"]) and scores["AP_small"] == 1.0


def test_empty_inputs_have_a_stated_result():
    """Nothing found is 0; nothing to find is NaN, where COCO itself says -1, which would be averaged."""
    box, hit = truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0])
    nothing_found, by_class = coco_average_precision(box, found(), ["a"], 1)
    assert (nothing_found["AP"], nothing_found["AP50"], nothing_found["AR100"], by_class[0]) == (0.0, 0.0, 0.0, 0.0)
    for ground_truth in (truth(), truth([0, 0, 0, 50, 50, 0, 1])):
        for detections in (hit, found()):
            scores, by_class = coco_average_precision(ground_truth, detections, ["a"], 1)
            assert len(scores) == 12 and np.isnan(list(scores.values())).all() and np.isnan(by_class).all()
    assert math.isnan(coco_average_precision(truth(), found(), [], 0)[0]["AP"])


def test_annotations_are_written_as_coco_does():
    """Prevents x2, y2 in the place of width and height, and ids that the user's file does not have."""
    ground_truth, detections = truth([1, 10, 20, 40, 60, 0, 1]), found([1, 10, 20, 40, 60, 0.5, 0])
    common = {"id": 1, "image_id": 70, "category_id": 18, "bbox": [10.0, 20.0, 30.0, 40.0], "area": 1200.0}
    assert coco_annotations(ground_truth, [60, 70], [18]) == [common | {"iscrowd": 1}]
    assert coco_annotations(detections, [60, 70], [18]) == [common | {"score": 0.5}]
    assert coco_annotations(found()) == []
