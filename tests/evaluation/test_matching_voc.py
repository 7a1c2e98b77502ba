import math

import numpy as np
import pytest

from utils.evaluation.average_precision import voc_average_precisions
from utils.evaluation.matching import match_detections
from utils.evaluation.scores import score_detections
from utils.evaluation.types import Detections, GroundTruth


def truth(*rows):
    """Rows of image, x1, y1, x2, y2, class, difficult."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return GroundTruth(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5].astype(np.int64), table[:, 6] > 0)


def found(*rows):
    """Rows of image, x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5], table[:, 6].astype(np.int64))


def voc(ground_truth, detections, num_classes, iou=0.5, name="map50"):
    """AP of each class by one of the four rules."""
    images = 1 + max(ground_truth.image_ids.max(initial=0), detections.image_ids.max(initial=0))
    return voc_average_precisions(ground_truth, detections, num_classes, np.ones((images, 1)), iou)[name][:, 0]


def test_area_under_the_curve_by_hand():
    """Right, wrong, right, with three boxes to find, is 1/3 * 1 + 1/3 * 2/3; a box never found must cost recall."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 50, 50, 60, 60, 0, 0], [1, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 30, 30, 40, 40, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    assert voc(ground_truth, detections, 1) == pytest.approx(5 / 9)
    # Eleven points: precision 1 at recall 0..0.3, 2/3 at 0.4..0.6, then 0.
    assert voc(ground_truth, detections, 1, name="map50_11_point") == pytest.approx((4 + 2) / 11)


def test_precision_takes_the_best_at_any_higher_recall():
    """Wrong, right, right: the envelope lifts the first precision of 1/2 to 2/3; the raw curve would give 7/12."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 50, 50, 60, 60, 0, 0])
    detections = found([0, 30, 30, 40, 40, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    assert voc(ground_truth, detections, 1) == pytest.approx(2 / 3)


def test_second_detection_of_a_box_is_wrong_and_order_of_input_does_not_matter():
    """The surest detection takes the box, even where it comes later in the list."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.3, 0], [0, 0, 0, 10, 9, 0.8, 0])
    assert match_detections(ground_truth, detections, 1).true_positive.tolist() == [False, True]


def test_equal_scores_keep_the_order_given():
    """An unstable sort would give another number on another machine."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0])
    detections = found(*([0, 0, 0, 10, 10, 0.5 + i % 2 / 4, 0] for i in range(1000)))
    assert np.flatnonzero(match_detections(ground_truth, detections, 1).true_positive).tolist() == [1]


def test_of_two_equal_boxes_the_first_is_found():
    """The kit takes a later box only where its IoU is higher, so a box labelled twice is found once."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0])
    assert match_detections(ground_truth, detections, 1).best_index.tolist() == [0, 0]


def test_a_detection_looks_only_at_its_best_box():
    """The kit does not try the second-best box when the best is taken: the later detection is wrong."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 3, 0, 13, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 1, 0, 11, 10, 0.8, 0])
    matches = match_detections(ground_truth, detections, 1)
    assert matches.true_positive.tolist() == [True, False]
    assert matches.best_index.tolist() == [0, 0]
    assert matches.best_iou.tolist() == pytest.approx([1.0, 90 / 110])


def test_difficult_boxes_are_neither_right_nor_wrong():
    """Counted as right they raise recall above 1, counted as wrong they punish a good detector."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 1], [0, 50, 50, 60, 60, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    scores = score_detections(ground_truth, detections, ["a"], 1)
    assert (scores["map50"], scores["precision"], scores["recall"], scores["classes"][0]["boxes"]) == (1.0, 1.0, 1.0, 1)
    assert match_detections(ground_truth, detections, 1).ignored.tolist() == [True, True, False]


def test_iou_equal_to_the_threshold_is_right_and_plus_one_counts_pixels():
    """5 of 10 columns: IoU 0.5 exactly; with the kit's +1 it is 6 of 11 columns."""
    ground_truth, detections = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 5, 10, 0.9, 0])
    assert voc(ground_truth, detections, 1, iou=0.5) == 1.0
    assert voc(ground_truth, detections, 1, iou=0.51) == 0.0
    assert voc(ground_truth, detections, 1, iou=0.54, name="map50_plus_one") == 1.0


def test_images_and_classes_are_kept_apart():
    """A detection in another image or of another class must not find the box, whatever its coordinates."""
    ground_truth = truth([0, 0, 0, 10, 10, 1, 0], [2, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 0, 0, 10, 10, 0.9, 1], [2, 0, 0, 10, 10, 0.9, 0])
    assert match_detections(ground_truth, detections, 3).true_positive.tolist() == [False, False, True]
    by_class = voc(ground_truth, detections, 3)
    assert by_class[:2].tolist() == [0.5, 0.0] and math.isnan(by_class[2])
    assert score_detections(ground_truth, detections, ["a", "b", "c"], 3)["map50"] == 0.25


def test_empty_inputs_have_a_stated_result():
    """Nothing found is 0; nothing to find is not a number, so that nobody averages it."""
    box, hit = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 10, 10, 0.9, 0])
    assert voc(box, found(), 2)[0] == 0.0
    assert np.isnan(voc(truth(), hit, 2)).all()
    assert np.isnan(voc(truth(), found(), 2)).all()
    assert np.isnan(voc(truth([0, 0, 0, 10, 10, 0, 1]), hit, 2)).all()


def test_boxes_without_area_do_not_divide_by_zero():
    """Real label files hold boxes without area; two of them at one place have no union."""
    point = [0, 5, 5, 5, 5]
    with np.errstate(all="raise"):
        assert voc(truth([*point, 0, 0]), found([*point, 0.9, 0]), 1) == 0.0
