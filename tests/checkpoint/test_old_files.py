"""Files of the version before this one are still read, and its runs still go on.

tests/old_files holds what a training of one epoch left then: yolox_nano at 64x64 on VOCdevkit/Sample. Structure, names
and types are real; most tensors are constant, so that the files are small.
"""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from utils.checkpoint.resume import check_resumable, read_checkpoint
from utils.config.cli import override
from utils.config.constants import read_constants
from utils.inference import Detector
from utils.weights.read import read_weights

PROJECT = Path(__file__).resolve().parents[2]
OLD_FILES = PROJECT / "tests/old_files"
NAMES = ["fish", "leaf", "mushroom"]


@pytest.fixture
def old_run(tmp_path):
    """The folder of the old run, as it lay in its save_dir."""
    folder = tmp_path / "loss_2026_11_27_04_53_00"
    folder.mkdir()
    for path in OLD_FILES.iterdir():
        if path.suffix == ".gz":
            (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, folder)
    return folder


def read_rows(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_settings(folder):
    return json.loads((folder / "settings.json").read_text("utf-8"))


def test_old_weights_are_read(old_run):
    """Prevents weights that people have trained from becoming useless with an update."""
    path = str(old_run / "last_epoch_weights.pth")
    weights = read_weights(path)
    assert (weights.metadata["model_name"], weights.metadata["class_names"]) == ("yolox_nano", NAMES)
    assert (weights.metadata["epoch"], weights.source) == (1, "yolox_nano, 3 classes, written by this project")
    detector = Detector(path)
    assert (detector.class_names, detector.input_shape) == (NAMES, (64, 64))
    assert all(torch.equal(value, weights.state[key]) for key, value in detector.model.state_dict().items())
    image = next((PROJECT / "VOCdevkit/Sample/JPEGImages").iterdir())
    found = detector(str(image), confidence=0.001)
    assert len(found.boxes_xyxy) == len(found.scores)


def test_old_settings_are_constants_still():
    """Prevents a constant from being renamed, or from taking other values: settings.json is how a run is repeated."""
    constants, old = read_constants(vars(train)), read_settings(OLD_FILES)
    assert set(old) - set(constants) == set()
    settings = override(constants, old)
    assert {name: settings[name] for name in old} == old


def test_an_old_checkpoint_is_one(old_run):
    """Prevents a run that was broken off before an update from being refused after it."""
    content = read_checkpoint(old_run / "last_checkpoint.pth")
    assert (content["run"]["epoch"], content["run"]["images"]) == (1, 0)
    assert content["run"]["settings"] == read_settings(old_run)
    settings = train.config(**read_settings(old_run) | {"UnFreeze_Epoch": 2, "resume": str(old_run)})
    check_resumable(settings.resume, content, content["contract"], settings)


@pytest.mark.slow
def test_an_old_run_goes_on(old_run, monkeypatch, capsys):
    """Prevents momenta, average, schedule or curves of the version before from being lost, or from stopping the run."""
    monkeypatch.chdir(PROJECT)
    before, then = read_rows(old_run), read_settings(old_run)
    changes = {"resume": str(old_run), "UnFreeze_Epoch": 2, "Cuda": False}
    folder, scores = train.main(train.config(**changes))
    path = old_run / "last_checkpoint.pth"
    shown = capsys.readouterr().out
    assert shown.startswith("Python, torch ") and f"resumes {path}: 1 of 2 epochs are done" in shown
    assert (folder / "train.log").read_text("utf-8") == shown
    assert folder == old_run and scores is not None
    rows = read_rows(folder)
    assert list(rows[0]) == list(before[0]) and rows[0] == before[0]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(rows[1][name]) > 0 for name in ("loss", "val_loss", "lr", "images_per_second"))
    # train.py says something else for these since, which counts as an edit.
    changes |= {name: vars(train)[name] for name in ("cudnn_benchmark", "compile", "Freeze_Train")}
    changes |= {"resume": str(path), "save_dir": str(old_run.parent)}
    # And what is new in it since has its value there.
    new = {name: value for name, value in read_constants(vars(train)).items() if name not in then}
    assert read_settings(folder) == new | then | changes
    content = read_checkpoint(path)
    assert (content["run"]["epoch"], content["run"]["is_over"]) == (2, True)
    assert content["training"]["average"]["steps"] == 28
    assert read_weights(folder / "last_epoch_weights.pth").metadata["epoch"] == 2
