from types import SimpleNamespace

import pytest

from tests.yolo_folder import make_yaml, make_yolo
from tools import split_data
from utils.config.constants import read_constants
from utils.data.formats.yolo import places_of_parts
from utils.data.splits import group_ids, split_advice, split_command, split_groups


@pytest.mark.parametrize(
    ("group_pattern", "groups"),
    [
        ("(.+)_[0-9]+$", {"a_b": ["a_b_1", "a_b_2"], "c": ["c_1", "c"]}),  # the last name is that of a group
        ("^(.)(.)", {"a": ["a_b_1", "a_b_2"], "c": ["c_1", "c"]}),  # the first bracket alone
        ("[0-9]", {"1": ["a_b_1", "c_1"], "2": ["a_b_2"], "c": ["c"]}),  # anywhere in the name, no bracket
        ("(b)|c", {"b": ["a_b_1", "a_b_2"], "c_1": ["c_1"], "c": ["c"]}),  # a bracket that has no part in the match
    ],
)
def test_what_a_pattern_names(group_pattern, groups):
    """Prevents a pattern from being read otherwise than its comment says."""
    assert group_ids(["a_b_1", "a_b_2", "c_1", "c"], group_pattern) == groups


def test_names_without_a_match_are_told(capsys):
    """Prevents a pattern that fits half of the names from dividing the others without a word."""
    assert len(group_ids(["a_1", "a_2", "b", "c"], "(.+)_")) == 3
    assert capsys.readouterr().out == "group_pattern does not match 2 names, which name a group each: b, c\n"


def group_sizes(sizes, counts, seed=0):
    """{split: sizes of its groups, large ones first} for groups of these sizes."""
    groups = {str(number): ["image"] * size for number, size in enumerate(sizes)}
    parts = split_groups(groups, dict(zip(("train", "val", "test"), counts, strict=True)), seed)
    return {part: [len(groups[name]) for name in names] for part, names in parts.items()}


@pytest.mark.parametrize(
    ("sizes", "counts", "train", "val", "test"),
    [
        ([50, 10, 10, 10, 10, 10], (81, 9, 10), [50, 10, 10, 10], [10], [10]),
        ([1] * 20, (9, 9, 2), [1] * 9, [1] * 9, [1] * 2),
        ([10, 9, 2, 2, 1], (18, 6, 0), [10, 9], [2, 2, 1], []),
        ([30, 30, 30], (73, 8, 9), [30], [30], [30]),  # the shares alone would give all to train
        ([95, 5], (81, 9, 10), [95], [5], []),
    ],
)
def test_groups_meet_the_shares(sizes, counts, train, val, test):
    """Prevents splits far from the shares, and a data set whose large groups leave nothing to validate on."""
    for seed in range(5):
        assert group_sizes(sizes, counts, seed) == {"train": train, "val": val, "test": test}


def test_the_seed_draws_among_equal_groups():
    """Prevents groups in alphabetical order, often that of their dates, and splits that change from run to run."""
    groups = {name: [name] for name in "abcdefgh"}
    counts = {"train": 6, "val": 2, "test": 0}
    drawn = [split_groups(groups, counts, seed)["val"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_command_fits_the_layout(tmp_path):
    """Prevents the advice to split by a tool that knows VOC folders alone from being given for other layouts."""
    voc = str(tmp_path / "voc/ImageSets/Main/train.txt")
    expected = f'`python tools/voc_annotation.py --annotation_mode=1 --VOCdevkit_path="{tmp_path}/voc"`'
    assert split_command(voc) == expected
    assert split_command("set/data.yaml") == '`python tools/split_data.py --annotation_path="set/data.yaml"`'


def test_the_advice_is_one_that_works(tmp_path):
    """Prevents the advice to split by a command that refuses, as the data set has parts already."""
    voc, whole = str(tmp_path / "voc/ImageSets/Main/train.txt"), make_yaml(tmp_path, "train: images\nval: images\n")
    assert split_advice(whole) == f"split anew with {split_command(whole)}"
    assert split_advice([voc, whole]) == f"{split_advice(voc)}, or {split_advice(whole)}"
    assert split_advice("gone.yaml") == f"split anew with {split_command('gone.yaml')}"
    assert split_advice([]) == ""
    for stem, part in (("a", "train"), ("b", "val"), ("c", "val")):
        make_yolo(tmp_path / "set", {stem: "0 0.5 0.5 0.2 0.2"}, f"images/{part}")
    path = make_yaml(tmp_path / "set", "train: images/train\nval: [images/val]\nnames: [cat]\n")
    sentence = (
        f'split anew: write {tmp_path}/set/whole.yaml with `train: ["images/train", "images/val"]` and the keys path '
        f"and names of {path}, but no val, and run {split_command(f'{tmp_path}/set/whole.yaml')}"
    )
    assert split_advice(path) == sentence
    assert split_advice(str(tmp_path / "set")) == sentence.replace(
        f"keys path and names of {path}", f"key names, the classes of {tmp_path}/set"
    )
    (tmp_path / "set/whole.yaml").write_text('train: ["images/train", "images/val"]\nnames: [cat]\n')
    settings = read_constants(vars(split_data)) | {
        "annotation_path": f"{tmp_path}/set/whole.yaml",
        "train_percent": 0.7,
    }
    split_data.main(SimpleNamespace(**settings))
    assert len((tmp_path / "set/whole_train.txt").read_text().splitlines()) == 2


def test_parts_of_an_obj_data(tmp_path):
    """Prevents Darknet's word for validation from being overlooked, and folders without a part for training."""
    (tmp_path / "obj.data").write_text("train = train.txt\nvalid = val.txt\nnames = obj.names\n")
    assert places_of_parts(str(tmp_path / "obj.data")) == ["train.txt", "val.txt"]
    assert places_of_parts(str(tmp_path)) == places_of_parts(str(tmp_path / "list.txt")) == []
    (tmp_path / "valid").mkdir()
    assert places_of_parts(str(tmp_path)) == ["."]
