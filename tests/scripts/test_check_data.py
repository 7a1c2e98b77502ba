import csv
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import check_data
from utils.data.annotations import Annotations
from utils.data.quality.near_duplicates import ImageHashes, join_hashes, near_duplicates, perceptual_hash
from utils.image.codec import read_image, write_image
from utils.image.opencv import cv2
from utils.visualize.data_report import anchor_recall, box_chart, class_chart, contact_sheet

BOXES = "10,10,60,60,0 70,20,120,80,1"
SMALL = {
    "model_name": "yolox_nano",
    "input_shape": [96, 160],
    "num_pictures": 4,
    "anchors_path": "",
    "anchors_mask": [],
}


def scene(number, size_hw=(96, 160)):
    """A picture of its own for each number: smooth blots of light, as photographs have them."""
    coarse = np.random.default_rng(number).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with 12 images, lists of 10 and of 2 of them, and class names."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    for number in range(12):
        write_image(f"data/{number}.png", scene(number))
    write_lists([f"{number}.png {BOXES}" for number in range(10)], [f"{number}.png {BOXES}" for number in (10, 11)])
    Path("data/classes.txt").write_text("人\nfish\n", "utf-8")
    return Path("data")


def write_lists(train, val):
    Path("data/train.txt").write_text("\n".join(train), "utf-8")
    Path("data/val.txt").write_text("\n".join(val), "utf-8")


