"""Whole programs, as a user runs them: train, go on from weights, predict, measure; and the mistakes users make."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import free_port
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

import train
from tests.scripts.drawn_data import is_planted
from tests.scripts.programs import (
    CLASSES,
    PROJECT,
    QUICK,
    SAMPLE,
    TRAIN_WITHOUT_PICTURES,
    error_of,
    leave_out_pictures,
    run,
    run_here,
)
from tests.weights.test_darknet import CONVOLUTIONS, numbers_of, write
from tests.weights.test_read import random_network, saved, without_prefix
from utils.checkpoint.resume import CHECKPOINT
from utils.config.constants import read_constants
from utils.config.rules import check_training
from utils.inference.detector import Detector
from utils.io.errors import UserError
from utils.io.logger import end_log_file, logger, setup_logging
from utils.reporting.run_logger import RunLogger
from utils.runtime.signals import Stopped
from utils.training.optim import ModelEMA


def rows_of(folder):
    """The rows of a run's results.csv."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights_of(path):
    return torch.load(path, weights_only=True)["model"]


def test_a_training_leaves_all_its_files(trained):
    """Prevents a run whose results cannot be found: every promised file exists and holds a row per epoch."""
    folder = trained.folder
    names = {path.name for path in folder.iterdir()}
    assert {"epoch_loss.txt", "epoch_val_loss.txt", "epoch_loss.png", "epoch_map.txt", "epoch_map.png"} <= names
    assert {
        "results.csv",
        "settings.json",
        "planned_lr.png",
        "train.log",
        "best_epoch_weights.pth",
        "last_epoch_weights.pth",
    } <= names
    assert sum(name.startswith("ep0") and name.endswith(".pth") for name in names) == 2
    assert any(name.startswith("events.out.tfevents") for name in names)
    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["loss"]) > 0 and float(row["val_loss"]) > 0 for row in rows)
    assert [bool(row["map50"]) for row in rows] == [False, True, False, True]
    assert json.loads((folder / "settings.json").read_text())["UnFreeze_Epoch"] == 4
    assert str(folder / "best_epoch_weights.pth") in trained.said
    assert "Only " in trained.said and "optimiser steps" in trained.said


