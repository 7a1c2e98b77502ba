import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nets import build_model
from tools import kmeans_for_anchors as tool
from utils.data.anchors import read_anchors

ROOT = Path(__file__).parents[2]
SIZES_WH = [(10, 20), (12, 20), (10, 30), (40, 30), (44, 30), (200, 100), (200, 110), (200, 140)]
BETTER_FIT = (
    "A better fit is not yet a higher mAP: pretrained weights of a whole network have learned the usual anchors, so "
    "compare a short training with each."
)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The tool's settings, in an empty folder, for boxes of SIZES_WH in an image that the network sees at twice its
    size."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (208, 104)).save("a.png")
    boxes = " ".join(f"0,0,{width / 2},{height / 2},0" for width, height in SIZES_WH)
    Path("list.txt").write_text(f"a.png {boxes}\n")
    Path("classes.txt").write_text("cell\n")
    given = {"train_annotation_path": "list.txt", "classes_path": "classes.txt", "anchors_path": "new/my_anchors.txt"}
    return tool.check(tool.constants() | given | {"model_name": "yolov4_tiny", "input_shape": [416, 416]})


def test_anchors_are_medians_of_their_boxes():
    """Prevents means, which a few large boxes pull, anchors out of order, and width taken for height."""
    assert tool.find_anchors(np.array(SIZES_WH), 3, seed=0).tolist() == [[10, 20], [42, 30], [200, 110]]


def test_small_boxes_count_as_much_as_large_ones():
    """Prevents the straight distance: by pixels 200 and 240 lie farther apart than 4 and 9."""
    sizes_wh = np.array([[4, 4], [9, 9], [200, 200], [240, 240]])
    assert tool.find_anchors(sizes_wh, 3, seed=0).tolist() == [[4, 4], [9, 9], [220, 220]]


