import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from nets import build_model
from utils.checkpoint.resume import (
    check_resumable,
    find_checkpoint,
    is_running,
    process,
    read_checkpoint,
    resolve_resume,
    resume_summary,
)
from utils.weights.metadata import make_metadata
from utils.weights.save import save_content, save_weights

METADATA = make_metadata(build_model("yolox_nano", 2), ["cat", "dog"], (64, 64), {"mode": "topleft", "pad": 114})
FILE = {"gpu_ids": "", "distributed": False, "Cuda": False, "resume": False, "save_dir": "logs", "seed": 11}
FILE |= {"Init_lr": 8e-2, "UnFreeze_Epoch": 100, "patience": 0, "model_path": "", "lr_decay_type": "cos"}
FILE |= {"optimizer_type": "sgd"}


def write_run(folder, launch="", epoch=3, images=0, is_over=False, constants=FILE, **given):
    """A checkpoint, but for its tensors; given: what stood on the command line. Returns its path."""
    run = {"settings": constants | given, "constants": dict(constants), "launch": launch, "order": [11, 6]}
    run |= {"epoch": epoch, "images": images, "is_over": is_over}
    folder.mkdir(parents=True)
    path = folder / "last_checkpoint.pth"
    save_content(path, {"model": {}, "contract": METADATA, "run": run, "training": {}, "ranks": [], "log": {}})
    return path


def test_another_optimizer_is_refused(tmp_path):
    """Prevents a KeyError at the first step: adam has no use for the momenta of sgd."""
    path = write_run(tmp_path / "loss_1")
    content = read_checkpoint(path)
    with pytest.raises(ValueError, match="is of a run with optimizer_type 'sgd', and now it is 'adam': resume goes on"):
        check_resumable(path, content, content["contract"], SimpleNamespace(**FILE | {"optimizer_type": "adam"}))


def test_the_newest_run_is_meant_by_true(tmp_path):
    """Prevents the wrong run of several from going on, and a run that lies elsewhere."""
    old, new = (write_run(tmp_path / name) for name in ("loss_2", "loss_1"))
    os.utime(old, (1, 1))
    assert find_checkpoint(True, tmp_path) == new
    assert find_checkpoint(str(tmp_path / "loss_2"), tmp_path / "elsewhere") == old
    assert find_checkpoint(str(old), tmp_path) == old
    assert find_checkpoint(False, tmp_path) is find_checkpoint("", tmp_path) is None


def test_a_restarted_launch_finds_what_it_left(tmp_path, monkeypatch):
    """Prevents torchrun --max_restarts from beginning anew, or from going on with the run of another launch."""
    old = write_run(tmp_path / "loss_0", launch="job 7")
    os.utime(old, (1, 1))  # of an earlier launch with the same --rdzv_id
    mine = write_run(tmp_path / "loss_1", launch="job 7")
    write_run(tmp_path / "loss_2", launch="job 8")
    (tmp_path / "loss_3").mkdir()
    (tmp_path / "loss_3" / "last_checkpoint.pth").write_bytes(b"damaged")
    monkeypatch.setattr("utils.checkpoint.resume.launch_id", lambda: "job 7")
    assert find_checkpoint(False, tmp_path, attempts=0) is None
    assert find_checkpoint(False, tmp_path, attempts=1) == mine
    monkeypatch.setattr("utils.checkpoint.resume.launch_id", lambda: "job 9")
    assert find_checkpoint(False, tmp_path, attempts=1) is None


def test_a_run_that_is_still_training_is_left_alone():
    """Prevents two processes that write one run; a number that another process has now is no sign of it."""
    own = process()
    assert not is_running(own) and not is_running(None)
    parent = [own[0], os.getppid(), psutil.Process(os.getppid()).create_time()]
    assert is_running(parent)
    assert not is_running(["elsewhere", *parent[1:]]) and not is_running([*parent[:2], 1.0])
    assert not is_running([own[0], 2**22 + 1, 1.0])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no number of a process that ended")
