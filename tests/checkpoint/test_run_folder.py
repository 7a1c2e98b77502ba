import json
import math
import re
import shutil
import threading
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoint.test_resume import METADATA as RUN_METADATA
from utils.checkpoint import run_folder
from utils.checkpoint.run_folder import WeightSaver, check_disk, new_run_folder, save_settings
from utils.checkpoint.writer import BackgroundWriter
from utils.io.errors import UserError
from utils.training.phases import Phase
from utils.weights.save import save_content, save_state


@pytest.fixture
def same_second(monkeypatch):
    monkeypatch.setattr(run_folder, "datetime", SimpleNamespace(now=lambda: datetime(2026, 3, 4, 5, 6, 7)))


def test_a_run_folder_is_named_by_the_time(tmp_path):
    """Prevents runs whose order the names do not show."""
    before = datetime.now().replace(microsecond=0)
    folder = new_run_folder(tmp_path)
    assert folder.is_dir() and folder.parent == tmp_path
    assert re.fullmatch(r"loss_\d{4}(_\d\d){5}", folder.name)
    assert before <= datetime.strptime(folder.name, "loss_%Y_%m_%d_%H_%M_%S") <= datetime.now()


def test_runs_of_the_same_second_do_not_share_a_folder(tmp_path, same_second):
    """Prevents a run from overwriting another's weights, and a save_dir that must exist beforehand."""
    save_dir = tmp_path / "new" / "logs"
    assert [new_run_folder(save_dir).name for _ in range(3)] == [
        "loss_2026_03_04_05_06_07",
        "loss_2026_03_04_05_06_07_2",
        "loss_2026_03_04_05_06_07_3",
    ]


def test_a_save_dir_that_is_a_file_is_named(tmp_path):
    """Prevents a trace where save_dir cannot hold a folder."""
    path = tmp_path / "logs"
    path.write_text("")
    for save_dir in (path, path / "deeper"):
        with pytest.raises(ValueError) as error:
            new_run_folder(str(save_dir))
        assert str(error.value).startswith(f"save_dir is {str(save_dir)!r}")


@pytest.mark.parametrize("settings", [{}, {"classes_path": "类/names.txt", "Min_lr": None, "input_shape": [64, 96]}])
def test_settings_are_read_back_as_they_were(tmp_path, settings):
    """Prevents a run that cannot be repeated; Chinese paths stay readable."""
    save_settings(tmp_path, settings)
    text = (tmp_path / "settings.json").read_text(encoding="utf-8")
    assert json.loads(text) == settings
    assert "\\u" not in text


@pytest.fixture
def make_weights(tmp_path):
    """A WeightSaver of one run's folder; called again, that of its continuation."""
    folder = tmp_path / "loss_2026_03_04_05_06_07"
    folder.mkdir()
    writer = BackgroundWriter()
    yield lambda save_period=2, keep_checkpoints=0: WeightSaver(folder, save_period, keep_checkpoints, writer)
    writer.close()


@pytest.fixture
def weights(make_weights):
    return make_weights()


def save_epochs(weights, scores, first=1, loss=1.23456):
    """Save one epoch per score, with a weight that says which epoch it is."""
    model, metadata = nn.Linear(1, 1, bias=False), dict(METADATA)
    for epoch, score in enumerate(scores, start=first):
        nn.init.constant_(model.weight, epoch)
        metadata["epoch"] = epoch
        weights.save(model, metadata, epoch, epoch == first + len(scores) - 1, loss, 2.5, score)
    weights.writer.wait()


def kept_names(weights):
    return sorted(path.name for path in weights.folder.glob("ep*"))


METADATA = {"model_name": "toy", "class_names": []}


def epoch_in(path):
    content = torch.load(path, weights_only=True)
    assert content["model"]["weight"].item() == content["contract"]["epoch"]
    return content["contract"]["epoch"]


def test_best_follows_the_score_and_last_the_epoch(weights):
    """Prevents best weights that are not the best: a tie, or an epoch that was not scored, replaces nothing."""
    save_epochs(weights, [None, 0.3, 0.5, 0.4, 0.5])
    assert (weights.best_score, weights.best_epoch) == (0.5, 3)
    for folder in (weights.folder, weights.folder.parent):
        assert epoch_in(folder / "best_epoch_weights.pth") == 3
        assert epoch_in(folder / "last_epoch_weights.pth") == 5


def test_kept_files_are_named_by_epoch_and_losses(weights):
    """Prevents other names than users' scripts look for, and a last epoch that is not kept."""
    save_epochs(weights, [None, 0.3, 0.5, 0.4, 0.5])
    assert sorted(path.name for path in weights.folder.iterdir()) == [
        "best_epoch_weights.pth",
        "ep002-loss1.235-val_loss2.500.pth",
        "ep004-loss1.235-val_loss2.500.pth",
        "ep005-loss1.235-val_loss2.500.pth",
        "last_epoch_weights.pth",
    ]
    assert [epoch_in(path) for path in sorted(weights.folder.glob("ep0*"))] == [2, 4, 5]
    assert sorted(path.name for path in weights.folder.parent.iterdir() if path.is_file()) == [
        "best_epoch_weights.pth",
        "last_epoch_weights.pth",
    ]


