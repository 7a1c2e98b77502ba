import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.annotations import image_size_hw, read_annotations, read_class_names
from utils.data.records import Records

NAMES = ["cat", "dog"]


def box_xml(name, corners, difficult=0):
    keys = ("xmin", "ymin", "xmax", "ymax")
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{bndbox}</bndbox></object>"


def make_voc(root, images, lines=None):
    """A VOC folder; images is {id: list of object XML}. Returns the path of its train split."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, objects in images.items():
        Image.new("RGB", (100, 50)).save(root / "JPEGImages" / f"{image_id}.jpg")
        xml = f"<annotation><filename>../../elsewhere.jpg</filename>{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
    split = root / "ImageSets" / "Main" / "train.txt"
    split.write_text("\n".join(images if lines is None else lines) + "\n", encoding="utf-8")
    return str(split)


def test_voc_literal_values(tmp_path):
    """Prevents shifted coordinates, lost flags, and image names taken from inside the annotations."""
    part = "<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>40</ymax></bndbox>"
    part += "<part><name>tail</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    split = make_voc(
        tmp_path, {"图 1.a": [box_xml("cat", (10, 5, 60, 45), 1), part], "b": [], "c": []}, ["图 1.a", "c 1", "b"]
    )
    records, notes = read_annotations(split, NAMES)
    assert [Path(records.path(index)).name for index in range(len(records))] == ["图 1.a.jpg", "c.jpg", "b.jpg"]
    assert records.boxes(0).tolist() == [[10, 5, 60, 45], [1, 2, 30.5, 40]]
    assert records.boxes(0).dtype == np.float32
    assert records.labels(0).tolist() == [0, 1]
    assert records.difficult.tolist() == [True, False]
    assert records.boxes(1).shape == (0, 4)
    assert records.sizes_hw.tolist() == [[50, 100]] * 3
    assert notes == ["2 of 3 images have no boxes and are kept as background."]


def test_boxes_without_area_and_outside(tmp_path):
    """Prevents boxes without area from reaching the loss, and silent changes of boxes."""
    boxes = [(10, 5, 10, 45), (60, 5, 10, 45), (200, 5, 300, 45), (-5, 5, 120, 45)]
    split = make_voc(tmp_path, {"a": [box_xml("cat", box) for box in boxes]})
    records, notes = read_annotations(split, NAMES)
    assert records.boxes(0).tolist() == [[0, 5, 100, 45]]
    assert notes[0].startswith("3 of 4 boxes have no area inside their image and are dropped: ")
    assert notes[1].startswith("1 of 4 boxes reach beyond their image and are clipped to it: ")
    assert all("a.jpg" in note for note in notes[:2])
    assert notes[2] == "Classes without boxes: dog."
    assert len(notes) == 3


def test_image_suffixes_in_either_case(tmp_path):
    """Prevents .PNG or .jpeg images from being reported as missing."""
    split = make_voc(tmp_path, {"a": [], "b": []})
    os.rename(tmp_path / "JPEGImages/a.jpg", tmp_path / "JPEGImages/a.JPEG")
    os.remove(tmp_path / "JPEGImages/b.jpg")
    Image.new("RGB", (7, 9)).save(tmp_path / "JPEGImages/b.PNG")
    records, _ = read_annotations(split, NAMES)
    assert [Path(records.path(index)).name for index in (0, 1)] == ["a.JPEG", "b.PNG"]
    assert records.sizes_hw.tolist() == [[50, 100], [9, 7]]


def test_missing_images_and_annotations(tmp_path):
    """Prevents a training that dies at the first of many missing files, or trains on background by mistake."""
    images = {f"i{number:02d}": [] for number in range(12)}
    split = make_voc(tmp_path, images)
    for image_id in images:
        os.remove(tmp_path / f"Annotations/{image_id}.xml")
    with pytest.raises(FileNotFoundError, match=r"12 annotations are missing: .*i00, .*i09 and 2 more\."):
        read_annotations(split, NAMES)
    for image_id in images:
        os.remove(tmp_path / f"JPEGImages/{image_id}.jpg")
    with pytest.raises(FileNotFoundError, match=r"12 images are missing: .*i00, .*i09 and 2 more\."):
        read_annotations(split, NAMES)


def test_ids_cannot_lead_outside(tmp_path):
    """Prevents a split file from opening files outside the data set."""
    make_voc(tmp_path / "other", {"secret": []})
    split = make_voc(tmp_path / "set", {"a": []}, ["a", "../../other/JPEGImages/secret"])
    with pytest.raises(FileNotFoundError, match="1 images are missing"):
        read_annotations(split, NAMES)


def test_unknown_classes_are_counted(tmp_path):
    """Prevents training without a class because of a spelling in the annotations."""
    objects = [box_xml(name, (1, 1, 9, 9)) for name in ("Cat", "cat", "Cat", "bird")]
    split = make_voc(tmp_path, {"a": objects})
    with pytest.raises(
        ValueError, match=r"classes_path lacks: 'Cat' \(2 boxes\), 'bird' \(1 boxes\)\. It names cat, dog"
    ):
        read_annotations(split, NAMES)


ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid XML"),
        ("<annotation><object>", "not valid XML"),
        (ENTITIES, "a DTD or entities"),
        (ENTITIES.encode("utf-16"), "a DTD or entities"),
        ("<annotation>" + " " * 5 * 1024 * 1024 + "</annotation>", "larger than 5 MB"),
        ("<annotation><object><name>cat</name></object></annotation>", "no bndbox"),
        (f"<annotation>{box_xml('cat', (1, 2, 'x', 4))}</annotation>", "no bndbox with four numbers"),
    ],
)
def test_broken_xml_is_named(tmp_path, content, reason):
    """Prevents entity attacks, and parser traces that do not say which file is broken."""
    split = make_voc(tmp_path, {"good": [], "bad": []})
    (tmp_path / "Annotations/bad.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"1 annotation files cannot be read: .*bad\.xml: .*{reason}"):
        read_annotations(split, NAMES)


def test_few_unreadable_images_are_left_out_many_are_an_error(tmp_path):
    """Prevents one damaged image from stopping a training, and a broken copy of the data from going unnoticed."""
    images = {f"i{number}": [box_xml("cat", (number, 1, 90, 40))] for number in range(8)}
    split = make_voc(tmp_path, images)
    for number in (0, 2, 4):
        (tmp_path / f"JPEGImages/i{number}.jpg").write_bytes(b"nothing")
    records, notes = read_annotations(split, NAMES)
    assert [records.boxes(index)[0, 0] for index in range(len(records))] == [1, 3, 5, 6, 7]
    assert notes[0].startswith("3 of 8 images cannot be read and are left out: ")
    assert "i4.jpg (not an image)" in notes[0]
    (tmp_path / "JPEGImages/i6.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="4 of 8 images cannot be read"):
        read_annotations(split, NAMES)


def test_all_images_unreadable_is_an_error(tmp_path):
    """Prevents an empty data set where a small one is wholly unreadable."""
    split = make_voc(tmp_path, {"a": []})
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        read_annotations(split, NAMES)


def test_missing_split_names_the_command(tmp_path):
    """Prevents people from being left alone with annotations that are not split yet."""
    split = make_voc(tmp_path, {"a": []})
    os.remove(split)
    with pytest.raises(FileNotFoundError, match=r"voc_annotation\.py --annotation_mode=1 --VOCdevkit_path="):
        read_annotations(split, NAMES)
    with pytest.raises(FileNotFoundError, match="has no Annotations folder"):
        read_annotations(str(tmp_path / "none/ImageSets/Main/train.txt"), NAMES)
    with pytest.raises(FileNotFoundError, match="train_annotation_path"):
        read_annotations(str(tmp_path / "2007_train.txt"), NAMES)


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_list(tmp_path, content):
    """Prevents a training on nothing."""
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="is empty"):
        read_annotations(str(path), NAMES)


def test_list_file(tmp_path, monkeypatch):
    """Prevents paths with spaces, Windows separators, a BOM or relative paths from being cut or not found."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "my images").mkdir()
    for name in ("my images/a 1,2.jpg", "lists/b.png", "c.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)
    path = tmp_path / "lists" / "train.txt"
    lines = [
        f"{tmp_path}/my images/a 1,2.jpg 1,2,30,40,1 5.5,6,70,48,0",
        "b.png",
        "my images\\a 1,2.jpg  0,0,9,9,1",
        "c.jpg",
    ]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    records, notes = read_annotations(str(path), NAMES)
    assert [Path(records.path(index)).name for index in range(4)] == ["a 1,2.jpg", "b.png", "a 1,2.jpg", "c.jpg"]
    assert records.boxes_xyxy.tolist() == [[1, 2, 30, 40], [5.5, 6, 70, 48], [0, 0, 9, 9]]
    assert records.classes.tolist() == [1, 0, 1]
    assert records.first.tolist() == [0, 2, 2, 3, 3]
    assert notes == ["2 of 4 images have no boxes and are kept as background."]


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "e"])
def test_list_file_class_out_of_range(tmp_path, value):
    """Prevents class numbers of another class file from being trained."""
    Image.new("RGB", (100, 50)).save(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text(f"a.jpg\na.jpg 1,2,3,4,{value}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: "):
        read_annotations(str(tmp_path / "list.txt"), NAMES)


def test_list_file_missing_image(tmp_path):
    """Prevents a malformed box from being swallowed: it becomes part of a path that does not exist, and is shown."""
    Image.new("RGB", (100, 50)).save(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg 1,2,3,4 1,2,3,4,0\n")
    with pytest.raises(FileNotFoundError, match=r"1 images .*x1,y1,x2,y2,class.* are missing: a\.jpg 1,2,3,4\."):
        read_annotations(str(tmp_path / "list.txt"), NAMES)


def test_list_that_is_not_utf8(tmp_path):
    """Prevents a bare UnicodeDecodeError on lists saved in a Windows code page."""
    (tmp_path / "list.txt").write_bytes("训练.jpg".encode("gbk"))
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8"):
        read_annotations(str(tmp_path / "list.txt"), NAMES)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, (20, 40)), (3, (20, 40)), (6, (40, 20)), (8, (40, 20))])
