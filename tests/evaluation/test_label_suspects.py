import numpy as np
import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.label_suspects import find_suspects, usual_iou

# Images 0 to 3 hold a box of class 0 each, which is found with 0.9: so sure are labels of this class found.
RIGHT = [[image, 0, 0, 40, 40, 0, 0] for image in range(4)]
FOUND = [[image, 0, 0, 40, 40, 0.9, 0] for image in range(4)]


def suspects(labels, detections):
    """[(kind, score, image, IoU)] of those with a score, the surest first."""
    labels, detections = truth(*labels), found(*detections)
    rows = [item for item in find_suspects(labels, detections, 2) if item.score > 1e-3]
    assert [item.score for item in rows] == sorted((item.score for item in rows), reverse=True)
    images = [
        labels.image_ids[item.label] if item.label >= 0 else detections.image_ids[item.detection] for item in rows
    ]
    return [(item.kind, round(item.score, 3), image, item.iou) for item, image in zip(rows, images, strict=True)]


def test_labels_that_are_found_are_not_suspicious():
    """Prevents a list that is full where nothing is wrong; 1 - 0.9 is the doubt that is left, times 0.9."""
    assert suspects(RIGHT, FOUND) == [("not found", 0.09, image, 0) for image in range(4)]
    assert suspects([], []) == []


def test_a_label_that_was_forgotten():
    """Prevents missing labels, the commonest error, from being overlooked; and two suspects of one object."""
    double = [[7, 2, 0, 42, 40, 0.3, 1]]
    rows = suspects(RIGHT, [*FOUND, [7, 0, 0, 40, 40, 0.8, 0], *double])
    assert rows[0] == ("no label", 0.8, 7, 0)
    assert [row[0] for row in rows[1:]] == ["not found"] * 4


def test_a_label_of_nothing():
    """Prevents a box on background from staying: labels of its class are else found with (4 * 0.9 + 0) / 5."""
    rows = suspects([*RIGHT, [5, 0, 0, 40, 40, 0, 0]], FOUND)
    assert rows[0] == ("not found", 0.72, 5, 0)


def test_a_label_of_a_class_that_is_never_found_says_little():
    """Prevents a class that the detector has not learned from filling the top of the list."""
    assert suspects([[5, 0, 0, 40, 40, 1, 0], *RIGHT], FOUND)[0] == ("not found", 0.09, 0, 0)


def test_another_class():
    """Prevents a conflict of classes from showing as two errors; 0.8 / (0.8 + 0.1) and, with its own class found
    too, 0.8 / (0.8 + 0.6 + 0.1)."""
    label = [5, 0, 0, 40, 40, 1, 0]
    assert suspects([*RIGHT, label], [*FOUND, [5, 0, 0, 40, 40, 0.8, 0]])[:2] == [
        ("other class", 0.889, 5, 1.0),
        ("not found", 0.09, 0, 0),
    ]
    both = [[5, 0, 0, 40, 40, 0.8, 0], [5, 0, 0, 40, 40, 0.6, 1]]
    assert suspects([*RIGHT, label], [*FOUND, *both])[0] == ("other class", 0.533, 5, 1.0)


def test_a_loose_box():
    """Prevents a label that was moved from showing as two errors. IoU 30 / 50 = 0.6 is 0.6 of the way from 0.75 to 0.5,
    of 0.9 / (0.9 + 0.1); IoU 10 / 70 counts whole; IoU 38 / 42 = 0.9 not at all."""
    for moved, score, iou in ((10, 0.54, 0.6), (30, 0.9, 1 / 7)):
        label = [5, moved, 0, moved + 40, 40, 0, 0]
        assert suspects([*RIGHT, label], [*FOUND, [5, 0, 0, 40, 40, 0.9, 0]])[0] == (
            "loose box",
            pytest.approx(score, abs=1e-3),
            5,
            pytest.approx(iou),
        )
    rows = suspects([*RIGHT, [5, 2, 0, 42, 40, 0, 0]], [*FOUND, [5, 0, 0, 40, 40, 0.9, 0]])
    assert {row[0] for row in rows} == {"not found"}


def test_what_is_loose_depends_on_the_detector():
    """Prevents a detector whose boxes are all poor from making every label a suspect: three quarters of the labels of
    class 0 reach 0.575, those of class 1 more than enough, and class 2 has none."""
    ious = np.array([0.5, 0.6, 0.7, 0.8, 0.0, 0.9, 0.95])
    usual = usual_iou(ious, np.array([0, 0, 0, 0, 0, 1, 1]), 3)
    assert usual.tolist() == [pytest.approx(0.575), 0.75, 0.75]
    assert usual_iou(np.zeros(0), np.zeros(0, np.int64), 1).tolist() == [0.75]


def test_neighbours_do_not_make_a_label_loose():
    """Prevents dense scenes from filling the list: what is found is nearest to a label of its own."""
    labels = [[5, 0, 0, 40, 40, 0, 0], [5, 20, 0, 60, 40, 0, 0]]
    detections = [[5, 0, 0, 40, 40, 0.9, 0], [5, 20, 0, 60, 40, 0.9, 0]]
    assert {row[0] for row in suspects(labels, detections)} == {"not found"}


def test_a_part_of_a_labelled_object_is_no_missing_label():
    """Prevents a second, smaller box of an object that is labelled from counting as a forgotten one; half of one that
    reaches beyond its label counts half."""
    inside = [0, 0, 0, 20, 20, 0.8, 0]
    assert {row[0] for row in suspects(RIGHT, [*FOUND, inside])} == {"not found"}
    beyond = [0, 30, 0, 50, 20, 0.8, 0]
    assert suspects(RIGHT, [*FOUND, beyond])[0] == ("no label", 0.4, 0, 0)
    of_another_class = [0, 0, 0, 20, 20, 0.8, 1]
    assert suspects(RIGHT, [*FOUND, of_another_class])[0] == ("no label", 0.8, 0, 0)


def test_difficult_labels_are_left_alone():
    """Prevents crowds, and objects that nobody can make out, from being suspects."""
    difficult = [5, 0, 0, 100, 100, 0, 1]
    detections = [*FOUND, [5, 0, 0, 40, 40, 0.8, 1], [5, 50, 50, 90, 90, 0.7, 0]]
    assert {row[0] for row in suspects([*RIGHT, difficult], detections)} == {"not found"}
    assert 5 not in [row[2] for row in suspects([*RIGHT, difficult], FOUND)]


def test_boxes_without_area():
    """Prevents a division by zero, and a point from standing for an object."""
    rows = suspects([[0, 5, 5, 5, 9, 0, 0]], [[0, 5, 5, 5, 9, 0.8, 0]])
    assert rows == [("no label", 0.8, 0, 0)]
