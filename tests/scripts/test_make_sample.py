from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from tools.make_sample import CLASSES, IMAGE_SIZE, MARKER, MARKER_TEXT, box_of, draw_image, is_fair, make_sample
from utils.io.errors import UserError

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "VOCdevkit" / "Sample"


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_labels(xml_path):
    """[(class name, [x1, y1, x2, y2])] of one annotation."""
    tags = ("xmin", "ymin", "xmax", "ymax")
    return [
        (entry.findtext("name"), [int(entry.findtext(f"bndbox/{tag}")) for tag in tags])
        for entry in ElementTree.parse(xml_path).iter("object")
    ]


def read_split(folder, split):
    return (folder / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()


def check_labels(folder):
    """Every label names a known class and has a box inside the image with sides of 12 to 200 px."""
    count = 0
    for xml_path in (folder / "Annotations").glob("*.xml"):
        for name, (x1, y1, x2, y2) in read_labels(xml_path):
            assert name in ("fish", "leaf", "mushroom"), xml_path
            assert 0 <= x1 < x2 <= 320 and 0 <= y1 < y2 <= 320, xml_path
            assert min(x2 - x1, y2 - y1) >= 12 and max(x2 - x1, y2 - y1) <= 200, xml_path
            count += 1
    return count


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """Prevents a sample that nobody can reproduce, and a seed that is ignored."""
    for folder, seed in (("first", 3), ("again", 3), ("other", 4)):
        make_sample(tmp_path / folder, images=6, seed=seed)
    first, again, other = (all_bytes(tmp_path / folder) for folder in ("first", "again", "other"))
    assert len(first) == 6 + 6 + 4 + 1
    assert first == again
    assert all(first[name] != other[name] for name in first if name.endswith(".jpg"))


def test_files_and_labels_are_valid(tmp_path):
    """Prevents boxes outside the image, boxes too small to learn, and unknown classes."""
    make_sample(tmp_path, images=6, seed=3)
    assert check_labels(tmp_path) >= 6
    image = cv2.imread(str(tmp_path / "JPEGImages" / "000001.jpg"))
    assert image.shape == (320, 320, 3)
    root = ElementTree.parse(tmp_path / "Annotations" / "000001.xml").getroot()
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == ["320", "320", "3"]
    assert root.findtext("filename") == "000001.jpg"
    assert {entry.findtext("difficult") for entry in root.iter("object")} == {"0"}


def test_splits_are_disjoint_and_cover_all_images(tmp_path):
    """Prevents validation images in the training split, and images in none."""
    make_sample(tmp_path, images=8, seed=3)
    assert read_split(tmp_path, "train") == ["000001", "000002", "000003", "000004", "000005"]
    assert read_split(tmp_path, "val") == ["000006", "000007"]
    assert read_split(tmp_path, "test") == ["000008"]
    assert read_split(tmp_path, "trainval") == [f"00000{number}" for number in range(1, 8)]


def test_an_image_without_objects_has_no_labels():
    """Prevents labels on background images."""
    image, labels = draw_image(np.random.default_rng(0), with_objects=False)
    assert labels == []
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert image.dtype == np.uint8


def test_boxes_are_tight_around_what_is_visible():
    """Prevents boxes that are off by one pixel, and labels on objects hardly visible or too thin."""
    mask = np.zeros((320, 320), bool)
    mask[30:50, 100:140] = True
    assert box_of(mask) == [100, 30, 140, 50]
    assert is_fair(mask, full_area=800)
    assert not is_fair(mask, full_area=2000)
    assert not is_fair(np.zeros((320, 320), bool), full_area=800)
    mask[41:] = False
    assert not is_fair(mask, full_area=440)


def test_an_impossible_number_of_images(tmp_path):
    """Prevents an empty split."""
    with pytest.raises(ValueError, match="images = 3, expected at least 4"):
        make_sample(tmp_path / "few", images=3, seed=3)
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("name", ["JPEGImages/000001.jpg", "Annotations/000001.xml", "notes.txt"])
def test_files_of_a_person_stay(tmp_path, name):
    """Prevents images and labels of a person, whose names are those of drawn ones, from being lost."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        UserError, match=r"which holds files that this tool did not draw, as it has no drawn_sample\.txt"
    ):
        make_sample(tmp_path, images=4, seed=3)
    assert {path: content.decode() for path, content in all_bytes(tmp_path).items()} == {name: "mine"}
    with pytest.raises(UserError, match="holds files that this tool did not draw"):
        make_sample(tmp_path / name, images=4, seed=3)


def test_a_smaller_sample_replaces_an_earlier_one(tmp_path):
    """Prevents images of an earlier run from being mixed with new ones, and an earlier run from being refused."""
    make_sample(tmp_path / "both", images=6, seed=3)
    make_sample(tmp_path / "both", images=4, seed=4)
    make_sample(tmp_path / "once", images=4, seed=4)
    assert all_bytes(tmp_path / "both") == all_bytes(tmp_path / "once")
    (tmp_path / "both/JPEGImages/mine.jpg").write_text("mine")
    before = all_bytes(tmp_path / "both")
    with pytest.raises(UserError, match=r"did not draw: JPEGImages/mine\.jpg; move them away"):
        make_sample(tmp_path / "both", images=4, seed=3)
    assert all_bytes(tmp_path / "both") == before


def test_the_committed_sample_is_complete_and_small():
    """Prevents a sample that lost files, grew too large for a clone, or holds labels the class file lacks."""
    files = all_bytes(SAMPLE)
    assert sum(name.endswith(".jpg") for name in files) == 160
    assert sum(name.endswith(".xml") for name in files) == 160
    assert sum(len(content) for content in files.values()) < 3_000_000
    assert [len(read_split(SAMPLE, split)) for split in ("train", "val", "trainval", "test")] == [110, 40, 150, 10]
    assert len({name for split in ("train", "val", "test") for name in read_split(SAMPLE, split)}) == 160
    assert check_labels(SAMPLE) > 500
    assert files[MARKER].decode().split() == MARKER_TEXT.split()
    for split in ("train", "val"):
        names = [
            name for stem in read_split(SAMPLE, split) for name, _ in read_labels(SAMPLE / f"Annotations/{stem}.xml")
        ]
        assert min(names.count(name) for name in CLASSES) >= 40


def test_the_committed_sample_comes_from_this_script(tmp_path):
    """Prevents a changed script beside an old sample: run python tools/make_sample.py and commit what it wrote."""
    make_sample(tmp_path, images=4, seed=7)
    for stem in ("000001", "000002", "000003", "000004"):
        drawn, committed = (read_labels(folder / "Annotations" / f"{stem}.xml") for folder in (tmp_path, SAMPLE))
        assert [name for name, _ in drawn] == [name for name, _ in committed]
        # Another OpenCV may smooth an edge differently by a pixel.
        assert np.allclose([box for _, box in drawn], [box for _, box in committed], atol=2)


def test_class_files():
    """Prevents a class list of the wrong length or order: the position of a name is its index in a weight file."""
    names = {
        stem: (ROOT / "model_data" / f"{stem}_classes.txt").read_text(encoding="utf-8").splitlines()
        for stem in ("sample", "voc", "coco")
    }
    assert names["sample"] == ["fish", "leaf", "mushroom"] == list(CLASSES)
    assert len(set(names["voc"])) == 20
    assert (names["voc"][0], names["voc"][14], names["voc"][19]) == ("aeroplane", "person", "tvmonitor")
    assert len(set(names["coco"])) == 80
    picks = {0: "person", 10: "fire hydrant", 25: "umbrella", 39: "bottle", 60: "dining table", 79: "toothbrush"}
    assert {index: names["coco"][index] for index in picks} == picks
