"""Three wishes that are told apart: to resume a run, to extend it, and to start a new one from its weights."""

import re
import shutil

import pytest
from runs import STEP, STEPS_PER_EPOCH, checkpoint_of, fault, run_folder, train_with

import train

pytestmark = pytest.mark.faults


@pytest.fixture
def finished_run(reference, tmp_path):
    """A copy of the undisturbed run: its folder."""
    shutil.copytree(reference, tmp_path / "logs")
    return run_folder(tmp_path / "logs")


def test_a_longer_run_is_planned_anew_and_says_so(finished_run, settings):
    """Prevents a finished run that cannot go on, one whose rate stays at its end, and curves that begin again."""
    before = checkpoint_of(finished_run.parent)["log"]["rows"]
    in_epoch_7 = fault(STEP, STEPS_PER_EPOCH + 1, "send", "SIGTERM")
    finished = train_with(settings | {"resume": str(finished_run), "UnFreeze_Epoch": 12}, in_epoch_7)
    assert "Stopped by SIGTERM in epoch 7." in finished.error
    assert f"resumes {finished_run}/last_checkpoint.pth: 5 of 12 epochs are done" in finished.said
    assert "UnFreeze_Epoch was 5 and is 12: the schedule of the learning rate" in finished.said
    rows = checkpoint_of(finished_run.parent)["log"]["rows"]
    assert rows[:5] == before and [row["epoch"] for row in rows[5:]] == [6]
    assert rows[5]["lr"] > 10 * before[4]["lr"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, r"is of a run that is over, after epoch 5 of 5; to train it further raise UnFreeze_Epoch"),
        ({"input_shape": [96, 64]}, r"with input_shape \(?\[?64, 64.*now it is .?96, 64"),
        ({"classes_path": "others.txt"}, r"class_names \['fish', 'leaf', 'mushroom'\].*\['leaf', 'fish', 'mushroom'\]"),
        ({"model_name": "yolox_tiny"}, r"model_name is 'yolox_tiny', but .*last_checkpoint.pth.*'yolox_nano'"),
    ],
    ids=["nothing left to do", "other input_shape", "other classes", "other model"],
)
def test_another_run_is_refused_with_both_values(finished_run, tmp_path, changes, expected):
    """Prevents a run that goes on as another one: its classes shifted, or its boxes of another scale."""
    if "classes_path" in changes:
        (tmp_path / "others.txt").write_text("leaf\nfish\nmushroom\n")
        changes = {"classes_path": str(tmp_path / "others.txt")}
    with pytest.raises(ValueError, match=expected):
        train.main(train.config(resume=str(finished_run), **changes))
    assert re.match("loss_20", finished_run.name) and len(list(finished_run.parent.glob("loss_20*"))) == 1


def test_weights_with_init_epoch_say_that_resume_would_be_exact(finished_run, settings, tmp_path, capsys):
    """Prevents people from going on the old way, which begins the optimiser anew, without knowing the exact one."""
    own = settings | {"save_dir": str(tmp_path / "new"), "model_path": str(finished_run / "last_epoch_weights.pth")}
    train.main(train.config(**own | {"Init_Epoch": 5, "UnFreeze_Epoch": 6}))
    said = capsys.readouterr().out
    assert "note: this goes on from the weights alone, at epoch 5" in said
    assert "resume = True (or the folder of the run) would continue exactly." in said
    assert [row["epoch"] for row in checkpoint_of(tmp_path / "new")["log"]["rows"]] == [6]
