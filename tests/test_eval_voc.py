import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from utils.eval.inputs import Detections, GroundTruth, check_inputs
from utils.eval.scores import format_scores, score_detections
from utils.eval.voc import match_detections, voc_average_precision

ORACLES = Path(os.environ.get("YOLO_REAL_DATA", "/nonexistent")) / "oracles" / "map"
needs_oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason="YOLO_REAL_DATA names no folder with oracles/map")


def truth(*rows):
    """Rows of image, x1, y1, x2, y2, class, difficult."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return GroundTruth(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5].astype(np.int64), table[:, 6] > 0)


def found(*rows):
    """Rows of image, x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5], table[:, 6].astype(np.int64))


def read_folders(truth_folder, detection_folder, box_format):
    """Read `class [score] a b c d` lines, a text file per image: GroundTruth, Detections, class names, image count."""
    names, images = {}, {path.name: i for i, path in enumerate(sorted(truth_folder.glob("*.txt")))}

    def read(folder):
        for path in sorted(folder.glob("*.txt")):
            for line in path.read_text(encoding="utf-8").splitlines():
                name, *numbers = line.split()
                *score, x1, y1, a, b = map(float, numbers)
                x2, y2 = (x1 + a, y1 + b) if box_format == "xywh" else (a, b)
                yield [images[path.name], x1, y1, x2, y2], score, names.setdefault(name, len(names))

    ground_truth = truth(*([*box, class_id, 0] for box, _, class_id in read(truth_folder)))
    detections = found(*([*box, *score, class_id] for box, score, class_id in read(detection_folder)))
    return ground_truth, detections, list(names), len(images)


@needs_oracles
@pytest.mark.parametrize(
    ("plus_one", "eleven_point", "expected"),
    [(True, False, 0.310477), (True, True, 0.316965), (False, False, 0.310297)],
)
def test_public_sample_of_many_classes(plus_one, eleven_point, expected):
    """A wrong matching order, interpolation or set of classes moves the published number of a known tool."""
    ground_truth, detections, names, _ = read_folders(ORACLES / "cartucho_gt", ORACLES / "cartucho_det", "xyxy")
    scores = voc_average_precision(ground_truth, detections, len(names), 0.5, plus_one, eleven_point)
    assert scores.map == pytest.approx(expected, abs=1e-6)


@needs_oracles
@pytest.mark.parametrize(("eleven_point", "expected"), [(False, 0.245687), (True, 0.268398)])
def test_public_sample_of_one_class(eleven_point, expected):
    """The same with several detections on one object and an IoU threshold other than 0.5."""
    ground_truth, detections, names, _ = read_folders(ORACLES / "odm_gt", ORACLES / "odm_det", "xywh")
    scores = voc_average_precision(ground_truth, detections, len(names), 0.3, True, eleven_point)
    assert scores.map == pytest.approx(expected, abs=1e-6)


def test_area_under_the_curve_by_hand():
    """Right, wrong, right, with three boxes to find, is 1/3 * 1 + 1/3 * 2/3; a box never found must cost recall."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 50, 50, 60, 60, 0, 0], [1, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 30, 30, 40, 40, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    assert voc_average_precision(ground_truth, detections, 1).map == pytest.approx(5 / 9)
    # Eleven points: precision 1 at recall 0..0.3, 2/3 at 0.4..0.6, then 0.
    assert voc_average_precision(ground_truth, detections, 1, eleven_point=True).map == pytest.approx((4 + 2) / 11)


def test_precision_takes_the_best_at_any_higher_recall():
    """Wrong, right, right: the envelope lifts the first precision of 1/2 to 2/3; the raw curve would give 7/12."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 0], [0, 50, 50, 60, 60, 0, 0])
    detections = found([0, 30, 30, 40, 40, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    assert voc_average_precision(ground_truth, detections, 1).map == pytest.approx(2 / 3)


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
    scores = voc_average_precision(ground_truth, detections, 1)
    assert (scores.map, scores.precision[0], scores.recall[0], scores.boxes[0]) == (1.0, 1.0, 1.0, 1)
    assert match_detections(ground_truth, detections, 1).ignored.tolist() == [True, True, False]


def test_iou_equal_to_the_threshold_is_right_and_plus_one_counts_pixels():
    """5 of 10 columns: IoU 0.5 exactly; with the kit's +1 it is 6 of 11 columns."""
    ground_truth, detections = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 5, 10, 0.9, 0])
    assert voc_average_precision(ground_truth, detections, 1, iou=0.5).map == 1.0
    assert voc_average_precision(ground_truth, detections, 1, iou=0.51).map == 0.0
    assert voc_average_precision(ground_truth, detections, 1, iou=0.54, plus_one=True).map == 1.0


def test_images_and_classes_are_kept_apart():
    """A detection in another image or of another class must not find the box, whatever its coordinates."""
    ground_truth = truth([0, 0, 0, 10, 10, 1, 0], [2, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 0, 0, 10, 10, 0.9, 1], [2, 0, 0, 10, 10, 0.9, 0])
    scores = voc_average_precision(ground_truth, detections, 3)
    assert match_detections(ground_truth, detections, 3).true_positive.tolist() == [False, False, True]
    assert scores.ap[:2].tolist() == [0.5, 0.0] and math.isnan(scores.ap[2]) and scores.map == 0.25


