import json
import math
import re
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils import outputs
from utils.outputs import WeightFiles, new_run_folder, save_settings


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
def files(tmp_path):
    folder = tmp_path / "loss_2026_03_04_05_06_07"
    folder.mkdir()
    return WeightFiles(folder, save_period=2)


def save_epochs(files, scores):
    """Save one epoch per score, with a weight that says which epoch it is."""
    model = nn.Linear(1, 1, bias=False)
    for epoch, score in enumerate(scores, start=1):
        nn.init.constant_(model.weight, epoch)
        files.save(model, {"epoch": epoch} | CONTRACT, epoch, epoch == len(scores), 1.23456, 2.5, score)


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


def test_a_run_stalls_by_epochs_since_its_best(tmp_path):
    """Prevents a stop while no epoch was scored yet, one epoch too early, or with patience = 0."""
    files = WeightFiles(tmp_path, 10)
    assert not files.has_stalled(100, 5)
    files.best_epoch = 10
    assert [files.has_stalled(epoch, 5) for epoch in (10, 14, 15, 16)] == [False, False, True, True]
    assert not files.has_stalled(1000, 0)