def test_validation_losses_are_scores_with_their_sign_turned(weights):
    """Prevents a negative score from never being the best."""
    save_epochs(weights, [-3.0, -1.0, -2.0])
    assert (weights.best_score, weights.best_epoch) == (-1.0, 2)


def test_until_a_score_comes_the_newest_is_the_best(weights):
    """Prevents predict.py from finding the best weights of an older run, and a NaN that stays best for ever."""
    save_epochs(weights, [None, math.nan])
    assert weights.best_score is None
    assert (weights.folder / "best_epoch_weights.pth").is_file()
    assert (weights.folder.parent / "best_epoch_weights.pth").is_file()
    assert (weights.folder / "last_epoch_weights.pth").is_file()


def test_a_run_stalls_by_epochs_since_its_best(weights):
    """Prevents a stop while no epoch was scored yet, one epoch too early, or with patience = 0."""
    assert not weights.has_stalled(100, 5)
    weights.best_epoch = 10
    assert [weights.has_stalled(epoch, 5) for epoch in (10, 14, 15, 16)] == [False, False, True, True]
    assert not weights.has_stalled(1000, 0)


def test_the_newest_checkpoints_stay(make_weights):
    """Prevents a full disk in long runs, and the loss of best, last or a file that is not ours."""
    weights = make_weights(save_period=1, keep_checkpoints=2)
    for name in ("ep001-mine.pth", "ep001-loss1.000-val_loss1.000 (copy).pth", "ep.txt"):
        (weights.folder / name).touch()
    save_epochs(weights, [0.5, 0.4, math.nan, 0.3])
    assert kept_names(weights) == [
        *("ep.txt", "ep001-loss1.000-val_loss1.000 (copy).pth", "ep001-mine.pth"),
        *("ep003-loss1.235-val_loss2.500.pth", "ep004-loss1.235-val_loss2.500.pth"),
    ]
    assert epoch_in(weights.folder / "best_epoch_weights.pth") == 1
    assert epoch_in(weights.folder / "last_epoch_weights.pth") == 4


def test_a_run_that_goes_on_counts_the_files_it_finds(make_weights):
    """Prevents old files from staying for ever, two files of one epoch, and 1000 from sorting before 999."""
    save_epochs(make_weights(save_period=1, keep_checkpoints=2), [0.1, 0.2], first=998)
    weights = make_weights(save_period=1, keep_checkpoints=2)
    save_epochs(weights, [0.2], first=999, loss=math.nan)
    assert kept_names(weights) == ["ep998-loss1.235-val_loss2.500.pth", "ep999-lossnan-val_loss2.500.pth"]
    save_epochs(weights, [0.2, 0.2], first=1000)
    assert kept_names(weights) == ["ep1000-loss1.235-val_loss2.500.pth", "ep1001-loss1.235-val_loss2.500.pth"]


def test_a_run_that_goes_on_knows_its_best(make_weights):
    """Prevents worse weights in the place of the best ones, and a state that only code can read back."""
    before = make_weights()
    assert before.state_dict() == {"best_score": None, "best_epoch": None}
    save_epochs(before, [np.float64(0.5), 0.25])
    state = before.state_dict()
    assert state == {"best_score": 0.5, "best_epoch": 1} and type(state["best_score"]) is float
    (before.folder / "ep003-loss1.235-val_loss2.500.pth.99.tmp").touch()
    (before.folder.parent / "last_epoch_weights.pth.99.tmp").touch()
    weights = make_weights()
    weights.load_state_dict(state)
    save_epochs(weights, [0.4], first=3)
    assert (weights.best_epoch, epoch_in(weights.folder / "best_epoch_weights.pth")) == (1, 1)
    assert [path.parent.name for path in weights.folder.parent.rglob("*.tmp")] == [weights.folder.parent.name]


def test_files_hold_the_epoch_that_was_saved(weights):
    """Prevents a file with the weights of a later step: it is written while training goes on."""
    go_on = threading.Event()
    weights.writer.submit("a", lambda: go_on.wait(10))
    model, metadata = nn.Linear(1, 1, bias=False), {"epoch": 1}
    nn.init.constant_(model.weight, 1)
    weights.save(model, metadata, 1, False, 1.0, 1.0, None)
    nn.init.constant_(model.weight, 2)
    metadata["epoch"] = 2
    go_on.set()
    weights.writer.wait()
    assert epoch_in(weights.folder / "last_epoch_weights.pth") == 1