def test_precision_recall_and_f1_at_a_confidence():
    """Numbers for the person who has to choose a threshold: 2 of 3 found at 0.4, with 1 wrong."""
    ground_truth = truth(*[[i, 0, 0, 10, 10, 0, 0] for i in range(3)])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 50, 0, 60, 10, 0.6, 0], [1, 0, 0, 10, 10, 0.4, 0])
    scores = voc_average_precision(ground_truth, detections, 2, confidence=0.4)
    assert scores.precision[0] == scores.recall[0] == scores.f1[0] == pytest.approx(2 / 3)
    assert np.isnan([scores.precision[1], scores.recall[1], scores.f1[1]]).all()
    higher = voc_average_precision(ground_truth, detections, 1, confidence=0.7)
    assert (higher.precision[0], higher.recall[0], higher.f1[0]) == (1.0, pytest.approx(1 / 3), 0.5)


def test_empty_inputs_have_a_stated_result():
    """Nothing found is 0; nothing to find is not a number, so that nobody averages it."""
    box, hit = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 10, 10, 0.9, 0])
    assert voc_average_precision(box, found(), 2).map == 0.0
    assert math.isnan(voc_average_precision(truth(), hit, 2).map)
    assert math.isnan(voc_average_precision(truth(), found(), 2).map)
    assert math.isnan(voc_average_precision(truth([0, 0, 0, 10, 10, 0, 1]), hit, 2).map)


def test_boxes_without_area_do_not_divide_by_zero():
    """Real label files hold boxes without area; two of them at one place have no union."""
    point = [0, 5, 5, 5, 5]
    with np.errstate(all="raise"):
        assert voc_average_precision(truth([*point, 0, 0]), found([*point, 0.9, 0]), 1).map == 0.0


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (found([0, 0, 0, 10, 10, np.nan, 0]), "score nan is no finite number"),
        (found([0, 0, 0, 10, np.inf, 0.5, 0]), "NaN or infinity"),
        (found([0, 10, 0, 0, 10, 0.5, 0]), "x2 < x1"),
        (found([0, 0, 0, 10, 10, 0.5, 2]), r"class 2 is not in 0\.\.1"),
        (found([3, 0, 0, 10, 10, 0.5, 0]), r"image id 3 is unknown, expected 0\.\.2"),
        (found([0, 0, 0, 9, 9, 0.5, 0])._replace(scores=np.zeros(2)), r"scores has the shape \(2,\), expected \(1,\)"),
    ],
)
def test_impossible_input_is_refused(detections, message):
    """Each of these would give a number, and a wrong one."""
    with pytest.raises(ValueError, match=message):
        score_detections(truth([0, 0, 0, 10, 10, 0, 0]), detections, ["a", "b"], [(20, 20)] * 3)
    with pytest.raises(ValueError, match="ground truth"):
        check_inputs(truth([0, 0, 0, 10, 10, 5, 0]), found(), 2)


def test_table_is_aligned_and_says_what_it_shows():
    """Chinese names take two columns per character, and NaN must not appear as a number."""
    ground_truth = truth([0, 0, 0, 100, 100, 0, 0])
    scores = score_detections(ground_truth, found([0, 0, 0, 100, 100, 0.9, 0]), ["红细胞", "dog"], [(200, 200)])
    assert scores["map50"] == 1.0 and scores["classes"][0]["AP50"] == 1.0 and scores["images"] == 1
    assert format_scores(scores).splitlines() == [
        "class   boxes  AP@0.5  precision  recall     F1",
        "-----------------------------------------------",
        "红细胞      1   1.000      1.000   1.000  1.000",
        "dog         0       -          -       -      -",
        "all         1   1.000      1.000   1.000  1.000",
        "precision, recall and F1 at confidence >= 0.5; 1 images",
        "VOC  mAP@0.5 1.000",
        "COCO AP 1.000  AP50 1.000  AP75 1.000  AR100 1.000",
        "     AP by size: small -, medium -, large 1.000",
    ]
    assert format_scores(score_detections(truth(), found(), ["dog"], [])).splitlines()[4].endswith("0 images")


def test_large_sets_are_scored_without_a_loop_over_boxes():
    """A Python loop over 100,000 detections takes minutes after each epoch; CPU time, because machines are busy."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 500, (107_000, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 150, (107_000, 2))], 1)
    images, classes = random.integers(0, 1000, 107_000), random.integers(0, 20, 107_000)
    ground_truth = GroundTruth(images[:7000], boxes[:7000], classes[:7000], np.zeros(7000, bool))
    detections = Detections(images[7000:], boxes[7000:], random.random(100_000), classes[7000:])
    start = time.process_time()
    voc_average_precision(ground_truth, detections, 20)
    assert time.process_time() - start < 1.0