def test_size_follows_exif_as_opencv_does(tmp_path, suffix, orientation, expected):
    """Prevents boxes of rotated photographs from being clipped to the wrong side."""
    from utils.data.letterbox import read_image

    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / f"image.{suffix}")
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert image_size_hw(path) == expected
    assert read_image(path).shape[:2] == expected


def test_huge_image_is_refused_by_its_header(tmp_path):
    """Prevents a header that claims 30,000 x 30,000 pixels from filling the memory of every worker."""
    path = tmp_path / "huge.bmp"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (30000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match="too many pixels"):
        image_size_hw(str(path))


def test_class_names(tmp_path):
    """Prevents a BOM inside the first name and classes made of blank lines."""
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffcat\r\n\r\n  红细胞 \r\ndining table\n\n", encoding="utf-8")
    assert read_class_names(str(path)) == ["cat", "红细胞", "dining table"]


@pytest.mark.parametrize(
    ("content", "reason"), [("", "is empty"), ("\n \n", "is empty"), ("a\nb\na\n", "names a more than")]
)
def test_class_names_errors(tmp_path, content, reason):
    """Prevents a model without classes, or with one class under two numbers."""
    path = tmp_path / "classes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_class_names(str(path))
    with pytest.raises(FileNotFoundError, match="classes_path"):
        read_class_names(str(tmp_path / "none.txt"))


