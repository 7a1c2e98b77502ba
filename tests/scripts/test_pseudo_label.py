import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tools import pseudo_label as tool
from utils.data.sources import read_data_sets
from utils.evaluation.thresholds import ClassThreshold
from utils.evaluation.types import DetectionTable
from utils.evaluation.views import Views
from utils.image.codec import write_image
from utils.image.tiles import TileOptions
from utils.io.errors import UserError

NAMES, BOXES = ["cat", "dog"], ([0, 0, 20, 20], [30, 0, 50, 20])


class StandIn(SimpleNamespace):
    """A detector whose network is left out."""


def labelled(folder, count):
    """A list of so many pictures with a box of each class."""
    lines = []
    for number in range(count):
        write_image(str(folder / f"v{number}.png"), np.full((40, 60, 3), number, np.uint8))
        lines.append(f"{folder}/v{number}.png 0,0,20,20,0 30,0,50,20,1\n")
    (folder / "val.txt").write_text("".join(lines))
    return str(folder / "val.txt")


def found_in(annotations, options, scores):
    """Views in which each picture has a box of both classes, at the places of their labels."""
    rows = [
        (image, box, score, class_id)
        for image in range(len(annotations))
        for class_id, (box, score) in enumerate(zip(BOXES, scores(annotations.path(image)), strict=True))
        if score >= np.broadcast_to(options.confidence, 2)[class_id]
    ]
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    table = DetectionTable(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.float32).reshape(-1, 4),
        np.array(columns[2], np.float32),
        np.array(columns[3], np.int64),
    )
    return Views(table, (table, table), [])


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Constants for a folder with pictures a.png, sub/b.png and c.png, and a detector that is always right in the
    validation pictures: of class cat with a score of 0.8, of dog with 0.01, so that only cat has a threshold."""
    (tmp_path / "val").mkdir()
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        write_image(str(tmp_path / "pictures" / name), np.full((40, 60, 3), 50 * number, np.uint8))
    scores = {"a.png": (0.9, 0.0), "b.png": (0.85, 0.6), "c.png": (0.5, 0.0)}
    val_path = labelled(tmp_path / "val", 20)

    def stand_in(detector, annotations, batch_size, num_workers, options):
        return found_in(annotations, options, lambda path: scores.get(Path(path).name, (0.8, 0.005)))

    detector = StandIn(class_names=NAMES, confidences=[0.4, 0.5], tiles=TileOptions())
    monkeypatch.setattr(tool, "open_detector", lambda settings, **options: detector)
    monkeypatch.setattr(tool, "detect_views", stand_in)
    paths = {"dir_origin_path": str(tmp_path / "pictures"), "dir_save_path": str(tmp_path / "new/pseudo")}
    paths |= {"annotation_path": val_path, "train_annotation_path": val_path}
    return tool.check(tool.constants() | paths)


def test_a_data_set_that_training_takes(settings, tmp_path, monkeypatch, capsys):
    """Prevents labels that train.py does not find from another folder, pictures that are changed, boxes of a class
    that is not precise enough, and a class that vanishes without a word."""
    before = {path: path.read_bytes() for path in sorted((tmp_path / "pictures").rglob("*.png"))}
    tool.main(settings)
    said = capsys.readouterr().out
    assert {path: path.read_bytes() for path in sorted((tmp_path / "pictures").rglob("*.png"))} == before
    target = tmp_path / "new/pseudo"
    assert os.path.samefile(target / "images/sub/b.png", tmp_path / "pictures/sub/b.png")
    monkeypatch.chdir("/")
    names, sets = read_data_sets({"train": str(target / "data.yaml")}, "")
    annotations = sets["train"].annotations
    assert names == NAMES and sets["train"].findings == []
    assert [Path(annotations.path(index)).name for index in range(len(annotations))] == ["a.png", "b.png"]
    assert annotations.boxes_xyxy.round(3).tolist() == [[0, 0, 20, 20]] * 2 and annotations.classes.tolist() == [0, 0]
    (annotations,) = (
        part.annotations for part in read_data_sets({"train": str(target / "detections.json")}, "")[1].values()
    )
    assert (len(annotations), annotations.boxes_xyxy.tolist()) == (2, [[0, 0, 20, 20]] * 2)
    lines = said.splitlines()
    assert "cat        0.800      1.000  0.924 to 1.000        20   1.000              2" in lines
    assert "dog            -          -               -         0       -       left out" in lines
    assert f"2 of 3 pictures have boxes that are sure enough, and are in {target}. The others are left out." in lines
    words = (
        "No boxes, as it is nowhere certain that precision = 0.9 is reached (the lower end of the 80 % interval): dog."
    )
    assert any(line.startswith(f"{words} A training") for line in lines)
    train_path, yaml_path = settings.train_annotation_path, (target / "data.yaml").as_posix()
    assert lines[-2:] == [f'train_annotation_path = ["{train_path}", "{yaml_path}"]', "source_weights = [1.0, 1.0]"]


def test_pictures_in_folders_called_images_are_read(settings, tmp_path):
    """Prevents a training from reading fewer pictures than were labelled, where one of their folders is images/."""
    (tmp_path / "pictures/images").mkdir()
    os.rename(tmp_path / "pictures/a.png", tmp_path / "pictures/images/a.png")
    tool.main(settings)
    annotations = read_data_sets({"train": str(tmp_path / "new/pseudo/data.yaml")}, "")[1]["train"].annotations
    assert [Path(annotations.path(index)).name for index in range(len(annotations))] == ["a.png", "b.png"]
    assert annotations.boxes_xyxy.round(3).tolist() == [[0, 0, 20, 20]] * 2


def test_doubtful_pictures_are_listed(settings, tmp_path):
    """Prevents a person from searching through all pictures: first b, whose dog is left out, 0.6, and then c, whose
    cat is at 0.5 of 0.8; a is sure."""
    rows = tool.main(settings)
    with open(tmp_path / "new/pseudo/review.csv", encoding="utf-8-sig", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["rank"], Path(row["image"]).name, row["doubt"], row["labels"]) for row in written] == [
        ("1", "c.png", "0.625", ""),
        ("2", "b.png", "0.6", "labels/sub/b.txt"),
    ]
    assert written[1]["what"] == "class left out: dog 0.60" and len(rows) == 2


def test_pictures_that_are_labelled_already_are_left_out(settings, tmp_path, capsys):
    """Prevents pictures of the validation set from being trained on under another name."""
    os.symlink(tmp_path / "val/v3.png", tmp_path / "pictures/z.png")
    names = ["a.png", "z.png"]
    assert tool.unlabelled(tmp_path / "pictures", names, settings) == ["a.png"]
    assert f"1 of 2 pictures in {tmp_path / 'pictures'} are labelled, and left out\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="whose 1 picture annotation_path or train_annotation_path labels already"):
        tool.unlabelled(tmp_path / "pictures", ["z.png"], settings)


def test_no_class_is_sure_enough(settings):
    """Prevents an empty data set, a person who does not learn how far off the classes are, and a sentence that the
    table contradicts: of 20 boxes all are right."""
    settings.precision = 0.95
    with pytest.raises(UserError) as error:
        tool.main(settings)
    assert str(error.value).startswith("For no class is it certain that precision = 0.95 is reached on ")
    assert " (the lower end of the 80 % interval), so that nothing is labelled:\n" in str(error.value)
    assert "cat            -      1.000  0.924 to 1.000        20   1.000       left out\n" in str(error.value)
    assert not Path(settings.dir_save_path).exists()


def test_what_costs_recall_is_said(settings):
    """Prevents a training that takes most objects of a class for background without a word."""
    thresholds = [ClassThreshold(0.8, 20, 1.0, 0.92, 1.0, 0.24), ClassThreshold(0.5, 20, 1.0, 0.92, 1.0, 0.5)]
    text = tool.summary(3, [True, False], [], thresholds, NAMES, settings)
    assert "Less than half of the objects get a box: cat (24%). A training takes the others for background" in text
    assert "; 1 are copies, as their disk allows no links. " in text


def test_another_disk_gets_a_copy(tmp_path, monkeypatch):
    """Prevents a failure where the pictures lie on another disk, or one without links."""
    (tmp_path / "a.png").write_bytes(b"pixels")

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert not tool.link_picture(tmp_path / "a.png", tmp_path / "images/a.png")
    assert (tmp_path / "images/a.png").read_bytes() == b"pixels"


@pytest.mark.parametrize("precision", [0.0, 1.0])
def test_an_impossible_precision(precision):
    """Prevents a run in which nothing, or everything, is precise enough."""
    with pytest.raises(UserError, match=f"precision is {precision}; expected a share between 0 and 1"):
        tool.check(tool.constants() | {"precision": precision})


def test_corrected_labels_are_never_replaced(tmp_path):
    """Prevents a second run from destroying the work of a person."""
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match="which holds files already, and labels in it may have been corrected"):
        tool.check(tool.constants() | {"dir_save_path": str(tmp_path)})
