import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.voc_folder import box_xml, make_voc
from utils.data.annotations import class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.formats.voc import parse_voc_xml
from utils.data.quality.findings import Finding

NAMES = ["cat", "dog"]


def test_voc_literal_values(tmp_path):
    """Prevents shifted coordinates, lost flags, and image names taken from inside the annotations."""
    part = "<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>40</ymax></bndbox>"
    part += "<part><name>tail</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    split = make_voc(
        tmp_path, {"图 1.a": [box_xml("cat", (10, 5, 60, 45), 1), part], "b": [], "c": []}, ["图 1.a", "c 1", "b"]
    )
    annotations, findings = read_annotations(split, NAMES)
    assert [Path(annotations.path(index)).name for index in range(len(annotations))] == ["图 1.a.jpg", "c.jpg", "b.jpg"]
    assert annotations.boxes(0).tolist() == [[10, 5, 60, 45], [1, 2, 30.5, 40]]
    assert annotations.boxes(0).dtype == np.float32
    assert annotations.labels(0).tolist() == [0, 1]
    assert annotations.difficult.tolist() == [True, False]
    assert annotations.boxes(1).shape == (0, 4)
    assert annotations.sizes_hw.tolist() == [[50, 100]] * 3
    assert findings == [Finding("background", annotations.path(1)), Finding("background", annotations.path(2))]


def test_image_suffixes_in_either_case(tmp_path):
    """Prevents .PNG or .jpeg images from being reported as missing."""
    split = make_voc(tmp_path, {"a": [], "b": []})
    os.rename(tmp_path / "JPEGImages/a.jpg", tmp_path / "JPEGImages/a.JPEG")
    os.remove(tmp_path / "JPEGImages/b.jpg")
    Image.new("RGB", (7, 9)).save(tmp_path / "JPEGImages/b.PNG")
    annotations, _ = read_annotations(split, NAMES)
    assert [Path(annotations.path(index)).name for index in (0, 1)] == ["a.JPEG", "b.PNG"]
    assert annotations.sizes_hw.tolist() == [[50, 100], [9, 7]]


def test_missing_images_and_annotations(tmp_path):
    """Prevents a training that dies at the first of many missing files, or trains on background by mistake."""
    images = {f"i{number:02d}": [] for number in range(12)}
    split = make_voc(tmp_path, images)
    for image_id in images:
        os.remove(tmp_path / f"Annotations/{image_id}.xml")
    with pytest.raises(
        FileNotFoundError, match=r"image without annotation file \(12 times\): .*i00\.jpg, .*i09\.jpg and 2 more\."
    ):
        read_annotations(split, NAMES)
    for image_id in images:
        os.remove(tmp_path / f"JPEGImages/{image_id}.jpg")
    with pytest.raises(FileNotFoundError, match=r"image does not exist \(12 times\): .*i00, .*i09 and 2 more\."):
        read_annotations(split, NAMES)


def test_split_that_names_files(tmp_path):
    """Prevents images that are plainly there from being called missing without the reason."""
    split = make_voc(tmp_path, {"a0": [], "a1.v2": []}, ["a0.jpg", "a1.v2.jpg", "a2.jpg"])
    words = "it is there, but a split must name images without their ending"
    assert [finding.detail for finding in read_raw_annotations(split).findings] == [words, words, ""]
    with pytest.raises(FileNotFoundError, match="must name images without their ending"):
        class_names_of([read_raw_annotations(split)])


def test_ids_cannot_lead_outside(tmp_path):
    """Prevents a split file from opening files outside the data set."""
    make_voc(tmp_path / "other", {"secret": []})
    split = make_voc(tmp_path / "set", {"a": []}, ["a", "../../other/JPEGImages/secret"])
    with pytest.raises(FileNotFoundError, match=r"image does not exist \(once\): "):
        read_annotations(split, NAMES)