def test_a_weight_file_says_how_it_is_used(trained):
    """Prevents weights that are used with other classes or pixels than they were trained with."""
    content = torch.load(trained.folder / "best_epoch_weights.pth", weights_only=True)
    metadata = content["contract"]
    assert metadata["model_name"] == "yolox_nano"
    assert (metadata["backbone"], metadata["decode_rule"], metadata["strides"]) == ("", {}, [8, 16, 32])
    assert metadata["class_names"] == ["fish", "leaf", "mushroom"]
    assert (metadata["settings"]["UnFreeze_Epoch"], metadata["settings"]["save_period"]) == (4, 2)
    assert 0 <= metadata["scores"]["map50"] <= 1 and metadata["epoch"] in (2, 4)
    assert metadata["input_shape"] == [64, 64]
    assert metadata["pixel_rule"] == {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    assert metadata["resize_rule"] == {"mode": "topleft", "pad": 114}


def test_get_map_gives_the_number_of_the_training(trained, tmp_path):
    """Prevents two evaluators that disagree: the command reports the mAP which training wrote into the file."""
    weights = trained.folder / "last_epoch_weights.pth"
    annotations = f"--annotation_path={trained.lists['val']}"
    finished = run_here("tools/get_map.py", f"--model_path={weights}", annotations, f"--map_out_path={tmp_path}")
    assert finished.status == 0, finished.error
    results = json.loads((tmp_path / "results.json").read_text())
    scores = torch.load(weights, weights_only=True)["contract"]["scores"]
    assert results["map50"] == pytest.approx(scores["map50"], abs=1e-9) and scores["map50"] > 0.3
    assert results["AP"] == pytest.approx(scores["ap"], abs=1e-9)


def test_predict_draws_one_picture_and_a_folder(trained, tmp_path):
    """Prevents a detector that cannot be used: both modes write pictures, an unreadable one is named at the end."""
    weights = f"--model_path={trained.folder / 'best_epoch_weights.pth'}"
    finished = run_here("predict.py", weights, f"--dir_save_path={tmp_path / 'one'}", "--confidence=0.01")
    assert finished.status == 0, finished.error
    assert len(list((tmp_path / "one").iterdir())) == 1
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for stem in ("000155", "000156"):
        (pictures / f"{stem}.jpg").write_bytes((SAMPLE / f"JPEGImages/{stem}.jpg").read_bytes())
    (pictures / "broken.jpg").write_bytes(b"no picture")
    finished = run_here(
        "predict.py",
        weights,
        "--mode=dir_predict",
        f"--dir_origin_path={pictures}",
        f"--dir_save_path={tmp_path / 'all'}",
    )
    assert "broken.jpg" in error_of(finished)
    drawn = tmp_path / "all/pictures"
    assert sorted(path.name for path in drawn.iterdir()) == ["000155.jpg", "000156.jpg"]


def test_half_of_the_first_suspects_are_planted(trained, tmp_path):
    """Prevents a list of tools/label_suspects.py that a person reads in vain. The detector has learned the wrong
    labels, as it would in life."""
    finished = run_here(
        *("tools/label_suspects.py", f"--model_path={trained.folder / 'last_epoch_weights.pth'}", "--Cuda=False"),
        *(f"--annotation_path={trained.lists['train']},{trained.lists['val']}", f"--save_dir={tmp_path / 'out'}"),
    )
    assert finished.status == 0, finished.error
    assert len(trained.planted) == 40
    with open(tmp_path / "out/suspects.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    hits = [is_planted(row, trained.planted) for row in rows[: len(trained.planted)]]
    print(f"{sum(hits)} of the first {len(trained.planted)} suspects are planted")
    assert len(hits) == len(trained.planted) and sum(hits) >= len(trained.planted) / 2


@pytest.fixture(scope="module")
def goes_on(trained, few_images):
    """The constants of a small training that goes on from weights: a frozen and an unfrozen epoch, of three steps."""
    settings = {"input_shape": [64, 64], "model_path": str(trained.folder / "last_epoch_weights.pth"), **few_images}
    settings |= {"Cuda": False, "fp16": False, "cpu_threads": 1, "Freeze_Epoch": 1, "UnFreeze_Epoch": 2}
    return settings | {"Freeze_Train": True, "Freeze_batch_size": 4, "Unfreeze_batch_size": 4, "save_period": 1}


def lengthen_average(monkeypatch):
    """Let the average of the weights look back on more than the last step, also where there are few steps."""
    monkeypatch.setattr("utils.training.optim.EMA_HORIZON", 2.0)


@pytest.fixture(scope="module")
def undisturbed(goes_on, tmp_path_factory):
    """The folder of that training."""
    setup_logging()
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_out_pictures(monkeypatch)
        lengthen_average(monkeypatch)
        folder, _ = train.main(train.config(**goes_on, save_dir=str(tmp_path_factory.mktemp("undisturbed"))))
    end_log_file()
    return folder


def losses_of(folder):
    return (folder / "epoch_loss.txt").read_text()


def test_training_goes_on_from_its_own_weights_with_the_backbone_frozen(goes_on, undisturbed):
    """Prevents a frozen phase that moves the backbone or its BatchNorm statistics, and an idle unfrozen one."""
    said, start = (undisturbed / "train.log").read_text(encoding="utf-8"), goes_on["model_path"]
    assert f"yolox_nano from {start}\n  yolox_nano, 3 classes, written by this project\n" in said
    assert "    head      153     153         0      0\n" in said
    before = weights_of(start)
    frozen, unfrozen = (weights_of(next(undisturbed.glob(f"ep00{epoch}-*.pth"))) for epoch in (1, 2))
    backbone = [key for key in before if key.startswith("backbone.backbone.")]
    assert len(backbone) > 200
    assert all(torch.equal(before[key], frozen[key]) for key in backbone)
    assert not any(torch.equal(before[key], unfrozen[key]) for key in backbone if key.endswith("conv.weight"))
    assert not torch.equal(before["head.obj_preds.0.weight"], frozen["head.obj_preds.0.weight"])


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(
    goes_on, undisturbed, tmp_path, monkeypatch, without_pictures
):
    """Prevents a run that loses, repeats or forgets something where a signal stops it in the middle of its last epoch,
    the backbone just unfrozen; tests/faults tries every other moment."""
    steps, update = [], ModelEMA.update

    def update_and_be_stopped(*arguments):
        update(*arguments)
        steps.append(1)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGTERM)

    lengthen_average(monkeypatch)
    monkeypatch.setattr(ModelEMA, "update", update_and_be_stopped)
    with pytest.raises(Stopped, match=r"Stopped by SIGTERM in epoch 2\. Nothing is lost"):
        train.main(train.config(**goes_on, save_dir=str(tmp_path)))
    folder, _ = train.main(train.config(save_dir=str(tmp_path), resume=True))
    assert len(steps) == 6
    ours, expected = (torch.load(path / CHECKPOINT, weights_only=True) for path in (folder, undisturbed))
    assert ours["model"].keys() == expected["model"].keys()
    assert all(torch.equal(value, expected["model"][key]) for key, value in ours["model"].items())
    best = [weights_of(path / "best_epoch_weights.pth") for path in (folder, undisturbed)]
    assert all(torch.equal(value, best[1][key]) for key, value in best[0].items())
    rows = [content["log"]["rows"] for content in (ours, expected)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, r"is of a run that is over, after epoch 2 of 2"), ({"input_shape": [96, 64]}, r"64, 64.*it is .?96, 64")],
)
def test_a_checkpoint_of_another_run_is_refused(undisturbed, changes, expected):
    """Prevents a run that goes on as another one, or that seems to go on where nothing is left to do."""
    with pytest.raises(UserError, match=expected):
        train.main(train.config(resume=str(undisturbed), **changes))


