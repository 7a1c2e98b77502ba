import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from tests.voc_folder import box_xml
from tests.yolo_folder import make_yaml, make_yolo
from utils.data.annotations import class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations

LINE = "0 0.5 0.5 0.2 0.2"


def add_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50)).save(path)


def add_text(path, text=LINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("image", "label", "kinds"),
    [
        ("images/ä.jpg", "labels/%C3%A4.txt", ["other_spelling"]),
        (f"images/{unicodedata.normalize('NFD', 'ä')}.jpg", "labels/ä.txt", ["other_spelling"]),
        ("images/A1.jpg", "labels/a1.txt", ["other_spelling"]),
        ("images/a.jpg", "labels/a.jpg.txt", ["other_spelling"]),
        ("images/a.jpg", "labels/a.TXT", []),
        ("Images/a.jpg", "Labels/a.txt", []),
        ("JPEGImages/a.jpg", "labels/a.txt", []),
        ("images/train/a.jpg", "images/train/a.txt", []),
        ("images/train/b/a.jpg", "labels/train/b/a.txt", []),
        ("images/train/a.jpg", "labels/a.txt", []),
        ("images/a.jpg", "annotations/a.txt", []),
        ("obj_train_data/a.jpg", "obj_train_data/a.txt", []),
    ],
)
def test_labels_are_found_however_they_are_spelled(tmp_path, image, label, kinds):
    """Prevents labelled images from becoming background because a program or a system spelled a name its own way."""
    add_image(tmp_path / image)
    add_text(tmp_path / label)
    raw = read_raw_annotations(str((tmp_path / image).parent))
    assert (raw.classes.tolist(), [finding.kind for finding in raw.findings]) == ([0], kinds)


def test_a_twin_folder_does_not_hide_labels_beside_the_images(tmp_path):
    """Prevents labels beside the images from being lost because an empty labels/ lies there too."""
    add_image(tmp_path / "images/a.jpg")
    add_text(tmp_path / "images/a.txt")
    (tmp_path / "labels").mkdir()
    assert read_raw_annotations(str(tmp_path / "images")).classes.tolist() == [0]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/cam1/img/1.jpg", "labels/cam1/img/1.txt"),
        ("images/cam1/img/1.jpg", "images/cam1/labels/1.txt"),
        ("images/cam1/img/1.jpg", "images/cam1/img/1.txt"),
    ],
)
def test_folders_of_images_in_folders_of_images(tmp_path, image, label):
    """Prevents labels from being lost because a folder of one camera is called img, too; others lie in labels/."""
    add_image(tmp_path / image)
    add_text(tmp_path / label)
    add_text(tmp_path / "labels/1.txt", "1 0.5 0.5 0.2 0.2")
    raw = read_raw_annotations(str(tmp_path / "images"))
    assert (raw.classes.tolist(), raw.findings) == ([0], [])


@pytest.mark.parametrize("other", ["labels/2.txt", "annotations/train/2.txt", "images/train/2.txt"])
def test_background_gets_no_labels_of_others(tmp_path, other):
    """Prevents an image of background from learning the boxes of another one, or old ones, from a second place."""
    folder = make_yolo(tmp_path, {"1": LINE, "2": None}, "images/train")
    add_text(tmp_path / other)
    raw = read_raw_annotations(folder)
    kind = "no_label_file" if other.startswith("labels") else "label_elsewhere"
    assert (raw.classes.tolist(), [finding.kind for finding in raw.findings]) == ([0], [kind])


@pytest.mark.parametrize(
    ("owner", "other", "label"),
    [("a%20b", "a b", "a%20b.txt"), ("A1", "a1", "A1.txt"), ("x%ff", "x%fe", "x%ff.txt"), ("a", "a.jpg", "a.txt")],
)
def test_a_label_file_belongs_to_the_image_of_its_name(tmp_path, owner, other, label):
    """Prevents an image from learning the boxes of another one, whose name is spelled nearly as its own."""
    for stem in (owner, other):
        add_image(tmp_path / f"images/{stem}.jpg")
    add_text(tmp_path / "labels" / label)
    raw = read_raw_annotations(str(tmp_path / "images"))
    labelled = [raw.paths[at] for at in raw.image_index]
    assert (labelled, [finding.kind for finding in raw.findings]) == (
        [str(tmp_path / f"images/{owner}.jpg")],
        ["no_label_file"],
    )


