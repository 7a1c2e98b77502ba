import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.annotations import class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.quality.findings import Finding
from utils.io.class_names import read_class_names

NAMES = ["cat", "dog"]
IMAGE = {"id": 7, "file_name": "a.jpg"}
CAT = {"id": 3, "name": "cat"}
BOX = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 40], "iscrowd": 0}


def make_coco(root, images=(IMAGE,), annotations=(BOX,), categories=(CAT,), folder="images", name="instances_val2017"):
    """root/annotations/<name>.json, and a picture of 100 x 50 pixels for each image in root/<folder>."""
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for image in images:
        path = root / folder / str(image["file_name"]).replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(path)
    path = root / "annotations" / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_literal_values(tmp_path):
    """Prevents category ids from being taken for classes, widths for corners, and boxes from landing elsewhere."""
    images = [{"id": 9, "file_name": "图 1.jpg", "width": 1}, {"id": "b", "file_name": "b.jpg"}, IMAGE]
    annotations = [
        {"image_id": 7, "category_id": 18, "bbox": [10, 5, 20.5, 40]},
        {"image_id": 9, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1, "segmentation": {"counts": [1]}},
        {"image_id": 7, "category_id": 3, "bbox": [1.5, 2, 3, 4], "iscrowd": 0, "area": 12, "segmentation": [[1, 2]]},
    ]
    categories = [{"id": 18, "name": " dog\n"}, {"id": 90, "name": "toothbrush"}, CAT]
    annotations, findings = read_annotations(make_coco(tmp_path, images, annotations, categories), NAMES)
    assert [Path(annotations.path(index)).name for index in range(3)] == ["图 1.jpg", "b.jpg", "a.jpg"]
    assert annotations.boxes(0).tolist() == [[0, 0, 100, 50]]
    assert annotations.boxes(1).shape == (0, 4)
    assert annotations.boxes(2).tolist() == [[10, 5, 30.5, 45], [1.5, 2, 4.5, 6]]
    assert annotations.classes.tolist() == [0, 1, 0]
    assert annotations.difficult.tolist() == [True, False, False]
    assert annotations.areas.tolist() == [5000, 820, 12]  # the area of a segment where one is stated, else of the box
    assert annotations.without_difficult().areas.tolist() == [820, 12]
    assert annotations.sizes_hw.tolist() == [[50, 100]] * 3
    assert findings == [Finding("background", annotations.path(1))]


def test_boxes_without_area_and_outside(tmp_path):
    """Prevents silent changes of boxes: they are told as for the other formats."""
    boxes = [(10, 5, 0, 40), (60, 5, -50, 40), (200, 5, 100, 40), (-5, 5, 125, 40)]
    path = make_coco(tmp_path, annotations=[BOX | {"bbox": box} for box in boxes])
    annotations, findings = read_annotations(path, NAMES)
    assert annotations.boxes(0).tolist() == [[10, 5, 60, 45], [0, 5, 100, 45]]
    assert findings == [
        Finding("no_area", annotations.path(0), "'cat': 10, 5, 10, 45"),
        Finding("no_area", annotations.path(0), "'cat': 200, 5, 300, 45"),
        Finding("swapped_corners", annotations.path(0), "'cat': 60, 5, 10, 45"),
        Finding("clipped_box", annotations.path(0), "'cat': -5, 5, 120, 45"),
    ]


def test_no_annotations(tmp_path):
    """Prevents a failure on a set of backgrounds, and a training on nothing."""
    annotations, findings = read_annotations(make_coco(tmp_path, annotations=[], categories=[]), NAMES)
    assert (len(annotations), annotations.boxes_xyxy.shape) == (1, (0, 4))
    assert findings == [Finding("background", annotations.path(0))]
    with pytest.raises(ValueError, match=r"none\.json is empty; it must name at least one image"):
        read_annotations(make_coco(tmp_path, [], [], name="none"), NAMES)


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("annotations", "instances_val2017", "annotations/a.jpg"),
        ("annotations/images", "detections", "annotations/images/a.jpg"),
        ("images", "instances_val2017", "images/a.jpg"),
        ("val2017", "instances_val2017", "val2017/a.jpg"),
        ("images/val2017", "instances_val2017", "images/val2017/a.jpg"),
        ("train", "train", "train/a.jpg"),
        (".", "instances_val2017", "a.jpg"),
    ],
)
def test_where_images_lie(tmp_path, monkeypatch, folder, name, expected):
    """Prevents images from being missed where exports put them, also with a path from the current directory."""
    path = make_coco(tmp_path, folder=folder, name=name)
    assert read_annotations(path, NAMES)[0].path(0) == str(tmp_path / expected)
    monkeypatch.chdir(tmp_path / "annotations")
    assert Path(read_annotations(f"{name}.json", NAMES)[0].path(0)).resolve() == tmp_path / expected