def test_the_same_seed_gives_the_same_losses(goes_on, undisturbed, tmp_path, without_pictures):
    """Prevents hidden randomness: two runs with one seed, with and without workers, agree to the last digit."""
    folder, _ = train.main(train.config(**goes_on, save_dir=str(tmp_path), num_workers=2))
    assert losses_of(folder) == losses_of(undisturbed)


def test_a_list_file_trains_like_the_voc_folder(goes_on, undisturbed, tmp_path, without_pictures):
    """Prevents the classic list form from being read differently: same images, same losses."""
    finished = run_here(
        "tools/voc_annotation.py",
        f"--VOCdevkit_path={Path(goes_on['train_annotation_path']).parents[2]}",
        f"--classes_path={PROJECT / 'model_data/sample_classes.txt'}",
        "--annotation_mode=2",
        folder=tmp_path,
    )
    assert finished.status == 0, finished.error
    lists = {f"{split}_annotation_path": str(tmp_path / f"2007_{split}.txt") for split in ("train", "val")}
    folder, _ = train.main(train.config(**goes_on | lists, save_dir=str(tmp_path)))
    assert losses_of(folder) == losses_of(undisturbed)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--model_name=yolox_nanno", ["model_name", "yolox_nanno", "Did you mean yolox_nano?"]),
        ("--UnFreezeEpoch=3", ["UnFreezeEpoch", "--UnFreeze_Epoch"]),
        ("--input_shape=[100,64]", ["input_shape", "[100, 64]", "multiples of 32"]),
        ("--Unfreeze_batch_size=-1", ["Unfreeze_batch_size", "-1", "or 0 for the largest"]),
        ("--classes_path=none.txt", ["classes_path", "none.txt", "one class name per line"]),
        ("--model_path=none.pth", ["model_path", "none.pth", "from scratch"]),
        ("--model_path=requirements.txt", ["requirements.txt", "cannot be read as weights"]),
        (
            "--classes_path=model_data/voc_classes.txt",
            ["classes_path names", "'fish' (183 times)", "still the sample's"],
        ),
        ("--train_annotation_path=VOCdevkit/VOC2007/ImageSets/Main/train.txt", ["does not exist", "VOC2007"]),
        ("--distributed=True", ["distributed", "torchrun --nproc_per_node=2 train.py"]),
        ("--fp16=maybe", ["fp16", "'maybe'", "True or False"]),
        ("--freeze_layers=['haed']", ["freeze_layers", "'haed'", "The nearest is 'head'"]),
        ("--freeze_blocks=9", ["freeze_blocks is 9", "has 5 blocks"]),
        (
            "--lr_scale={'backbone':0,'neck':0,'head':0}",
            ["Everything is frozen", "Free one of backbone, neck and head"],
        ),
        ("--backbone=resnet999", ["backbone is 'resnet999'", "one of resnet18, resnet34"]),
        ("--pretrained=True", ["pretrained is True", "backbone, such as 'resnet50'"]),
        ("--weights_format=coco", ["weights_format is 'coco'", "'yolox_rgb'"]),
        ("--anchors_path=model_data/yolo_anchors.txt", ["yolox_nano has no anchors", "anchors_path = ''"]),
    ],
)
def test_a_mistake_is_one_clear_message(argument, expected, tmp_path):
    """Prevents traces and late failures: each mistake names the constant, what was found, what was expected."""
    finished = run_here("train.py", *QUICK, f"--save_dir={tmp_path}", argument)
    message = error_of(finished)
    assert message.startswith("Error: ") and finished.status == 1
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--UnFreezeEpoch=3", "Error: There is no parameter 'UnFreezeEpoch'. The nearest is --UnFreeze_Epoch=..."),
        ("--freeze_blocks=9", "Error: freeze_blocks is 9, but the backbone of yolox_nano has 5 blocks: "),
    ],
)
def test_a_mistake_ends_the_process(argument, expected, tmp_path):
    """Prevents a mistake that a script around train.py takes for a success, or reads among what it says: before and
    after the table of the constants it comes on the error stream alone, with exit status 1."""
    finished = run("train.py", *QUICK, f"--save_dir={tmp_path}", argument)
    assert finished.status == 1 and error_of(finished).startswith(expected), finished.error
    assert expected not in finished.said


