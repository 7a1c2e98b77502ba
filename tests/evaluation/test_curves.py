import math

import numpy as np
import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.curves import mean_over_classes, pr_curves
from utils.evaluation.matching import match_voc


def curves_of(ground_truth, detections, num_classes=1, num_images=3, iou=0.5):
    matches = match_voc(ground_truth, detections, num_classes, iou)
    return pr_curves(matches, ground_truth, detections, num_classes, num_images)


def test_best_f1_by_hand():
    """Prevents thresholds at which a box more or less would be better: 2 of 3 found, with 1 wrong between them."""
    ground_truth = truth(*[[image, 0, 0, 10, 10, 0, 0] for image in range(3)])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 50, 0, 60, 10, 0.6, 0], [1, 0, 0, 10, 10, 0.4, 0])
    curves = curves_of(ground_truth, detections, 2)
    assert (curves.precision[0], curves.recall[0], curves.f1[0]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert curves.confidence[0] == 0.4
    assert np.isnan([curves.precision[1], curves.recall[1], curves.f1[1], curves.confidence[1]]).all()
    at = [int(np.argmin(abs(curves.confidences - place))) for place in (0.2, 0.5, 0.8, 0.95)]
    assert curves.precision_at[0, at[:3]].tolist() == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert curves.recall_at[0, at].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0.0])
    assert curves.f1_at[0, at].tolist() == pytest.approx([2 / 3, 2 / 5, 1 / 2, 0.0])
    assert math.isnan(curves.precision_at[0, at[3]])  # nothing is that sure, so nothing is precise
    assert curves.precision_over_recall[0, [0, 33, 34, 66, 67]].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 0])


def test_equal_scores_count_together():
    """Prevents a confidence that no threshold can reach: both boxes of 0.5 are kept or none."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.5, 0], [0, 50, 0, 60, 10, 0.5, 0])
    curves = curves_of(ground_truth, detections)
    assert (curves.confidence[0], curves.precision[0], curves.recall[0]) == (0.5, 0.5, 1.0)


def test_a_class_that_is_never_right():
    """Prevents a confidence for a class that no confidence helps, and precision where nothing was detected."""
    box = truth([0, 0, 0, 10, 10, 0, 0])
    wrong, nothing = curves_of(box, found([0, 50, 0, 60, 10, 0.5, 0])), curves_of(box, found())
    assert (wrong.precision[0], wrong.recall[0], wrong.f1[0], wrong.miss_rate[0]) == (0, 0, 0, pytest.approx(1))
    assert math.isnan(wrong.confidence[0]) and math.isnan(nothing.confidence[0]) and math.isnan(nothing.precision[0])
    assert (nothing.recall[0], nothing.f1[0], nothing.miss_rate[0]) == (0, 0, 1)
    assert not np.isfinite(curves_of(truth(), found(), 1, 0).f1_at).any()


def test_log_average_miss_rate_by_hand():
    """Prevents rates per detection in the place of rates per image: at up to 0.1 wrong boxes per image (the first five
    of nine points) half of the boxes are missed, from there on none."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [1, 0, 0, 10, 10, 0, 0])
    wrong = [[2, 50, 0, 60, 10, 0.8, 0]] * 2
    detections = found([0, 0, 0, 10, 10, 0.9, 0], *wrong, [1, 0, 0, 10, 10, 0.7, 0])
    expected = np.exp(np.mean([np.log(0.5)] * 5 + [np.log(1e-10)] * 4))
    assert curves_of(ground_truth, detections, num_images=15).miss_rate[0] == pytest.approx(expected)


def test_scores_beyond_one_are_drawn_too():
    """Prevents curves that end where the scores of another detector begin."""
    curves = curves_of(truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 10, 10, 80.0, 0]))
    assert (curves.confidences[0], curves.confidences[-1], curves.recall_at[0, -1]) == (0.0, 80.0, 1.0)


def test_mean_over_classes():
    """Prevents a warning, or 0, where no class is defined."""
    values = np.array([[0.5, np.nan, np.nan], [1.0, 0.25, np.nan]])
    assert mean_over_classes(values) == pytest.approx([0.75, 0.25, np.nan], nan_ok=True)
    assert mean_over_classes(values[:, 0]) == 0.75 and np.isnan(mean_over_classes(np.zeros(0)))
