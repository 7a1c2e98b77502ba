import os
import random
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from nets import build_model
from utils.checkpoint.checkpointer import Position, TrainingState
from utils.checkpoint.resume import (
    check_same_run,
    find_checkpoint,
    is_running,
    process,
    read_checkpoint,
    settings_to_go_on,
    words_to_go_on,
)
from utils.runtime.device import Precision, random_states, set_random_states
from utils.training.engine import Stepper, train_one_epoch
from utils.training.lr_schedule import Schedule
from utils.training.optim import ModelEma, build_optimizer, parameter_groups
from utils.training.phases import Phase
from utils.weights.metadata import make_contract
from utils.weights.save import save_content, save_weights, snapshot

CPU = torch.device("cpu")
CONTRACT = make_contract(build_model("yolox_nano", 2), ["cat", "dog"], (64, 64), {"mode": "topleft", "pad": 114})
FILE = {"gpu_ids": "", "distributed": False, "Cuda": False, "resume": False, "save_dir": "logs", "seed": 11}
FILE |= {"Init_lr": 8e-2, "UnFreeze_Epoch": 100, "patience": 0, "model_path": "", "lr_decay_type": "cos"}
FILE |= {"optimizer_type": "sgd"}


def write_run(folder, launch="", epoch=3, images=0, is_over=False, constants=FILE, **given):
    """A checkpoint, but for its tensors; given: what stood on the command line. Returns its path."""
    run = {"settings": constants | given, "constants": dict(constants), "launch": launch, "order": [11, 6]}
    run |= {"epoch": epoch, "images": images, "is_over": is_over}
    folder.mkdir(parents=True)
    path = folder / "last_checkpoint.pth"
    save_content(path, {"model": {}, "contract": CONTRACT, "run": run, "training": {}, "ranks": [], "log": {}})
    return path


@pytest.mark.parametrize(
    ("position", "batch_size", "done", "expected"),
    [
        (Position(4), 8, 0, Position(4, 0)),
        (Position(4), 8, 2, Position(4, 16)),
        (Position(4), 8, 3, Position(4, 20)),
        (Position(4), 8, 20, Position(4, 20)),
        (Position(4, 16), 8, 2, Position(4, 16)),
        (Position(4, 16), 8, 3, Position(4, 20)),
        # Batches of 8 before, of 6 from here on: 8 images count as two of them.
        (Position(4, 8), 6, 3, Position(4, 14)),
        (Position(4, 20), 8, 3, Position(4, 20)),
    ],
)
def test_positions_by_hand(position, batch_size, done, expected):
    """Prevents images that train twice or never in an epoch that is taken up again: it has 20 images."""
    assert position.after(done, batch_size, 20) == expected


def test_a_phase_begins_with_its_first_step():
    """Prevents an optimiser whose groups are not those of the checkpoint at the unfreeze epoch: there it is saved
    before the backbone joins."""
    unfrozen = Phase(False, 10, 20, 8)
    places = [Position(9, 90), Position(10, 0), Position(10, 8), Position(11, 0)]
    assert [place.has_begun(unfrozen) for place in places] == [False, False, True, True]
    assert [place.batches(8) for place in (*places[:2], Position(0, 17))] == [12, 0, 3]


def test_random_states_go_on_through_a_file(tmp_path):
    """Prevents other random numbers after a resume, and states that torch refuses to load."""

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.normal(), np.random.rand()

    np.random.normal()  # numpy keeps the second of a pair
    save_content(tmp_path / "states.pth", snapshot(random_states(CPU)))
    drawn = draw()
    assert draw() != drawn
    set_random_states(torch.load(tmp_path / "states.pth", weights_only=True), CPU)
    assert draw() == drawn


def parts_of(ema, scales=True):
    """A small model and its TrainingState."""
    settings = SimpleNamespace(lr_decay_type="plateau", UnFreeze_Epoch=9, Init_Epoch=0, Init_lr=0.1, Min_lr=None)
    vars(settings).update(lr_factor=0.5, lr_patience=0, lr_cooldown=0, lr_gamma=None)
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = build_optimizer("sgd", parameter_groups(model, 5e-4, 0), 0.9)
    average = ModelEma(model, 100) if ema else None
    stepper = Stepper(model, optimizer, average, Precision(torch.float32, scales, ""), CPU)
    return model, TrainingState(stepper, Schedule(settings))


def train_epoch(model, state, number):
    """Two steps; then the schedule looks at a loss that only rises."""

    def criterion(raw, _targets):
        return {"loss": raw.square().mean(), "count": torch.tensor([0.0, 4.0])}

    generator = torch.Generator().manual_seed(number)
    images = torch.randn(2, 4, 1, generator=generator)
    batches = [SimpleNamespace(images=part, targets=part, unreadable=[], cut_off=[]) for part in images]

    def rates(share):
        return state.schedule.set_rates(state.stepper.optimizer, 1 + number + share, 0.1, 0.001)

    result = train_one_epoch(model.train(), criterion, batches, state.stepper, rates, 1, "")
    state.schedule.end_epoch(1.0 + number)
    return result.losses["loss"], result.learning_rate