OPTIONS = (
    "--model_name=yolov4_tiny",
    "--input_shape=[64,64]",
    "--UnFreeze_Epoch=2",
    "--eval_period=1",
    "--fp16=False",
    "--Unfreeze_batch_size=10",
    "--accumulate=2",
    "--multi_scale=True",
    "--multi_scale_range=[0.5,1.5]",
    "--multi_scale_period=2",
    "--special_aug_ratio=0.5",
    "--lr_decay_type=multistep",
    "--lr_milestones=[1]",
    "--lr_scale={'backbone': 0.1}",
    "--freeze_blocks=2",
    "--clip_grad_norm=10",
    "--clip_norm_type=inf",
    "--label_smoothing=0.01",
    "--focal_loss=True",
    "--iou_type=siou",
    "--map_weights=[2.0,1.0]",
    "--optimizer_type=rmsprop",
    "--Init_lr=1e-3",
    "--momentum=0.9",
    "--save_period=1",
    "--ema=False",
    f"--train_annotation_path={SAMPLE / 'ImageSets/Main/val.txt'}",
    f"--val_annotation_path={SAMPLE / 'ImageSets/Main/test.txt'}",
)


@pytest.fixture(scope="module")
def run_with_options(tmp_path_factory):
    """A short training with anchors and many options at once: (its folder, what it said)."""
    save_dir = tmp_path_factory.mktemp("options")
    anchors = save_dir / "anchors.txt"
    anchors.write_text("5,7 9,11 14,17 20,20 34,42 60,58\n")
    setup_logging()
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_out_pictures(monkeypatch)
        finished = run_here("train.py", *OPTIONS, f"--anchors_path={anchors}", f"--save_dir={save_dir}")
    assert finished.status == 0, finished.error
    (folder,) = save_dir.glob("loss_20*")
    return folder, finished.said