def test_images_of_the_split_come_first(tmp_path):
    """Prevents an image of another split, of the same name, from being trained on with these boxes."""
    for folder in ("images", ".", "images/val2017"):
        path = make_coco(tmp_path, folder=folder)
    assert read_raw_annotations(path).paths == [str(tmp_path / "images/val2017/a.jpg")]
    make_coco(tmp_path, folder="val2017")
    assert read_raw_annotations(path).paths == [str(tmp_path / "val2017/a.jpg")]


@pytest.mark.parametrize("file_name", ["val2017/a.jpg", "val2017\\a.jpg", "..a.jpg"])
def test_file_names_with_folders(tmp_path, file_name):
    """Prevents names with folders, of Windows too, from being missed or taken for a way out."""
    path = make_coco(tmp_path, [IMAGE | {"file_name": file_name}], folder=".")
    assert read_annotations(path, NAMES)[0].path(0) == str(tmp_path / file_name.replace("\\", "/"))


@pytest.mark.parametrize("ending", ["json", "JSON"])
def test_missing_images(tmp_path, ending):
    """Prevents people from having to guess where images are looked for, and what is not there."""
    images = [{"id": number, "file_name": f"i{number:02d}.jpg"} for number in range(13)]
    path = Path(make_coco(tmp_path / "set", images, annotations=[]))
    path = path.rename(path.with_suffix(f".{ending}"))
    for number in range(12):
        (tmp_path / f"set/images/i{number:02d}.jpg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read_annotations(str(path), NAMES)
    names = ("annotations", "annotations/images", "val2017", "images/val2017", "images")
    folders = ", ".join(str(tmp_path / "set" / name) for name in names)
    assert "image does not exist (12 times): i00.jpg, i01.jpg, " in str(caught.value)
    assert f"i09.jpg and 2 more (looked for in {folders}, {tmp_path / 'set'})." in str(caught.value)


@pytest.mark.parametrize("lead", ["../", "images/../../", "..\\", "/", "\\", "C:\\", "C:", "\\\\server\\share\\"])
def test_file_names_cannot_lead_outside(tmp_path, lead):
    """Prevents a downloaded annotation file from opening files anywhere on the disk."""
    Image.new("RGB", (100, 50)).save(tmp_path / "secret.jpg")
    make_coco(tmp_path / "set")
    name = f"{tmp_path}/secret.jpg" if lead == "/" else f"{lead}secret.jpg"
    path = tmp_path / "set/annotations/instances_val2017.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": []}))
    with pytest.raises(
        ValueError, match=r"json: images\[0\] has the file_name .*; expected a path inside the data set"
    ):
        read_annotations(str(path), NAMES)


def test_unknown_classes_are_counted(tmp_path):
    """Prevents training without a class because class_names lacks it; categories without boxes are no mistake."""
    categories = [{"id": 1, "name": "Cat"}, {"id": 2, "name": "bird"}, {"id": 4, "name": "animals"}, CAT]
    annotations = [BOX | {"category_id": number} for number in (1, 3, 1, 2)]
    path = make_coco(tmp_path, annotations=annotations, categories=categories)
    with pytest.raises(
        ValueError, match=r"classes_path lacks \(3 times\): 'Cat' \(2 times\), 'bird' \(once\)\. classes_path names cat"
    ):
        read_annotations(path, NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"\.json is not valid JSON \(it is empty\)"),
        (b" \n", r"\.json is not valid JSON \(it is empty\)"),
        (b'{"images": [', r"\.json is not valid JSON"),
        ("{}".encode("utf-16"), r"\.json is not UTF-8 text; save it with the encoding UTF-8\."),
        (b"[" * 100_000, r"\.json is not valid JSON"),
        (
            b'{"version": "5", "shapes": []}',
            r"\.json is LabelMe's file of one image; name the folder that holds the images",
        ),
        (b'{"images": ' + b"1" * 5000 + b"}", r"\.json is not valid JSON"),
        (b'{"categories": [], "images": [], "annotations": []} {', r"\.json is not valid JSON \(it goes on"),
        (b'{"categories": [] "images": []}', r"\.json is not valid JSON \(expected }"),
        (b"{}", r"\.json has no list 'categories'"),
        (b"[1]", r"\.json has no list 'categories'"),
        (b'{"categories": [], "images": {}, "annotations": []}', r"\.json has no list 'images'"),
        (b'{"categories": [], "images": []}', r"\.json has no list 'annotations'"),
    ],
)
def test_broken_files_are_named(tmp_path, content, reason):
    """Prevents parser traces that do not say which file is broken, and other JSON from being read as an empty set."""
    path = Path(make_coco(tmp_path))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_annotations(str(path), NAMES)


