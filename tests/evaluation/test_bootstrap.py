import numpy as np
import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.bootstrap import has_enough_images, interval, resampled, with_intervals
from utils.evaluation.scores import format_scores, score_detections


def test_resamplings_draw_as_many_images_as_there_are():
    """Prevents sets of another size, and intervals that differ from run to run."""
    weights = resampled(5, 300)
    assert weights.shape == (5, 300) and weights.dtype == np.float32
    assert (weights.sum(0) == 5).all() and weights.max() >= 3 and weights.min() == 0
    assert (weights == resampled(5, 300)).all() and (weights != resampled(5, 300, seed=1)).any()
    assert resampled(0, 3).shape == (0, 3)


def test_interval_by_hand():
    """Prevents percentiles that count bias twice: what resampling adds to 0.5 is taken from it."""
    values = np.linspace(0.5, 0.7, 41)  # 2.5 % and 97.5 % are the second and the second last: 0.505 and 0.695
    assert interval(0.5, values) == pytest.approx([0.305, 0.5])  # and never without the score itself
    assert interval(0.6, values) == pytest.approx([0.505, 0.695])
    assert interval([0.6], np.array([[0.6, np.nan, 0.6]])) == pytest.approx(np.array([[0.6, 0.6]]))
    assert np.isnan(interval(np.nan, np.full(3, np.nan))).all()


def test_the_interval_of_a_proportion_is_the_known_one():
    """Prevents intervals of a wrong width: found or missed in 100 images is a proportion, 0.5 +- 1.96 * 0.05."""
    ground_truth = truth(*[[image, 0, 0, 10, 10, 0, 0] for image in range(100)])
    detections = found(*[[image, 0, 0, 10, 10, 0.9, 0] for image in range(50)])
    scores = score_detections(ground_truth, detections, ["a"], 100, plus_one=True)
    scores = with_intervals(scores, ground_truth, detections, 1000)
    assert scores["map50"] == 0.5 and scores["resamplings"] == 1000
    assert scores["intervals"]["map50"] == pytest.approx([0.402, 0.598], abs=0.015)
    assert scores["classes"][0]["intervals"]["AP"] == pytest.approx([0.402, 0.598], abs=0.02)
    assert set(scores["intervals"]) == {
        *("map50", "map50_11_point", "map50_plus_one", "map50_11_point_plus_one"),
        *("AP", "AP50", "AP75", "AP_small"),  # all boxes are small
    }
    usual = with_intervals(score_detections(ground_truth, detections, ["a"], 100), ground_truth, detections, 20)
    assert set(usual["intervals"]) == {"map50", "map50_11_point", "AP", "AP50", "AP75", "AP_small"}


def test_classes_in_few_images_have_no_interval():
    """Prevents [1.000, 1.000] for a class with one box, which is always found or always missed."""
    ground_truth = truth(*[[image, 0, 0, 10, 10, 0, 0] for image in range(6)], [0, 0, 0, 10, 10, 1, 0])
    ground_truth = ground_truth._replace(difficult=np.array([False] * 7))
    assert has_enough_images(ground_truth, 3).tolist() == [True, True, False, False]
    same_image = ground_truth._replace(image_ids=np.zeros(7, np.int64))
    assert has_enough_images(same_image, 3).tolist() == [False] * 4
    detections = found([0, 0, 0, 10, 10, 0.9, 1])
    scores = with_intervals(score_detections(ground_truth, detections, ["a", "b"], 6), ground_truth, detections, 50)
    assert [sorted(row["intervals"]) for row in scores["classes"]] == [["AP", "map50"], []]


def test_few_images_have_no_interval():
    """Prevents certainty from two images."""
    ground_truth, detections = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 10, 10, 0.9, 0])
    scores = with_intervals(score_detections(ground_truth, detections, ["a"], 2), ground_truth, detections, 20)
    assert scores["intervals"] == {} and "too few images with boxes for an interval" in format_scores(scores)


def test_nothing_to_find_has_no_interval():
    """Prevents a crash, or numbers, where no score is defined."""
    scores = with_intervals(score_detections(truth(), found(), ["a"], 2), truth(), found(), 20)
    assert scores["intervals"] == {}
    assert has_enough_images(truth(), 0).tolist() == [False]