def test_a_killed_process_is_not_running(monkeypatch):
    """Prevents a run that nobody can resume, because nobody asks for the process that was killed, or because it belongs
    to somebody else; and two processes in one run after the clock was set."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = [process()[0], child.pid, psutil.Process(child.pid).create_time()]
        assert is_running(identity) and is_running([*identity[:2], identity[2] + 1.0])
        child.kill()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not is_running(identity)

    def refuse(number):
        raise psutil.AccessDenied(number)

    monkeypatch.setattr(psutil, "Process", refuse)
    assert not is_running(identity)


def test_a_run_is_named_from_within_its_folder(tmp_path, monkeypatch):
    """Prevents weights that are written into the folder of the run, instead of beside it, with --resume=. there."""
    path = write_run(tmp_path / "loss_1")
    (tmp_path / "loss_1/inner").mkdir()
    for place, resume in (("loss_1", "."), ("loss_1", path.name), ("loss_1/inner", ".."), ("", "loss_1")):
        monkeypatch.chdir(tmp_path / place)
        assert find_checkpoint(resume, "logs") == path
        values = resolve_resume(FILE, FILE | {"resume": resume}, {"resume"})
        assert (values["resume"], values["save_dir"]) == (str(path), str(tmp_path))


def test_there_is_no_run_to_go_on_with(tmp_path):
    """Prevents a new training where an old one was meant to go on; the sentence says what was looked for."""
    with pytest.raises(ValueError) as error:
        find_checkpoint(True, tmp_path)
    assert str(error.value) == (
        f"resume is True, but no run under save_dir '{tmp_path}' has a last_checkpoint.pth: set save_dir to where the "
        "run is, resume to its folder, or resume = False to begin."
    )
    for wrong, missing in ((tmp_path, tmp_path / "last_checkpoint.pth"), (tmp_path / "a", tmp_path / "a")):
        with pytest.raises(ValueError) as error:
            find_checkpoint(str(wrong), tmp_path)
        assert str(error.value).startswith(f"resume is '{wrong}', and there is no {missing}; expected the folder of")


def test_weights_are_no_checkpoint(tmp_path):
    """Prevents a KeyError where a weight file is resumed: the sentence says how people go on from weights."""
    path = tmp_path / "last_epoch_weights.pth"
    save_weights(path, nn.Linear(1, 1), {})
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert str(error.value) == (
        f"{path} is no checkpoint of a training (it lacks run, training, ranks, log), so it cannot be resumed; "
        "expected a last_checkpoint.pth. To start a new training from weights set model_path to them, and resume = "
        "False."
    )
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="it lacks model, contract, run"):
        read_checkpoint(path, mmap=True)
    path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match=f"{path} is cut off"):
        read_checkpoint(path)


def test_a_new_run_keeps_its_settings():
    """Prevents a run that is not resumed from taking the settings of an old one; '' says that there is none."""
    assert resolve_resume(FILE, dict(FILE), ()) == FILE | {"resume": ""}


@pytest.mark.parametrize(
    ("first_given", "file_now", "given", "expected"),
    [
        ({"seed": 3}, {}, {}, {"seed": 3}),  # the command line of the first start
        ({"seed": 3}, {}, {"seed": 4}, {"seed": 4}),  # given now
        ({"seed": 3}, {"seed": 5}, {}, {"seed": 5}),  # edited in train.py since
        ({}, {"seed": 5}, {"seed": 4}, {"seed": 4}),
        ({}, {"seed": 5}, {}, {"seed": 5}),
        ({"UnFreeze_Epoch": 30, "seed": 3}, {}, {"UnFreeze_Epoch": 60}, {"UnFreeze_Epoch": 60, "seed": 3}),
        ({}, {}, {}, {}),
        ({"Init_lr": 0.01}, {"lr_decay_type": "step"}, {}, {"Init_lr": 0.01, "lr_decay_type": "step"}),
        ({}, {"lr_decay_type": None}, {}, {}),  # an update of the project leaves open what was 'cos'
    ],
)
def test_which_of_three_settings_counts(tmp_path, first_given, file_now, given, expected):
    """Prevents a resumed run that forgets the command line of its start, and wishes of today that are not heard."""
    path = write_run(tmp_path / "loss_1", **first_given)
    file_now = FILE | file_now
    merged = resolve_resume(file_now, file_now | given | {"resume": str(tmp_path / "loss_1")}, given)
    assert merged == FILE | expected | {"resume": str(path), "save_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 24), ({"Unfreeze_batch_size": 0}, 24), ({"Unfreeze_batch_size": 16}, 16)]
)
def test_a_batch_size_that_was_found_stays(tmp_path, given, expected):
    """Prevents a run that goes on with other batches because another GPU, or a launcher that starts it again with the
    command line of its start, lets 0 be measured anew."""
    constants = FILE | {"Unfreeze_batch_size": 0}
    write_run(tmp_path / "loss_1", constants=constants, Unfreeze_batch_size=24)
    merged = resolve_resume(constants, constants | given | {"resume": str(tmp_path / "loss_1")}, given)
    assert merged["Unfreeze_batch_size"] == expected


def test_what_the_run_began_with_stays(tmp_path):
    """Prevents epochs that are left out without a word, and a launcher that is asked for because the run had one."""
    write_run(tmp_path / "loss_1", constants=FILE | {"Init_Epoch": 0, "distributed": False}, distributed=True)
    constants = FILE | {"Init_Epoch": 0, "distributed": False}
    given = {"Init_Epoch": 4, "resume": str(tmp_path / "loss_1")}
    merged = resolve_resume(constants, constants | given, given)
    assert (merged["Init_Epoch"], merged["distributed"]) == (0, False)


def test_constants_that_a_run_did_not_have_yet(tmp_path):
    """Prevents runs of an older version from not going on: what is new has its value of train.py."""
    write_run(tmp_path / "loss_1", seed=3)
    constants = FILE | {"new_one": 7}
    merged = resolve_resume(constants, constants | {"resume": str(tmp_path / "loss_1")}, ("resume",))
    assert (merged["new_one"], merged["seed"]) == (7, 3)


def test_a_function_of_the_user_stays_one(tmp_path):
    """Prevents the name of a function, which is all that a file can hold, from standing where the function did."""

    def my_schedule(epoch):
        return 1.0

    write_run(tmp_path / "loss_1", constants=FILE | {"lr_decay_type": "my_schedule"})
    constants = FILE | {"lr_decay_type": my_schedule}
    merged = resolve_resume(constants, constants | {"resume": str(tmp_path / "loss_1")}, ("resume",))
    assert merged["lr_decay_type"] is my_schedule


@pytest.mark.parametrize(
    ("name", "now"), [("class_names", ["cat", "cow"]), ("model_name", "yolov4"), ("input_shape", [96, 96])]
)
def test_another_run_is_refused(tmp_path, name, now):
    """Prevents weights that go on with other classes or another network; the sentence shows both."""
    path = write_run(tmp_path / "loss_1")
    content = read_checkpoint(path)
    settings = SimpleNamespace(**FILE)
    check_resumable(path, content, content["contract"], settings)
    with pytest.raises(ValueError) as error:
        check_resumable(path, content, content["contract"] | {name: now}, settings)
    assert str(error.value) == (
        f"{path} is of a run with {name} {content['contract'][name]!r}, and now it is {now!r}: resume goes on with the "
        "same run. Set it back, or start a new training from its weights by model_path."
    )


@pytest.mark.parametrize(
    ("state", "changes", "is_over"),
    [
        ({"epoch": 100}, {}, True),
        ({"epoch": 100, "is_over": True}, {"UnFreeze_Epoch": 120}, False),
        ({"epoch": 40, "is_over": True}, {}, True),  # ended by patience
        ({"epoch": 40, "is_over": True}, {"patience": 9}, False),
        ({"epoch": 40, "is_over": True}, {"UnFreeze_Epoch": 120}, False),
        ({"epoch": 40}, {"UnFreeze_Epoch": 40}, True),
        ({"epoch": 99, "images": 5}, {}, False),
    ],
)
def test_a_run_that_is_over_says_so(tmp_path, state, changes, is_over):
    """Prevents a resume that silently does nothing, and one that is refused though there are epochs left."""
    path = write_run(tmp_path / "loss_1", **state)
    settings, content = SimpleNamespace(**FILE | changes), read_checkpoint(path)
    message = (
        f"{path} is of a run that is over, after epoch {state['epoch']} of {settings.UnFreeze_Epoch}; to train it "
        "further raise UnFreeze_Epoch (and patience, if that ended it)."
    )
    with pytest.raises(ValueError, match=re.escape(message)) if is_over else nullcontext():
        check_resumable(path, content, content["contract"], settings)


def test_what_is_said_of_a_run_that_goes_on(tmp_path):
    """Prevents an extended or changed run that nobody knows to be one; where files lie is no news."""
    path = write_run(tmp_path / "loss_1", images=16)
    content = read_checkpoint(path)
    (line,) = resume_summary(path, content, SimpleNamespace(**FILE | {"save_dir": "b", "model_path": "a.pth"}))
    assert line == f"resumes {path}: 3 of 100 epochs and 16 images are done"
    content["run"]["images"] = 0
    changed = SimpleNamespace(**FILE | {"UnFreeze_Epoch": 120, "Init_lr": 0.01})
    assert list(resume_summary(path, content, changed)) == [
        f"resumes {path}: 3 of 120 epochs are done",
        "UnFreeze_Epoch was 100 and is 120: the schedule of the learning rate, the end of mosaic and the average of "
        "the weights are planned anew.",
        "Init_lr was 0.08 and is 0.01 from here on.",
    ]
