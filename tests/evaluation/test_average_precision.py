import math

import numpy as np
import pytest

from tests.evaluation.tables import found, random_set, truth
from utils.evaluation.average_precision import (
    average_precision,
    coco_annotations,
    coco_average_precisions,
    coco_scores,
    voc_average_precisions,
)
from utils.evaluation.curves import mean_over_classes
from utils.evaluation.matching import match_coco, match_voc
from utils.evaluation.scores import score_detections


def voc(ground_truth, detections, num_classes, iou=0.5, name="map50"):
    """AP of each class by one of the four rules."""
    images = 1 + max(ground_truth.image_ids.max(initial=0), detections.image_ids.max(initial=0))
    weights = np.ones((images, 1))
    return voc_average_precisions(ground_truth, detections, num_classes, weights, iou, plus_one=True)[name][:, 0]


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


def test_difficult_boxes_of_voc_are_neither_right_nor_wrong():
    """Counted as right they raise recall above 1, counted as wrong they punish a good detector."""
    ground_truth = truth([0, 0, 0, 10, 10, 0, 1], [0, 50, 50, 60, 60, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [0, 0, 0, 10, 10, 0.8, 0], [0, 50, 50, 60, 60, 0.7, 0])
    scores = score_detections(ground_truth, detections, ["a"], 1)
    assert (scores["map50"], scores["precision"], scores["recall"], scores["classes"][0]["boxes"]) == (1.0, 1.0, 1.0, 1)


def test_iou_equal_to_the_threshold_is_right_and_plus_one_counts_pixels():
    """5 of 10 columns: IoU 0.5 exactly; with the kit's +1 it is 6 of 11 columns."""
    ground_truth, detections = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 5, 10, 0.9, 0])
    assert voc(ground_truth, detections, 1, iou=0.5) == 1.0
    assert voc(ground_truth, detections, 1, iou=0.51) == 0.0
    assert voc(ground_truth, detections, 1, iou=0.54, name="map50_plus_one") == 1.0


def test_pixels_are_counted_as_the_kit_does_only_where_asked_for():
    """Prevents the time of two more matchings in each evaluation of a training, for numbers that nobody looks at."""
    box, hit, weights = truth([0, 0, 0, 10, 10, 0, 0]), found([0, 0, 0, 10, 10, 0.9, 0]), np.ones((1, 1))
    names = ["map50", "map50_11_point"]
    assert list(voc_average_precisions(box, hit, 1, weights)) == names
    assert list(voc_average_precisions(box, hit, 1, weights, plus_one=True)) == [
        *names,
        "map50_plus_one",
        "map50_11_point_plus_one",
    ]


def test_a_class_that_is_only_detected_has_no_ap():
    """A detection in another image or of another class must not find the box, whatever its coordinates."""
    ground_truth = truth([0, 0, 0, 10, 10, 1, 0], [2, 0, 0, 10, 10, 0, 0])
    detections = found([0, 0, 0, 10, 10, 0.9, 0], [1, 0, 0, 10, 10, 0.9, 1], [2, 0, 0, 10, 10, 0.9, 0])
    by_class = voc(ground_truth, detections, 3)
    assert by_class[:2].tolist() == [0.5, 0.0] and math.isnan(by_class[2])
    assert score_detections(ground_truth, detections, ["a", "b", "c"], 3)["map50"] == 0.25


def test_empty_inputs_have_a_stated_voc_ap():
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


@pytest.mark.parametrize("seed", range(8))
def test_the_same_numbers_as_the_public_evaluator(seed):
    """Prevents intervals around another score than the one that is shown, in the order of matching, ties, crowds, sizes
    and the limit of 100 boxes."""
    per_image = 600 if seed == 2 else 60
    ground_truth, detections = random_set(seed, per_image=per_image)
    expected, by_class = coco_scores(ground_truth, detections, ["a", "b", "c"], 6)
    scores = coco_average_precisions(ground_truth, detections, 3, np.ones((6, 1)))
    assert list(scores) == ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    for name, values in scores.items():
        assert mean_over_classes(values[:, 0]) == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
    assert scores["AP"][:, 0] == pytest.approx(by_class, abs=1e-9, nan_ok=True)


def test_empty_inputs_have_a_stated_coco_ap():
    """Nothing found is 0; nothing to find is not a number."""
    box, hit = truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0])
    assert coco_average_precisions(box, found(), 1, np.ones((1, 1)))["AP"].tolist() == [[0.0]]
    for detections in (hit, found()):
        assert np.isnan(coco_average_precisions(truth(), detections, 1, np.ones((1, 1)))["AP"]).all()
    assert coco_average_precisions(truth(), found(), 0, np.ones((0, 1)))["AP"].shape == (0, 1)


def test_coco_sizes_and_thresholds_by_hand(capfd, caplog):
    """A medium box found exactly, a large one with IoU 0.8: it counts at 0.5 ... 0.8, 7 of the 10 thresholds."""
    caplog.set_level("DEBUG")
    ground_truth = truth([0, 0, 0, 50, 50, 0, 0], [1, 0, 0, 100, 100, 1, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [1, 0, 0, 100, 80, 0.9, 1])
    scores, by_class = coco_scores(ground_truth, detections, ["a", "b", "c"], 3)
    assert by_class[:2] == pytest.approx([1.0, 0.7]) and math.isnan(by_class[2])
    assert {name: pytest.approx(value) for name, value in scores.items() if name[-5:] != "small"} == {
        "AP": 0.85,
        "AP50": 1.0,
        "AP75": 1.0,
        "AP_medium": 1.0,
        "AP_large": 0.7,
        "AR1": 0.85,
        "AR10": 0.85,
        "AR100": 0.85,
        "AR_medium": 1.0,
        "AR_large": 0.7,
    }
    assert math.isnan(scores["AP_small"]) and math.isnan(scores["AR_small"])
    assert capfd.readouterr() == ("", "") and "valuat" not in caplog.text  # the library's own report stays out


def test_first_detection_and_first_image_can_match():
    """COCO takes id 0 for "not matched", so ids that start at 0 lose the first box."""
    scores, _ = coco_scores(truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0]), ["a"], 1)
    assert scores["AP"] == 1.0


