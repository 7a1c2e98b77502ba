import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.yolo_folder import make_yaml, make_yolo
from utils.data.annotations import build_annotations, class_names_of, read_annotations
from utils.data.formats.detect_format import read_raw_annotations

NAMES = ["cat", "dog"]


def test_literal_values(tmp_path):
    """Prevents centres from being taken for corners, shares for pixels, and boxes at the wrong image."""
    labels = {
        "a 1.v2": "\ufeff1 0.5 0.5 0.2 0.4\r\n0 0.1 0.2 0.3 0.4 0.2 0.8\r\n\r\n",
        "b": "",
        "图": None,
        "d": "0 .1 .2 .1 .2 .5 .2 .5 .6",
    }
    annotations, findings = read_annotations(make_yolo(tmp_path, labels, suffix=".JPG"), NAMES)
    assert [Path(annotations.path(index)).name for index in range(4)] == ["a 1.v2.JPG", "b.JPG", "d.JPG", "图.JPG"]
    np.testing.assert_allclose(annotations.boxes(0), [[40, 15, 60, 35], [10, 10, 30, 40]], rtol=1e-6)
    np.testing.assert_allclose(annotations.boxes(2), [[10, 10, 50, 30]], rtol=1e-6)
    assert annotations.labels(0).tolist() == [1, 0]
    assert annotations.offsets.tolist() == [0, 2, 2, 3, 3]
    assert [(kind, Path(image).name) for kind, image, _ in findings] == [
        ("no_label_file", "图.JPG"),
        ("background", "b.JPG"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2", "expected `class cx cy w h`"),
        ("0", "expected `class cx cy w h`"),
        ("0 0.5 0.5 0.2 0.2 0.9", "expected `class cx cy w h`"),
        ("0 0.5 0.5 0.2 0.2 0.9 0.9 0.9", "expected `class cx cy w h`"),
        ("cat 0.5 0.5 0.2 0.2", "expected `class cx cy w h`"),
        ("0 0.5 nan 0.2 0.2", "expected `class cx cy w h`"),
        ("0,0.5,0.5,0.2,0.2", "expected `class cx cy w h`"),
        ("0.5 0.5 0.5 0.2 0.2", "a whole number"),
        ("-1 0.5 0.5 0.2 0.2", "a whole number"),
        ("1e30 0.5 0.5 0.2 0.2", "a whole number"),
        ("0 50 25 20 20", "expected shares of the image"),
        ("0 -1 0.5 0.2 0.2", "expected shares of the image"),
    ],
)
def test_lines_that_are_no_boxes(tmp_path, line, reason):
    """Prevents pixels from being taken for shares, and parser traces that name neither file nor line."""
    folder = make_yolo(tmp_path, {"a": f"0 0.5 0.5 0.2 0.2\n\n{line}\n"})
    raw = read_raw_annotations(folder)
    assert len(raw.classes) == 1
    ((kind, image, detail),) = raw.findings
    assert (kind, image) == ("broken_annotation", str(tmp_path / "images/a.jpg"))
    assert detail.startswith(f"{tmp_path}/labels/a.txt, line 3: {line!r:.12}") and reason in detail
    with pytest.raises(ValueError, match=r"annotation cannot be read \(once\): .*a\.txt, line 3: .*Correct or remove"):
        read_annotations(folder, NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("训练".encode("gbk"), "can't decode"), (b"0 0 0 1 1\n" * 600_000, "larger than 5 MB")],
    ids=["gbk", "large"],
)
def test_label_files_that_are_none(tmp_path, content, reason):
    """Prevents a trace, or a full memory, by a file that is no label file."""
    folder = make_yolo(tmp_path, {"a": ""})
    (tmp_path / "labels/a.txt").write_bytes(content)
    ((kind, _, detail),) = read_raw_annotations(folder).findings
    assert kind == "broken_annotation" and reason in detail


def test_roundings_are_no_findings(tmp_path):
    """Prevents reports of clipping on nearly every box that touches the border."""
    folder = make_yolo(tmp_path, {"a": "0 0.5 0.5 1.000002 1.000002\n0 0.5 0.5 1.1 1\n"})
    annotations, findings = read_annotations(folder, NAMES)
    assert annotations.boxes(0).tolist() == [[0, 0, 100, 50]] * 2
    assert [finding.kind for finding in findings] == ["clipped_box"]
    assert findings[0].detail == "class 0: -5, 0, 105, 50"


