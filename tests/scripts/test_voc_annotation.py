import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tools import voc_annotation
from utils.data.annotations import read_annotations


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A folder with 20 annotated images as current directory, and the tool's settings for it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("my voc/Annotations", "my voc/JPEGImages"):
        os.makedirs(folder)
    for number in range(20):
        Image.new("RGB", (100, 50)).save(f"my voc/JPEGImages/{number:02d}.jpg")
        bndbox = f"<bndbox><xmin>{number}</xmin><ymin>2</ymin><xmax>50.5</xmax><ymax>40</ymax></bndbox>"
        xml = f"<annotation><object><name>{'cat' if number < 15 else 'dog'}</name>{bndbox}</object></annotation>"
        Path(f"my voc/Annotations/{number:02d}.xml").write_text(xml)
    Path("classes.txt").write_text("cat\ndog\n")
    return SimpleNamespace(
        annotation_mode=0,
        VOCdevkit_path="my voc",
        classes_path="classes.txt",
        trainval_percent=0.9,
        train_percent=0.5,
        seed=0,
        group_pattern="",
        overwrite=False,
    )


def ids(name):
    return Path(f"my voc/ImageSets/Main/{name}.txt").read_text().split()


def test_splits(settings, capsys):
    """Prevents images in two splits or in none, wrong shares, and a split that differs from run to run."""
    voc_annotation.main(settings)
    assert [len(ids(name)) for name in ("trainval", "test", "train", "val")] == [18, 2, 9, 9]
    assert sorted(ids("train") + ids("val")) == ids("trainval")
    assert sorted(ids("trainval") + ids("test")) == [f"{number:02d}" for number in range(20)]
    printed = capsys.readouterr().out
    assert "cat: 15 boxes" in printed and "dog: 5 boxes" in printed
    first = ids("train")
    settings.overwrite = True
    voc_annotation.main(settings)
    assert ids("train") == first
    settings.seed = 1
    voc_annotation.main(settings)
    assert ids("train") != first


def test_splits_stay_as_they_were(settings):
    """Prevents another split under the same seed: results of other runs could no longer be compared."""
    voc_annotation.main(settings)
    assert ids("test") == ["10", "18"]
    assert ids("val") == ["00", "02", "03", "05", "09", "11", "14", "16", "17"]


def test_groups_are_not_divided(settings, capsys):
    """Prevents frames of one video on both sides, and shares that groups cannot meet without a word on it."""
    settings.group_pattern = "^(.)[0-9]"
    voc_annotation.main(settings)
    assert [name[0] for name in ids("train")] == 10 * [ids("train")[0][0]]
    assert [name[0] for name in ids("val")] == 10 * [ids("val")[0][0]]
    assert ids("trainval") == [f"{number:02d}" for number in range(20)] and ids("test") == []
    assert len(Path("2007_train.txt").read_text().splitlines()) == 10
    assert (
        """
2 groups; the largest, '0', has 10 images
       groups  images  by the shares
train       1      10              9
val         1      10              9
test        0       0              2
"""
        in capsys.readouterr().out
    )


def test_lists_hold_the_same_data_as_the_splits(settings):
    """Prevents two forms of the same data that train different models; the folder's name has a space."""
    voc_annotation.main(settings)
    for name in ("train", "val"):
        annotations, _ = read_annotations(f"2007_{name}.txt", ["cat", "dog"])
        expected, _ = read_annotations(f"my voc/ImageSets/Main/{name}.txt", ["cat", "dog"])
        assert os.path.isabs(annotations.path(0))
        assert [Path(annotations.path(i)).name for i in range(9)] == [Path(expected.path(i)).name for i in range(9)]
        assert annotations.boxes_xyxy.tolist() == expected.boxes_xyxy.tolist()
        assert annotations.classes.tolist() == expected.classes.tolist()
    number = int(ids("train")[0])
    line = Path("2007_train.txt").read_text().splitlines()[0]
    assert line == f"{os.getcwd()}/my voc/JPEGImages/{number:02d}.jpg {number},2,50.5,40,{int(number >= 15)}"


