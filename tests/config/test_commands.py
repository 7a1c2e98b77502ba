import shlex
from types import SimpleNamespace

import pytest

import train
from tools import check_data, kmeans_for_anchors, label_suspects
from utils.config.cli import overrides
from utils.config.commands import command, data_command, quote_path
from utils.config.constants import read_constants
from utils.reporting.hints.classes import suspects_command

OWN = {
    "train_annotation_path": ["my data/data.yaml", "more.txt"],
    "val_annotation_path": "my data/data.yaml",
    "classes_path": "",
    "input_shape": [416, 416],
    "save_dir": "my logs",
}


def settings_of(**changes):
    return SimpleNamespace(**read_constants(vars(train)) | changes)


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("logs/loss_1", "logs/loss_1"),
        ("C:\\my", "C:\\my"),
        ("my logs", '"my logs"'),
        ("['a']", "\"['a']\""),
        ("$(rm x)/`y`", "'$(rm x)/`y`'"),
        ("", ""),
    ],
)
def test_quotes(path, quoted):
    """Prevents a command that a shell parts, reads as a pattern or runs, and quotes where nobody needs them."""
    assert quote_path(path) == quoted


def test_what_a_script_takes_by_itself_is_left_out():
    """Prevents a line of ten settings where the bare command does."""
    settings = settings_of()
    assert data_command("tools/check_data.py", settings) == "python tools/check_data.py"
    assert data_command("tools/kmeans_for_anchors.py", settings) == "python tools/kmeans_for_anchors.py"
    assert suspects_command(settings) == "python tools/label_suspects.py"
    assert command("predict.py", {}) == "python predict.py"


def test_a_script_counts_more_than_train():
    """Prevents a value from being left out because it stands in train.py, where the tool has its own."""
    assert command("tools/label_suspects.py", {"model_path": ""}) == "python tools/label_suspects.py --model_path="


@pytest.mark.parametrize("tool", [check_data, kmeans_for_anchors])
def test_data_commands_are_understood(tool):
    """Prevents a tool that looks at the sample instead, and a constant that it does not know."""
    words = shlex.split(data_command(f"tools/{tool.__name__.split('.')[1]}.py", settings_of(**OWN)))
    values = overrides(tool.constants(), words[2:])
    assert values["train_annotation_path"] == ["my data/data.yaml", "more.txt"]
    assert (values["classes_path"], values["input_shape"]) == ("", [416, 416])
    assert "model_name" not in values


def test_the_search_for_wrong_labels_looks_at_all_of_them():
    """Prevents weights and labels of the sample, and a data.yaml that is read twice."""
    words = shlex.split(suspects_command(settings_of(**OWN)))
    assert overrides(read_constants(vars(label_suspects)), words[2:]) == {
        "model_path": "my logs/best_epoch_weights.pth",
        "annotation_path": "my data/data.yaml,more.txt",
    }
