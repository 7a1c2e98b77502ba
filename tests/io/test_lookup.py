import os

import pytest

from utils.io.lookup import FileIndex, canonical, find_image, find_spelled, is_as_written, tails, words_on_near


@pytest.mark.parametrize("name", ["B/ä.jpg", "b/A\u0308.JPG", "B\\ä.jpg", "b/%C3%A4.jpg", "B%2F%C3%84.jpg"])
def test_all_spellings_of_a_name_are_one(name):
    """Prevents a file from being missed because a system or a program spells its name otherwise."""
    assert canonical(name) == "b/ä.jpg"


def test_an_index_prefers_what_is_written():
    """Prevents a file of another case from taking the place of the one that is named, and a choice between two."""
    index = FileIndex(["a.txt", "A.txt", "x/b.txt", "C.TXT", "c.jpg.txt", "y/d.txt", "z/d.txt"], (".txt",))
    assert [index.find(stem) for stem in ("a", "A", "b", "c", "d", "e")] == [
        "a.txt",
        "A.txt",
        "x/b.txt",
        None,
        None,
        None,
    ]
    assert index.find("c", ".jpg") == "c.jpg.txt"
    assert index.unused() == ["C.TXT", "y/d.txt", "z/d.txt"]
    assert FileIndex([], (".txt",)).find("a") is None


def test_an_index_knows_names_with_several_endings():
    """Prevents one of two images of one name from being left out without a word."""
    index = FileIndex(["a.png", "a.jpg", "b.jpg"], (".jpg", ".png"))
    assert (index.find("a"), index.shared()) == ("a.jpg", ["a"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/old/set/images/a.jpg", ["old/set/images/a.jpg", "set/images/a.jpg", "images/a.jpg"]),
        ("C:\\set\\a.jpg", ["set/a.jpg"]),
        ("../../set/a.jpg", ["set/a.jpg"]),
        ("a.jpg", ["a.jpg"]),
        ("..", [""]),
    ],
)
def test_tails(path, expected):
    """Prevents an image from being taken for another of its name alone: one folder at least must agree."""
    assert tails(path) == expected


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("images/a b.jpg", "images/a b.jpg"),
        ("IMAGES\\A%20b.JPG", "images/a b.jpg"),
        ("/content/drive/set/images/a b.jpg", "images/a b.jpg"),
        ("data/images/a b.jpg", "images/a b.jpg"),
        ("../images/a b.jpg", "images/a b.jpg"),
        ("other/a b.jpg", None),
        ("images", None),
    ],
)
def test_images_of_a_list_from_another_machine(tmp_path, named, found):
    """Prevents a data set from being unreadable after it was moved, and another image of that name from being taken."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.jpg").write_bytes(b"")
    path = find_image(named, [str(tmp_path)])
    assert path == (found and str(tmp_path / found))
    assert not path or is_as_written(path, named) == (named in ("images/a b.jpg", "../images/a b.jpg"))


def test_two_spellings_are_no_answer(tmp_path):
    """Prevents one of two files from being chosen at random, and a listing from being kept after it changed."""
    (tmp_path / "A.jpg").write_bytes(b"")
    assert find_spelled(str(tmp_path), "a.jpg") == str(tmp_path / "A.jpg")
    (tmp_path / "a.JPG").write_bytes(b"")
    os.utime(tmp_path, ns=(1, 1))
    assert find_spelled(str(tmp_path), "a.jpg") is None
    assert find_spelled(str(tmp_path), "A.jpg") == str(tmp_path / "A.jpg")


def test_what_lies_near(tmp_path):
    """Prevents `does not exist` without a word on the file that is there under nearly that name."""
    (tmp_path / "a.HEIC").write_bytes(b"")
    assert words_on_near("x/a.jpg", [str(tmp_path)]) == f"a.HEIC is in {tmp_path}: save it as JPEG or PNG"
    assert words_on_near("b.jpg", [str(tmp_path)]) == ""