def test_what_lies_outside_is_not_named(tmp_path):
    """Prevents the report on a downloaded data set from listing what lies in other folders."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret.key").touch()
    split = make_voc(tmp_path / "set", {"a": []}, ["a", "../../other/secret"])
    assert [finding.detail for finding in read_raw_annotations(split).findings] == [""]


def test_unknown_classes_are_counted(tmp_path):
    """Prevents training without a class because of a spelling in the annotations."""
    objects = [box_xml(name, (1, 1, 9, 9)) for name in ("Cat", "cat", "Cat", "bird")]
    split = make_voc(tmp_path, {"a": objects})
    with pytest.raises(
        ValueError, match=r"classes_path lacks \(3 times\): 'Cat' \(2 times\), 'bird' \(once\)\. classes_path names cat"
    ):
        read_annotations(split, NAMES)


ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object>", "not valid XML"),
        (ENTITIES, "a DTD or entities"),
        (ENTITIES.encode("utf-16"), "a DTD or entities"),
        (ENTITIES.encode("utf-16-le"), "it holds zero bytes"),
        (ENTITIES.encode("utf-16-be"), "it holds zero bytes"),
        ("<annotation>" + " " * 5 * 1024 * 1024 + "</annotation>", "larger than 5 MB"),
        ("<annotation><object><name>cat</name></object></annotation>", "no bndbox"),
        (f"<annotation>{box_xml('cat', (1, 2, 'x', 4))}</annotation>", "no bndbox with four numbers"),
        (f"<annotation>{box_xml('', (1, 2, 3, 4))}</annotation>", "an object has no name; expected that of its class"),
        (f"<annotation>{box_xml('  ', (1, 2, 3, 4))}</annotation>", "an object has no name"),
        ("<annotation><object><bndbox/></object></annotation>", "an object has no name"),
        ("<svg><object/></svg>", "its root is 'svg'; expected 'annotation'"),
        (
            "<annotation><a>训练</a></annotation>".encode("gbk"),
            r"its encoding is not .*\); save it with the encoding UTF-8",
        ),
        (
            '<?xml version="1.0" encoding="none"?><annotation/>',
            r"its encoding is not .*\); save it with the encoding UTF-8",
        ),
        ("<annotation><bndbox/></annotation>", "1 of its 1 bndbox belong to no object; expected each inside an object"),
        ("<annotation><Object><name>cat</name></Object></annotation>", "it holds <Object>, which VOC's files do not"),
        ("<annotation><box><xmin>1</xmin></box></annotation>", "it holds <box>, which VOC's files do not; expected"),
        (
            f"<annotation>{box_xml('cat', (1, 2, 3, 4))}<OBJECT>2</OBJECT></annotation>",
            "it holds <OBJECT>, which VOC's files do not",
        ),
        ("<annotations><image/></annotations>", "It is a file of CVAT for all of its images; export them as VOC"),
        ("<annotation>猫<", r"unclosed token.*\)\. Correct"),
    ],
)
def test_broken_xml_is_named(tmp_path, content, reason):
    """Prevents entity attacks, and parser traces that do not say which file is broken."""
    split = make_voc(tmp_path, {"good": [], "bad": []})
    (tmp_path / "Annotations/bad.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"annotation cannot be read \(once\): .*bad\.xml: .*{reason}"):
        read_annotations(split, NAMES)


def test_missing_split_names_the_command(tmp_path):
    """Prevents people from being left alone with annotations that are not split yet."""
    split = make_voc(tmp_path, {"a": []})
    os.remove(split)
    with pytest.raises(FileNotFoundError, match=r"voc_annotation\.py --annotation_mode=1 --VOCdevkit_path="):
        read_annotations(split, NAMES)


def test_a_misspelt_split_names_the_nearest(tmp_path):
    """Prevents a command that splits a data set anew from being the answer to a misspelt name."""
    split = make_voc(tmp_path, {"a": []})
    with pytest.raises(FileNotFoundError) as caught:
        read_annotations(split.replace("train.txt", "tain.txt"), NAMES)
    assert str(caught.value).endswith(
        "tain.txt does not exist; the splits there are: train.txt. Did you mean train.txt?"
    )


@pytest.mark.parametrize("name", ["none/ImageSets/Main/train.txt", "2007_train.txt"])
def test_a_missing_annotation_names_no_constant(tmp_path, name):
    """Prevents a tool, whose constant is annotation_path, from sending people to the constants of train.py."""
    with pytest.raises(FileNotFoundError, match=rf"{name} does not exist.* or name ") as caught:
        read_annotations(str(tmp_path / name), NAMES)
    assert "_path" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("folder", "split", "expected"),
    [
        (".", "ImageSets/Main/train.txt", "JPEGImages/a.jpg"),
        ("ImageSets", "Main/train.txt", "../JPEGImages/a.jpg"),
        ("ImageSets/Main", "train.txt", "../../JPEGImages/a.jpg"),
        ("Annotations", "../ImageSets/Main/train.txt", "../JPEGImages/a.jpg"),
        ("ImageSets/Main", "../Main/train.txt", "../../JPEGImages/a.jpg"),
    ],
)
def test_paths_from_within_the_folder(tmp_path, monkeypatch, folder, split, expected):
    """Prevents a split from being read as another format, or its folder from being looked for in the wrong place."""
    make_voc(tmp_path, {"a": []})
    monkeypatch.chdir(tmp_path / folder)
    assert [os.path.normpath(path) for path in read_raw_annotations(split).paths] == [expected]


def test_hidden_copies(tmp_path):
    """Prevents the copies that systems leave beside files from taking the place of images and annotations."""
    split = make_voc(tmp_path, {"a": []}, ["a", "._a", ".trash/a"])
    make_voc(tmp_path, {"._a": [], ".trash/a": []}, ["a", "._a", ".trash/a"])
    raw = read_raw_annotations(split)
    assert raw.paths == [str(tmp_path / "JPEGImages/a.jpg")]
    assert [finding.kind for finding in raw.findings] == ["missing_image"] * 2


def test_names_on_several_lines(tmp_path):
    """Prevents a class whose name no line of a file of names can hold."""
    names = ("\n  dining\n  table ", "dining \t table", "dining table")
    raw = read_raw_annotations(make_voc(tmp_path, {"a": [box_xml(name, (1, 1, 9, 9)) for name in names]}))
    assert (raw.names, raw.classes.tolist()) == (["dining table"], [0, 0, 0])


@pytest.mark.parametrize("folders", ["frames 1", "帧/v1.2"])
def test_ids_with_folders(tmp_path, folders):
    """Prevents ids of other tools, with sub-folders and Windows separators, from being reported as missing."""
    split = make_voc(tmp_path, {f"{folders}/a": []}, [f"{folders}/a".replace("/", "\\")])
    annotations, _ = read_annotations(split, NAMES)
    assert annotations.path(0) == str(tmp_path / "JPEGImages" / folders / "a.jpg")


def test_split_with_byte_order_mark(tmp_path):
    """Prevents the first id of a split that Windows saved from being reported as missing."""
    split = make_voc(tmp_path, {"a": [], "b": []}, ["\ufeffa", "b"])
    assert len(read_annotations(split, NAMES)[0]) == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<size><width>640</width><height>480</height></size>", (480, 640)),
        ("<size><width>640.0</width><height> 480 </height></size>", (480, 640)),
        ("<size><width>0</width><height>480</height></size>", (0, 0)),
        ("<size><width>-1</width><height>x</height></size>", (0, 0)),
        ("<size><width>1e999</width><height>nan</height></size>", (0, 0)),
        ("<size/>", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_stated_size(tmp_path, size, expected):
    """Prevents a missing or senseless size, which labelling programs write, from being taken for a disagreement."""
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{size}</annotation>")
    assert parse_voc_xml(str(path)) == ([], [], [], expected)


def test_names_are_sorted(tmp_path):
    """Prevents class numbers that depend on which image comes first."""
    images = {"a": [box_xml("dog", (1, 1, 9, 9))], "b": [box_xml("cat", (2, 2, 9, 9)), box_xml("dog", (3, 3, 9, 9))]}
    raw = read_raw_annotations(make_voc(tmp_path, images))
    assert class_names_of([raw]) == ["cat", "dog"]
    assert raw.classes.tolist() == [1, 0, 1]
    assert raw.image_index.tolist() == [0, 1, 1]


@pytest.mark.skipif("YOLO_REAL_DATA" not in os.environ, reason="YOLO_REAL_DATA names no folder with real data")
def test_real_data():
    """Prevents what drawn data does not show: real files, with boxes without area among them."""
    split = os.path.join(os.environ["YOLO_REAL_DATA"], "data/bccd/ImageSets/Main/train.txt")
    annotations, findings = read_annotations(split, ["RBC", "WBC", "Platelets"])
    assert (len(annotations), len(annotations.classes)) == (205, 2804)
    assert np.bincount(annotations.classes).tolist() == [2381, 214, 209]
    assert annotations.sizes_hw.min(axis=0).tolist() == [480, 640]
    path = os.path.join(os.environ["YOLO_REAL_DATA"], "data/bccd/JPEGImages/BloodImage_00343.jpg")
    assert findings == [Finding("no_area", path, "'RBC': 181, 329, 181, 329")]


@pytest.mark.parametrize(
    "objects",
    [
        "<object><name>cat</name><bndbox>{0}</bndbox><bndbox>{1}</bndbox></object>",
        "<objects><object><name>cat</name><bndbox>{0}</bndbox></object>"
        "<object><name>cat</name><bndbox>{1}</bndbox></object></objects>",
    ],
)
def test_every_box_of_an_odd_file_is_read(tmp_path, objects):
    """Prevents the second box of an object, or objects in a list of their own, from being lost in silence."""
    corners = [f"<xmin>{x}</xmin><ymin>2</ymin><xmax>{x + 9}</xmax><ymax>40</ymax>" for x in (1, 50)]
    annotations, findings = read_annotations(make_voc(tmp_path, {"a": [objects.format(*corners)]}), NAMES)
    assert (annotations.boxes(0).tolist(), findings) == ([[1, 2, 10, 40], [50, 2, 59, 40]], [])


@pytest.mark.parametrize("content", [b"", b" \n", b"<annotation/>"])
def test_an_empty_file_is_background(tmp_path, content):
    """Prevents the empty file of an image of pure background from stopping a training."""
    split = make_voc(tmp_path, {"a": []})
    (tmp_path / "Annotations/a.xml").write_bytes(content)
    assert [finding.kind for finding in read_annotations(split, NAMES)[1]] == ["background"]


@pytest.mark.parametrize("encoding", ["GBK", "UTF-16", "latin-1", "utf-8-sig"])
def test_a_file_is_read_in_the_encoding_that_it_states(tmp_path, encoding):
    """Prevents annotations of Chinese programs from being refused, and names from being read as others."""
    name = "é" if encoding == "latin-1" else "螺栓"
    split = make_voc(tmp_path, {"a": []})
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>{box_xml(name, (1, 2, 3, 4))}</annotation>'
    (tmp_path / "Annotations/a.xml").write_bytes(text.replace("utf-8-sig", "utf-8").encode(encoding))
    assert read_raw_annotations(split).names == [name]


def test_an_image_gets_no_annotation_of_another_one(tmp_path):
    """Prevents an image without annotation from learning the boxes of one whose name is spelled nearly as its own."""
    split = make_voc(tmp_path, {"a%20b": [box_xml("dog", (1, 2, 30, 40))], "a b": []})
    (tmp_path / "Annotations/a b.xml").unlink()
    raw = read_raw_annotations(split)
    assert (raw.paths, [finding[:2] for finding in raw.findings]) == (
        [str(tmp_path / "JPEGImages/a%20b.jpg")],
        [("missing_annotation", str(tmp_path / "JPEGImages/a b.jpg"))],
    )


def test_a_line_gets_no_image_of_another_line(tmp_path):
    """Prevents one image from being learned twice where another is missing whose name is spelled nearly as its own."""
    split = make_voc(tmp_path, {"a%20b": []}, ["a%20b", "a b"])
    raw = read_raw_annotations(split)
    assert (len(raw.paths), [finding.kind for finding in raw.findings]) == (1, ["missing_image"])


@pytest.mark.parametrize("flag", ["-1", "0", "1"])
def test_only_a_flag_may_follow_an_id(tmp_path, flag):
    """Prevents another picture from being learned where the one of a name with a number behind a blank is missing."""
    split = make_voc(tmp_path, {"street": [], "my street": []}, [f"my street  {flag}", "street 25", "street 0.5"])
    raw = read_raw_annotations(split)
    images = [finding.image for finding in raw.findings]
    assert raw.paths == [str(tmp_path / "JPEGImages/my street.jpg")]
    assert images == [str(tmp_path / "JPEGImages" / name) for name in ("street 25", "street 0.5")]


@pytest.mark.parametrize(
    ("image", "xml", "line", "kinds"),
    [
        ("a.jpg", "a.jpg.xml", "a", ["other_spelling"]),
        ("a.jpg", "A.XML", "a", ["other_spelling"]),
        ("%C3%A4.jpg", "ä.xml", "ä", ["other_spelling"]),
        ("a.jpg", "site/a.xml", "a", ["other_spelling"]),
        ("site/a.jpg", "site/a.xml", "site/a", []),
    ],
)
def test_files_are_found_however_they_are_spelled(tmp_path, image, xml, line, kinds):
    """Prevents `image without annotation file` for an annotation that is there under nearly that name."""
    split = make_voc(tmp_path, {"z": []}, [line])
    for folder, name, source in (("JPEGImages", image, "z.jpg"), ("Annotations", xml, "z.xml")):
        (tmp_path / folder / name).parent.mkdir(exist_ok=True)
        os.rename(tmp_path / folder / source, tmp_path / folder / name)
    raw = read_raw_annotations(split)
    assert (len(raw.paths), [finding.kind for finding in raw.findings]) == (1, kinds)


def test_what_lies_there_instead_is_named(tmp_path):
    """Prevents `does not exist` without a word on the photograph of a phone that lies there."""
    split = make_voc(tmp_path, {"a": []})
    os.rename(tmp_path / "JPEGImages/a.jpg", tmp_path / "JPEGImages/a.HEIC")
    (finding,) = read_raw_annotations(split).findings
    assert finding.detail == f"a.HEIC is in {tmp_path}/JPEGImages: save it as JPEG or PNG"


def test_two_images_of_one_name_are_told(tmp_path):
    """Prevents one of two images, whose names differ by their endings, from being left out without a word."""
    split = make_voc(tmp_path, {"a": [box_xml("cat", (1, 2, 3, 4))]})
    Image.new("RGB", (100, 50)).save(tmp_path / "JPEGImages/a.png")
    assert [finding.kind for finding in read_raw_annotations(split).findings] == ["shared_label"]
