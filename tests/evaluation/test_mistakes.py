import numpy as np

from tests.evaluation.tables import found, truth
from utils.evaluation.mistakes import find_mistakes, worst_images

# Rows of truth and found, see tables.py.
LABELS = [
    [0, 0, 0, 40, 40, 0, 0],  # found
    [0, 60, 0, 100, 40, 0, 0],  # found as class 1
    [0, 0, 60, 40, 100, 1, 0],  # found with an IoU of 0.25
    [1, 0, 0, 40, 40, 1, 0],  # not found
    [2, 0, 0, 40, 40, 0, 1],  # difficult
]
FOUND = [
    [0, 0, 0, 40, 40, 0.9, 0],
    [0, 1, 0, 40, 40, 0.8, 0],  # a second time
    [0, 60, 0, 100, 40, 0.7, 1],
    [0, 0, 60, 10, 100, 0.6, 1],
    [2, 0, 0, 40, 40, 0.9, 0],
    [2, 80, 80, 90, 90, 0.9, 0],
    [2, 80, 80, 90, 90, 0.1, 0],  # below the confidence
]


def test_every_box_gets_its_reason():
    """Prevents a mistake under a wrong reason, one that counts twice, and one that is none: a difficult box."""
    labels, detections = truth(*LABELS), found(*FOUND)
    mistakes = find_mistakes(labels, detections, 2, np.array([0.5, 0.5]))
    assert mistakes.labels.tolist() == ["right", "class", "place", "missed", "ignored"]
    assert mistakes.detections.tolist() == ["right", "invented", "class", "place", "ignored", "invented", ""]
    counts = mistakes.of_images(labels, detections, 4)
    assert counts.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert worst_images(counts, 20) == [0, 1, 2] and worst_images(counts, 1) == [0]


def test_a_box_of_another_class_that_hardly_overlaps_is_invented():
    """Prevents two unrelated mistakes from being told as one."""
    mistakes = find_mistakes(truth([0, 0, 0, 40, 40, 0, 0]), found([0, 0, 0, 10, 40, 0.9, 1]), 2, 0.5)
    assert (mistakes.labels.tolist(), mistakes.detections.tolist()) == (["missed"], ["invented"])


def test_without_boxes():
    """Prevents a crash before anything is found, and on a set without labels."""
    mistakes = find_mistakes(truth(), found(), 2, 0.5)
    assert (len(mistakes.labels), len(mistakes.detections)) == (0, 0)
    assert worst_images(mistakes.of_images(truth(), found(), 3), 20) == []
    assert worst_images(np.zeros((0, 4), int), 20) == []
