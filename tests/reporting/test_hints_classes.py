import math
from types import SimpleNamespace

import numpy as np
import pytest

from tests.evaluation.tables import found
from utils.data.annotations import Annotations
from utils.reporting.hints import Run, classes
from utils.reporting.hints.classes import class_hints

DATA = {"train_annotation_path": "data.yaml", "val_annotation_path": "data.yaml", "save_dir": "logs"}
NETWORK = {"model_name": "yolox_nano", "input_shape": [416, 416], "tile": 0, "model_path": "a.pth", "pretrained": False}
SETTINGS = SimpleNamespace(**DATA, **NETWORK, classes_path="model_data/sample_classes.txt")
ANCHORS = {"anchors": [[40, 40], [200, 10]], "anchors_mask": [[0]]}


def annotations_of(counts, size_wh=(40, 40), images=1):
    """One image of 416 x 416 with so many boxes of each class, all of one size."""
    classes = np.repeat(np.arange(len(counts)), counts)
    boxes_xyxy = np.tile([0, 0, *size_wh], (len(classes), 1))
    return Annotations(
        ["a.jpg"] * images, [(416, 416)] * images, [len(classes)] + [0] * (images - 1), boxes_xyxy, classes
    )


def hints(train_counts, maps, train_size=(40, 40), val=None, detections=(), confidence=0.5, mean_map=0.8, **options):
    """{topic: sentence}; maps: of each class, NaN for one without boxes in validation, the others have ten."""
    names = [f"c{number}" for number in range(len(maps))]
    counts = [0 if math.isnan(value) else 10 for value in maps]
    columns = zip(names, counts, maps, strict=True)
    scores = {
        "map50": mean_map,
        "classes": [{"name": n, "boxes": b, "map50": m, "confidence": confidence} for n, b, m in columns],
    }
    settings = SimpleNamespace(**(vars(SETTINGS) | options.pop("settings", {})))
    train = annotations_of(train_counts, train_size)
    run = Run(settings, names, train, val or annotations_of(counts), options.get("decode_rule", {}), 0)
    return class_hints(run, scores, found(*detections))


def test_classes_that_are_found_need_nothing():
    """Prevents hints where there is nothing to gain."""
    assert hints([500, 500], [0.8, 0.5]) == {}
    assert hints([], []) == {}


def test_no_training_boxes_and_few():
    """Prevents a search for settings where examples are missing."""
    assert hints([0, 4, 99, 500], [0.0, 0.0, 0.05, 0.8]) == {
        "few boxes": "Few training boxes: c1 (4), c2 (99). Under 10 nothing is learned, 100 are a start: label more.",
        "no training boxes": "No training boxes: c0 (10 in validation). Label some in train_annotation_path, or take "
        "the class out of classes_path.",
    }
    assert list(hints([0, 500], [math.nan, 0.8])) == ["no training boxes"]


def test_no_validation_boxes():
    """Prevents a class without a score from passing as one that is found; it stands behind what costs mAP."""
    assert hints([500, 20, 0], [math.nan, 0.8, 0.0]) == {
        "no training boxes": "No training boxes: c2 (10 in validation). Label some in train_annotation_path, or take "
        "the class out of classes_path.",
        "no validation boxes": "No validation boxes: c0 (500 in training). Nothing tells how well they are found: "
        'split anew with `python tools/split_data.py --annotation_path="data.yaml"`.',
    }


def test_small_boxes():
    """Prevents a longer training on objects that leave no trace: 6 pixels at 416 are 10 at 693, so at 704."""
    assert hints([500], [0.02], (20, 6)) == {
        "small boxes": "Small boxes: c0 (half of them under 6.0 pixels, 10 with input_shape = [704, 704]). Under 10 "
        "pixels of the input little is found: raise input_shape, or set tile."
    }
    assert "c0 (half of them under 2.0 pixels)." in hints([500], [0.02], (20, 2))["small boxes"]
    assert "small boxes" not in hints([500], [0.02], (20, 10))


def test_anchors_that_do_not_fit():
    """Prevents anchors of other shapes from being overlooked; one that no map has does not count."""
    assert hints([500], [0.02], (200, 12), decode_rule=ANCHORS) == {
        "anchors": "The anchors do not fit: c0 (only 0% of the boxes have one with an IoU of 0.5). `python "
        'tools/kmeans_for_anchors.py --train_annotation_path=data.yaml --input_shape="[416, 416]"` finds better ones '
        "for anchors_path."
    }
    assert "anchors" not in hints([500], [0.02], (40, 40), decode_rule=ANCHORS)
    assert "anchors" not in hints([500], [0.02], (200, 12))


