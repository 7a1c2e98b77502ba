import json
import math
import re
import threading
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from utils.checkpoint import run_folder as outputs
from utils.checkpoint.run_folder import WeightFiles, new_run_folder, save_settings
from utils.checkpoint.writer import Saver
from utils.weights.save import save_state


@pytest.fixture
def same_second(monkeypatch):
    monkeypatch.setattr(outputs, "datetime", SimpleNamespace(now=lambda: datetime(2026, 3, 4, 5, 6, 7)))


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
def said():
    return []


@pytest.fixture
def make_files(tmp_path, said):
    """Files of one run's folder; called again, those of its continuation."""
    folder = tmp_path / "loss_2026_03_04_05_06_07"
    folder.mkdir()
    saver = Saver(said.append)
    yield lambda save_period=2, keep_checkpoints=0: WeightFiles(folder, save_period, keep_checkpoints, saver)
    saver.close()


@pytest.fixture
def files(make_files):
    return make_files()


def save_epochs(files, scores, first=1, loss=1.23456):
    """Save one epoch per score, with a weight that says which epoch it is."""
    model, contract = nn.Linear(1, 1, bias=False), dict(CONTRACT)
    for epoch, score in enumerate(scores, start=first):
        nn.init.constant_(model.weight, epoch)
        contract["epoch"] = epoch
        files.save(model, contract, epoch, epoch == first + len(scores) - 1, loss, 2.5, score)
    files.saver.wait()


def kept_names(files):
    return sorted(path.name for path in files.folder.glob("ep*"))


CONTRACT = {"model_name": "toy", "class_names": []}


def epoch_in(path):
    content = torch.load(path, weights_only=True)
    assert content["model"]["weight"].item() == content["contract"]["epoch"]
    return content["contract"]["epoch"]


def test_best_follows_the_score_and_last_the_epoch(files):
    """Prevents best weights that are not the best: a tie, or an epoch that was not scored, replaces nothing."""
    save_epochs(files, [None, 0.3, 0.5, 0.4, 0.5])
    assert (files.best_score, files.best_epoch) == (0.5, 3)
    for folder in (files.folder, files.folder.parent):
        assert epoch_in(folder / "best_epoch_weights.pth") == 3
        assert epoch_in(folder / "last_epoch_weights.pth") == 5


def test_kept_files_are_named_by_epoch_and_losses(files):
    """Prevents other names than users' scripts look for, and a last epoch that is not kept."""
    save_epochs(files, [None, 0.3, 0.5, 0.4, 0.5])
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "best_epoch_weights.pth",
        "ep002-loss1.235-val_loss2.500.pth",
        "ep004-loss1.235-val_loss2.500.pth",
        "ep005-loss1.235-val_loss2.500.pth",
        "last_epoch_weights.pth",
    ]
    assert [epoch_in(path) for path in sorted(files.folder.glob("ep0*"))] == [2, 4, 5]
    assert sorted(path.name for path in files.folder.parent.iterdir() if path.is_file()) == [
        "best_epoch_weights.pth",
        "last_epoch_weights.pth",
    ]


def test_validation_losses_are_scores_with_their_sign_turned(files):
    """Prevents a negative score from never being the best."""
    save_epochs(files, [-3.0, -1.0, -2.0])
    assert (files.best_score, files.best_epoch) == (-1.0, 2)


def test_until_a_score_comes_the_newest_is_the_best(files):
    """Prevents predict.py from finding the best weights of an older run, and a NaN that stays best for ever."""
    save_epochs(files, [None, math.nan])
    assert files.best_score is None
    assert (files.folder / "best_epoch_weights.pth").is_file()
    assert (files.folder.parent / "best_epoch_weights.pth").is_file()
    assert (files.folder / "last_epoch_weights.pth").is_file()


def test_a_run_stalls_by_epochs_since_its_best(files):
    """Prevents a stop while no epoch was scored yet, one epoch too early, or with patience = 0."""
    assert not files.has_stalled(100, 5)
    files.best_epoch = 10
    assert [files.has_stalled(epoch, 5) for epoch in (10, 14, 15, 16)] == [False, False, True, True]
    assert not files.has_stalled(1000, 0)