def test_the_seed_decides():
    """Prevents anchors that differ from run to run."""
    sizes_wh = np.random.default_rng(3).lognormal(3, 1, (200, 2)).round(1)
    first, again, other = (tool.find_anchors(sizes_wh, 9, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_an_anchor_without_boxes_moves():
    """Prevents NaN, the median of nothing, and an anchor that is lost."""
    sizes_wh = np.array([[10, 10], [10, 10], [12, 12], [100, 100]])
    assert tool.move_anchors(sizes_wh, np.array([[10, 10], [10, 10]])).tolist() == [[10, 10], [100, 100]]


def test_starts_are_different_boxes():
    """Prevents two anchors on one spot where nearly all boxes have one size."""
    sizes_wh = np.array([[10, 10]] * 99 + [[50, 50]])
    for seed in range(5):
        starts = tool.first_anchors(sizes_wh, 2, np.random.default_rng(seed))
        assert sorted(starts.tolist()) == [[10, 10], [50, 50]]


def test_many_boxes(settings, capsys, monkeypatch):
    """Prevents minutes of waiting on a large data set, and figures of a part of it that pass for those of all."""
    monkeypatch.setattr(tool, "_MOST_BOXES", 7)
    tool.main(settings)
    printed = capsys.readouterr().out
    assert "note: 7 boxes, drawn at random, decide on the anchors; all are counted below." in printed
    counts = [int(line.split()[3]) for line in printed.splitlines() if re.match(r" {5}\d", line)]
    assert len(counts) == 6 and sum(counts) == 8


def test_sizes_are_counted_before_the_drawing(monkeypatch):
    """Prevents too few sizes from being told where the drawn boxes lack the rare ones."""
    monkeypatch.setattr(tool, "_MOST_BOXES", 10)
    sizes_wh = np.array([[10, 10]] * 1000 + [[50, 50], [200, 100]])
    assert tool.find_anchors(sizes_wh, 3, seed=0).tolist() == [[10, 10], [50, 50], [200, 100]]
    with pytest.raises(ValueError, match="boxes of 3 different sizes"):
        tool.find_anchors(sizes_wh, 4, seed=0)


@pytest.mark.parametrize("sizes_wh", [np.zeros((0, 2)), np.array([[10, 20]] * 50), np.array([[10, 20], [20, 10]])])
def test_fewer_sizes_than_anchors(sizes_wh):
    """Prevents a trace, or the same anchor several times."""
    different = len({tuple(size) for size in sizes_wh.tolist()})
    with pytest.raises(ValueError, match=f"boxes of {different} different sizes; expected .* anchors, 3"):
        tool.find_anchors(sizes_wh, 3, seed=0)


def test_the_whole_output(settings, capsys):
    """Prevents figures under the wrong heading, sizes in pixels of the image instead of the input, a file that train.py
    does not take, and masks in the wrong order."""
    tool.main(settings)
    assert (
        capsys.readouterr().out
        == f"""list.txt: 1 image, 8 boxes, 1 class

anchor   width  height   boxes  share  mean IoU
     0    10.0    20.0       1  12.5%     1.000
     1    12.0    20.0       1  12.5%     1.000
     2    10.0    30.0       1  12.5%     1.000
     3    42.0    30.0       2  25.0%     0.953
     4   200.0   105.0       2  25.0%     0.953
     5   200.0   140.0       1  12.5%     1.000

                        recall (IoU above 0.5)  mean IoU
the network's usual, 5                    0.250     0.458
new, 6                                    1.000     0.977

wrote {Path("new/my_anchors.txt")} and {Path("new/my_anchors.png")}
The mean IoU gains 0.519. {BETTER_FIT} Put into train.py, for yolov4_tiny at 416x416:
    anchors_path = "new/my_anchors.txt"
    anchors_mask = [[3, 4, 5], [0, 1, 2]]
"""
    )
    assert Path("new/my_anchors.txt").read_text() == "10,20, 12,20, 10,30, 42,30, 200,105, 200,140\n"
    rule = {"anchors": read_anchors("new/my_anchors.txt"), "anchors_mask": [[3, 4, 5], [0, 1, 2]]}
    assert build_model("yolov4_tiny", 1, decode_rule=rule).anchors[1].tolist() == [[42, 30], [200, 105], [200, 140]]
    assert cv2.imread("new/my_anchors.png").shape == (800, 800, 3)


def test_a_gain_too_small_to_bother(settings):
    """Prevents people from giving up what pretrained weights know of their anchors, for nothing."""
    sizes_wh = np.array([[100, 100], [100, 100]])
    text = tool.advice(sizes_wh, [[98, 100]], [[99, 100]], [[0]], settings)
    assert text.startswith("The mean IoU gains 0.010, which is too little to bother: keep the network's own anchors")
    text = tool.advice(sizes_wh, [[96, 100]], [[99, 100]], [[0]], settings)
    assert text.startswith("The mean IoU gains 0.030. A better fit")


def test_boxes_that_training_drops(settings, capsys):
    """Prevents anchors for boxes that training drops, and boxes that are left out without a word."""
    Path("list.txt").write_text("a.png 0,0,1.9,30,0 0,0,8,9,0 0,0,2,9,0\n")
    settings.input_shape = [104, 416]
    assert tool.read_sizes(settings).tolist() == [[8, 9], [2, 9]]
    said = "note: 1 box with a side below 2 pixels at 104x416, which training drops, left out here."
    assert said in capsys.readouterr().out
    Path("list.txt").write_text("a.png 0,0,1.9,30,0\n")
    assert tool.read_sizes(settings).shape == (0, 2)


def test_tiles_show_larger_boxes(settings):
    """Prevents anchors for whole pictures where training sees their tiles, of 52 of the 208 pixels."""
    settings.tile = 52
    assert tool.read_sizes(settings)[0].tolist() == [5 * 8, 10 * 8]


def test_findings_are_shown_and_names_taken_from_the_data(settings, capsys):
    """Prevents boxes from being dropped without a word, and an error where classes_path is ''."""
    image = '{"id": 1, "file_name": "a.png", "width": 208, "height": 104}'
    boxes = ", ".join(f'{{"image_id": 1, "category_id": 3, "bbox": [0, 0, {width}, 9]}}' for width in (8, 0))
    text = f'{{"images": [{image}], "annotations": [{boxes}], "categories": [{{"id": 3, "name": "cell"}}]}}'
    Path("boxes.json").write_text(text)
    settings.train_annotation_path, settings.classes_path = "boxes.json", ""
    assert tool.read_sizes(settings).tolist() == [[16, 18]]
    settings.train_annotation_path = ["boxes.json", "boxes.json"]
    assert tool.read_sizes(settings).tolist() == [[16, 18]] * 2
    assert "box without area inside its image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_name": "yolox_s"}, "model_name is 'yolox_s', which has no anchors; expected yolov4_tiny or yolov4"),
        ({"model_name": "yolov5"}, "model_name is 'yolov5', which"),
        ({"anchors_number": 7}, "anchors_number is 7; yolov4_tiny has 2 maps .* expected a multiple of 2, such as 6"),
        ({"anchors_number": -2}, "anchors_number is -2"),
        ({"input_shape": [100, 100]}, "input_shape is"),
        ({"input_shape": []}, "input_shape is"),
        ({"classes_path": None}, "computes classes_path"),
        ({"anchors_path": "list.txt"}, r"list\.txt would be replaced"),
        ({"anchors_path": "a.txt"}, r"a\.png would be replaced"),
        ({"anchors_path": "a.png"}, "anchors_path is 'a.png'"),
        ({"anchors_path": ""}, "anchors_path is ''"),
    ],
)
def test_mistakes(settings, changes, reason):
    """Prevents training pictures and older anchors from being lost, and constants that fail later without a word."""
    with pytest.raises(ValueError, match=reason):
        tool.check(vars(settings) | changes)


def test_files_are_replaced_on_request(settings):
    """Prevents a second try that needs the first one's files removed by hand."""
    tool.main(settings)
    with pytest.raises(ValueError, match=re.escape("my_anchors.png would be replaced")):
        tool.check(vars(settings))
    tool.check(vars(settings) | {"overwrite": True})


def test_command(settings, monkeypatch, capsys):
    """Prevents a script that only works when imported, and traces instead of messages."""
    given = ("train_annotation_path", "classes_path", "model_name", "input_shape", "anchors_path")
    arguments = [f"--{name}={getattr(settings, name)}" for name in given]
    monkeypatch.setattr(sys, "argv", ["kmeans_for_anchors.py", *arguments])
    runpy.run_path(str(ROOT / "tools/kmeans_for_anchors.py"), run_name="__main__")
    assert "* model_name             'yolov4_tiny'\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/kmeans_for_anchors.py"), run_name="__main__")
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert re.match(r"Error: new.my_anchors\.txt and new.my_anchors\.png would be replaced", said)