def test_a_training_goes_on_to_the_last_bit(tmp_path):
    """Prevents weights, momenta, averages, rates, scale or a count of bad steps that begin anew at a resume."""
    whole, of_whole = parts_of(ema=True)
    start = snapshot(whole.state_dict())
    numbers = [train_epoch(whole, of_whole, number) for number in range(4)]

    model, state = parts_of(ema=True)
    for part in (model, state.stepper.ema.model):
        part.load_state_dict(start)
    for number in range(2):
        train_epoch(model, state, number)
    state.stepper.bad_in_a_row = 3
    save_content(tmp_path / "state.pth", snapshot({"all": state.captured()}))
    weights, training = torch.load(tmp_path / "state.pth", weights_only=True)["all"]

    model, state = parts_of(ema=True)
    model.load_state_dict(weights)
    state.restore(training, Position(2))
    assert state.stepper.bad_in_a_row == 3
    assert [train_epoch(model, state, number) for number in (2, 3)] == numbers[2:]
    assert numbers[2][1] < numbers[1][1]
    for mine, its in ((model, whole), (state.stepper.ema.model, of_whole.stepper.ema.model)):
        assert all(map(torch.equal, mine.state_dict().values(), its.state_dict().values()))
    assert state.stepper.scaler.state_dict() == of_whole.stepper.scaler.state_dict()


def test_another_optimizer_is_refused(tmp_path):
    """Prevents a KeyError at the first step: adam has no use for the momenta of sgd."""
    path = write_run(tmp_path / "loss_1")
    content = read_checkpoint(path)
    with pytest.raises(ValueError, match="is of a run with optimizer_type 'sgd', and now it is 'adam': resume goes on"):
        check_same_run(path, content, content["contract"], SimpleNamespace(**FILE | {"optimizer_type": "adam"}))


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_average_and_loss_scale_may_come_or_go_with_a_resume(before, after):
    """Prevents a crash where ema or the machine's precision is another one, and an average of a start that the training
    has left long ago."""
    model, state = parts_of(before, before)
    train_epoch(model, state, 0)
    weights, training = snapshot(state.captured())
    model, state = parts_of(after, after)
    model.load_state_dict(weights)
    state.restore(training, Position(1))
    if after:
        averaged = state.stepper.ema.model.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in averaged.items())


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
    assert settings_to_go_on(FILE, dict(FILE), ()) == FILE | {"resume": ""}


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
    ],
)
def test_which_of_three_settings_counts(tmp_path, first_given, file_now, given, expected):
    """Prevents a resumed run that forgets the command line of its start, and wishes of today that are not heard."""
    path = write_run(tmp_path / "loss_1", **first_given)
    file_now = FILE | file_now
    merged = settings_to_go_on(file_now, file_now | given | {"resume": str(tmp_path / "loss_1")}, given)
    assert merged == FILE | expected | {"resume": str(path), "save_dir": str(tmp_path)}


def test_what_the_run_began_with_stays(tmp_path):
    """Prevents epochs that are left out without a word, and a launcher that is asked for because the run had one."""
    write_run(tmp_path / "loss_1", constants=FILE | {"Init_Epoch": 0, "distributed": False}, distributed=True)
    constants = FILE | {"Init_Epoch": 0, "distributed": False}
    given = {"Init_Epoch": 4, "resume": str(tmp_path / "loss_1")}
    merged = settings_to_go_on(constants, constants | given, given)
    assert (merged["Init_Epoch"], merged["distributed"]) == (0, False)


def test_constants_that_a_run_did_not_have_yet(tmp_path):
    """Prevents runs of an older version from not going on: what is new has its value of train.py."""
    write_run(tmp_path / "loss_1", seed=3)
    constants = FILE | {"new_one": 7}
    merged = settings_to_go_on(constants, constants | {"resume": str(tmp_path / "loss_1")}, ("resume",))
    assert (merged["new_one"], merged["seed"]) == (7, 3)


def test_a_function_of_the_user_stays_one(tmp_path):
    """Prevents the name of a function, which is all that a file can hold, from standing where the function did."""

    def my_course(epoch):
        return 1.0

    write_run(tmp_path / "loss_1", constants=FILE | {"lr_decay_type": "my_course"})
    constants = FILE | {"lr_decay_type": my_course}
    merged = settings_to_go_on(constants, constants | {"resume": str(tmp_path / "loss_1")}, ("resume",))
    assert merged["lr_decay_type"] is my_course


@pytest.mark.parametrize(
    ("name", "now"), [("class_names", ["cat", "cow"]), ("model_name", "yolov4"), ("input_shape", [96, 96])]
)
def test_another_run_is_refused(tmp_path, name, now):
    """Prevents weights that go on with other classes or another network; the sentence shows both."""
    path = write_run(tmp_path / "loss_1")
    content = read_checkpoint(path)
    settings = SimpleNamespace(**FILE)
    check_same_run(path, content, content["contract"], settings)
    with pytest.raises(ValueError) as error:
        check_same_run(path, content, content["contract"] | {name: now}, settings)
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
        check_same_run(path, content, content["contract"], settings)


def test_what_is_said_of_a_run_that_goes_on(tmp_path):
    """Prevents an extended or changed run that nobody knows to be one; where files lie is no news."""
    path = write_run(tmp_path / "loss_1", images=16)
    content = read_checkpoint(path)
    (line,) = words_to_go_on(path, content, SimpleNamespace(**FILE | {"save_dir": "b", "model_path": "a.pth"}))
    assert line == f"resumes {path}: 3 of 100 epochs and 16 images are done"
    content["run"]["images"] = 0
    changed = SimpleNamespace(**FILE | {"UnFreeze_Epoch": 120, "Init_lr": 0.01})
    assert list(words_to_go_on(path, content, changed)) == [
        f"resumes {path}: 3 of 120 epochs are done",
        "UnFreeze_Epoch was 100 and is 120: the course of the learning rate, the end of mosaic and the average of the "
        "weights are planned anew for so many epochs.",
        "Init_lr was 0.08 and is 0.01 from here on.",
    ]
