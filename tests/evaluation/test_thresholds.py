import math

import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.thresholds import class_thresholds, wilson_interval

BOX = (0, 0, 10, 10)


def objects(count, class_id=0, difficult=0):
    """One labelled object on each of so many images."""
    return [(image, *BOX, class_id, difficult) for image in range(count)]


def test_the_interval():
    """Prevents an interval of another width: 15 of 15 just reach 0.9, and 14 do not; the numbers are those of
    statsmodels.stats.proportion.proportion_confint(count, nobs, 0.2, "wilson")."""
    low, high = wilson_interval([15, 14, 45, 0], [15, 14, 50, 4])
    assert low.tolist() == pytest.approx([0.90131, 0.89500, 0.83229, 0.0], abs=1e-4)
    assert high.tolist() == pytest.approx([1.0, 1.0, 0.94227, 0.29108], abs=1e-4)


def test_the_lowest_confidence_that_is_precise_enough():
    """Prevents a threshold that is higher than it need be, or that too few boxes decide on: of 40 boxes from 0.9 down
    to 0.6 all are right, then come ten wrong ones."""
    right = [(image, *BOX, 0.9 - image / 100 * 0.75, 0) for image in range(40)]
    wrong = [(image, 50, 50, 60, 60, 0.5, 0) for image in range(10)]
    (threshold,) = class_thresholds(truth(*objects(50)), found(*right, *wrong), 1, 0.9)
    assert threshold.confidence == pytest.approx(0.9 - 39 / 100 * 0.75)
    assert (threshold.boxes, threshold.precision, threshold.recall) == (40, 1.0, 0.8)
    assert (threshold.low, threshold.high) == pytest.approx((0.96056, 1.0), abs=1e-4)
    (lower,) = class_thresholds(truth(*objects(50)), found(*right, *wrong), 1, 0.7)
    assert (lower.confidence, lower.boxes, lower.precision) == (0.5, 50, 0.8)


def test_boxes_of_one_score_stay_together():
    """Prevents a threshold that only holds where equal scores come in a lucky order."""
    right = [(image, *BOX, 0.5, 0) for image in range(20)]
    wrong = [(image, 50, 50, 60, 60, 0.5, 0) for image in range(20)]
    (threshold,) = class_thresholds(truth(*objects(20)), found(*right, *wrong), 1, 0.9)
    assert math.isnan(threshold.confidence) and (threshold.boxes, threshold.precision) == (40, 0.5)


def test_classes_without_boxes_and_difficult_objects():
    """Prevents a class that nothing is known of from being labelled, and difficult objects from counting as wrong."""
    right = [(image, *BOX, 0.9, 0) for image in range(20)]
    difficult = [(image, *BOX, 1, 1) for image in range(20)]
    first, second, third = class_thresholds(
        truth(*objects(20), *difficult), found(*right, *((image, *BOX, 0.8, 1) for image in range(20))), 3, 0.9
    )
    assert (first.confidence, first.boxes) == (0.9, 20)
    for nothing in (second, third):
        assert nothing.boxes == 0 and all(map(math.isnan, (nothing.confidence, nothing.low, nothing.recall)))
    assert class_thresholds(truth(), found(), 0, 0.9) == []