@pytest.mark.parametrize(("kind", "level"), [("xml", "label_elsewhere"), ("json", "no_label_file")])
def test_labels_of_two_formats(tmp_path, kind, level):
    """Prevents images from becoming background without a warning, and facts about an image from being its labels."""
    folder = make_yolo(tmp_path, {"a": LINE, "b": LINE, "c": None})
    texts = {"xml": f"<annotation>{box_xml('dog', (1, 2, 30, 40))}</annotation>", "json": '{"taken": "2024-01-01"}'}
    for stem in "abc" if kind == "json" else "c":
        add_text(tmp_path / f"images/{stem}.{kind}", texts[kind])
    raw = read_raw_annotations(folder)
    assert (raw.classes.tolist(), [finding.kind for finding in raw.findings]) == ([0, 0], [level])


def test_labels_of_labelme_beside_others_are_told(tmp_path):
    """Prevents shapes that were drawn later from being left out without a warning."""
    folder = make_yolo(tmp_path, {"a": LINE, "b": None})
    add_text(tmp_path / "images/b.json", '{"shapes": []}')
    (finding,) = read_raw_annotations(folder).findings
    words = f"no {tmp_path}/labels/b.txt, but {folder}/b.json is there"
    assert finding == ("label_elsewhere", f"{folder}/b.jpg", words)


def test_label_files_without_an_image_are_told(tmp_path):
    """Prevents half of a data set from becoming background because an export put a hash before each name."""
    folder = make_yolo(tmp_path, dict.fromkeys("abcd", LINE))
    for stem in "ab":
        os.rename(tmp_path / f"labels/{stem}.txt", tmp_path / f"labels/1f2e-{stem}.txt")
    _, findings = read_annotations(folder, ["cat"])
    (detail,) = (finding.detail for finding in findings if finding.kind == "unmatched_labels")
    words = "2 of 4 images have no label file, such as a.jpg, b.jpg, and 2 label files no image, such as 1f2e-a.txt, "
    assert detail == words + "1f2e-b.txt"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ("labels/classes.txt", "cat\n"),
        ("labels/LICENSE.txt", "1 Permission is granted to use 20 of these"),
        ("labels/empty.txt", ""),
        ("labels/c.txt", LINE),
    ],
)
def test_images_of_background_are_no_mistake(tmp_path, other, text):
    """Prevents an alarm on backgrounds because a file of words, or a label of an image of another part, lies there."""
    folder = make_yolo(tmp_path, {"a": LINE, "b": None, "c": None})
    add_text(tmp_path / other, text)
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    for path in (folder, str(tmp_path / "list.txt")):
        assert "unmatched_labels" not in [finding.kind for finding in read_raw_annotations(path).findings]


def test_two_images_with_one_label_file_are_told(tmp_path):
    """Prevents a picture from being trained with the boxes of another one whose name differs by its ending alone."""
    folder = make_yolo(tmp_path, {"a": LINE})
    add_image(tmp_path / "images/a.png")
    (finding,) = read_raw_annotations(folder).findings
    assert finding == ("shared_label", f"{folder}/a.png", f"{tmp_path}/labels/a.txt is that of {folder}/a.jpg too")


def test_masks_are_no_images(tmp_path):
    """Prevents masks beside images/ from being trained on as images of background."""
    make_yolo(tmp_path, {"a": LINE}, "train/images")
    add_image(tmp_path / "train/masks/a.png")
    for place in (tmp_path, tmp_path / "train"):
        assert read_raw_annotations(str(place)).paths == [str(tmp_path / "train/images/a.jpg")]
    path = make_yaml(tmp_path, "train: train\nnames: [cat]\n")
    assert read_raw_annotations(path).paths == [str(tmp_path / "train/images/a.jpg")]


@pytest.mark.parametrize(("image", "masks"), [("img/a.jpg", "masks"), ("site/b.jpg", "site/masks/sub")])
def test_masks_in_other_places(tmp_path, image, masks):
    """Prevents masks from being trained on as background where the images lie in no folder images/."""
    add_image(tmp_path / image)
    add_text((tmp_path / image).with_suffix(".txt"))
    add_image(tmp_path / masks / "c.png")
    raw = read_raw_annotations(str(tmp_path))
    assert raw.paths == [str(tmp_path / image)]
    assert raw.findings == ([] if "img" in image else [("masks", f"{tmp_path}/site/masks", "images: 1")])


