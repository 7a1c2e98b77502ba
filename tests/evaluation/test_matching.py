import numpy as np
import pytest

from tests.evaluation.tables import found, truth
from utils.evaluation.matching import confusion_matrix, match_coco, match_voc
from utils.evaluation.types import DetectionTable, GroundTruth

BOX = [0, 0, 10, 10]
HALF = [0, 0, 10, 5]  # IoU 0.5 with BOX
NEAR = [1, 0, 11, 10]  # IoU 9 / 11 with BOX, 9 / 11 with FAR
FAR = [2, 0, 12, 10]  # IoU 8 / 12 with BOX
ELSEWHERE = [50, 50, 60, 60]


def true_positives(ground_truth, detections, num_classes=1, **options):
    """Which detections are right by the rule of VOC."""
    return match_voc(ground_truth, detections, num_classes, **options).true_positive[0].tolist()


def test_second_detection_of_a_box_is_wrong_and_order_of_input_does_not_matter():
    """The surest detection takes the box, even where it comes later in the list."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.3, 0], [0, 0, 0, 10, 9, 0.8, 0])
    assert true_positives(ground_truth, detections) == [False, True]


def test_equal_scores_keep_the_order_given():
    """An unstable sort would give another number on another machine."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0])
    detections = found(*([0, 0, 0, 10, 10, 0.5 + i % 2 / 4, 0] for i in range(1000)))
    assert np.flatnonzero(true_positives(ground_truth, detections)).tolist() == [1]


def test_of_two_equal_boxes_the_first_is_found():
    """The kit takes a later box only where its IoU is higher, so a box labelled twice is found once."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0])
    assert true_positives(ground_truth, detections) == [True, False]
    for difficult, ignored in (([True, False], [True, True]), ([False, True], [False, False])):
        matches = match_voc(ground_truth._replace(difficult=np.array(difficult)), detections, 1)
        assert matches.ignored[0].tolist() == ignored


def test_a_detection_looks_only_at_its_best_box():
    """The kit does not try the second-best box when the best is taken: the later detection, whose IoU is 90 / 110 with
    the first box and 80 / 120 with the second, is wrong."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 3, 0, 13, 10, 0, 0])
    first, second = [0, 0, 0, 10, 10, 0.9, 0], [0, 1, 0, 11, 10, 0.8, 0]
    assert true_positives(ground_truth, found(first, second)) == [True, False]
    for iou, is_right in ((90 / 110 - 1e-9, True), (90 / 110 + 1e-9, False)):
        assert true_positives(ground_truth, found(second), iou=iou) == [is_right]


def test_difficult_boxes_are_ignored():
    """Counted as right they raise recall above 1, counted as wrong they punish a good detector."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 1], [0, 50, 50, 60, 60, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    matches = match_voc(ground_truth, detections, 1)
    assert matches.ignored.tolist() == [[True, True, False]]
    assert matches.true_positive.tolist() == [[False, False, True]]
    assert matches.counted.tolist() == [False, True]


def test_images_and_classes_are_kept_apart():
    """A detection in another image or of another class must not find the box, whatever its coordinates."""
    ground_truth = truth([0, 0, 0, 10, 10, 1, 0], [2, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 0, 0, 10, 10, 0.9, 1], [2, 0, 0, 10, 10, 0.9, 0])
    assert true_positives(ground_truth, detections, 3) == [False, False, True]
    for matches in (match_voc(truth(), detections, 3), match_coco(truth(), detections, 3)["AP"]):
        assert not matches.true_positive.any() and not matches.ignored.any() and matches.counted.shape == (0,)


def test_coco_takes_the_next_box_where_the_best_is_taken():
    """Prevents the rule of VOC here, which would make the second detection wrong."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 2, 0, 12, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 1, 0, 11, 10, 0.8, 0])
    matches = match_coco(ground_truth, detections, 1)["AP"]
    assert matches.true_positive[0].tolist() == [True, True]
    assert matches.true_positive[9].tolist() == [True, False]  # IoU 0.82 does not do at 0.95


def test_coco_ignores_boxes_of_another_size():
    """Prevents large detections from counting as errors among the small ones."""
    ground_truth = truth([0, 0, 0, 100, 100, 0, 0], [0, 200, 0, 210, 10, 0, 0])
    detections = found([0, 0, 0, 100, 100, 0.9, 0], [0, 300, 300, 400, 400, 0.8, 0], [0, 200, 0, 210, 10, 0.7, 0])
    small = match_coco(ground_truth, detections, 1)["AP_small"]
    assert small.counted.tolist() == [False, True]
    assert small.true_positive[0].tolist() == [False, False, True]
    assert small.ignored[0].tolist() == [True, True, False]