def test_options_work_together(run_with_options):
    """Prevents options that each work alone: rates of 1e-3 * 20 / 64, and a tenth of them for the backbone, and for
    everything from the milestone on; two blocks are frozen; the table and the picture say so."""
    folder, said = run_with_options
    assert (
        "part      parameters  epochs 1-2\n"
        "backbone  3,629,728   3,610,240 at 3.1e-05, rest frozen\n"
        "neck      164,608     all at 3.1e-04\n"
        "head      2,084,400   all at 3.1e-04\n"
    ) in said
    assert (
        "note: 6 tensors that start from no weights are frozen to the end and stay random (the first: "
        "backbone.conv1.conv.weight)."
    ) in said
    assert (folder / "planned_lr.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(folder)
    assert [float(row["lr"]) for row in rows] == pytest.approx([3.125e-4, 3.125e-5])
    assert all(float(row["loss"]) > 0 and float(row["val_loss"]) > 0 for row in rows)
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["lr_scale"], settings["clip_norm_type"]) == ({"backbone": 0.1}, float("inf"))
    first, second = (weights_of(next(folder.glob(f"ep00{epoch}-*.pth"))) for epoch in (1, 2))
    frozen = ("backbone.conv1.", "backbone.conv2.")
    counted = {key for key in first if not key.endswith("num_batches_tracked")}  # which training does not count
    assert {key for key in counted if torch.equal(first[key], second[key])} == {
        key for key in counted if key.startswith(frozen)
    }


def test_weights_with_the_users_anchors_are_used_with_them(run_with_options, tmp_path):
    """Prevents boxes of a wrong size: the file carries the anchors, and predict.py asks for no constant."""
    folder, _ = run_with_options
    weights = folder / "best_epoch_weights.pth"
    metadata = torch.load(weights, weights_only=True)["contract"]
    assert metadata["model_name"] == "yolov4_tiny"
    assert metadata["decode_rule"] == {
        "anchors": [[5, 7], [9, 11], [14, 17], [20, 20], [34, 42], [60, 58]],
        "anchors_mask": [[3, 4, 5], [1, 2, 3]],
        "scale_x_y": [1.05, 1.05],
    }
    assert metadata["input_shape"] == [64, 64]
    finished = run_here("predict.py", f"--model_path={weights}", f"--dir_save_path={tmp_path}", "--confidence=0.01")
    assert finished.status == 0, finished.error
    assert len(list(tmp_path.iterdir())) == 1


def test_each_training_of_a_process_has_its_own_log(few_images, tmp_path, monkeypatch, without_pictures):
    """Prevents lines of a second training in the first one's train.log, also where that failed; and a trace in the
    place of what to lower where memory runs out before the first epoch."""
    setup_logging()
    small = {"input_shape": [32, 32], "UnFreeze_Epoch": 1, "eval_flag": False, "Cuda": False, "num_workers": 0}
    small |= few_images | {"save_dir": str(tmp_path)}
    folder, _ = train.main(train.config(**small))
    logger.info("between")

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(RunLogger, "draw_data", fail)
    with pytest.raises(UserError, match="Memory does not suffice for the unfrozen phase with Unfreeze_batch_size = "):
        train.main(train.config(**small))
    failed = max(tmp_path.glob("loss_*"))
    logger.info("of the failed one")
    train.config(**small)
    logger.info("of the third one")
    logs = [(path / "train.log").read_text(encoding="utf-8") for path in (folder, failed)]
    assert folder != failed and [log.count("results go to") for log in logs] == [1, 1]
    assert "between" not in logs[0]
    assert "of the failed one" in logs[1] and "of the third one" not in logs[1]


def test_a_function_of_the_user_sets_the_rate(few_images, tmp_path, without_pictures):
    """Prevents a schedule of one's own that works in tests and not in train.py: it is written above the constant."""
    constant = "lr_decay_type = None\n"
    source = (PROJECT / "train.py").read_text(encoding="utf-8")
    assert source.count(constant) == 1
    schedule = "def my_schedule(epoch):\n    return 1.0 if epoch < 1 else 0.25\n\n\nlr_decay_type = my_schedule\n"
    (tmp_path / "train.py").write_text(source.replace(constant, schedule), encoding="utf-8")
    arguments = (*QUICK, *(f"--{name}={path}" for name, path in few_images.items()), f"--save_dir={tmp_path / 'logs'}")
    finished = run_here(tmp_path / "train.py", *arguments)
    assert finished.status == 0, finished.error
    (folder,) = tmp_path.glob("logs/loss_20*")
    assert json.loads((folder / "settings.json").read_text())["lr_decay_type"] == "my_schedule"
    assert [float(row["lr"]) for row in rows_of(folder)] == pytest.approx([1e-3, 2.5e-4])
    weights = torch.load(folder / "last_epoch_weights.pth", weights_only=True)
    assert weights["contract"]["settings"]["lr_decay_type"] == "my_schedule"