def test_the_newest_checkpoints_stay(make_files):
    """Prevents a full disk in long runs, and the loss of best, last or a file that is not ours."""
    files = make_files(save_period=1, keep_checkpoints=2)
    for name in ("ep001-mine.pth", "ep001-loss1.000-val_loss1.000 (copy).pth", "ep.txt"):
        (files.folder / name).touch()
    save_epochs(files, [0.5, 0.4, math.nan, 0.3])
    assert kept_names(files) == [
        *("ep.txt", "ep001-loss1.000-val_loss1.000 (copy).pth", "ep001-mine.pth"),
        *("ep003-loss1.235-val_loss2.500.pth", "ep004-loss1.235-val_loss2.500.pth"),
    ]
    assert (epoch_in(files.folder / "best_epoch_weights.pth"), epoch_in(files.folder / "last_epoch_weights.pth")) == (
        1,
        4,
    )


def test_a_run_that_goes_on_counts_the_files_it_finds(make_files):
    """Prevents old files from staying for ever, two files of one epoch, and 1000 from sorting before 999."""
    save_epochs(make_files(save_period=1, keep_checkpoints=2), [0.1, 0.2], first=998)
    files = make_files(save_period=1, keep_checkpoints=2)
    save_epochs(files, [0.2], first=999, loss=math.nan)
    assert kept_names(files) == ["ep998-loss1.235-val_loss2.500.pth", "ep999-lossnan-val_loss2.500.pth"]
    save_epochs(files, [0.2, 0.2], first=1000)
    assert kept_names(files) == ["ep1000-loss1.235-val_loss2.500.pth", "ep1001-loss1.235-val_loss2.500.pth"]


def test_a_run_that_goes_on_knows_its_best(make_files):
    """Prevents worse weights in the place of the best ones, and a progress that only code can read back."""
    before = make_files()
    assert before.progress() == {"best_score": None, "best_epoch": None}
    save_epochs(before, [np.float64(0.5), 0.25])
    progress = before.progress()
    assert progress == {"best_score": 0.5, "best_epoch": 1} and type(progress["best_score"]) is float
    (before.folder / "ep003-loss1.235-val_loss2.500.pth.99.tmp").touch()
    (before.folder.parent / "last_epoch_weights.pth.99.tmp").touch()
    files = make_files()
    files.restore(progress)
    save_epochs(files, [0.4], first=3)
    assert (files.best_epoch, epoch_in(files.folder / "best_epoch_weights.pth")) == (1, 1)
    assert [path.parent.name for path in files.folder.parent.rglob("*.tmp")] == [files.folder.parent.name]


def test_files_hold_the_epoch_that_was_saved(files):
    """Prevents a file with the weights of a later step: it is written while training goes on."""
    go_on = threading.Event()
    files.saver.submit("a", lambda: go_on.wait(10))
    model, contract = nn.Linear(1, 1, bias=False), {"epoch": 1}
    nn.init.constant_(model.weight, 1)
    files.save(model, contract, 1, False, 1.0, 1.0, None)
    nn.init.constant_(model.weight, 2)
    contract["epoch"] = 2
    go_on.set()
    files.saver.wait()
    assert epoch_in(files.folder / "last_epoch_weights.pth") == 1


def test_what_the_disk_had_no_room_for_is_written_later(make_files, said, monkeypatch):
    """Prevents the loss of the best weights where the disk was full in that one epoch, and of the older file."""
    files = make_files(save_period=2, keep_checkpoints=1)
    save_epochs(files, [0.1, 0.2])

    def full(path, *_content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(outputs, "save_state", full)
    save_epochs(files, [0.5, 0.4], first=3)
    assert epoch_in(files.folder / "best_epoch_weights.pth") == 2
    assert kept_names(files) == ["ep002-loss1.235-val_loss2.500.pth"]
    assert [line.split(".pth could not")[0].split("/")[-1] for line in said] == ["last_epoch_weights"] * 2
    monkeypatch.setattr(outputs, "save_state", save_state)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5)
    files.save(model, {"epoch": 5}, 5, False, 1.0, 1.0, 0.3)
    files.saver.close()
    for folder in (files.folder, files.folder.parent):
        assert epoch_in(folder / "best_epoch_weights.pth") == 3
        assert epoch_in(folder / "last_epoch_weights.pth") == 5
    assert kept_names(files) == ["ep004-loss1.235-val_loss2.500.pth"]
    assert len(said) == 2
