import numpy as np
import pytest

from utils.evaluation.matching import confusion_matrix
from utils.evaluation.types import Detections, GroundTruth
from utils.visualize.confusion import confusion_picture

BOX = [0, 0, 10, 10]
HALF = [0, 0, 10, 5]  # IoU 0.5 with BOX
NEAR = [1, 0, 11, 10]  # IoU 9 / 11 with BOX, 9 / 11 with FAR
FAR = [2, 0, 12, 10]  # IoU 8 / 12 with BOX
ELSEWHERE = [50, 50, 60, 60]


def truth(*rows):
    """rows: (image, box, class) or (image, box, class, difficult)."""
    columns = (
        [*zip(*rows, strict=True)]
        if rows and len(rows[0]) == 4
        else [*zip(*((*row, False) for row in rows), strict=True)]
    )
    images, boxes, classes, difficult = columns or ((),) * 4
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return GroundTruth(np.array(images, int), boxes, np.array(classes, int), np.array(difficult, bool))


def found(*rows):
    """rows: (image, box, score, class)."""
    images, boxes, scores, classes = [*zip(*rows, strict=True)] or ((),) * 4
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(np.array(images, int), boxes, np.array(scores, np.float64), np.array(classes, int))


@pytest.mark.parametrize(
    ("labelled", "detected", "expected"),
    [
        ([(0, BOX, 0)], [(0, BOX, 0.9, 0)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(0, BOX, 0)], [(0, BOX, 0.9, 1)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ([(0, BOX, 1)], [], [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
        ([], [(0, BOX, 0.9, 0), (3, BOX, 0.5, 1)], [[0, 0, 0], [0, 0, 0], [1, 1, 0]]),
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        # The same place in another image is another place.
        ([(0, BOX, 0)], [(1, BOX, 0.9, 0)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        # The IoU of 0.5 itself suffices; a score under the confidence does not.
        ([(0, BOX, 0), (1, BOX, 0)], [(0, HALF, 0.9, 0), (1, BOX, 0.2, 0)], [[1, 0, 1], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_every_box_is_in_its_cell(labelled, detected, expected):
    """Prevents rows and columns from being swapped, and a crash without labels or without detections."""
    assert confusion_matrix(truth(*labelled), found(*detected), 2, 0.25).tolist() == expected


def test_the_surest_detection_chooses_first():
    """Prevents one label from being found twice, and a right class from hiding that the network was surer of a wrong
    one."""
    matrix = confusion_matrix(truth((0, BOX, 0)), found((0, BOX, 0.6, 0), (0, NEAR, 0.8, 1)), 2, 0.25)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_detection_goes_on_to_the_next_free_box():
    """Prevents a label from being missed because the detection that fits it preferred one that a surer one took."""
    labelled = truth((0, BOX, 0), (0, FAR, 1))
    # The second overlaps BOX more, which is taken, and FAR enough.
    matrix = confusion_matrix(labelled, found((0, BOX, 0.9, 0), (0, [0.5, 0, 10.5, 10], 0.8, 1)), 2, 0.25)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_difficult_boxes_are_neither_right_nor_wrong():
    """Prevents difficult boxes from counting as missed, and their detections as false alarms."""
    labelled = truth((0, BOX, 0, True), (0, ELSEWHERE, 1, False))
    detected = found((0, BOX, 0.9, 0), (0, NEAR, 0.8, 1), (0, ELSEWHERE, 0.7, 1))
    assert confusion_matrix(labelled, detected, 2, 0.25).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_each_class_has_its_confidence():
    """Prevents one threshold for all where predict uses one for each class."""
    detected = found((0, BOX, 0.4, 0), (0, ELSEWHERE, 0.4, 1))
    assert confusion_matrix(truth(), detected, 2, [0.5, 0.3]).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_as_a_loop_does_it():
    """Prevents the vectorised matching from departing from its rule in crowds, where many boxes overlap many."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 12, (2, 300, 2))
    boxes = np.concatenate([corners, corners + random.uniform(6, 12, (2, 300, 2))], 2)
    images, classes = random.integers(0, 3, (2, 300)), random.integers(0, 4, (2, 300))
    labelled = GroundTruth(images[0], boxes[0], classes[0], random.random(300) < 0.2)
    detected = Detections(images[1], boxes[1], random.random(300), classes[1])
    assert confusion_matrix(labelled, detected, 4, 0.3, 0.4).tolist() == by_loop(labelled, detected, 4, 0.3, 0.4)


def by_loop(labelled, detected, count, confidence, iou):
    matrix, taken = np.zeros((count + 1, count + 1), int), labelled.difficult.copy()
    for row in np.argsort(-detected.scores):
        if detected.scores[row] < confidence:
            continue
        box = detected.boxes_xyxy[row]
        inner = np.minimum(labelled.boxes_xyxy[:, 2:], box[2:]) - np.maximum(labelled.boxes_xyxy[:, :2], box[:2])
        inner = inner.clip(0).prod(1)
        areas = (labelled.boxes_xyxy[:, 2:] - labelled.boxes_xyxy[:, :2]).prod(1)
        overlap = inner / (areas + (box[2:] - box[:2]).prod() - inner)
        overlap[labelled.image_ids != detected.image_ids[row]] = 0
        free = np.where(taken, 0, overlap)
        if free.max() >= iou:
            taken[free.argmax()] = True
            matrix[labelled.classes[free.argmax()], detected.classes[row]] += 1
        elif not (overlap[labelled.difficult] >= iou).any():
            matrix[count, detected.classes[row]] += 1
    for class_id in labelled.classes[~taken]:
        matrix[class_id, count] += 1
    return matrix.tolist()


@pytest.mark.parametrize(("count", "cells"), [(1, 110), (3, 110), (80, 24)])
def test_the_picture_grows_with_the_classes(count, cells):
    """Prevents cells too small for their numbers, and a picture as large as a wall for one class."""
    matrix = np.eye(count + 1, dtype=int) * 7
    matrix[count, count] = 0
    matrix[0] = [3, *[0] * (count - 1), 1]
    image = confusion_picture(matrix, [f"类别 {number}" for number in range(count)])["confusion"]
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert cells * (count + 1) + 80 < image.shape[0] < cells * (count + 1) + 200
    # 75 % of the blue of what is right, and 25 % of the red of what is missed.
    assert ((image == (63, 149, 218)).all(2)).sum() > cells * cells / 2
    assert ((image == (248, 205, 208)).all(2)).sum() > cells * cells / 2


def test_rows_without_boxes_are_grey():
    """Prevents a class that does not occur from looking like one of which all was wrong, or nothing."""
    image = confusion_picture(np.zeros((3, 3), int), ["cat", "dog"], "a note")["confusion"]
    assert (image == 240).all(2).sum() > 0.95 * 9 * 109**2


def test_too_many_classes():
    """Prevents a picture of gigabytes: of 500 classes, 80 are shown."""
    matrix = np.diag(np.arange(501))
    matrix[500, 500] = 0
    assert max(confusion_picture(matrix, ["x"] * 500)["confusion"].shape) < 2300
