import pickle

import numpy as np
import pytest
from PIL import Image

from tests.voc_folder import box_xml, make_voc
from utils.data.annotations import Annotations, build_annotations, class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.quality.findings import Finding

NAMES = ["cat", "dog"]


def test_boxes_without_area_and_outside(tmp_path):
    """Prevents boxes without area from reaching the loss, and silent changes of boxes."""
    boxes = [(10, 5, 10, 45), (60, 5, 10, 45), (200, 5, 300, 45), (-5, 5, 120, 45), (0, -0.5, 100.5, 50)]
    split = make_voc(tmp_path, {"a": [box_xml("cat", box) for box in boxes], "b": [box_xml("dog", boxes[0])]})
    annotations, findings = read_annotations(split, NAMES)
    assert annotations.boxes_xyxy.tolist() == [[10, 5, 60, 45], [0, 5, 100, 45], [0, 0, 100, 50]]
    assert findings == [
        Finding("no_area", annotations.path(0), "'cat': 10, 5, 10, 45"),
        Finding("no_area", annotations.path(0), "'cat': 200, 5, 300, 45"),
        Finding("no_area", annotations.path(1), "'dog': 10, 5, 10, 45"),
        Finding("swapped_corners", annotations.path(0), "'cat': 60, 5, 10, 45"),
        Finding("clipped_box", annotations.path(0), "'cat': -5, 5, 120, 45"),
        Finding("background", annotations.path(1), "none of its boxes can be used"),
    ]


def test_few_unreadable_images_are_left_out_many_stop(tmp_path):
    """Prevents one damaged image from stopping a training, and a broken copy of the data from going unnoticed."""
    images = {f"i{number}": [box_xml("cat", (number, 1, 90, 40))] for number in range(8)}
    split = make_voc(tmp_path, images)
    for number in (0, 2, 4):
        (tmp_path / f"JPEGImages/i{number}.jpg").write_bytes(b"nothing")
    annotations, findings = read_annotations(split, NAMES)
    assert [annotations.boxes(index)[0, 0] for index in range(len(annotations))] == [1, 3, 5, 6, 7]
    paths = [str(tmp_path / f"JPEGImages/i{number}.jpg") for number in (0, 2, 4)]
    assert findings == [Finding("unreadable_image", path, "its header cannot be read as an image") for path in paths]
    (tmp_path / "JPEGImages/i6.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"4 of 8 images cannot be read: .*i0\.jpg, .*Save them anew as JPEG or PNG"):
        read_annotations(split, NAMES)
    assert len(build_annotations(read_raw_annotations(split), NAMES)[0]) == 4


def test_no_image_left(tmp_path):
    """Prevents an empty data set where a small one is wholly unreadable or missing."""
    split = make_voc(tmp_path, {"a": []})
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        build_annotations(read_raw_annotations(split), NAMES)
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="image does not exist"):
        build_annotations(read_raw_annotations(split), NAMES)


@pytest.mark.parametrize(
    ("stated", "orientation", "kind", "words"),
    [
        ((100, 50), 1, None, ""),
        ((50, 100), 6, None, ""),
        ((0, 0), 6, "turned_image", "EXIF orientation 6"),
        ((100, 50), 3, "turned_image", "EXIF orientation 3"),
        ((101, 50), 1, "size_disagrees", "annotation says 101x50 (width x height), the image has 100x50"),
        ((50, 100), 1, "size_disagrees", "annotation says 50x100 (width x height), the image has 100x50"),
        ((100, 50), 6, "turned_boxes", "annotation says 100x50 (width x height), the image has 50x100"),
    ],
)
def test_size_disagrees(tmp_path, stated, orientation, kind, words):
    """Prevents boxes of turned or resized images from being trained at the wrong place without a word."""
    size = f"<size><width>{stated[0]}</width><height>{stated[1]}</height></size>"
    split = make_voc(tmp_path, {"a": [size, box_xml("cat", (1, 1, 9, 9))]})
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / "JPEGImages/a.jpg")
    Image.new("RGB", (100, 50)).save(path, exif=exif)
    _, findings = read_annotations(split, NAMES)
    assert findings == ([Finding(kind, path, words)] if kind else [])


def test_class_names_of(tmp_path):
    """Prevents classes that only validation has from being lost, and class numbers that depend on luck."""
    train = read_raw_annotations(make_voc(tmp_path / "t", {"a": [box_xml(name, (1, 1, 9, 9)) for name in "db"]}))
    val = read_raw_annotations(make_voc(tmp_path / "v", {"a": [box_xml(name, (1, 1, 9, 9)) for name in "acd"]}))
    empty = read_raw_annotations(make_voc(tmp_path / "e", {"a": []}))
    assert class_names_of([train, val, empty]) == ["b", "d", "a", "c"]
    with pytest.raises(ValueError, match=r"train\.txt name no classes"):
        class_names_of([empty])