@pytest.mark.parametrize(
    ("folder", "named", "split"),
    [
        ("images", "images", "train"),
        ("images", ".", "train"),
        ("images/train", "images/train", "val"),
        ("images/train", ".", "train"),
        ("images/val", "images", "val"),
        ("valid/images", ".", "val"),
        ("train/images", "train", "train"),
        ("my images", "my images", "train"),
        ("images/images/x", "images/images", "train"),
    ],
)
def test_folders(tmp_path, folder, named, split):
    """Prevents layouts of common programs from needing a description, and validation on training images."""
    make_yolo(tmp_path, {"other": "1 0.5 0.5 0.2 0.2"}, "images/train" if split == "val" else "images/val")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    image_path = tmp_path / folder / "a.png"
    Image.new("RGB", (100, 50)).save(image_path)
    twin = "labels".join(folder.rsplit("images", 1)) if "images" in Path(folder).parts else folder
    (tmp_path / twin).mkdir(parents=True, exist_ok=True)
    (tmp_path / twin / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    raw = read_raw_annotations(os.path.normpath(tmp_path / named), split)
    assert raw.paths[0] == str(image_path)
    assert raw.classes[0] == 0


def test_folders_without_labels_or_images(tmp_path):
    """Prevents a training on nothing because a folder's name is wrong."""
    folder = make_yolo(tmp_path, {"a": None})
    with pytest.raises(ValueError, match=r"none of its 1 images has a label file; the first would be .*labels/a\.txt"):
        read_raw_annotations(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="leads to no images"):
        read_raw_annotations(str(tmp_path / "empty"))


def test_list_of_images(tmp_path):
    """Prevents a list of paths in YOLO's layout from being read as a list of backgrounds, and the reverse."""
    make_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.2", "b": None})
    path = tmp_path / "train.txt"
    path.write_text("\ufeff./images/a.jpg\nimages\\b.jpg\n", encoding="utf-8")
    raw = read_raw_annotations(str(path))
    assert raw.normalized and raw.classes.tolist() == [1]
    assert [finding.kind for finding in raw.findings] == ["no_label_file"]
    (tmp_path / "labels/a.txt").unlink()
    assert not read_raw_annotations(str(path)).normalized


@pytest.mark.parametrize("location", ["labels/train/classes.txt", "labels/classes.txt", "classes.txt"])
def test_names_from_classes_txt(tmp_path, location):
    """Prevents numbers of a labelling program from being taken for numbers of another class file."""
    folder = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2"}, "images/train")
    (tmp_path / location).write_text("\ufeffdog\n红 细胞\ncat\n", encoding="utf-8")
    raw = read_raw_annotations(folder)
    assert class_names_of([raw]) == ["dog", "红 细胞", "cat"]
    assert build_annotations(raw, NAMES)[0].classes.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("data.yaml", "images/train"),
        ("data.yml", "."),
        ("images/data.yaml", "images/train"),
        ("labels/train/data.yaml", "images"),
        ("../../data.yaml", "."),
    ],
)
def test_names_from_a_data_yaml_near_a_folder(tmp_path, location, named):
    """Prevents class numbers of a data set from being taken for those of classes_path, which swaps the classes."""
    root = tmp_path / "a/b/set"
    make_yolo(root, {"a": "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2"}, "images/train")
    (root / location).write_text("names: [dog, ' cat ']\n", encoding="utf-8")
    annotations, _ = read_annotations(os.path.normpath(root / named), NAMES)
    assert annotations.classes.tolist() == [1, 0]
    (root / location).write_text("nc: 2\n", encoding="utf-8")
    assert read_raw_annotations(os.path.normpath(root / named)).names is None


def test_names_near_a_list_and_from_within(tmp_path, monkeypatch):
    """Prevents names from being missed because a path is relative."""
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"}, "images/train")
    make_yaml(tmp_path, "names: [dog]")
    (tmp_path / "images/list.txt").write_text("train/a.jpg\n")
    monkeypatch.chdir(tmp_path / "images")
    for path in ("train", ".", "list.txt"):
        raw = read_raw_annotations(path)
        assert (raw.names, raw.classes.tolist()) == (["dog"], [0])


def test_names_that_contradict_each_other(tmp_path):
    """Prevents one of two orders of the classes from being chosen silently."""
    folder = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"})
    make_yaml(tmp_path, "names: [dog, cat]")
    for text, names in (("", ["dog", "cat"]), ("dog\n  cat \n", ["dog", "cat"])):
        (tmp_path / "labels/classes.txt").write_text(text)
        assert read_raw_annotations(folder).names == names
    for location in ("labels/classes.txt", "classes.txt"):
        (tmp_path / location).write_text("cat\ndog\n")
        reason = r"classes\.txt names the classes cat, dog, but .*data\.yaml names dog, cat\. Correct the wrong one"
        with pytest.raises(ValueError, match=reason):
            read_raw_annotations(folder)
        (tmp_path / location).unlink()