def test_two_ranks_train_both_phases(trained, few_images, tmp_path):
    """Prevents ranks that wait for each other for ever: at the unfreeze epoch, where the main rank alone validates, and
    where it tells the others the loss that `plateau` looks at."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    constants = {"Cuda": False, "distributed": True, "lr_decay_type": "plateau", "lr_patience": 0, "accumulate": 2}
    constants |= {"model_path": trained.folder / "last_epoch_weights.pth", "save_dir": tmp_path}
    constants |= few_images | dict.fromkeys(("Freeze_batch_size", "Unfreeze_batch_size"), 4) | {"Freeze_Train": True}
    arguments = (*QUICK, *(f"--{name}={value}" for name, value in constants.items()))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_WITHOUT_PICTURES, *arguments],
            cwd=PROJECT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert outputs[1][0] == ""
    (folder,) = tmp_path.glob("loss_20*")
    rows = rows_of(folder)
    assert [(row["epoch"], row["phase"]) for row in rows] == [("1", "frozen"), ("2", "unfrozen")]
    assert all(float(row["loss"]) > 0 and float(row["val_loss"]) > 0 and row["map50"] for row in rows)


@pytest.mark.parametrize(
    ("name", "value", "of_file"), [("model_name", "yolox_tiny", "yolox_nano"), ("backbone", "resnet18", "")]
)
def test_weights_of_another_network_are_refused(goes_on, tmp_path, name, value, of_file):
    """Prevents training from noise where the user believes in pretrained weights."""
    with pytest.raises(UserError) as caught:
        train.main(train.config(**goes_on | {name: value}, save_dir=str(tmp_path)))
    assert str(caught.value) == (
        f"{name} is {value!r}, but {goes_on['model_path']} holds weights of {of_file!r}: set {name} = {of_file!r}, or "
        f"model_path to weights of {value!r}."
    )


BGR = {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
RGB_1 = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
RGB_IMAGENET = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
# By format: the network, the pixels that the training goes on with, how many class predictions go on, scale_x_y.
STARTS = {
    "official": ("yolox_nano", "", BGR, 0, None),
    "yolox_rgb": ("yolox_nano", "", RGB_IMAGENET, 0, None),
    "flat_yolox": ("yolox_nano", "", RGB_IMAGENET, 0, None),
    "yolox_backbone": ("yolox_nano", "", RGB_IMAGENET, None, None),
    "flat_tiny": ("yolov4_tiny", "", RGB_1, 0, [1.0, 1.0]),
    "tiny_backbone": ("yolov4_tiny", "", RGB_1, None, [1.0, 1.0]),
    "darknet": ("yolov4_tiny", "", RGB_1, 0, [1.05, 1.05]),
    "darknet_prefix": ("yolov4_tiny", "", RGB_1, None, [1.05, 1.05]),
    "resnet_under_yolox": ("yolox_nano", "resnet18", RGB_IMAGENET, None, None),
    "resnet_under_tiny": ("yolov4_tiny", "resnet18", RGB_IMAGENET, None, [1.05, 1.05]),
}


@pytest.fixture(scope="module")
def backbone_weights():
    """What torchvision would publish: numbers and statistics of a resnet18."""
    model = resnet18()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model.state_dict()


@pytest.fixture(scope="module")
def start_files(backbone_weights, tmp_path_factory):
    """A weight file of each format, for COCO's 80 classes: {name: path}."""
    folder = tmp_path_factory.mktemp("starts")
    nano, tiny = random_network("yolox_nano", 80).state_dict(), random_network("yolov4_tiny", 80)
    contents = {
        "official": {"model": nano},
        "yolox_rgb": {"model": nano},
        "flat_yolox": nano,
        "yolox_backbone": without_prefix(nano, "backbone.backbone."),
        "flat_tiny": tiny.state_dict(),
        "tiny_backbone": without_prefix(tiny.state_dict(), "backbone."),
        "resnet_under_yolox": backbone_weights,
        "resnet_under_tiny": backbone_weights,
    }
    files = {name: saved(content, folder, f"{name}.pth") for name, content in contents.items()}
    files["darknet"] = write(folder / "yolov4-tiny.weights", numbers_of(tiny))
    files["darknet_prefix"] = write(folder / "prefix", numbers_of(tiny, CONVOLUTIONS["yolov4_tiny"][1]))
    return files