def test_class_names_of_broken_data(tmp_path):
    """Prevents `name no classes` where the reason is that nothing could be read."""
    split = make_voc(tmp_path, {"a": [box_xml("cat", (1, 1, 9, 9))]})
    (tmp_path / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"annotation cannot be read \(once\): .*a\.xml"):
        class_names_of([read_raw_annotations(split)])
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image does not exist \(once\): "):
        class_names_of([read_raw_annotations(split)])


def test_unknown_classes_are_no_background(tmp_path):
    """Prevents a second finding on each image of a class that is spelled otherwise."""
    boxes = {"a": ["Cat", "Cat"], "b": ["cat"], "c": []}
    split = make_voc(tmp_path, {name: [box_xml(part, (1, 1, 9, 9)) for part in boxes[name]] for name in boxes})
    annotations, findings = build_annotations(read_raw_annotations(split), NAMES)
    assert findings == [Finding("unknown_class", annotations.path(0), "'Cat'")] * 2 + [
        Finding("background", annotations.path(2))
    ]


def test_raw_annotations_pickle(tmp_path):
    """Prevents workers started by spawn from failing on what reading gives."""
    raw = read_raw_annotations(
        make_voc(tmp_path, {"图 1": [box_xml("cat", (1, 1, 9, 9), 1)], "b": []}, ["图 1", "b", "none"])
    )
    copy = pickle.loads(pickle.dumps(raw))
    assert (copy.paths, copy.names, copy.findings) == (raw.paths, ["cat"], raw.findings)
    assert copy.boxes_xyxy.tolist() == [[1, 1, 9, 9]] and copy.difficult.tolist() == [True]
    assert build_annotations(copy, NAMES)[0].offsets.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.xml", r"a\.xml is the annotation of one image; name a split, as in"),
        ("a.CSV", r"a\.CSV is a table, which is not read; export the annotations as VOC, COCO or YOLO"),
        ("a.zip", r"a\.zip is an archive; unpack it"),
        ("a.tar.gz", r"a\.tar\.gz is an archive; unpack it"),
    ],
)
def test_other_files(tmp_path, name, reason):
    """Prevents a file that is no annotation of a data set from being read as a list of strange images."""
    (tmp_path / name).write_text("a,1,2\n")
    with pytest.raises(ValueError, match=reason):
        read_raw_annotations(str(tmp_path / name))


def test_paths_that_lead_to_no_data(tmp_path):
    """Prevents people from being left alone with a path that nearly fits."""
    with pytest.raises(FileNotFoundError, match=r"2007_train\.txt does not exist; correct the path"):
        read_raw_annotations(str(tmp_path / "2007_train.txt"))
    make_voc(tmp_path, {"a": []})
    with pytest.raises(ValueError, match=r"is a VOC folder; name one of its splits, as in .*Main.val\.txt"):
        read_raw_annotations(tmp_path, "val")


def test_annotations_pickle():
    """Prevents boxes from landing at the wrong image after a trip to a spawned worker, and an empty set failing."""
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    annotations = Annotations(
        ["a.jpg", "图.jpg", "c.jpg"], [[1, 2], [3, 4], [5, 6]], [2, 0, 1], boxes, [0, 1, 1], [True, False, True]
    )
    copy = pickle.loads(pickle.dumps(annotations))
    assert [copy.path(index) for index in range(3)] == ["a.jpg", "图.jpg", "c.jpg"]
    assert copy.sizes_hw.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert copy.offsets.tolist() == [0, 2, 2, 3]
    assert copy.boxes(2).tolist() == [[8, 9, 10, 11]]
    assert copy.labels(0).tolist() == [0, 1]
    assert copy.difficult.tolist() == [True, False, True]
    empty = pickle.loads(pickle.dumps(Annotations([], [], [], [], [])))
    assert (len(empty), empty.boxes_xyxy.shape) == (0, (0, 4))


def test_without_difficult_boxes():
    """Prevents boxes that move to another image when those before them are left out."""
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    annotations = Annotations(
        ["a.jpg", "b.jpg", "c.jpg"], [[9, 9]] * 3, [2, 1, 1], boxes, [0, 1, 2, 3], [True, False, True, False]
    )
    easy = annotations.without_difficult()
    assert [easy.labels(index).tolist() for index in range(3)] == [[1], [], [3]]
    assert easy.boxes(2).tolist() == [[12, 13, 14, 15]]
    assert (easy.path(2), len(annotations.classes), easy.difficult.tolist()) == ("c.jpg", 4, [False, False])
    empty = Annotations([], [], [], [], []).without_difficult()
    assert (len(empty), empty.offsets.tolist()) == (0, [0])