def test_another_class():
    """Prevents two classes that are mixed up from looking like one that is not found: 4 of the 10 boxes of c1 are
    taken for c2; 3 would be chance, and so would a score under 0.1."""
    boxes = [[0, 40 * n, 0, 40 * n + 40, 40] for n in range(10)]
    val = Annotations(["a.jpg"], [(416, 416)], [10], [box[1:] for box in boxes], [1] * 10)
    taken = [[*box, 0.4, 2] for box in boxes[:4]]
    sentence = hints([500] * 3, [0.8, 0.05, 0.8], val=val, detections=taken)["confused"]
    assert sentence.startswith(
        "Taken for another class, counted from a score of 0.1 on: c1 (40% for c2). Compare their labels (`python "
    )
    assert (
        "Compare their labels, and"
        in hints([500] * 3, [0.8, 0.05, 0.8], val=val, detections=taken, mean_map=0.6)["confused"]
    )
    assert "confused" not in hints([500] * 3, [0.8, 0.05, 0.8], val=val, detections=taken[:3])
    unsure = [[*box, 0.05, 2] for box in boxes]
    assert "confused" not in hints([500] * 3, [0.8, 0.05, 0.8], val=val, detections=unsure)
    first = hints([500] * 3, [0.8, 0.05, 0.8], val=val, detections=[[*box, 0.4, 0] for box in boxes])["confused"]
    assert "c1 (100% for c0)" in first


@pytest.mark.parametrize(
    ("settings", "topic", "change"),
    [
        ({}, "not found", "Raise UnFreeze_Epoch"),
        (
            {"model_path": ""},
            "not found, from scratch",
            "Start from weights (model_path), or raise UnFreeze_Epoch much",
        ),
    ],
)
def test_without_a_reason(settings, topic, change):
    """Prevents silence on a class near zero, and a start from scratch from being overlooked as the cause."""
    sentence = hints([500], [0.02], settings=settings)[topic]
    assert sentence.startswith(
        f"Hardly found, though the data show no reason: c0 (AP@0.5 0.020, 500 training boxes). {change}"
    )


def test_low_scores():
    """Prevents a class that is found from being missed because it is shown from 0.5 on."""
    sentence = hints([500], [0.6], confidence=0.12)["low scores"]
    assert sentence.startswith("Found, but with low scores: c0 (best from 0.12 on). predict.py shows them as it is;")
    assert hints([500], [0.6], confidence=math.nan) == {}


def test_many_classes_share_a_sentence():
    """Prevents eighty lines on eighty classes; what concerns most stands first."""
    sentences = hints([4] * 12 + [0] * 30 + [500], [0.0] * 42 + [0.8])
    assert list(sentences) == ["no training boxes", "few boxes"]
    assert "c12 (10 in validation), c13" in sentences["no training boxes"]
    assert "and 25 more. Label" in sentences["no training boxes"]


def test_small_boxes_in_tiles():
    """Prevents the advice to set tile where it is set."""
    sentence = hints([500], [0.0], (9, 9), settings={"tile": 640, "input_shape": [320, 320]})["small boxes"]
    assert sentence.endswith("little is found: raise input_shape, or lower tile (now 640).")


def test_boxes_are_measured_once(monkeypatch):
    """Prevents a minute after each evaluation for 100,000 images and 1203 classes; each class has its own boxes."""
    calls = []
    measure = classes.box_sizes_at_input
    monkeypatch.setattr(classes, "box_sizes_at_input", lambda *given: calls.append(1) or measure(*given))
    boxes_xyxy = [[0, 0, 40, 40], [0, 0, 6, 20]] * 10
    train = Annotations(["a.jpg"], [(416, 416)], [20], boxes_xyxy, [1, 0] * 10)
    settings, names = SimpleNamespace(**vars(SETTINGS)), ["c0", "c1"]
    rows = [{"name": name, "boxes": 10, "map50": 0.02, "confidence": 0.5} for name in names]
    run = Run(settings, names, train, annotations_of([10, 10]), {}, 0)
    found_hints = class_hints(run, {"classes": rows, "map50": 0.02}, found())
    assert len(calls) == 1
    assert found_hints["small boxes"].startswith("Small boxes: c0 (half of them under 6.0 pixels")
    assert found_hints["few boxes"].startswith("Few training boxes: c1 (10).")