def test_existing_files_are_never_lost(settings):
    """Prevents a split that results were measured on from being replaced by a second call."""
    os.makedirs("my voc/ImageSets/Main")
    Path("my voc/ImageSets/Main/val.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"val\.txt exist already.*--overwrite=True"):
        voc_annotation.main(settings)
    assert Path("my voc/ImageSets/Main/val.txt").read_text() == "mine"
    assert not os.path.exists("my voc/ImageSets/Main/train.txt")
    assert not os.path.exists("2007_train.txt")


def test_modes(settings):
    """Prevents splits from being made anew when only the lists are asked for, and the reverse."""
    settings.annotation_mode, settings.classes_path = 1, "none.txt"
    voc_annotation.main(settings)
    assert len(ids("train")) == 9 and not os.path.exists("2007_train.txt")
    settings.annotation_mode, settings.classes_path, settings.seed = 2, "classes.txt", 9
    before = ids("train")
    voc_annotation.main(settings)
    assert ids("train") == before
    assert len(Path("2007_train.txt").read_text().splitlines()) == 9


def test_nothing_is_written_on_a_mistake(settings):
    """Prevents half a result, which the next call would then refuse to overwrite."""
    Path("classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="'dog'"):
        voc_annotation.main(settings)
    assert not os.path.exists("my voc/ImageSets")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("annotation_mode", 3, "must be 0, 1 or 2"),
        ("trainval_percent", 90.0, "a share"),
        ("train_percent", 0.0, "a share"),
        ("train_percent", 1.0, "leave 18 to train on and 0 to validate on"),
        ("group_pattern", "(.+", "is no regular expression .*position 0.*expected one such as"),
        ("group_pattern", "_[0-9]", "matches none of the 20 names of images, such as '00'"),
        ("group_pattern", ".*(x?)", "puts all 20 images into one group, ''"),
        ("VOCdevkit_path", "none", "VOCdevkit_path must name"),
        ("VOCdevkit_path", "empty", "holds no .xml files"),
    ],
)
def test_mistakes(settings, name, value, reason):
    """Prevents shares given in percent, empty splits and wrong folders from failing later without a word."""
    os.makedirs("empty/Annotations")
    setattr(settings, name, value)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        voc_annotation.main(settings)


def test_command(settings):
    """Prevents a script that only works when imported, and traces instead of messages."""
    command = [sys.executable, voc_annotation.__file__, "--VOCdevkit_path=my voc", "--classes_path=classes.txt"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "2007_train.txt: 16 images" in run.stdout
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip().startswith("Error: ") and "Traceback" not in run.stderr


def test_all_broken_files_are_named(settings):
    """Prevents people from correcting one file per call; hidden copies are none of the data set's files."""
    for name in ("03", "07", "._08"):
        Path(f"my voc/Annotations/{name}.xml").write_text("<annotation>")
    with pytest.raises(ValueError) as caught:
        voc_annotation.main(settings)
    assert "annotation cannot be read (2 times): " in str(caught.value)
    assert "03.xml, " in str(caught.value) and "07.xml (not valid XML" in str(caught.value)
    assert not os.path.exists("my voc/ImageSets")


def test_sub_folders_and_longer_endings(settings, capsys):
    """Prevents images in sub-folders, and annotations called 1.jpg.xml, from being left out of all splits."""
    for folder, ending in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        os.makedirs(f"my voc/{folder}/cam2")
        os.rename(f"my voc/{folder}/00{ending}", f"my voc/{folder}/cam2/00{ending}")
    os.rename("my voc/Annotations/01.xml", "my voc/Annotations/01.jpg.xml")
    os.remove("my voc/Annotations/02.xml")
    voc_annotation.main(settings)
    expected = {"cam2/00", *(f"{number:02d}" for number in range(1, 20))} - {"02"}
    assert set(ids("trainval")) | set(ids("test")) == expected
    assert "without an annotation in my voc/JPEGImages, 1 image: 02\n" in capsys.readouterr().out


def test_names_that_no_text_file_can_hold(settings):
    """Prevents a half-written split, and a trace, after a zip of another system was unpacked."""
    for folder, ending in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        os.rename(f"my voc/{folder}/00{ending}", f"my voc/{folder}/".encode() + b"\xc2\xdd" + ending.encode())
    with pytest.raises(ValueError, match=r"2 file names are no UTF-8, .*b'\\xc2\\xdd\.xml'.*Rename them"):
        voc_annotation.main(settings)
    assert not os.path.exists("my voc/ImageSets")