def test_hidden_files_and_folders(tmp_path):
    """Prevents copies that systems and notebooks leave from being trained on as background."""
    folder = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2", "._a": None, ".ipynb_checkpoints/a-checkpoint": None})
    assert read_raw_annotations(folder).paths == [str(tmp_path / "images/a.jpg")]
    assert read_raw_annotations(folder).findings == []


def test_numbers_alone(tmp_path):
    """Prevents classes without names from being trained as others, or from being invented."""
    folder = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2"})
    with pytest.raises(ValueError, match="as numbers alone, so classes_path cannot be ''"):
        class_names_of([read_raw_annotations(folder)])
    with pytest.raises(ValueError, match=r"class 7 \(once\)\. classes_path names cat, dog"):
        read_annotations(folder, NAMES)


@pytest.mark.parametrize("names", ["names: [dog, no, 1e3]", "names:\n  0: dog\n  1: no\n  2: 1e3\n"])
def test_yaml(tmp_path, names):
    """Prevents class numbers from being taken for others, and the classes `no` and `1e3` for False and 1000."""
    for part in ("train", "valid"):
        make_yolo(tmp_path, {part: "1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2"}, f"{part}/images")
    path = make_yaml(tmp_path, f"\ufefftrain: ../train/images\nval: ..\\valid\\images\nnc: 3\n{names}")
    for split, stem in (("train", "train"), ("val", "valid")):
        raw = read_raw_annotations(path, split)
        assert [Path(path).stem for path in raw.paths] == [stem]
        assert class_names_of([raw]) == ["dog", "no", "1e3"]
    assert build_annotations(raw, ["1e3", "no", "dog"])[0].classes.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("root", "train"),
    [
        ("path: ../set\n", "images"),
        ("path: set\n", "images"),
        ("path: {root}\n", "images"),
        ("path: {root}/set\n", "[images, list.txt]"),
        ("", "{root}/set/images"),
        ("path: .\n", "list.txt"),
        ("path:\n", "./images"),
    ],
)
def test_yaml_paths(tmp_path, monkeypatch, root, train):
    """Prevents the ways in which people write where their images lie from ending in `does not exist`."""
    make_yolo(tmp_path / "set", {"a": "0 0.5 0.5 0.2 0.2"})
    (tmp_path / "set/list.txt").write_text("./images/a.jpg\n")
    if root == "path: {root}\n":
        train = f"set/{train}"
    text = f"{root}train: {train}\nnames: [cat]\n".replace("{root}", str(tmp_path))
    path = make_yaml(tmp_path / "set", text)
    monkeypatch.chdir(tmp_path)
    raw = read_raw_annotations(path)
    assert len(raw.paths) == (2 if "[" in train else 1)
    assert {Path(path).resolve() for path in raw.paths} == {tmp_path / "set/images/a.jpg"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [cat", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("names: !!python/object/apply:os.system [ls]\n", "has train: None"),
        ("#" * 2**21, "larger than 1 MB"),
        ("", "is no data set description"),
        ("- a", "is no data set description"),
        ("train: images\n", "has names: None"),
        ("train: images\nnames: {0: cat, 2: dog}", "under the numbers 0, 1, 2"),
        ("train: images\nnames: [cat, [dog]]", "expected the class names"),
        ("names: [cat]\n", "has train: None; expected a folder"),
        ("train: images\nnames: [cat]\nkpt_shape: 17\n", "has kpt_shape: '17'; expected .number of points, 2 or 3"),
        ("names: [cat]\ntrain: {a: b}", "expected a folder"),
        ("names: [cat]\ntrain: none", r"names none, which does not exist; looked for .*none\. Correct"),
    ],
)
def test_yaml_mistakes(tmp_path, text, reason):
    """Prevents traces that do not say what is wrong in which file, and code inside it from being run."""
    path = make_yaml(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s)data\.yaml.*{reason}"):
        read_raw_annotations(path)


def test_yaml_class_without_name_and_missing_image(tmp_path):
    """Prevents class numbers beyond the names, and images that a list names in vain, from passing silently."""
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n3 0.5 0.5 0.2 0.2\n"})
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/none.jpg\n")
    raw = read_raw_annotations(make_yaml(tmp_path, "train: list.txt\nnames: [cat]\n"))
    assert [finding[:2] for finding in raw.findings] == [
        ("missing_image", "images/none.jpg"),
        ("class_beyond_names", str(tmp_path / "images/a.jpg")),
    ]
    words = f"line 2: '3 0.5 0.5 0.2 0.2'; expected a class from 0 to 0, as {tmp_path}/data.yaml names 1"
    assert raw.findings[1].detail == f"{tmp_path}/labels/a.txt, {words}"


