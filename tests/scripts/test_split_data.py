import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.voc_folder import box_xml, make_voc
from tests.yolo_folder import make_yaml, make_yolo
from tools import split_data
from utils.data.annotations import read_annotations
from utils.data.formats.detect_format import read_raw_annotations

LABELS = {f"{group}_{number}": "0 0.5 0.5 0.2 0.2" for group in "ab" for number in range(5)}


def split(path, **changes):
    values = {"train_percent": 0.8, "seed": 0, "group_pattern": "", "overwrite": False}
    split_data.main(SimpleNamespace(annotation_path=str(path), **(values | changes)))


def read(path):
    """Stems of the images of an annotation, whose boxes must all be there."""
    annotations, findings = read_annotations(str(path), ["cat"])
    assert len(annotations.classes) == len(annotations) and not findings
    return {os.path.splitext(os.path.basename(annotations.path(index)))[0] for index in range(len(annotations))}


def check_parts(first, second, train_count=8):
    train, val = read(first), read(second)
    assert len(train) == train_count and not train & val and train | val == set(LABELS)


@pytest.mark.parametrize("kind", ["folder", "root", "yaml", "list"])
def test_yolo(tmp_path, capsys, kind):
    """Prevents people whose labels are in YOLO's layout from having no tool that splits them."""
    folder = make_yolo(tmp_path, LABELS)
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "all.txt").write_text("".join(f"images/{stem}.jpg\n" for stem in LABELS))
    path = {"folder": folder, "root": tmp_path, "list": tmp_path / "all.txt"}.get(kind)
    path = path or make_yaml(tmp_path, "train: images\nval: images\nnames: [cat]\n")
    split(path)
    place = tmp_path / "images" if kind == "folder" else tmp_path
    lead = {"list": "all_", "yaml": "data_"}.get(kind, "")
    names = [f"{lead}{part}.txt" for part in ("train", "val")]
    check_parts(*(place / name for name in names))
    named = "data_split.yaml" if kind == "yaml" else names[1]
    assert f'val_annotation_path = "{place / named}"' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pets.yaml", "obj.data"])
def test_names_of_a_description_are_kept(tmp_path, name):
    """Prevents numbers from being taken for other classes: here 0 is dog for the data set, and cat for train.py. A list
    that the description names must not be replaced, either."""
    make_yolo(tmp_path, dict.fromkeys(LABELS, "0 0.5 0.5 0.2 0.2 0.5 0.5 2"))
    content = "train: images\nval: images\nkpt_shape: [1, 3]\nnames: ['no', 我]\n"
    if name == "obj.data":
        content = "train = train.txt\nvalid = train.txt\nnames = obj_list\n"
        (tmp_path / "obj_list").write_text("no\n我\n", encoding="utf-8")
        (tmp_path / "train.txt").write_text("".join(f"images/{stem}.jpg\n" for stem in LABELS))
    (tmp_path / name).write_text(content, encoding="utf-8")
    split(tmp_path / name)
    stem = name.partition(".")[0]
    texts = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob(f"{stem}_*")}
    lines = [f'train: "{stem}_train.txt"', f'val: "{stem}_val.txt"', 'names: ["no", "我"]']
    lines += ["kpt_shape: [1, 3]"] * (name == "pets.yaml")
    assert texts[f"{stem}_split.yaml"].splitlines() == lines
    for part, count in (("train", 8), ("val", 2)):
        annotations, _ = read_annotations(str(tmp_path / f"{stem}_split.yaml"), ["我", "no"], part)
        assert (len(annotations), annotations.classes.tolist()) == (count, [1] * count)
        assert len(texts[f"{stem}_{part}.txt"].splitlines()) == count


@pytest.mark.parametrize("name", ["all.txt", "all.lst"])
def test_lists_with_boxes(tmp_path, name):
    """Prevents boxes of a list from being lost."""
    make_yolo(tmp_path, LABELS)
    (tmp_path / name).write_text("".join(f"images/{stem}.jpg 1,2,30,40,0\n" for stem in LABELS))
    split(tmp_path / name)
    check_parts(tmp_path / "all_train.txt", tmp_path / "all_val.txt")


def test_an_image_on_several_lines_is_not_divided(tmp_path):
    """Prevents an image of which each box stands on a line of its own from being on both sides."""
    make_yolo(tmp_path, LABELS)
    lines = [f"{dots}images/{stem}.jpg {x},2,30,40,0\n" for x, dots in ((1, ""), (5, "./")) for stem in LABELS]
    (tmp_path / "all.txt").write_text("".join(lines))
    split(tmp_path / "all.txt")
    train, val = ((tmp_path / f"all_{part}.txt").read_text().splitlines() for part in ("train", "val"))
    stems = [{os.path.basename(line.split()[0]) for line in lines} for lines in (train, val)]
    assert (len(train), len(val), stems[0] & stems[1]) == (16, 4, set())


