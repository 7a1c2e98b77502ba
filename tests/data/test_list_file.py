from pathlib import Path

import pytest
from PIL import Image

from utils.data.annotations import read_annotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.formats.list_file import WHERE
from utils.data.quality.findings import Finding

NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def one_image(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.jpg")


def make_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "list.txt")


@pytest.mark.parametrize("content", ["", "\n  \n", "\ufeff\n"])
def test_empty_list(tmp_path, content):
    """Prevents a training on nothing."""
    with pytest.raises(ValueError, match="is empty"):
        read_raw_annotations(make_list(tmp_path, content))


def test_literal_values(tmp_path, monkeypatch):
    """Prevents paths with spaces, Windows separators, a BOM or relative paths from being cut or not found."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "my images").mkdir()
    for name in ("my images/a 1,2.jpg", "lists/图.v1.PNG", "c.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)
    path = tmp_path / "lists" / "train.txt"
    lines = [
        f"{tmp_path}/my images/a 1,2.jpg 1,2,30,40,1 5.5,6,70,48,0",
        "图.v1.PNG",
        "my images\\a 1,2.jpg  0,0,9,9,1",
        "c.jpg",
    ]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    annotations, findings = read_annotations(str(path), NAMES)
    assert [Path(annotations.path(index)).name for index in range(4)] == [
        "a 1,2.jpg",
        "图.v1.PNG",
        "a 1,2.jpg",
        "c.jpg",
    ]
    assert annotations.boxes_xyxy.tolist() == [[1, 2, 30, 40], [5.5, 6, 70, 48], [0, 0, 9, 9]]
    assert annotations.classes.tolist() == [1, 0, 1]
    assert annotations.offsets.tolist() == [0, 2, 2, 3, 3]
    assert [finding[:2] for finding in findings] == [
        ("background", annotations.path(1)),
        ("background", annotations.path(3)),
    ]


def test_classes_out_of_range(tmp_path):
    """Prevents class numbers of another class file from being trained, and a complaint that does not count them."""
    path = make_list(tmp_path, "a.jpg 1,2,3,4,2 1,2,3,4,0\na.jpg 1,2,3,4,-1 5,6,7,8,2\n")
    with pytest.raises(
        ValueError, match=r"list\.txt: .* \(3 times\): class 2 \(2 times\), class -1 \(once\)\. .*cat, d"
    ):
        read_annotations(path, NAMES)


@pytest.mark.parametrize("box", ["1,2,3,4,0.5", "1,2,3,4,e", "1,2,3,4,1e99", "1,2,3,1e999,1", "1..2,2,3,4,0"])
def test_what_is_no_box(tmp_path, box):
    """Prevents parser traces without file and line, and numbers that no loss survives."""
    raw = read_raw_annotations(make_list(tmp_path, f"a.jpg\na.jpg {box}\n"))
    assert len(raw.paths) == 1
    assert [finding.kind for finding in raw.findings] == ["broken_annotation"]
    assert raw.findings[0].detail.startswith(f"line 2: {box} is no box")
    with pytest.raises(ValueError, match=r"annotation cannot be read \(once\): .*list\.txt: line 2: "):
        read_annotations(make_list(tmp_path, f"a.jpg\na.jpg {box}\n"), NAMES)


def test_missing_image(tmp_path):
    """Prevents a malformed box from being swallowed: it becomes part of a path that does not exist, and is shown."""
    path = make_list(tmp_path, "a.jpg 1,2,3,4 1,2,3,4,0\nb.jpg\n")
    assert read_raw_annotations(path).findings == [
        Finding("missing_image", "a.jpg 1,2,3,4", f"{WHERE}; a.jpg is in {tmp_path}"),
        Finding("missing_image", "b.jpg", WHERE),
    ]
    with pytest.raises(
        FileNotFoundError, match=r" \(2 times\): a\.jpg 1,2,3,4: .*a\.jpg is in .*, b\.jpg: .*class\. Put"
    ):
        read_annotations(path, NAMES)


def test_list_that_is_not_utf8(tmp_path):
    """Prevents a bare UnicodeDecodeError on lists saved in a Windows code page."""
    (tmp_path / "list.txt").write_bytes("训练.jpg".encode("gbk"))
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8"):
        read_raw_annotations(str(tmp_path / "list.txt"))


def test_the_current_directory_comes_first(tmp_path, monkeypatch):
    """Prevents lists whose paths start at the project from being read from a copy beside the list."""
    (tmp_path / "lists").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "lists/a.jpg")
    (tmp_path / "lists/list.txt").write_text("a.jpg 1,2,3,4,0\n")
    monkeypatch.chdir(tmp_path)
    assert read_raw_annotations("lists/list.txt").paths == ["a.jpg"]
