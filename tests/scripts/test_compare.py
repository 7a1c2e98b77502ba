from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from nets import build_model
from tests.evaluation.tables import found, truth
from tools import compare
from utils.config.constants import read_constants
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = read_constants(vars(compare)) | {"first": "A.pth", "second": "B.pth", "resamplings": 300}


def settings(**changes):
    return SimpleNamespace(**(SETTINGS | changes))


def hits(count, score=0.9, class_id=0):
    """Detections that find the box of the first so many images."""
    return [[image, 0, 0, 10, 10, score, class_id] for image in range(count)]


@pytest.fixture
def labels():
    """40 images with a box of class 0, three with one of class 1."""
    rows = [[image, 0, 0, 10, 10, 0, 0] for image in range(40)]
    return truth(*rows, *[[image, 0, 0, 10, 10, 1, 0] for image in range(3)])


def test_a_difference_that_exceeds_noise(labels):
    """Prevents two independent intervals in the place of a paired one: B finds what A finds, and 8 boxes more."""
    both = [found(*hits(20)), found(*hits(28))]
    rows = compare.compare(labels, both, ["a", "b"], 40, settings(metric="map50"))
    assert rows.classes["a"] == pytest.approx((0.5, 0.7, 0.075, 0.325), abs=0.03)  # 0.2 +- 1.96 * sqrt(0.2 * 0.8 / 40)
    assert rows.classes["b"][:2] == (0, 0) and np.isnan(rows.classes["b"][2])
    assert rows.mean[:2] == (0.25, 0.35)
    lines = compare.format_rows(rows, "map50").splitlines()
    assert lines[2].endswith("*") and lines[3].endswith("in fewer than 6 images") and len(lines) == 4
    rows = rows._replace(mean=rows.classes["a"])
    text = compare.verdict(rows, settings(metric="map50"), 40)
    assert text.startswith(
        "B.pth is better than A.pth: the difference in map50 on these 40 images, 0.200, exceeds noise."
    )
    assert text.endswith("exceeds noise.\nB.pth is better, beyond noise, in: a.")


def test_a_difference_that_may_be_chance(labels):
    """Prevents a winner where one box of 40 decides."""
    both = [found(*hits(21)), found(*hits(20), *hits(1, 0.8, 1))]
    rows = compare.compare(labels._replace(classes=np.zeros(43, np.int64)), both, ["a", "b"], 40, settings())
    assert rows.mean[2] <= 0 <= rows.mean[3]
    assert compare.verdict(rows, settings(), 40).startswith("No difference that exceeds noise: AP on these 40 images")


def test_the_same_detector_twice(labels):
    """Prevents noise between a detector and itself."""
    both = [found(*hits(20)), found(*hits(20))]
    rows = compare.compare(labels, both, ["a", "b"], 40, settings())
    assert rows.mean[2:] == (0.0, 0.0)
    assert "differs by +0.000, and [+0.000, +0.000] holds 0" in compare.verdict(rows, settings(), 40)


def test_nothing_to_find():
    """Prevents a verdict where no box is labelled."""
    rows = compare.compare(truth(), [found(), found()], ["a"], 3, settings())
    assert compare.verdict(rows, settings(), 3) == "There is no box to find: nothing can be compared."
    assert compare.format_rows(rows, "AP").splitlines()[1] == "all  no box"


def test_few_images(labels):
    """Prevents a verdict from two images."""
    few = truth([0, 0, 0, 10, 10, 0, 0], [1, 0, 0, 10, 10, 0, 0])
    rows = compare.compare(few, [found(*hits(1)), found(*hits(2))], ["a"], 2, settings())
    assert compare.verdict(rows, settings(), 2).startswith("Fewer than 6 images have boxes")


@pytest.mark.parametrize(("count", "expected"), [(10, "0.5"), (29, "1.4"), (40, "2")])
def test_many_classes_bring_chance(count, expected):
    """Prevents a reader who takes one class of twenty for a finding, and a number that is rounded to none."""
    classes = {str(number): (0.5, 0.6, 0.05, 0.15) for number in range(count)}
    text = compare.verdict(compare.Comparison((0.5, 0.5, -0.1, 0.1), classes), settings(), 9)
    assert text.endswith(f"By chance alone one class in 20 seems to differ: of these {count} about {expected}.")


def test_a_class_named_all(labels):
    """Prevents a class of that name from standing in the place of the mean: it is the same for both, the mean not."""
    both = [found(*hits(20)), found(*hits(20), *hits(3, 0.9, 1))]
    rows = compare.compare(labels, both, ["all", "b"], 40, settings(metric="map50"))
    assert (rows.mean[:2], rows.classes["all"][:2]) == ((0.25, 0.75), (0.5, 0.5))
    lines = compare.format_rows(rows, "map50").splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["all", "0.250", "0.750"], ["all", "0.500", "0.500"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second": ""}, "Give two weight files: python tools/compare.py A.pth B.pth"),
        ({"metric": "mAP"}, "metric is 'mAP' .* expected one of AP, AP50, AP75, map50"),
        ({"resamplings": 0}, "resamplings is 0"),
    ],
)
def test_wrong_arguments(changes, message):
    """Prevents a long run that ends in an error."""
    with pytest.raises(ValueError, match=message):
        compare.main(settings(**changes))


def test_two_weight_files(tmp_path, capsys):
    """Prevents a comparison of files with other classes, of images that only one has seen, and a broken picture that
    lowers both scores without a word."""
    for name, classes in (("a", ["x", "y"]), ("b", ["x", "y"]), ("c", ["y", "x"])):
        torch.manual_seed(len(name))
        model = build_model("yolox_nano", 2)
        metadata = make_metadata(model, classes, (64, 64), {"mode": "topleft", "pad": 114})
        save_weights(tmp_path / f"{name}.pth", model, metadata)
    # A file whose head alone is whole.
    (tmp_path / "cut.png").write_bytes(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:60])
    images = f"{PROJECT}/VOCdevkit/Sample/JPEGImages/000150.jpg", f"{tmp_path}/cut.png"
    (tmp_path / "val.txt").write_text("".join(f"{image} 20,30,60,60,0\n" for image in images))
    values = {"annotation_path": str(tmp_path / "val.txt"), "Cuda": False, "resamplings": 20}
    values["first"] = str(tmp_path / "a.pth")
    rows = compare.main(settings(**values, second=str(tmp_path / "b.pth")))
    assert list(rows.classes) == ["x", "y"] and rows.mean[0] == rows.mean[1]
    said = capsys.readouterr().out
    assert "Fewer than 6 images have boxes" in said
    assert said.count(f"note: {tmp_path}/cut.png cannot be decoded; its objects count as missed\n") == 1
    with pytest.raises(ValueError, match="these do not compare"):
        compare.main(settings(**values, second=str(tmp_path / "c.pth")))