def test_records_pickle():
    """Prevents boxes from landing at the wrong image after a trip to a spawned worker, and an empty set failing."""
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    records = Records(
        ["a.jpg", "图.jpg", "c.jpg"], [[1, 2], [3, 4], [5, 6]], [2, 0, 1], boxes, [0, 1, 1], [True, False, True]
    )
    copy = pickle.loads(pickle.dumps(records))
    assert [copy.path(index) for index in range(3)] == ["a.jpg", "图.jpg", "c.jpg"]
    assert copy.sizes_hw.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert copy.first.tolist() == [0, 2, 2, 3]
    assert copy.boxes(2).tolist() == [[8, 9, 10, 11]]
    assert copy.labels(0).tolist() == [0, 1]
    assert copy.difficult.tolist() == [True, False, True]
    empty = pickle.loads(pickle.dumps(Records([], [], [], [], [])))
    assert (len(empty), empty.boxes_xyxy.shape) == (0, (0, 4))


@pytest.mark.skipif("YOLO_REAL_DATA" not in os.environ, reason="YOLO_REAL_DATA names no folder with real data")
def test_real_data():
    """Prevents what drawn data does not show: real files, with boxes without area among them."""
    split = os.path.join(os.environ["YOLO_REAL_DATA"], "data/bccd/ImageSets/Main/train.txt")
    records, notes = read_annotations(split, ["RBC", "WBC", "Platelets"])
    assert (len(records), len(records.classes)) == (205, 2804)
    assert np.bincount(records.classes).tolist() == [2381, 214, 209]
    assert records.sizes_hw.min(axis=0).tolist() == [480, 640]
    assert len(notes) == 1 and notes[0].startswith("1 of 2805 boxes have no area") and "BloodImage_00343" in notes[0]
