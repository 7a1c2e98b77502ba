"""Whole programs, as a user runs them: train, go on from weights, predict, measure; and the mistakes users make."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from utils.config import script_constants
from utils.device import Ranks

PROJECT = Path(__file__).resolve().parent.parent
# Small and quick: two epochs on a few images at the smallest useful size.
QUICK = ("--input_shape=[64,64]", "--UnFreeze_Epoch=2", "--Freeze_Epoch=1", "--eval_period=1", "--fp16=False")


def run(script, *arguments, folder=PROJECT, environment=None):
    """Run a script of the project and return the finished process, its output as text."""
    command = [sys.executable, str(PROJECT / script), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **(environment or {})}
    )


def error_of(process):
    """The one message of a failed run: no trace, non-zero exit."""
    assert process.returncode != 0, process.stdout
    assert "Traceback" not in process.stderr, process.stderr
    return process.stderr.strip()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A short training from scratch: (its save_dir, the finished process)."""
    save_dir = tmp_path_factory.mktemp("logs")
    process = run("train.py", *QUICK, f"--save_dir={save_dir}", "--save_period=1")
    assert process.returncode == 0, process.stderr
    return save_dir, process


def test_a_training_leaves_all_its_files(first_run):
    """Prevents a run whose results cannot be found: every promised file exists and holds a row per epoch."""
    save_dir, process = first_run
    (folder,) = save_dir.glob("loss_20*")
    names = {path.name for path in folder.iterdir()}
    assert {"epoch_loss.txt", "epoch_val_loss.txt", "epoch_loss.png", "epoch_map.txt", "epoch_map.png"} <= names
    assert {"results.csv", "settings.json", "best_epoch_weights.pth", "last_epoch_weights.pth"} <= names
    assert sum(name.startswith("ep0") and name.endswith(".pth") for name in names) == 2
    assert any(name.startswith("events.out.tfevents") for name in names)
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 and float(row["val_loss"]) > 0 and row["map50"] for row in rows)
    assert json.loads((folder / "settings.json").read_text())["UnFreeze_Epoch"] == 2
    assert "nothing is worth freezing" in process.stdout
    assert str(folder / "best_epoch_weights.pth") in process.stdout
    assert "Only " in process.stdout and "optimiser steps" in process.stdout


def test_a_weight_file_says_how_it_is_used(first_run):
    """Prevents weights that are used with other classes or pixels than they were trained with."""
    content = torch.load(first_run[0] / "best_epoch_weights.pth", weights_only=True)
    contract = content["contract"]
    assert contract["model_name"] == "yolox_nano"
    assert contract["class_names"] == ["fish", "leaf", "mushroom"]
    assert contract["input_shape"] == [64, 64]
    assert contract["pixel_rule"] == {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    assert contract["resize_rule"] == {"mode": "topleft", "pad": 114}


def test_training_goes_on_from_its_own_weights_with_the_backbone_frozen(first_run, tmp_path):
    """Prevents a frozen phase that moves the backbone or its BatchNorm statistics, and an idle unfrozen one."""
    start = first_run[0] / "last_epoch_weights.pth"
    process = run(
        "train.py", *QUICK, f"--save_dir={tmp_path}", f"--model_path={start}", "--save_period=1", "--ema=False"
    )
    assert process.returncode == 0, process.stderr
    assert "642 of 642 tensors loaded" in process.stdout
    before = torch.load(start, weights_only=True)["model"]
    frozen, unfrozen = (
        torch.load(next(tmp_path.glob(f"loss_*/ep00{epoch}-*.pth")), weights_only=True)["model"] for epoch in (1, 2)
    )
    backbone = [key for key in before if key.startswith("backbone.backbone.")]
    assert len(backbone) > 200
    assert all(torch.equal(before[key], frozen[key]) for key in backbone)
    assert not any(torch.equal(before[key], unfrozen[key]) for key in backbone if key.endswith("conv.weight"))
    assert not torch.equal(before["head.obj_preds.0.weight"], frozen["head.obj_preds.0.weight"])


def test_the_same_seed_gives_the_same_losses(first_run, tmp_path):
    """Prevents hidden randomness: two runs with one seed, with and without workers, agree to the last digit."""
    process = run("train.py", *QUICK, f"--save_dir={tmp_path}", "--num_workers=2")
    assert process.returncode == 0, process.stderr
    losses = [next(folder.glob("loss_*/epoch_loss.txt")).read_text() for folder in (first_run[0], tmp_path)]
    assert losses[0] == losses[1]


def test_get_map_gives_the_number_of_the_training(first_run, tmp_path):
    """Prevents two evaluators that disagree: the command reports the mAP which training wrote into the file."""
    weights = first_run[0] / "last_epoch_weights.pth"
    process = run("tools/get_map.py", f"--model_path={weights}", f"--map_out_path={tmp_path}", "--fp16=False")
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    trained = torch.load(weights, weights_only=True)["contract"]["scores"]
    assert results["map50"] == pytest.approx(trained["map50"], abs=1e-9)
    assert results["AP"] == pytest.approx(trained["ap"], abs=1e-9)


def test_predict_draws_one_picture_and_a_folder(first_run, tmp_path):
    """Prevents a detector that cannot be used: both modes write pictures, an unreadable one is named at the end."""
    weights = f"--model_path={first_run[0] / 'best_epoch_weights.pth'}"
    process = run("predict.py", weights, f"--dir_save_path={tmp_path / 'one'}", "--confidence=0.01")
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "one").iterdir())) == 1
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for stem in ("000155", "000156"):
        source = PROJECT / f"VOCdevkit/Sample/JPEGImages/{stem}.jpg"
        (pictures / f"{stem}.jpg").write_bytes(source.read_bytes())
    (pictures / "broken.jpg").write_bytes(b"no picture")
    process = run(
        "predict.py",
        weights,
        "--mode=dir_predict",
        f"--dir_origin_path={pictures}",
        f"--dir_save_path={tmp_path / 'all'}",
    )
    assert "broken.jpg" in error_of(process)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["000155.jpg", "000156.jpg"]