@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("pics/images", ["day1", "day1/images"]),
        ("pics", ["day1/images", "img"]),
        ("pics", ["."]),
    ],
)
def test_no_labelled_images_are_left_out_beside_images(tmp_path, place, others):
    """Prevents pictures of other cameras and days from being lost because a folder images/ lies beside them."""
    folders = [f"{place}/images", *(os.path.normpath(f"{place}/{other}") for other in others)]
    for number, folder in enumerate(folders):
        add_image(tmp_path / folder / f"a{number}.jpg")
        add_text(tmp_path / folder.replace("images", "labels", 1) / f"a{number}.txt")
    path = make_yaml(tmp_path, f"train: {place}\nnames: [cat]\n")
    for source in (path, str(tmp_path / place)):
        raw = read_raw_annotations(source)
        assert sorted(raw.paths) == sorted(f"{tmp_path}/{name}/a{at}.jpg" for at, name in enumerate(folders))
        assert len(raw.classes) == len(folders) and raw.findings == []


def test_drawings_beside_images_are_no_images(tmp_path):
    """Prevents drawings of results beside images/ from being trained on as images of background."""
    make_yolo(tmp_path, {"a": LINE}, "train/images")
    add_image(tmp_path / "train/drawn/a.jpg")
    for source in (tmp_path / "train", make_yaml(tmp_path, "train: train\nnames: [cat]\n")):
        assert read_raw_annotations(str(source)).paths == [str(tmp_path / "train/images/a.jpg")]


def test_masks_may_be_what_is_detected(tmp_path):
    """Prevents the pictures of people with masks from being left out for the name of their folder."""
    for name in ("mask/a", "no_mask/b"):
        add_image(tmp_path / f"{name}.jpg")
        add_text(tmp_path / f"{name}.txt")
    assert read_raw_annotations(str(tmp_path)).paths == [f"{tmp_path}/mask/a.jpg", f"{tmp_path}/no_mask/b.jpg"]


def test_links_are_followed_or_told(tmp_path):
    """Prevents the images behind a link from being left out silently; git on Windows makes a text file of one."""
    folder = make_yolo(tmp_path, {"a": LINE})
    make_yolo(tmp_path / "store", {"b": LINE}, ".")
    os.symlink("../store", tmp_path / "images/site")
    os.symlink("..", tmp_path / "images/loop")
    assert sorted(Path(path).name for path in read_raw_annotations(folder).paths) == ["a.jpg", "b.jpg"]
    os.remove(tmp_path / "images/site")
    os.remove(tmp_path / "images/loop")
    (tmp_path / "images/site").write_text("../store")
    (finding,) = read_raw_annotations(folder).findings
    assert finding == ("link_as_text", f"{folder}/site", "it should lead to ../store; make it a link or a folder")


@pytest.mark.parametrize("folder", [".", "images"])
def test_xml_files_beside_images(tmp_path, folder):
    """Prevents an export as VOC with XML files beside the images from being told to be YOLO labels that are missing."""
    add_image(tmp_path / folder / "a.jpg")
    add_image(tmp_path / folder / "b.jpg")
    xml = f"<annotation>{box_xml('dog', (1, 2, 30, 40), 1)}</annotation>"
    add_text(tmp_path / ("annotations" if folder == "images" else ".") / "a.xml", xml)
    annotations, findings = read_annotations(str(tmp_path / folder), ["cat", "dog"])
    assert annotations.boxes_xyxy.tolist() == [[1, 2, 30, 40]]
    assert (annotations.classes.tolist(), annotations.difficult.tolist()) == ([1], [True])
    assert [finding.kind for finding in findings] == ["no_label_file"]


def test_a_list_of_images_with_xml_files(tmp_path):
    """Prevents a split of such a folder from being unreadable."""
    add_image(tmp_path / "a.jpg")
    add_text(tmp_path / "a.xml", f"<annotation>{box_xml('dog', (1, 2, 30, 40))}</annotation>")
    (tmp_path / "train.txt").write_text("a.jpg\n")
    assert class_names_of([read_raw_annotations(str(tmp_path / "train.txt"))]) == ["dog"]


def test_images_of_formats_that_are_not_read_are_told(tmp_path):
    """Prevents photographs of phones from being left out without a word."""
    folder = make_yolo(tmp_path, {"a": LINE})
    (tmp_path / "images/b.HEIC").write_bytes(b"x")
    assert read_raw_annotations(folder).findings == [
        ("other_image_format", f"{folder}/b.HEIC", "save it as JPEG or PNG")
    ]


def test_what_lies_there_instead_of_labels_is_named(tmp_path):
    """Prevents people from writing labels that they have: the export for another program lies beside the images."""
    folder = make_yolo(tmp_path, {"a": None})
    (tmp_path / "images/_annotations.coco.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the first would be .*a\.txt, and there is _annotations\.coco\.json\. Put"):
        read_raw_annotations(folder)