def test_byte_order_mark(tmp_path):
    """Prevents files that Windows programs saved from being called broken."""
    path = Path(make_coco(tmp_path))
    path.write_text("\ufeff" + path.read_text("utf-8"), "utf-8")
    assert read_annotations(str(path), NAMES)[0].boxes(0).tolist() == [[1, 2, 31, 42]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"categories": [{"id": 3}]}, r"categories\[0\] has the name None; expected the name of a class"),
        ({"categories": [CAT, {"name": "dog"}]}, r"categories\[1\] has the id None; expected a number"),
        ({"categories": [CAT, {"id": 3, "name": "dog"}]}, r"categories\[1\] has the id 3, which another of its cat"),
        ({"categories": ["cat"]}, r"categories\[0\] has the id None"),
        (
            {"images": [IMAGE, {"id": 7, "file_name": "b.jpg"}]},
            r"images\[1\] has the id 7, which another of its images",
        ),
        ({"images": [IMAGE, {"id": 8, "file_name": " "}]}, r"images\[1\] has the file_name ' '; expected a path"),
        ({"images": [{"id": [7], "file_name": "a.jpg"}]}, r"images\[0\] has the id \[7\]; expected a number"),
        ({"annotations": [BOX, BOX | {"image_id": 8}]}, r"annotations\[1\] has the image_id 8, which no other part"),
        ({"annotations": [BOX | {"category_id": 1}]}, r"annotations\[0\] has the category_id 1, which no other part"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, r"annotations\[0\] has the bbox None; expected \[x, y"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3]}]}, r"annotations\[0\] has the bbox \[1, 2, 3\]; expected"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3, "4"]}]}, r"annotations\[0\] has the bbox \[1, 2, 3, '4'\]"),
        ({"annotations": [BOX | {"bbox": [1, 2, 3, True]}]}, r"annotations\[0\] has the bbox"),
        ({"annotations": [BOX | {"bbox": [1, 2, float("nan"), 4]}]}, r"annotations\[0\] has the bbox \[1, 2, nan, 4\]"),
        ({"annotations": [BOX | {"bbox": [1, 2, float("inf"), 4]}]}, r"annotations\[0\] has the bbox \[1, 2, inf, 4\]"),
        ({"annotations": [BOX | {"bbox": [1, 2, 10**400, 4]}]}, r"annotations\[0\] has the bbox \[1, 2, 1000+"),
        ({"annotations": [BOX | {"iscrowd": "0"}]}, r"annotations\[0\] has the iscrowd '0'; expected 0 or 1"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, changes, reason):
    """Prevents bare KeyErrors, boxes at the wrong image, and numbers that no loss survives."""
    path = Path(make_coco(tmp_path))
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    with pytest.raises(ValueError, match=rf"instances_val2017\.json: {reason}"):
        read_annotations(str(path), NAMES)


def test_all_mistakes_are_findings(tmp_path):
    """Prevents people from correcting one mistake per run; what is right is still read."""
    annotations = [BOX | {"bbox": None}, BOX, BOX | {"image_id": 8}, BOX | {"category_id": 1}, BOX]
    path = make_coco(tmp_path, [IMAGE, {"id": 9, "file_name": "b.jpg"}], annotations)
    (tmp_path / "images/b.jpg").unlink()
    raw = read_raw_annotations(path)
    assert raw.image_index.tolist() == [0, 0]
    assert [(finding.kind, finding.image) for finding in raw.findings] == [
        ("broken_annotation", path),
        ("missing_image", "b.jpg"),
        ("broken_annotation", path),
        ("broken_annotation", path),
    ]
    assert raw.findings[3].detail == "annotations[3] has the category_id 1, which no other part lists"


def test_parts_in_any_order(tmp_path):
    """Prevents boxes from being lost where a program writes them before the images they belong to."""
    path = Path(make_coco(tmp_path))
    content = json.loads(path.read_text("utf-8"))
    parts = {"annotations": content["annotations"], "info": {"images": [1]}, "categories": [CAT], "images": [IMAGE]}
    path.write_text(json.dumps(parts), "utf-8")
    annotations, findings = read_annotations(str(path), NAMES)
    assert (annotations.boxes_xyxy.tolist(), findings) == ([[1, 2, 31, 42]], [])


def test_names_in_order_of_ids(tmp_path):
    """Prevents other class numbers than other programs give to the same file."""
    categories = [{"id": 18, "name": "dog"}, {"id": 90, "name": " tooth \n brush"}, CAT]
    raw = read_raw_annotations(make_coco(tmp_path, categories=categories))
    assert class_names_of([raw]) == ["cat", "dog", "tooth brush"]
    assert raw.classes.tolist() == [0]