def test_a_list_file_trains_like_the_voc_folder(first_run, tmp_path):
    """Prevents the classic list form from being read differently: same images, same losses."""
    process = run(
        "tools/voc_annotation.py",
        f"--VOCdevkit_path={PROJECT / 'VOCdevkit/Sample'}",
        f"--classes_path={PROJECT / 'model_data/sample_classes.txt'}",
        "--annotation_mode=2",
        folder=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    arguments = (
        f"--train_annotation_path={tmp_path / '2007_train.txt'}",
        f"--val_annotation_path={tmp_path / '2007_val.txt'}",
    )
    process = run("train.py", *QUICK, *arguments, f"--save_dir={tmp_path}")
    assert process.returncode == 0, process.stderr
    losses = [next(folder.glob("loss_*/epoch_loss.txt")).read_text() for folder in (first_run[0], tmp_path)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--model_name=yolox_nanno", ["model_name", "yolox_nanno", "Did you mean 'yolox_nano'"]),
        ("--UnFreezeEpoch=3", ["UnFreezeEpoch", "--UnFreeze_Epoch"]),
        ("--input_shape=[100,64]", ["input_shape", "[100, 64]", "multiples of 32"]),
        ("--Unfreeze_batch_size=0", ["Unfreeze_batch_size", "0", "at least 1"]),
        ("--classes_path=none.txt", ["classes_path", "none.txt", "one class name per line"]),
        ("--model_path=none.pth", ["model_path", "none.pth", "from scratch"]),
        ("--model_path=requirements.txt", ["requirements.txt", "weight file"]),
        ("--classes_path=model_data/voc_classes.txt", ["classes_path", "'fish'", "boxes"]),
        ("--train_annotation_path=VOCdevkit/VOC2007/ImageSets/Main/train.txt", ["does not exist", "VOC2007"]),
        ("--distributed=True", ["distributed", "torchrun --nproc_per_node=2 train.py"]),
        ("--fp16=maybe", ["fp16", "'maybe'", "True or False"]),
    ],
)
def test_a_mistake_is_one_clear_message(argument, expected):
    """Prevents traces and late failures: each mistake names the constant, what was found, what was expected."""
    message = error_of(run("train.py", argument))
    assert all(part in message for part in expected), message


def settings_of(**changes):
    """train.py's constants with changes, as main gets them."""
    return SimpleNamespace(**(script_constants(vars(train)) | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_path": "a.pth"}, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"model_path": ""}, [(False, 0, 100, 8)]),
        ({"model_path": "a.pth", "Freeze_Train": False}, [(False, 0, 100, 8)]),
        ({"model_path": "a.pth", "Init_Epoch": 4}, [(True, 4, 10, 16), (False, 10, 100, 8)]),
        ({"model_path": "a.pth", "Init_Epoch": 10}, [(False, 10, 100, 8)]),
        ({"model_path": "a.pth", "Init_Epoch": 40}, [(False, 40, 100, 8)]),
        ({"model_path": "a.pth", "Freeze_Epoch": 100}, [(True, 0, 100, 16)]),
    ],
)
def test_the_phases_are_those_that_the_constants_describe(changes, expected):
    """Prevents epochs trained twice, left out, or with the batch size of the other phase."""
    assert [tuple(phase) for phase in train.phases_of(settings_of(**changes))] == expected


def test_advice_comes_before_the_time_is_spent():
    """Prevents hours spent on too few steps or on batches of one image, and advice that contradicts the user's plan."""

    def said(images, world_size=1, **changes):
        settings = settings_of(model_path="a.pth", **changes)
        return " ".join(train.advice(settings, train.phases_of(settings), images, Ranks(world_size=world_size)))

    assert said(200) == ""
    assert "Only 190 optimiser steps" in said(10) and said(10, Init_Epoch=50) == ""
    assert "raise Freeze_Epoch and UnFreeze_Epoch" in said(10, Freeze_Epoch=100)
    assert "BatchNorm" in said(200, Unfreeze_batch_size=1)
    assert "BatchNorm" in said(200, world_size=8)


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_once():
    """Prevents a run that fails at the unfreeze epoch, after hours."""
    phases = train.phases_of(settings_of(model_path="a.pth", Unfreeze_batch_size=6))
    train.check_batches(phases, Ranks(world_size=2))
    with pytest.raises(
        ValueError, match="Unfreeze_batch_size is 6, which 4 processes cannot share evenly; set it to 4"
    ):
        train.check_batches(phases, Ranks(world_size=4))


def test_weights_that_say_other_things_than_the_constants_are_named():
    """Prevents classes that change places silently, and a forgotten Init_Epoch."""
    contract = {"class_names": ["cat", "dog"], "epoch": 40}
    swapped, seen = train.unlike(contract, ["dog", "cat"], settings_of())
    assert "trained for the classes cat, dog, yours are dog, cat" in swapped
    assert "set Init_Epoch = 40" in seen
    assert list(train.unlike(contract, ["cat", "dog"], settings_of(Init_Epoch=40))) == []
    assert list(train.unlike({}, ["cat"], settings_of())) == []


def test_weights_of_another_network_are_refused(first_run):
    """Prevents training from noise where the user believes in pretrained weights."""
    weights = first_run[0] / "last_epoch_weights.pth"
    message = error_of(run("train.py", *QUICK, "--model_name=yolox_tiny", f"--model_path={weights}"))
    assert "yolox_nano" in message and "yolox_tiny" in message and "tensors match" in message
