import json

import pytest
from PIL import Image

from utils.data.annotations import read_annotations
from utils.data.formats.detect_format import read_raw_annotations


def make_labelme(root, content, encoding="utf-8"):
    """An image of 100 x 50 pixels, and the JSON file of LabelMe beside it. Returns the folder."""
    Image.new("RGB", (100, 50)).save(root / "a.jpg")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (root / "a.json").write_text(text, encoding=encoding)
    return str(root)


def shape(points, kind="polygon", label=" 猫 "):
    return {"label": label, "points": points, "shape_type": kind}


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("rectangle", [[10, 5], [60, 45]], [10, 5, 60, 45]),
        ("rectangle", [[60, 45], [10, 5]], [10, 5, 60, 45]),
        ("polygon", [[10, 20], [30, 5.5], [50, 40]], [10, 5.5, 50, 40]),
        ("circle", [[50, 25], [53, 29]], [45, 20, 55, 30]),
    ],
)
def test_boxes_around_shapes(tmp_path, kind, points, expected):
    """Prevents files of LabelMe beside images from having to be converted by a program that cuts or shifts boxes."""
    content = {"shapes": [shape(points, kind)], "imageHeight": 50, "imageWidth": 100, "imageData": "x" * 1000}
    annotations, findings = read_annotations(make_labelme(tmp_path, content), ["dog", "猫"])
    assert (annotations.boxes(0).tolist(), annotations.labels(0).tolist(), findings) == ([expected], [1], [])


def test_no_shapes_are_background(tmp_path):
    """Prevents images without objects from being refused."""
    raw = read_raw_annotations(make_labelme(tmp_path, {"shapes": []}))
    assert (len(raw.paths), len(raw.classes), raw.findings) == (1, 0, [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "not valid JSON"),
        ({"boxes": []}, "has no list 'shapes'; expected a file of LabelMe"),
        ({"shapes": [shape([[1, 2]], label="")]}, r"shapes[0] has the label ''; expected the name of a class"),
        ({"shapes": [shape([[1, "x"]])]}, r"shapes[0] has the points [[1, 'x']]; expected pairs [x, y]"),
        ({"shapes": [shape([])]}, r"shapes[0] has the points []"),
        ({"shapes": [7]}, r"shapes[0] has the label None"),
    ],
)
def test_broken_files_are_named(tmp_path, content, reason):
    """Prevents a trace, or an image without its boxes, for a file that is damaged or of another program."""
    (finding,) = read_raw_annotations(make_labelme(tmp_path, content)).findings
    assert finding[:2] == ("broken_annotation", str(tmp_path / "a.json")) and reason in finding.detail


def test_another_encoding(tmp_path):
    """Prevents class names from being read as others."""
    (finding,) = read_raw_annotations(
        make_labelme(tmp_path, {"shapes": [shape([[1, 2]], label="训练")]}, "gbk")
    ).findings
    assert finding.detail == "not UTF-8 text; save it with the encoding UTF-8"