def test_boxes_of_a_picture_before_its_exif_data_turn_it(tmp_path):
    """Prevents boxes of photographs from being learned at the wrong place: they are turned with the picture."""
    size = "<size><width>100</width><height>50</height></size>"
    boxes = [box_xml("cat", (10, 5, 40, 15)), box_xml("dog", (0, 0, 100, 50))]
    split = make_voc(tmp_path, {"a": [size, *boxes], "b": [box_xml("cat", (10, 5, 40, 15))]})
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    annotations, findings = read_annotations(split, NAMES)
    assert annotations.boxes(0).tolist() == [[35, 10, 45, 40], [0, 0, 50, 100]]
    assert annotations.boxes(1).tolist() == [[10, 5, 40, 15]]
    assert [finding.kind for finding in findings] == ["turned_boxes"]


def test_boxes_of_the_turned_picture_with_the_stored_size(tmp_path):
    """Prevents boxes from being turned away from their objects: other boxes of the data set show what all of them are
    of."""
    size = "<size><width>100</width><height>50</height></size>"
    boxes = {"a": (5, 60, 45, 90), "b": (10, 5, 40, 15)}
    split = make_voc(tmp_path, {stem: [size, box_xml("cat", box)] for stem, box in boxes.items()})
    exif = Image.Exif()
    exif[274] = 6
    for stem in boxes:
        Image.new("RGB", (100, 50)).save(tmp_path / f"JPEGImages/{stem}.jpg", exif=exif)
    annotations, findings = read_annotations(split, NAMES)
    assert annotations.boxes_xyxy.tolist() == [[5, 60, 45, 90], [10, 5, 40, 15]]
    assert [finding.kind for finding in findings] == ["size_disagrees", "size_disagrees"]


def test_turned_square_pictures_are_told(tmp_path):
    """Prevents boxes of the stored picture from being learned untold where its size does not show that it is turned."""
    size = "<size><width>50</width><height>50</height></size>"
    split, exif = make_voc(tmp_path, {"a": [size, box_xml("cat", (1, 1, 9, 9))]}), Image.Exif()
    exif[274] = 6
    Image.new("RGB", (50, 50)).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    assert [finding.kind for finding in read_annotations(split, NAMES)[1]] == ["turned_image"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.tfrecord", "is a TFRecord of TensorFlow, which is not read; export the annotations as VOC, COCO or YOLO"),
        ("a.parquet", "is a table of Hugging Face or Arrow, which is not read"),
        ("a.XLSX", "is a table, which is not read"),
        ("a.ndjson", "has a JSON text in each line, which is not read"),
        ("obj.names", "names classes; set classes_path to it"),
        ("a.docx", "is no text, so a file of another kind, which is not read"),
        ("a.pkl", "is a file of data, which is not read"),
        ("a.jpg", "is an image; name the folder of the images"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, reason):
    """Prevents a binary file from being told to be saved as UTF-8, and advice that does not fit."""
    (tmp_path / name).write_bytes(b"\x00\xffPAR1")
    with pytest.raises(ValueError, match=reason):
        read_raw_annotations(str(tmp_path / name))


@pytest.mark.parametrize("declaration", ["", '<?xml version="1.0" encoding="utf-8"?>\n<!-- exported -->\n'])
def test_a_file_of_cvat_for_all_images(tmp_path, declaration):
    """Prevents the file of all images from being called the annotation of one."""
    (tmp_path / "annotations.xml").write_text(f"{declaration}<annotations><version>1.1</version></annotations>")
    with pytest.raises(
        ValueError, match=r"annotations\.xml is a file of CVAT for all of its images, which is not read"
    ):
        read_raw_annotations(str(tmp_path / "annotations.xml"))


def test_boxes_that_look_like_percent(tmp_path):
    """Prevents boxes in percent from being learned in the first 100 pixels of each image without a word."""
    boxes = [box_xml("cat", (10 * number, 5 * number, 10 * number + 20, 9 * number + 20)) for number in range(9)]
    split = make_voc(tmp_path, {"a": boxes})
    Image.new("RGB", (640, 480)).save(tmp_path / "JPEGImages/a.jpg")
    assert [finding.kind for finding in read_annotations(split, NAMES)[1]] == ["doubtful_coordinates"]