def test_difficult_boxes_need_not_be_found_and_are_no_error():
    """Without the crowd mark the unfound difficult box halves recall, and the found one is a false positive."""
    ground_truth = truth([0, 0, 0, 50, 50, 0, 1], [0, 100, 100, 150, 150, 0, 1], [0, 200, 200, 250, 250, 0, 0])
    detections = found([0, 0, 0, 50, 50, 0.9, 0], [0, 0, 0, 50, 49, 0.8, 0], [0, 200, 200, 250, 250, 0.7, 0])
    scores, _ = coco_scores(ground_truth, detections, ["a"], 1)
    assert (scores["AP"], scores["AR100"]) == (1.0, 1.0)


def test_areas_of_outlines_decide_the_size():
    """Prevents other numbers than pycocotools gives for COCO's own files, whose areas are not width * height."""
    box, hit = truth([0, 0, 0, 100, 100, 0, 0]), found([0, 0, 0, 100, 100, 0.9, 0])
    assert coco_scores(box, hit, ["a"], 1)[0]["AP_large"] == 1.0
    scores, _ = coco_scores(box._replace(areas=np.array([900.0])), hit, ["a"], 1)
    assert math.isnan(scores["AP_large"]) and scores["AP_small"] == 1.0


def test_empty_inputs_have_stated_coco_scores():
    """Nothing found is 0; nothing to find is NaN, where COCO itself says -1, which would be averaged."""
    box, hit = truth([0, 0, 0, 50, 50, 0, 0]), found([0, 0, 0, 50, 50, 0.9, 0])
    nothing_found, by_class = coco_scores(box, found(), ["a"], 1)
    assert (nothing_found["AP"], nothing_found["AP50"], nothing_found["AR100"], by_class[0]) == (0.0, 0.0, 0.0, 0.0)
    for ground_truth in (truth(), truth([0, 0, 0, 50, 50, 0, 1])):
        for detections in (hit, found()):
            scores, by_class = coco_scores(ground_truth, detections, ["a"], 1)
            assert len(scores) == 12 and np.isnan(list(scores.values())).all() and np.isnan(by_class).all()
    assert math.isnan(coco_scores(truth(), found(), [], 0)[0]["AP"])


def test_annotations_are_written_as_coco_does():
    """Prevents x2, y2 in the place of width and height, and ids that the user's file does not have."""
    ground_truth, detections = truth([1, 10, 20, 40, 60, 0, 1]), found([1, 10, 20, 40, 60, 0.5, 0])
    common = {"id": 1, "image_id": 70, "category_id": 18, "bbox": [10.0, 20.0, 30.0, 40.0], "area": 1200.0}
    assert coco_annotations(ground_truth, [60, 70], [18]) == [common | {"iscrowd": 1}]
    assert coco_annotations(detections, [60, 70], [18]) == [common | {"score": 0.5}]
    assert coco_annotations(found()) == []


def match_small(ground_truth, detections, num_classes):
    return match_coco(ground_truth, detections, num_classes)["AP_small"]


def test_weights_are_copies_of_images():
    """Prevents resamplings that score something else than a set in which images stand several times."""
    ground_truth, detections = random_set(0, images=4)
    counts = np.array([2, 0, 1, 3])
    copies = np.repeat(np.arange(4), counts)

    def copied(arrays):
        rows = [np.flatnonzero(arrays.image_ids == image) for image in copies]
        ids = np.repeat(np.arange(len(copies)), [len(part) for part in rows])
        columns = {
            name: values[np.concatenate(rows)] for name, values in arrays._asdict().items() if values is not None
        }
        return arrays._replace(**columns)._replace(image_ids=ids)

    large = copied(ground_truth), copied(detections)
    for points in (0, 101):
        for match in (match_voc, match_small):
            matches, weights = match(ground_truth, detections, 3), counts[:, None].astype(float)
            weighted = average_precision(matches, ground_truth, detections, 3, (points,), weights)
            expected = average_precision(match(*large, 3), *large, 3, (points,), np.ones((6, 1)))
            assert weighted == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_many_weightings_give_what_each_gives_alone():
    """Prevents the faster way for many resamplings from drifting away from the exact one for a single score."""
    ground_truth, detections = random_set(3)
    weights = np.random.default_rng(0).integers(4, size=(6, 50)).astype(np.float32)
    matches = match_small(ground_truth, detections, 3)
    together = average_precision(matches, ground_truth, detections, 3, (0, 101), weights)
    assert together.shape == (2, 3, 10, 50)
    for number in range(50):
        alone = average_precision(
            matches, ground_truth, detections, 3, (0, 101), weights[:, [number]].astype(np.float64)
        )
        assert together[0, ..., [number]] == pytest.approx(alone[0, ..., 0][None], abs=2e-6, nan_ok=True)
        # Of the 101 recalls one that is reached exactly may count or not.
        assert together[1, ..., [number]] == pytest.approx(alone[1, ..., 0][None], abs=0.01, nan_ok=True)