def labelled(*rows):
    """rows: (image, box, class) or (image, box, class, difficult)."""
    columns = (
        [*zip(*rows, strict=True)]
        if rows and len(rows[0]) == 4
        else [*zip(*((*row, False) for row in rows), strict=True)]
    )
    images, boxes, classes, difficult = columns or ((),) * 4
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return GroundTruth(np.array(images, int), boxes, np.array(classes, int), np.array(difficult, bool))


def detected(*rows):
    """rows: (image, box, score, class)."""
    images, boxes, scores, classes = [*zip(*rows, strict=True)] or ((),) * 4
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return DetectionTable(np.array(images, int), boxes, np.array(scores, np.float64), np.array(classes, int))


@pytest.mark.parametrize(
    ("labels", "boxes", "expected"),
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
def test_every_box_is_in_its_cell(labels, boxes, expected):
    """Prevents rows and columns from being swapped, and a crash without labels or without detections."""
    assert confusion_matrix(labelled(*labels), detected(*boxes), 2, 0.25).tolist() == expected


def test_the_highest_scoring_detection_chooses_first():
    """Prevents one label from being found twice, and a right class from hiding that the network was surer of a wrong
    one."""
    matrix = confusion_matrix(labelled((0, BOX, 0)), detected((0, BOX, 0.6, 0), (0, NEAR, 0.8, 1)), 2, 0.25)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_detection_goes_on_to_the_next_free_box():
    """Prevents a label from being missed because the detection that fits it preferred one that a surer one took."""
    ground_truth = labelled((0, BOX, 0), (0, FAR, 1))
    # The second overlaps BOX more, which is taken, and FAR enough.
    matrix = confusion_matrix(ground_truth, detected((0, BOX, 0.9, 0), (0, [0.5, 0, 10.5, 10], 0.8, 1)), 2, 0.25)
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_difficult_boxes_are_in_no_row():
    """Prevents difficult boxes from counting as missed, and their detections as false alarms."""
    ground_truth = labelled((0, BOX, 0, True), (0, ELSEWHERE, 1, False))
    detections = detected((0, BOX, 0.9, 0), (0, NEAR, 0.8, 1), (0, ELSEWHERE, 0.7, 1))
    assert confusion_matrix(ground_truth, detections, 2, 0.25).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_each_class_has_its_confidence():
    """Prevents one threshold for all where predict uses one for each class."""
    detections = detected((0, BOX, 0.4, 0), (0, ELSEWHERE, 0.4, 1))
    assert confusion_matrix(labelled(), detections, 2, [0.5, 0.3]).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_confusion_matrix_as_a_loop_makes_it():
    """Prevents the vectorised matching from departing from its rule in crowds, where many boxes overlap many."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 12, (2, 300, 2))
    boxes = np.concatenate([corners, corners + random.uniform(6, 12, (2, 300, 2))], 2)
    images, classes = random.integers(0, 3, (2, 300)), random.integers(0, 4, (2, 300))
    ground_truth = GroundTruth(images[0], boxes[0], classes[0], random.random(300) < 0.2)
    detections = DetectionTable(images[1], boxes[1], random.random(300), classes[1])
    matrix = confusion_matrix(ground_truth, detections, 4, 0.3, 0.4)
    assert matrix.tolist() == confusion_matrix_by_loop(ground_truth, detections, 4, 0.3, 0.4)


def confusion_matrix_by_loop(ground_truth, detections, count, confidence, iou):
    matrix, taken = np.zeros((count + 1, count + 1), int), ground_truth.difficult.copy()
    labels_xyxy = ground_truth.boxes_xyxy
    for row in np.argsort(-detections.scores):
        if detections.scores[row] < confidence:
            continue
        box = detections.boxes_xyxy[row]
        inner = np.minimum(labels_xyxy[:, 2:], box[2:]) - np.maximum(labels_xyxy[:, :2], box[:2])
        inner = inner.clip(0).prod(1)
        areas = (labels_xyxy[:, 2:] - labels_xyxy[:, :2]).prod(1)
        overlap = inner / (areas + (box[2:] - box[:2]).prod() - inner)
        overlap[ground_truth.image_ids != detections.image_ids[row]] = 0
        free = np.where(taken, 0, overlap)
        if free.max() >= iou:
            taken[free.argmax()] = True
            matrix[ground_truth.classes[free.argmax()], detections.classes[row]] += 1
        elif not (overlap[ground_truth.difficult] >= iou).any():
            matrix[count, detections.classes[row]] += 1
    for class_id in ground_truth.classes[~taken]:
        matrix[class_id, count] += 1
    return matrix.tolist()
