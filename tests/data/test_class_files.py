import pytest

from tests.yolo_folder import make_yaml, make_yolo
from utils.data.annotations import class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations

LINE = "1 0.5 0.5 0.2 0.2"


@pytest.mark.parametrize("name", ["_darknet.labels", "_classes.txt", "obj.names", "classes.txt"])
def test_files_of_names(tmp_path, name):
    """Prevents exports whose file of names has another name from being read as numbers alone."""
    folder = make_yolo(tmp_path, {"a": LINE}, ".")
    (tmp_path / name).write_text("lime\nlemon\n")
    assert class_names_of([read_raw_annotations(folder)]) == ["lime", "lemon"]


@pytest.mark.parametrize("place", ["labels/train/classes.txt", "labels/classes.txt", "classes.txt"])
def test_a_description_and_a_file_among_the_labels(tmp_path, place):
    """Prevents the classes from being swapped because a labelling program numbers them otherwise than the data.yaml."""
    make_yolo(tmp_path, {"a": LINE}, "images/train")
    path = make_yaml(tmp_path, "train: images/train\nnames: [bolt, nut]\n")
    (tmp_path / place).write_text("nut\nbolt\n")
    with pytest.raises(ValueError, match=r"classes\.txt names the classes nut, bolt, but .*data\.yaml names bolt, nut"):
        read_raw_annotations(path)
    (tmp_path / place).write_text("bolt\nnut\nscrew\n")
    assert read_raw_annotations(path).names == ["bolt", "nut"]


def test_two_folders_with_other_names(tmp_path):
    """Prevents the labels of one site from being read with the class numbers of another."""
    for site, names in (("a", "bolt\nnut\n"), ("b", "nut\nbolt\n")):
        make_yolo(tmp_path, {site: LINE}, f"images/{site}")
        (tmp_path / f"labels/{site}/classes.txt").write_text(names)
    with pytest.raises(ValueError, match=r"a/classes\.txt names the classes bolt, nut, but .*b/classes\.txt names nut"):
        read_raw_annotations(str(tmp_path / "images"))


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt"])
def test_a_name_that_stands_twice(tmp_path, name):
    """Prevents two classes from becoming one because an export gave both a placeholder."""
    folder = make_yolo(tmp_path, {"a": LINE})
    (tmp_path / name).write_text("names: [item, item]\n" if name == "data.yaml" else "item\nitem\n")
    with pytest.raises(ValueError, match=rf"{name} names item more than once, which would become one class; give each"):
        read_raw_annotations(folder)


def test_numbers_beyond_the_names(tmp_path):
    """Prevents a label file that is in order from being called unreadable because the names are too few."""
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n3 0.5 0.5 0.2 0.2"})
    path = make_yaml(tmp_path, "train: images\nnames: [cat]\n")
    with pytest.raises(
        ValueError, match=r"class number beyond the names \(once\): .*Add the missing names to that file"
    ):
        read_annotations(path, ["cat"])
