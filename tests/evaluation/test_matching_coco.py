import numpy as np
import pytest

from tests.evaluation.test_matching_voc import found, truth
from utils.evaluation.average_precision import coco_average_precision, coco_average_precisions
from utils.evaluation.curves import mean_over_classes
from utils.evaluation.matching import coco_outcomes
from utils.evaluation.types import Detections, GroundTruth


def random_set(seed, images=6, labelled=8, per_image=60, classes=3):
    """Boxes of all sizes, many detections of each, some difficult; odd seeds have many equal scores and boxes."""
    random = np.random.default_rng(seed)
    count, step = images * labelled, 10 if seed % 2 else 0.1
    corner = random.uniform(0, 300, (count, 2))
    boxes = np.concatenate([corner, corner + np.exp(random.uniform(2, 5.5, (count, 2)))], 1)
    boxes = np.round(boxes / step) * step
    ids, labels = random.integers(images, size=count), random.integers(classes, size=count)
    ground_truth = GroundTruth(ids, boxes, labels, random.random(count) < 0.15)
    source = random.integers(count, size=images * per_image)
    size = np.tile(boxes[source, 2:] - boxes[source, :2], 2)
    shifted = np.round((boxes[source] + random.normal(0, 0.12, size.shape) * size) / step) * step
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2])
    scores = random.random(len(source))
    return ground_truth, Detections(ids[source], shifted, scores.round(1) if seed % 2 else scores, labels[source])


@pytest.mark.parametrize("seed", range(8))
def test_the_same_numbers_as_the_public_evaluator(seed):
    """Prevents intervals around another score than the one that is shown, in the order of matching, ties, crowds, sizes
    and the limit of 100 boxes."""
    per_image = 600 if seed == 2 else 60
    ground_truth, detections = random_set(seed, per_image=per_image)
    expected, by_class = coco_average_precision(ground_truth, detections, ["a", "b", "c"], 6)
    scores = coco_average_precisions(ground_truth, detections, 3, np.ones((6, 1)))
    assert list(scores) == ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    for name, values in scores.items():
        assert mean_over_classes(values[:, 0]) == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
    assert scores["AP"][:, 0] == pytest.approx(by_class, abs=1e-9, nan_ok=True)


def test_a_detection_takes_the_next_box_where_the_best_is_taken():
    """Prevents the rule of VOC here, which would make the second detection wrong."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 2, 0, 12, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 1, 0, 11, 10, 0.8, 0])
    outcome = coco_outcomes(ground_truth, detections, 1)["AP"]
    assert outcome.right[0].tolist() == [True, True]
    assert outcome.right[9].tolist() == [True, False]  # IoU 0.82 does not do at 0.95


def test_boxes_of_another_size_are_neither_right_nor_wrong():
    """Prevents large detections from counting as errors among the small ones."""
    ground_truth = truth([0, 0, 0, 100, 100, 0, 0], [0, 200, 0, 210, 10, 0, 0])
    detections = found([0, 0, 0, 100, 100, 0.9, 0], [0, 300, 300, 400, 400, 0.8, 0], [0, 200, 0, 210, 10, 0.7, 0])
    small = coco_outcomes(ground_truth, detections, 1)["AP_small"]
    assert small.wanted.tolist() == [False, True]
    assert small.right[0].tolist() == [False, False, True]
    assert small.ignored[0].tolist() == [True, True, False]


def test_empty_inputs_have_a_stated_result():
    """Nothing found is 0; nothing to find is not a number."""
    box, hit = truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0])
    assert coco_average_precisions(box, found(), 1, np.ones((1, 1)))["AP"].tolist() == [[0.0]]
    for detections in (hit, found()):
        assert np.isnan(coco_average_precisions(truth(), detections, 1, np.ones((1, 1)))["AP"]).all()
    assert coco_average_precisions(truth(), found(), 0, np.ones((0, 1)))["AP"].shape == (0, 1)