@pytest.fixture
def one_step(tmp_path, without_pictures):
    """train.py's constants for a single step on two images of the sample, and a measurement on a third."""
    pictures = [SAMPLE / f"JPEGImages/000{number}.jpg" for number in (155, 156, 157)]
    lines = [f"{path} 20,30,120,140,0 60,20,180,160,2\n" for path in pictures]
    (tmp_path / "train.txt").write_text("".join(lines[:2]))
    (tmp_path / "val.txt").write_text(lines[2])
    constants = {
        **{f"{split}_annotation_path": str(tmp_path / f"{split}.txt") for split in ("train", "val")},
        "classes_path": str(PROJECT / "model_data/sample_classes.txt"),
        **dict.fromkeys(("Cuda", "fp16", "Freeze_Train", "ema"), False),
        **dict.fromkeys(("UnFreeze_Epoch", "Freeze_Epoch"), 1),
        **dict.fromkeys(("Freeze_batch_size", "Unfreeze_batch_size"), 2),
        "num_workers": 0,
        "input_shape": [64, 64],
        "save_dir": str(tmp_path / "logs"),
    }

    def run_with(**changes):
        return train.main(check_training(read_constants(vars(train)) | constants | changes))

    return run_with


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_a_training_takes_a_step_from_each_format(start_files, one_step, capsys, name):
    """Prevents weights that can be read and not trained from, and a training that goes on with other pixels, anchors
    or tensors than those of its weights."""
    model_name, backbone, pixels, by_class, scales = STARTS[name]
    weights_format = "yolox_rgb" if name == "yolox_rgb" else ""
    folder, scores = one_step(
        model_name=model_name, backbone=backbone, model_path=str(start_files[name]), weights_format=weights_format
    )
    said = capsys.readouterr().out
    network = f"{model_name} with {backbone}" if backbone else model_name
    assert f"{network} from {start_files[name]}\n" in said
    assert ("0 of 3 classes go on from the file" in said) == (by_class is not None)
    (row,) = rows_of(folder)
    assert 0 < float(row["loss"]) < float("inf") and 0 <= scores["map50"] <= 1
    content = torch.load(folder / "last_epoch_weights.pth", weights_only=True)
    metadata = content["contract"]
    assert (metadata["model_name"], metadata["backbone"]) == (model_name, backbone)
    assert (metadata["pixel_rule"], metadata["decode_rule"].get("scale_x_y")) == (pixels, scales)
    assert all(value.isfinite().all() for value in content["model"].values())
    assert Detector(folder / "last_epoch_weights.pth").class_names == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("model_name", ["yolox_nano", "yolov4_tiny"])
def test_a_pretrained_backbone_of_torchvision_is_frozen_bit_for_bit(
    backbone_weights, one_step, monkeypatch, capsys, model_name
):
    """Prevents ImageNet weights from not arriving, from being moved by the frozen phase, or from being fed pixels that
    they have never seen."""
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: backbone_weights)
    folder, _ = one_step(model_name=model_name, backbone="resnet18", pretrained=True, Freeze_Train=True)
    said = capsys.readouterr().out
    assert f"{model_name} with resnet18 from " in said and "\n  torchvision's resnet18, IMAGENET1K_V1\n" in said
    assert "backbone  11,176,512  frozen" in said and "stay random" not in said
    content = torch.load(folder / "last_epoch_weights.pth", weights_only=True)
    prefix = "backbone.backbone." if model_name == "yolox_nano" else "backbone."
    trained = {key.removeprefix(prefix): value for key, value in content["model"].items()}
    expected = {key: value for key, value in backbone_weights.items() if not key.startswith("fc.")}
    assert len(expected) == 120
    assert all(torch.equal(trained[key], value) for key, value in expected.items())
    assert content["contract"]["pixel_rule"]["mean"] == pytest.approx([123.675, 116.28, 103.53])