def test_what_the_disk_had_no_room_for_is_written_later(make_weights, capsys, monkeypatch):
    """Prevents the loss of the best weights where the disk was full in that one epoch, and of the older file."""
    weights = make_weights(save_period=2, keep_checkpoints=1)
    save_epochs(weights, [0.1, 0.2])

    def full(path, *_content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "save_state", full)
    save_epochs(weights, [0.5, 0.4], first=3)
    assert epoch_in(weights.folder / "best_epoch_weights.pth") == 2
    assert kept_names(weights) == ["ep002-loss1.235-val_loss2.500.pth"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(".pth could not")[0].split("/")[-1] for line in said] == ["last_epoch_weights"] * 2
    monkeypatch.setattr(run_folder, "save_state", save_state)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5)
    weights.save(model, {"epoch": 5}, 5, False, 1.0, 1.0, 0.3)
    weights.writer.close()
    for folder in (weights.folder, weights.folder.parent):
        assert epoch_in(folder / "best_epoch_weights.pth") == 3
        assert epoch_in(folder / "last_epoch_weights.pth") == 5
    assert kept_names(weights) == ["ep004-loss1.235-val_loss2.500.pth"]
    assert capsys.readouterr().out == ""


FROZEN, UNFROZEN = Phase(True, 0, 2, 4), Phase(False, 2, 6, 2)


def checkpointer_of(path, model, close=lambda: None):
    """What check_disk knows of a Checkpointer."""
    run_logger = SimpleNamespace(writer=SimpleNamespace(close=close))
    return SimpleNamespace(path=path, optim=SimpleNamespace(eval_model=model), run_logger=run_logger)


def settings_of(**changes):
    return SimpleNamespace(**{"save_dir": "logs", "save_period": 10, "keep_checkpoints": 0} | changes)


@pytest.fixture
def disk(monkeypatch, tmp_path, capsys):
    """A function: what is said of a disk with so many bytes free, for a checkpoint of a model of 4 MB."""
    path, model = tmp_path / "last_checkpoint.pth", nn.Linear(1000, 1000, bias=False)
    content = {key: {} for key in ("run", "training", "ranks", "log")}
    save_content(path, content | {"model": model.state_dict(), "contract": RUN_METADATA})

    def said(free, **changes):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage if folder == tmp_path else None)
        check_disk(checkpointer_of(path, model), settings_of(**changes), [FROZEN, UNFROZEN])
        return capsys.readouterr().out

    return said


def test_a_disk_that_suffices(disk):
    """Prevents a run from being refused: six epochs keep 2, 4, 6 and one more; with best, last, their copies and a
    file being written 9 of 4 MB, the checkpoint, and 67 MB for the rest."""
    assert disk(10**9, save_period=2) == "           checkpoint of 4.0 MB, 107.1 MB to come, 1.0 GB free\n\n"
    assert "95.1 MB to come" in disk(10**9, save_period=2, keep_checkpoints=1)
    assert "107.1 MB to come" in disk(10**9, save_period=2, keep_checkpoints=9)


def test_a_disk_that_is_too_small_is_found_now(disk):
    """Prevents a disk that is full at night; the sentence says how much is missing, and which constants change it."""
    with pytest.raises(ValueError) as error:
        disk(10**8, save_period=2)
    assert str(error.value) == (
        "save_dir is 'logs', whose disk has 100.0 MB free; this run will write about 107.1 MB (4 files ep*.pth of 4.0 "
        "MB each among them). Free space, choose another save_dir, raise save_period, or set keep_checkpoints = 3."
    )


def test_a_checkpoint_that_cannot_be_read_back_is_found_now(tmp_path):
    """Prevents hours of training whose state turns out to be unreadable, or was never written."""
    path = tmp_path / "last_checkpoint.pth"
    checkpointer = checkpointer_of(path, nn.Linear(1, 1))
    with pytest.raises(ValueError, match=f"save_dir is 'logs', and {path} could not be written there, as said above;"):
        check_disk(checkpointer, settings_of(), [UNFROZEN])

    def fail():
        raise UserError("last_checkpoint.pth could not be written to the end; files of an earlier save are kept.")

    checkpointer = checkpointer_of(path, nn.Linear(1, 1), close=fail)
    with pytest.raises(ValueError, match="could not be written there, as said above;"):  # nothing was kept
        check_disk(checkpointer, settings_of(), [UNFROZEN])
    path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match="files of an earlier save are kept"):
        check_disk(checkpointer, settings_of(), [UNFROZEN])
    checkpointer = checkpointer_of(path, nn.Linear(1, 1))
    with pytest.raises(ValueError, match=f"{path} is cut off"):
        check_disk(checkpointer, settings_of(), [UNFROZEN])


def test_a_rank_that_writes_nothing_needs_no_disk():
    """Prevents a rank from waiting for a file that the main one alone writes, maybe on a disk of another machine."""
    check_disk(checkpointer_of(None, nn.Linear(1, 1), close=None), settings_of(), [UNFROZEN])