def run(**changes):
    """Run the tool. Returns the rows of findings.csv without their headline, and the exit status."""
    paths = {"train_annotation_path": "data/train.txt", "val_annotation_path": "data/val.txt"}
    values = check_data.constants() | SMALL | paths | changes
    status = 0
    try:
        check_data.main(check_data.check(values | {"classes_path": "data/classes.txt", "save_dir": "report"}))
    except SystemExit as end:
        status = end.code
    with open("report/findings.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))[1:], status


def test_sound_data(data, capsys):
    """Prevents a report without its files, a status that stops a script for nothing, and changed user files."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(data.iterdir())}
    assert run() == ([], 0)
    printed = capsys.readouterr().out
    assert "train      10       20              2.0                     0                   2" in printed
    assert "            10     50.0        2     50.0  人" in printed
    assert printed.endswith("Nothing is wrong with these data. Enjoy the training.\n")
    assert sorted(os.listdir("report")) == ["boxes.png", "classes.png", "contact_sheet.jpg", "findings.csv"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(data.iterdir())} == before


def test_several_sources(data, capsys):
    """Prevents a list of sources from being refused, and the same picture in two of them from passing."""
    write_image("data/copy.png", scene(1))
    Path("data/more.txt").write_text(f"copy.png {BOXES}\n", "utf-8")
    rows, status = run(train_annotation_path=["data/train.txt", "data/more.txt"])
    assert [(row[1], os.path.basename(row[2])) for row in rows] == [("same image twice, same labels", "copy.png")]
    assert status == 0
    printed = capsys.readouterr().out
    assert "data/more.txt: 1 image, 2 boxes, 2 classes\n" in printed
    assert "train      11       22              2.0                     0                   2" in printed


def test_what_only_the_content_shows(data, capsys):
    """Prevents copies under another name, and damaged files, from passing because list and header look fine."""
    Path("data/copy.png").write_bytes(Path("data/1.png").read_bytes())
    Path("data/again.png").write_bytes(Path("data/2.png").read_bytes())
    Path("data/half.png").write_bytes(Path("data/3.png").read_bytes()[:5000])
    write_image("data/like.jpg", cv2.resize(scene(4), None, fx=0.9, fy=0.9))
    train = [f"{name}.png {BOXES}" for name in (*range(10), "half")] + ["again.png 1,1,50,50,0"]
    write_lists(train, [f"copy.png {BOXES}", f"like.jpg {BOXES}", f"11.png {BOXES}"])
    rows, status = run()
    assert [row[0] for row in rows] == ["critical", "warning", "warning", "warning"]
    assert [(row[1], os.path.basename(row[2])) for row in rows] == [
        ("same image in train and val", "copy.png"),
        ("image cannot be decoded", "half.png"),
        ("same image twice, labels differ", "again.png"),
        ("nearly the same image in train and val", "like.jpg"),
    ]
    assert rows[0][3] == f"identical file, same as {os.path.join('data', '1.png')}, same boxes"
    assert rows[1][3].startswith("cannot be decoded as an image")
    assert rows[3][3] == f"like {os.path.join('data', '4.png')}"
    assert status == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Do this first, for same image in train and val (once): take these images out")


def test_a_jpeg_that_lacks_its_end_is_told(data):
    """Prevents a damaged file from passing because training can use what is left of it."""
    for number, kept in ((8, -2), (9, 700)):
        write_image(f"data/{number}.jpg", scene(number))
        encoded = Path(f"data/{number}.jpg").read_bytes()
        Path(f"data/{number}.jpg").write_bytes(encoded[:kept])
    train = [f"{number}.{'jpg' if number > 7 else 'png'} {BOXES}" for number in range(10)]
    write_lists(train, [f"10.png {BOXES}", f"11.png {BOXES}"])
    rows, status = run()
    assert [(row[0], row[1], os.path.basename(row[2])) for row in rows] == [
        ("warning", "image cannot be decoded", "9.jpg"),
        ("warning", "image lacks its last bytes", "8.jpg"),
    ]
    assert status == 0


@pytest.mark.parametrize(("broken", "row"), [(10, 10), (2, 3), (3, 3)])
def test_the_verdict_on_images_that_do_not_decode(data, capsys, monkeypatch, broken, row):
    """Prevents `Training can start` on images of which training finds none to take the place of another."""
    monkeypatch.setattr(check_data, "MAX_REPLACEMENTS", row)
    for number in range(9, 9 - broken, -1):
        path = Path(f"data/{number}.png")
        path.write_bytes(path.read_bytes()[:2000])
    rows, status = run()
    kinds = ["image cannot be decoded"] * broken
    if broken < row:
        assert ([found[1] for found in rows], status) == (kinds, 0)
        return
    assert ([found[1] for found in rows], status) == (["images in a row that cannot be decoded", *kinds], 1)
    assert rows[0][3] == f"{row} of 10 in training, from {data}/{10 - row}.png on"
    assert "Do this first, for images in a row that cannot be decoded (once): save them" in capsys.readouterr().out


def test_the_same_path_is_told_once(data):
    """Prevents one mistake from being counted as same path, same content and similar look."""
    write_lists([f"{number}.png {BOXES}" for number in range(10)], [f"9.png {BOXES}", f"11.png {BOXES}"])
    rows, status = run()
    assert [row[1] for row in rows] == ["same image in train and val"]
    assert (rows[0][3], status) == ("same boxes", 1)


def test_what_reading_finds_is_reported_and_stops(data, capsys):
    """Prevents a tool that ends at the first mistake, or says nothing of those that training would refuse."""
    train = [f"{number}.png {BOXES}" for number in range(10)]
    write_lists([*train, "gone.png 1,1,9,9,0", "8.png 1,1,90,90,7"], [f"10.png {BOXES} 70,70,400,80,1"])
    rows, status = run()
    kinds = [row[1] for row in rows]
    assert kinds[:2] == ["image does not exist", "box of a class that classes_path lacks"]
    assert "box reaches beyond its image" in kinds
    assert status == 1
    assert "Do this first, for image does not exist (once): put them there" in capsys.readouterr().out


def test_validation_images_without_boxes(data):
    """Prevents a crash of tables and pictures where a set has no box, and a training that nothing can score."""
    write_lists([f"{number}.png {BOXES}" for number in range(10)], ["10.png", "11.png"])
    rows, status = run(model_name="yolov4_tiny")
    assert [row[1] for row in rows] == ["no boxes to validate on", "image without boxes", "image without boxes"]
    assert status == 1


def test_a_report_replaces_a_report_and_nothing_else(data):
    """Prevents files of the user from being replaced where save_dir is a folder of theirs."""
    run()
    run()
    with pytest.raises(ValueError, match="save_dir is data, which holds other things"):
        check_data.check(check_data.constants() | {"save_dir": "data"})
    with pytest.raises(ValueError, match="num_pictures is 0; expected 1 or more"):
        check_data.check(check_data.constants() | {"num_pictures": 0})


def test_nothing_of_an_earlier_report_is_left(data, capsys):
    """Prevents pictures of other data, and names that are not used, from being taken for those of this report."""
    run()
    Path("report/classes.txt").write_text("dog")
    Path("report/mine.txt").write_text("a note")
    for path in data.glob("*.png"):
        path.write_bytes(path.read_bytes()[:2000])
    capsys.readouterr()
    run()
    assert sorted(os.listdir("report")) == ["boxes.png", "classes.png", "findings.csv", "mine.txt"]
    assert "The report is in report: findings.csv, classes.png, boxes.png\n" in capsys.readouterr().out


def test_as_a_command_with_names_from_the_data(tmp_path, monkeypatch, capsys):
    """Prevents a command that checks other data than train.py trains on, and names that are not written down."""
    monkeypatch.chdir(Path(__file__).parents[2])
    arguments = ["check_data.py", f"--save_dir={tmp_path}", "--classes_path=''", "--num_pictures=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path("tools/check_data.py", run_name="__main__")
    assert sorted((tmp_path / "classes.txt").read_text("utf-8").split()) == ["fish", "leaf", "mushroom"]
    printed = capsys.readouterr().out
    assert "VOCdevkit/Sample/ImageSets/Main/train.txt" in printed
    assert "train     110      561              5.1                     5                   3" in printed


def changed(image_rgb):
    height, width = image_rgb.shape[:2]
    _, encoded = cv2.imencode(".jpg", image_rgb, [cv2.IMWRITE_JPEG_QUALITY, 50])
    return {
        "re-saved": cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        "resized": cv2.resize(image_rgb, None, fx=0.9, fy=0.9),
        "brighter": cv2.add(image_rgb, np.full_like(image_rgb, 10)),
        "cropped": image_rgb[height // 50 : -(height // 50), width // 50 : -(width // 50)],
    }


@pytest.mark.parametrize("change", ["re-saved", "resized", "brighter", "cropped"])
def test_changed_copies_are_found(change):
    """Prevents thresholds so strict that only exact copies are found, or so loose that other images are."""
    originals = [scene(number, (240, 320)) for number in range(40)]
    train = join_hashes([perceptual_hash(image) for image in originals[:30]])
    val = join_hashes([perceptual_hash(changed(image)[change]) for image in originals[20:]])
    assert list(near_duplicates(train, val)) == [(index, index + 20, 1) for index in range(10)]


def test_images_of_one_set_are_told_apart():
    """Prevents false alarms on the drawn sample, where everything looks somewhat alike."""
    folder = Path(__file__).parents[2] / "VOCdevkit/Sample/JPEGImages"
    sample = join_hashes([perceptual_hash(read_image(str(path))) for path in sorted(folder.iterdir())[:60]])
    assert [index for index, _, count in near_duplicates(sample, sample) if count > 1] == []


def test_lookalikes_need_structure_and_something_to_compare():
    """Prevents all blank images from looking the same, and a crash on empty sets."""
    blank = join_hashes([perceptual_hash(np.full((40, 40, 3), 90, np.uint8))])
    assert list(near_duplicates(blank, blank)) == []
    nothing = join_hashes([])
    assert (nothing.hashes.shape, nothing.thumbnails.shape) == ((0,), (0, 256))
    assert list(near_duplicates(nothing, blank)) == list(near_duplicates(blank, nothing)) == []


def test_the_thumbnail_confirms_what_the_hash_suggests():
    """Prevents two images from being called alike by chance of 64 bits."""
    ramp = np.arange(256, dtype=np.uint8)
    train = ImageHashes(np.array([0b1111, 0], np.uint64), np.stack([ramp, ramp[::-1]]))
    assert list(near_duplicates(train, ImageHashes(np.array([0], np.uint64), ramp[None]))) == [(0, 0, 1)]
    far = ImageHashes(np.array([(1 << 60) - 1], np.uint64), ramp[None])
    assert list(near_duplicates(train, far)) == []


def test_anchor_recall():
    """Prevents recall of another measure than IoU of width and height: 1, 0.25 and 0.6 here."""
    recall, mean_iou = anchor_recall([[10, 10], [5, 5], [10, 6]], [[10, 10], [100, 100]])
    assert recall == pytest.approx(2 / 3)
    assert mean_iou == pytest.approx((1 + 0.25 + 0.6) / 3)


def test_anchors_are_those_of_training():
    """Prevents a recall of anchors that no map has: yolov4_tiny leaves out its first."""
    settings = check_data.check(check_data.constants() | {"save_dir": "new", "model_name": "yolov4_tiny"})
    assert check_data.anchors_of(settings).tolist() == [[23, 27], [37, 58], [81, 82], [135, 169], [344, 319]]
    settings.model_name = "yolox_nano"
    assert check_data.anchors_of(settings).shape == (0, 2)


@pytest.mark.parametrize("classes", [1, 80, 300])
def test_charts_of_few_and_many_classes(classes):
    """Prevents a picture without names, or one too high to be written."""
    counts = np.arange(classes)
    image = class_chart(counts, np.zeros(classes, int), ["人" * 40] * classes)
    assert image.shape == (130 + 36 * min(classes, 200), 1000, 3)
    rows = image[50:-60, 20:240].min(axis=(1, 2)) < 100
    assert np.flatnonzero(np.diff(rows.astype(int)) == 1).size >= min(classes, 200)


def test_chart_of_boxes_without_boxes():
    """Prevents a crash where a set, or both, have no boxes."""
    nothing, some = np.zeros((0, 2)), np.array([[0.5, 30], [2000, 4]])
    assert box_chart(nothing, nothing, (96, 160), nothing, "yolox_nano", 0).shape == (740, 1400, 3)
    assert box_chart(some, nothing, (96, 160), np.array([[12, 16]]), "yolov4", 0).shape == (740, 1400, 3)


def test_contact_sheet(data):
    """Prevents boxes in the wrong place of a tile that was enlarged: 160 x 96 pixels become 480 x 288."""
    annotations = Annotations(["data/0.png"], [(96, 160)], [1], [[10, 20, 60, 70]], [0])
    sheet = contact_sheet([(annotations, 0, "train")], ["人"])
    assert sheet.shape == (332, 496, 3)
    top, left = 8, 8
    assert sheet[top + 3 * 45, left + 3 * 10].tolist() == [230, 57, 70]
    assert sheet[top + 3 * 45, left + 3 * 60].tolist() == [230, 57, 70]