@pytest.mark.parametrize("kind", ["yaml", "root"])
def test_data_sets_with_parts_are_refused(tmp_path, kind):
    """Prevents the images of a validation part from being left out without a word."""
    for part, stems in (("train", "abcd"), ("val", "ef")):
        make_yolo(tmp_path, dict.fromkeys(stems, "0 0.5 0.5 0.2 0.2"), f"images/{part}")
    path = tmp_path if kind == "root" else make_yaml(tmp_path, "train: images/train\nval: images/val\nnames: [cat]\n")
    with pytest.raises(ValueError, match="is split already: 4 images to train on, 2 to validate on"):
        split(path)


def test_splits_of_voc_are_refused(tmp_path):
    """Prevents a split from being written of which the reader takes the lines for ids."""
    path = make_voc(tmp_path, {stem: [box_xml("cat", (1, 2, 3, 4))] for stem in LABELS})
    with pytest.raises(ValueError, match=r"is a split of a VOC data set; `python tools/voc_annotation\.py"):
        split(path)
    root = str(Path(path).parents[2])
    with pytest.raises(ValueError, match=rf"^{root} is a VOC data set; `python .*--VOCdevkit_path=\"{root}\"` makes"):
        split(root)


def test_coco(tmp_path):
    """Prevents crowds, areas and names from being lost on the way."""
    make_yolo(tmp_path, LABELS)
    images = [{"id": number, "file_name": f"{stem}.jpg"} for number, stem in enumerate(LABELS)]
    boxes = [{"id": item["id"], "image_id": item["id"], "category_id": 3, "bbox": [1, 2, 3, 4]} for item in images]
    content = {"info": "我", "images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "images/all.json").write_text(json.dumps(content))
    split(tmp_path / "images/all.json")
    check_parts(tmp_path / "images/all_train.json", tmp_path / "images/all_val.json")
    assert json.loads((tmp_path / "images/all_val.json").read_text(encoding="utf-8"))["info"] == "我"


@pytest.mark.parametrize(("place", "name"), [("images/default", "instances_default"), ("val2017", "instances_val2017")])
def test_coco_files_with_images_in_a_folder_of_the_split(tmp_path, place, name):
    """Prevents files that cannot be read, as their names no longer end in that of the folder, and ones that lead to
    images of the same names in a folder that is called as the new part."""
    for folder in (place, "train"):
        make_yolo(tmp_path, LABELS, folder)
    images = [{"id": number, "file_name": f"{stem}.jpg"} for number, stem in enumerate(LABELS)]
    content = {"images": images, "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
    path = tmp_path / f"annotations/{name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    split(path)
    parts = [read_raw_annotations(str(path.with_name(f"{name}_{part}.json"))) for part in ("train", "val")]
    assert [(len(part.paths), part.findings) for part in parts] == [(8, []), (2, [])]
    assert sorted(parts[0].paths + parts[1].paths) == [str(tmp_path / place / f"{stem}.jpg") for stem in LABELS]


def test_xml_beside_images(tmp_path):
    """Prevents a split that nothing reads: the list names images whose XML files lie beside them."""
    folder = make_yolo(tmp_path, dict.fromkeys(LABELS), "photos")
    for stem in LABELS:
        (tmp_path / f"photos/{stem}.xml").write_text(f"<annotation>{box_xml('cat', (1, 2, 3, 4))}</annotation>")
    split(folder)
    check_parts(tmp_path / "photos/train.txt", tmp_path / "photos/val.txt")


def test_groups_are_not_divided(tmp_path):
    """Prevents frames of one video on both sides."""
    split(make_yolo(tmp_path, LABELS), train_percent=0.5, group_pattern="([ab])_[0-9]")
    check_parts(tmp_path / "images/train.txt", tmp_path / "images/val.txt", 5)
    assert len({stem[0] for stem in read(tmp_path / "images/train.txt")}) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_percent": 1.0}, "train_percent is 1.0; expected a share between 0 and 1"),
        ({"annotation_path": ""}, "annotation_path is '', which does not exist"),
        ({"annotation_path": "none.json"}, "annotation_path is 'none.json', which does not exist"),
        ({}, r"train\.txt exist already; nothing was changed"),
    ],
)
def test_mistakes(tmp_path, changes, reason):
    """Prevents a split of earlier results from being replaced, and traces."""
    folder = make_yolo(tmp_path, LABELS)
    (tmp_path / "images/train.txt").write_text("kept")
    with pytest.raises(ValueError, match=reason):
        split(**({"path": folder} | {key.replace("annotation_", ""): value for key, value in changes.items()}))
    assert (tmp_path / "images/train.txt").read_text() == "kept"
