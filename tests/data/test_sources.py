import pytest
from voc_folder import box_xml, make_voc
from yolo_folder import make_yaml, make_yolo

from utils.data.annotations import Annotations
from utils.data.sources import join, path_words, paths_of, read_data_sets, source_repeats, weights_words
from utils.io.errors import UserError

CAT, DOG = box_xml("cat", (10, 10, 60, 40)), box_xml("dog", (30, 5, 90, 45), difficult=1)


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / "voc", {"a": [CAT, DOG], "b": []})


def yolo(folder, names):
    make_yolo(folder, {"c": "0 0.5 0.5 0.2 0.4\n"}, "images/train")
    return make_yaml(folder, f"train: images/train\nval: images/train\nnames: {names}\n")


def test_the_paths_of_a_constant():
    """Prevents a path from being read letter by letter."""
    assert paths_of("a.txt") == ["a.txt"] and paths_of(("a", "b")) == ["a", "b"]
    assert path_words("a.txt") == "a.txt" and path_words(["a", "b"]) == "a and b"


def test_sources_of_two_formats_are_joined_by_names(voc, tmp_path, capsys):
    """Prevents classes that are mixed up where two sources number them in another order, and boxes of one source on
    images of the other."""
    paths = {"train": [voc, yolo(tmp_path / "yolo", "[dog, cat]")], "val": voc}
    names, sets = read_data_sets(paths, "")
    assert names == ["cat", "dog"]
    train, findings, counts = sets["train"]
    assert counts == [2, 1] and [train.path(index)[-5:] for index in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert train.classes.tolist() == [0, 1, 1] and train.difficult.tolist() == [False, True, False]
    assert train.boxes(2).tolist() == [[40, 15, 60, 35]] and train.areas.tolist() == [1500, 2400, 400]
    assert [finding.kind for finding in findings] == ["background"]
    assert (len(sets["val"].annotations), sets["val"].counts) == (2, [2])
    assert f"{paths['train'][1]}: 1 image, 1 box, 2 classes\n" in capsys.readouterr().out


def test_sources_that_name_other_classes(voc, tmp_path):
    """Prevents objects that one source does not label from being learned as background without a word."""
    second = yolo(tmp_path / "yolo", "[cat, dgo]")
    with pytest.raises(UserError) as error:
        read_data_sets({"train": [voc, second]}, "")
    assert str(error.value) == (
        f"{voc} and {second} do not name the same classes: only one of them has dgo, dog. Rename them, or set "
        "classes_path to a file of all names."
    )
    (tmp_path / "classes.txt").write_text("dgo\ndog\ncat\n")
    _, sets = read_data_sets({"train": [voc, second]}, str(tmp_path / "classes.txt"))
    assert sets["train"].annotations.classes.tolist() == [2, 1, 2]


def test_a_source_with_numbers_alone(voc, tmp_path):
    """Prevents a class 0 of one source from being taken for the first name of another."""
    (tmp_path / "list.txt").write_text(f"{tmp_path}/voc/JPEGImages/a.jpg 1,1,9,9,0\n")
    with pytest.raises(UserError, match=r"list\.txt gives its classes as numbers alone, so classes_path cannot be ''"):
        read_data_sets({"train": [voc, str(tmp_path / "list.txt")]}, "")


def test_an_error_names_its_source(voc, tmp_path):
    """Prevents a search through all sources for the file that one of them lacks; tools that list errors go on."""
    second = yolo(tmp_path / "yolo", "[cat, dog]")
    (tmp_path / "yolo/labels/train/c.txt").write_text("0 5 5 2 4\n")
    with pytest.raises(UserError) as error:
        read_data_sets({"train": [voc, second]}, "")
    assert str(error.value).startswith(f"{second}: annotation cannot be read (once)")
    _, sets = read_data_sets({"train": [voc, second]}, "", strict=False)
    assert "broken_annotation" in {finding.kind for finding in sets["train"].findings}


def test_sources_without_images_or_boxes():
    """Prevents a failure where a source is empty."""
    empty = Annotations([], [], [], [], [])
    data_set = join([(empty, []), (Annotations(["a"], [(4, 6)], [0], [], []), [])])
    assert (len(data_set.annotations), data_set.counts) == (1, [0, 1])
    assert data_set.annotations.boxes_xyxy.shape == (0, 4)


def test_weights_become_repeats():
    """Prevents weights of other images than those of their source; equal weights change nothing."""
    assert source_repeats([2, 1], [1, 0.5]).tolist() == pytest.approx([1.2, 1.2, 0.6])
    assert source_repeats([2, 1], [1, 0.5], images=[0, 0, 2, 2, 1]).tolist() == [1.25, 1.25, 0.625, 0.625, 1.25]
    assert source_repeats([2, 1], []) is source_repeats([2, 1], [3, 3]) is source_repeats([2], [3]) is None


def test_what_the_weights_do_is_said():
    """Prevents weights that are taken for numbers of images: 10 images at 1 and 40 at 0.5 are a third and two."""
    assert weights_words(["a.txt", "b.txt"], [10, 40], [1, 0.5]) == (
        "source_weights: an epoch keeps its 50 images, of which on average come\n"
        "      16.7 from a.txt, which has 10\n"
        "      33.3 from b.txt, which has 40"
    )