@pytest.mark.parametrize(
    ("stated", "expected"),
    [({"width": 50, "height": 100}, [100, 50]), ({"width": 0, "height": 9}, [9, 0]), ({"width": "50"}, [0, 0])],
)
def test_stated_sizes(tmp_path, stated, expected):
    """Prevents sizes from being exchanged, and senseless ones from ending the reading."""
    assert read_raw_annotations(make_coco(tmp_path, [IMAGE | stated])).stated_sizes_hw.tolist() == [expected]


def test_real_annotations(real_data):
    """Prevents what drawn data does not show: the numbering of COCO's categories, and its crowds."""
    class_names = read_class_names(Path(__file__).parents[2] / "model_data/coco_classes.txt")
    path = real_data / "data/coco_tiny/annotations/instances_val2017.json"
    annotations, findings = read_annotations(path, class_names)
    assert (len(annotations), len(annotations.classes), annotations.difficult.sum()) == (80, 815, 11)
    first = Path(annotations.path(0))
    assert (first.name, first.parent.name) == ("000000532481.jpg", "val2017")
    assert annotations.sizes_hw[0].tolist() == [426, 640]
    assert annotations.boxes(0)[0] == pytest.approx(np.array([250.82, 168.26, 320.93, 233.14]), abs=1e-4)
    assert class_names[annotations.labels(0)[0]] == "person"
    assert findings == []


def test_a_root_of_all_categories_is_no_class(tmp_path):
    """Prevents a class without boxes in every detector from an export that lists the root of its categories."""
    root = {"id": 0, "name": "things", "supercategory": "none"}
    categories = [root, CAT | {"supercategory": "things"}]
    path = make_coco(tmp_path, categories=categories)
    assert class_names_of([read_raw_annotations(path)]) == ["cat"]
    path = make_coco(
        tmp_path, annotations=[BOX | {"category_id": 0}], categories=[root, CAT | {"supercategory": "things"}]
    )
    assert class_names_of([read_raw_annotations(path)]) == ["things", "cat"]


def test_two_categories_of_one_name_are_told(tmp_path):
    """Prevents two classes from becoming one without a word."""
    _, findings = read_annotations(make_coco(tmp_path, categories=[CAT, CAT | {"id": 4}]), NAMES)
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("joined_classes", "'cat' is the name of several")
    ]


@pytest.mark.parametrize("name", ["b\0.jpg", "b\ud800.jpg"])
def test_names_that_no_file_can_have(tmp_path, name):
    """Prevents a trace for a zero byte or half a character, as a damaged download holds them."""
    path = make_coco(tmp_path)
    content = {"images": [IMAGE, {"id": 8, "file_name": name}], "annotations": [BOX], "categories": [CAT]}
    Path(path).write_text(json.dumps(content), encoding="utf-8")
    raw = read_raw_annotations(path)
    assert [os.path.basename(found) for found in raw.paths] == ["a.jpg"]
    assert [finding.kind for finding in raw.findings] == ["missing_image"]


def test_a_class_name_of_half_a_character(tmp_path):
    """Prevents a trace when the names are written into a file or printed."""
    path = make_coco(tmp_path, categories=[CAT | {"name": "ca\ud800t"}])
    assert class_names_of([read_raw_annotations(path)]) == ["ca?t"]


@pytest.mark.parametrize("file_name", ["%C3%A4%20b.jpg", "Ä B.JPG", "set\\images\\ä b.jpg"])
def test_file_names_that_are_spelled_otherwise(tmp_path, file_name):
    """Prevents images from being called missing because a program encoded their names."""
    path = make_coco(tmp_path, [IMAGE | {"file_name": "ä b.jpg"}])
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = file_name
    Path(path).write_text(json.dumps(content), encoding="utf-8")
    raw = read_raw_annotations(path)
    assert [os.path.basename(found) for found in raw.paths] == ["ä b.jpg"]
    assert raw.findings == [("other_spelling", raw.paths[0], f"the annotation says {file_name}")]


def test_boxes_that_are_corners_stop_a_training(tmp_path):
    """Prevents boxes at wrong places from being learned: COCO's boxes are a corner and a size."""
    boxes = [BOX | {"bbox": [x, y, x + 12, y + 9]} for x, y in ((1, 2), (60, 30), (80, 5), (20, 40), (70, 20))]
    with pytest.raises(
        ValueError, match=r"boxes written in other coordinates \(once\): .*look like two corners .*Export"
    ):
        read_annotations(make_coco(tmp_path, annotations=boxes), NAMES)