def test_broken_labels_are_no_background(tmp_path):
    """Prevents a second finding on each image whose boxes are all written wrongly."""
    folder = make_yolo(tmp_path, {"a": "0 50 25 20 20", "b": "2 0.5 0.5 0.2 0.2", "c": ""})
    make_yaml(tmp_path, "names: [cat]")
    _, findings = build_annotations(read_raw_annotations(folder), NAMES)
    assert [(kind, Path(image).stem) for kind, image, _ in findings] == [
        ("broken_annotation", "a"),
        ("class_beyond_names", "b"),
        ("background", "c"),
    ]


@pytest.mark.parametrize(
    ("annotation", "line"),
    [("set/data.yaml", "images/a.jpg"), ("set/lists/list.txt", "../images/a.jpg"), ("set/lists/list.txt", "b/a.jpg")],
)
def test_lists_start_from_their_own_folder(tmp_path, monkeypatch, annotation, line):
    """Prevents a list from being read from images of another data set that the current directory happens to hold."""
    for root in ("set", "other", "images", "other/b", "set/lists/b"):
        make_yolo(tmp_path / root, {"a": "0 0.5 0.5 0.2 0.2"}, "." if root.endswith("b") else "images")
    (tmp_path / "set/lists/list.txt").write_text(f"{line}\n")
    make_yaml(tmp_path / "set", "train: lists/list.txt\nnames: [cat]\n")
    monkeypatch.chdir(tmp_path / "other")
    expected = tmp_path / "set" / ("lists/b/a.jpg" if line[0] == "b" else "images/a.jpg")
    raw = read_raw_annotations(f"../{annotation}")
    assert [os.path.abspath(path) for path in raw.paths] == [str(expected)]


def test_names_of_several_lines(tmp_path):
    """Prevents a class whose name no line of a file of names can hold."""
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"})
    path = make_yaml(tmp_path, 'train: images\nnames: ["dining \\n  table"]\n')
    assert read_raw_annotations(path).names == ["dining table"]


def test_darknet_description(tmp_path):
    """Prevents the file that Darknet and CVAT name from being read as a list of images that do not exist."""
    for part in ("train", "val"):
        make_yolo(tmp_path, {part: "1 0.5 0.5 0.2 0.2"}, "obj_train_data")
        (tmp_path / f"{part}.txt").write_text(f"data/obj_train_data/{part}.jpg\n")
    os.rename(tmp_path / "val.txt", tmp_path / "valid.txt")
    (tmp_path / "obj.names").write_text("bolt\nnut\n")
    text = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    path = tmp_path / "obj.data"
    path.write_text(text)
    for split in ("train", "val"):
        raw = read_raw_annotations(str(path), split)
        assert [Path(image).stem for image in raw.paths] == [split]
        assert (raw.names, raw.classes.tolist()) == (["bolt", "nut"], [1])


@pytest.mark.parametrize(("text", "missing"), [("train = train.txt\n", "names"), ("names = obj.names\n", "train")])
def test_darknet_description_that_lacks_a_line(tmp_path, text, missing):
    """Prevents a trace, or words on both lines, where a description has no names or no part for training."""
    (tmp_path / "obj.data").write_text(text)
    with pytest.raises(ValueError, match=rf"obj\.data has no line `{missing} = \.\.\.`; expected one"):
        read_raw_annotations(str(tmp_path / "obj.data"))


@pytest.mark.parametrize(
    "train", ["set-1/train/images", "/content/drive/set-1/train/images", "..\\\\train\\\\images", "Train/Images"]
)
def test_places_of_another_machine(tmp_path, train):
    """Prevents a data.yaml of Colab, Roboflow's API or Windows from ending in `does not exist`."""
    make_yolo(tmp_path / "set-1", {"a": "0 0.5 0.5 0.2 0.2"}, "train/images")
    path = make_yaml(tmp_path / "set-1", f'train: "{train}"\nnames: [cat]\n')
    assert read_raw_annotations(path).paths == [str(tmp_path / "set-1/train/images/a.jpg")]


def test_two_places_that_may_be_meant(tmp_path):
    """Prevents training on another data set that lies unpacked in the folder above."""
    for root in (tmp_path, tmp_path / "ds2"):
        make_yolo(root, {"a": "0 0.5 0.5 0.2 0.2"}, "train/images")
    path = make_yaml(tmp_path / "ds2", "train: ../train/images\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"names \.\./train/images, and there are two of these: .* Name the one that"):
        read_raw_annotations(path)
