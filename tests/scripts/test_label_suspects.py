from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nets import build_model
from tools import label_suspects
from tools.label_suspects import draw, sets_of, summary
from utils.config.constants import read_constants
from utils.image.codec import write_image
from utils.io.errors import UserError
from utils.io.files import write_csv
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights

PROJECT = Path(__file__).resolve().parents[2]


def test_the_sets_that_a_path_names(tmp_path):
    """Prevents half of a data.yaml from being looked at, and a path with a comma from being cut."""
    assert sets_of("a.txt, b.json") == [("a.txt", "train"), ("b.json", "train")]
    assert sets_of("data.yaml") == [("data.yaml", "train")]  # not there, as reading will say
    path = tmp_path / "a,b.txt"
    path.write_text("")
    assert sets_of(str(path)) == [(str(path), "train")]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.yaml", "train: images\nval: other\n", ["train", "val"]),
        ("a.yml", "train: images\nval:\n", ["train"]),
        ("a.yaml", "val: images\n", ["val"]),
        ("a.yaml", "names: [cat]\n", ["train"]),
        ("obj.data", "train = train.txt\nvalid = valid.txt\n", ["train", "val"]),
        ("obj.data", "train = train.txt\n#valid = valid.txt\nvalid =\n", ["train"]),
    ],
)
def test_a_part_that_is_not_named_is_skipped(tmp_path, name, text, parts):
    """Prevents a data.yaml without a val part, such as one of tools/pseudo_label.py, from ending in an error after its
    train part was looked at, and half of an obj.data from being left out."""
    (tmp_path / name).write_text(text)
    assert label_suspects.parts_of(str(tmp_path / name)) == parts


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train/images", "valid/images"], ["train", "val"]),
        (["images/Train", "images/val"], ["train", "val"]),
        (["images/val"], ["train"]),
        (["images"], ["train"]),
        ([], ["train"]),
    ],
)
def test_both_parts_of_a_folder_are_looked_at(tmp_path, folders, parts):
    """Prevents the validation labels of a folder from being left out without a word."""
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    assert label_suspects.parts_of(str(tmp_path)) == parts


def test_a_csv_without_suspects(tmp_path):
    """Prevents a file without a header, and an empty message."""
    write_csv(tmp_path / "a.csv", label_suspects._CSV_COLUMNS, [])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").startswith("rank,score,kind,image,label,label_x1,")
    assert summary([]) == "0 suspects."


def test_a_picture_of_a_suspect(tmp_path):
    """Prevents a crop beside the boxes, or beyond the image. The box at the corner of a grey image is 20 x 20: the tile
    shows 25 pixels around its middle, cut at the border to 35 of them, in a tile of 300."""
    path = str(tmp_path / "叶.png")
    write_image(path, np.full((100, 200, 3), 77, np.uint8))
    row = dict.fromkeys(label_suspects._CSV_COLUMNS) | {"rank": 3, "score": 0.876, "kind": "not found", "image": path}
    row |= {"label": "叶", "label_x1": 180.0, "label_y1": 0.0, "label_x2": 200.0, "label_y2": 20.0}
    tile, caption = draw(row)
    assert (tile.shape, caption) == ((300, 300, 3), "3 not found 0.88 叶")
    assert tile[200, 20].tolist() == [77, 77, 77]
    assert tile[171, 200, 0] > 150  # the lower edge of the box, red, at 20 of 35 pixels


def settings(**changes):
    values = read_constants(vars(label_suspects)) | {"Cuda": False}
    return SimpleNamespace(**(values | changes))


def test_files_are_written(tmp_path, capsys):
    """Prevents a tool whose parts do not fit: a network that finds nothing doubts no label, as it never finds any."""
    model = build_model("yolox_nano", 3)
    for layer in model.head.obj_preds:
        layer.bias.data.fill_(-20)
    names = ["fish", "leaf", "mushroom"]
    save_weights(tmp_path / "a.pth", model, make_metadata(model, names, (64, 64), {"mode": "topleft", "pad": 114}))
    (tmp_path / "val.txt").write_text(f"{PROJECT}/VOCdevkit/Sample/JPEGImages/000150.jpg 20,30,120,140,0\n")
    changes = {"model_path": str(tmp_path / "a.pth"), "annotation_path": str(tmp_path / "val.txt")}
    assert label_suspects.main(settings(**changes, save_dir=str(tmp_path / "out"), lowest_score=0.5)) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["suspects.csv"]
    rows = label_suspects.main(settings(**changes, save_dir=str(tmp_path / "out"), lowest_score=0.0))
    assert (rows[0]["rank"], rows[0]["kind"], rows[0]["label"]) == (1, "not found", "fish")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["suspects.csv", "suspects.jpg"]
    said = capsys.readouterr()
    assert "     1  not found: labelled, and nothing found there" in said.out
    note = f"note: this detector has a mAP@0.5 of 0.00 on {tmp_path / 'val.txt'}; most suspects are its own errors"
    assert (said.out + said.err).count(note) == 1


@pytest.mark.parametrize("changes", [{"lowest_score": 2.0}, {"num_pictures": -1}])
def test_impossible_constants(changes):
    """Prevents a run that cannot show anything."""
    with pytest.raises(ValueError, match="expected a share from 0 to 1"):
        label_suspects.check(read_constants(vars(label_suspects)) | changes)


def test_a_target_that_cannot_be_written_is_met_first(tmp_path, monkeypatch):
    """Prevents hours of detection whose result has no place, as where a program has suspects.csv open."""
    monkeypatch.setattr(label_suspects, "open_detector", lambda settings: pytest.fail("the network was loaded"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out/suspects.csv").mkdir(parents=True)
    for folder, message in (("file", "save_dir is '.*file', where suspects.csv"), ("out", "cannot be written")):
        with pytest.raises(UserError, match=message):
            label_suspects.main(settings(save_dir=str(tmp_path / folder)))
    assert (tmp_path / "file").read_text() == "mine"


def test_trying_a_target_leaves_nothing(tmp_path):
    """Prevents an empty file where detection fails later, and an earlier result that is lost."""
    (tmp_path / "a.csv").write_text("rank")
    label_suspects.require_writable(tmp_path / "a.csv", tmp_path / "new.jpg")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["rank"]
