"""Builds what every recipe of docs/recipes.md trains, and trains some of them for two epochs, in small."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from nets import build_model
from nets.backbones.torchvision import IMAGENET_PIXEL_RULE
from tests.scripts.programs import CLASSES
from tests.test_docs import recipes, text_of
from utils.checkpoint.checkpointer import Progress
from utils.config.constants import read_constants
from utils.config.rules import check_training
from utils.runtime.device import init_runtime
from utils.training import build
from utils.training.lr_schedule import LRSchedule
from utils.training.phases import build_phases, remaining_epochs, unfreeze
from utils.weights.download import is_release
from utils.weights.read import WeightFile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPES = recipes(text_of("docs/recipes.md"))
# One of each kind: both phases, another network, frozen blocks, the frozen phase alone, a later first epoch.
TRAINED = (
    "The first, frozen at the start",
    "YOLOv4-tiny from Darknet's weights",
    "Few, and different",
    "A weak GPU, or a CPU",
    "Go on from weights in logs/",
)
# What all runs have in common, so that two epochs take a second or two.
SMALL = {
    "Cuda": False,
    "fp16": False,
    "num_workers": 0,
    "input_shape": [64, 64],
    "UnFreeze_Epoch": 2,
    "eval_period": 2,
    "classes_path": str(ROOT / "model_data/sample_classes.txt"),
}
BACKBONE = "backbone.backbone."
BLOCKS = tuple(f"{BACKBONE}{name}." for name in ("stem", "dark2", "dark3"))
# Numbers in the public file of YOLOv4's first layers: 137 of them, of which 110 are convolutions.
PREFIX_NUMBERS = 42509664
BOTH, FROZEN, UNFROZEN = ["frozen", "unfrozen"], ["frozen", "frozen"], ["unfrozen", "unfrozen"]
# By situation: the phase of each epoch trained; the learning rate at the end of the first of them, which lies in the
# middle of the schedule, half of the highest and lowest rate for batches of 4 (frozen) or 2 images (highest: batch *
# accumulate / 64 * Init_lr, within the limits); how the names begin of what is frozen to the end.
EXPECTED = {
    "The weights of a whole model, hundreds of images": (UNFROZEN, 1.2625e-4, ()),
    "The same, thousands of images": (UNFROZEN, 1.2625e-4, ()),
    "A GPU, and a larger network": (UNFROZEN, 6.3125e-5, ()),
    # Half the epochs have the highest rate.
    "The same with D-FINE": (UNFROZEN, 6.25e-5, ()),
    "The first, frozen at the start": (BOTH, 2.525e-4, ()),
    "The first with sgd": (UNFROZEN, 2.525e-4, ()),
    "The weights of a backbone alone": (BOTH, 2.525e-4, ()),
    "YOLOv4-tiny from Darknet's weights": (UNFROZEN, 6.3125e-5, ()),
    "YOLOv4 from Darknet's backbone": (BOTH, 6.3125e-5, ()),
    "A backbone of torchvision": (BOTH, 6.3125e-5, ()),
    "Small objects in large pictures": (UNFROZEN, 1.2625e-4, ()),
    "From scratch": (UNFROZEN, 1.2625e-4, ()),
    "YOLOv4-tiny from scratch": (UNFROZEN, 6.3125e-5, ()),
    "YOLOv4 on a GPU": (UNFROZEN, 3.15625e-5, ()),
    "Few, and similar to COCO": (UNFROZEN, 1.2625e-4, ("backbone.",)),
    "Few, and different": (UNFROZEN, 1.2625e-4, BLOCKS),
    "Many, and similar": (UNFROZEN, 1.2625e-4, ()),
    "Many, and different": (UNFROZEN, 1.2625e-4, ()),
    "A weak GPU, or a CPU": (FROZEN, 1.01e-3, (BACKBONE,)),
    "Much memory": (UNFROZEN, 1.2625e-4, ()),
    "Little memory": (UNFROZEN, 5.05e-4, ()),
    # Only the second epoch is trained, and it ends at the lowest rate.
    "Go on from weights in logs/": (["unfrozen"], 2.5e-6, ()),
}


def write_darknet(path, state, count=None):
    """Write tensors of a YOLOv4 in Darknet's order, cut off after `count` numbers. Returns {key: tensor} written."""
    keys = []
    for name in [key.removesuffix(".weight") for key, tensor in state.items() if tensor.ndim == 4]:
        norm = name.removesuffix("conv") + "bn"
        has_norm = name.endswith(".conv") and f"{norm}.bias" in state
        keys += [f"{norm}.{part}" for part in ("bias", "weight", "running_mean", "running_var")] if has_norm else []
        keys += [f"{name}.weight"] if has_norm else [f"{name}.bias", f"{name}.weight"]
    written, total = {}, 0
    with open(path, "wb") as file:
        file.write(np.array([0, 2, 5, 0, 0], "<i4").tobytes())
        for key in keys:
            if total == count:
                break
            file.write(state[key].numpy().astype("<f4").tobytes())
            written[key], total = state[key], total + state[key].numel()
    assert count in (None, total)
    return written


@pytest.fixture(scope="module")
def start_files(tmp_path_factory):
    """Weights to start from, by what a recipe calls them: {model_path or pretrained: (path, {key: tensor})}.

    Random numbers in the form of the public files, so that nothing is fetched.
    """
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    state = build_model("yolox_nano", 3).state_dict()
    backbone = {key: value for key, value in state.items() if key.startswith(BACKBONE)}
    for name, tensors in (("yolox_nano", state), ("yolox_nano_backbone", backbone)):
        path = folder / f"{name}.pth"
        torch.save({"model": tensors}, path)
        files[f"model_data/{path.name}"] = (path, tensors)
    for name in ("yolox_s", "dfine_s"):
        files[name] = (folder / f"{name}.pth", build_model(name, 3).state_dict())
        torch.save({"model": files[name][1]}, files[name][0])
    files["logs/last_epoch_weights.pth"] = files["model_data/yolox_nano.pth"]
    for name, model_name, count in (
        ("yolov4_tiny", "yolov4_tiny", None),
        ("yolov4.conv.137", "yolov4", PREFIX_NUMBERS),
    ):
        tensors = build_model(model_name, 80).state_dict()
        files[name] = (folder / name, write_darknet(folder / name, tensors, count))
    yield files
    shutil.rmtree(folder)


@pytest.fixture
def save_dir(tmp_path):
    """Where a run writes; emptied afterwards, because yolov4 leaves gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def in_small(recipe):
    """The constants of a recipe, made quick without losing what it is about."""
    small = recipe | SMALL
    # A run whose two phases are one stays so.
    small["Freeze_Epoch"] = 2 if recipe.get("Freeze_Epoch") == recipe.get("UnFreeze_Epoch", 100) else 1
    small["Freeze_batch_size"] = min(recipe.get("Freeze_batch_size", 4), 4)
    small["Unfreeze_batch_size"] = min(recipe.get("Unfreeze_batch_size", 2), 2)
    if "Init_Epoch" in recipe:
        small["Init_Epoch"] = 1
    return small


@pytest.fixture
def start_of(start_files, few_images, save_dir, monkeypatch):
    """start_of(recipe): train.py's constants as this recipe has them, in small, and the tensors {key: tensor} of the
    weights that it starts from, {} for none."""

    def settings_and_start(recipe):
        changes = in_small(recipe) | few_images | {"save_dir": str(save_dir)}
        start = start_files[recipe["model_path"]][1] if recipe.get("model_path") else {}
        if start and not is_release(recipe["model_path"]):
            changes["model_path"] = str(start_files[recipe["model_path"]][0])
        settings = check_training(read_constants(vars(train)) | changes)
        if is_release(settings.model_path):
            monkeypatch.setattr(build, "find_weights", lambda name: str(start_files[name][0]))
        if settings.pretrained:
            assert settings.pretrained is True
            model = build_model(settings.model_name, 3, backbone=settings.backbone)
            prefix = model.extractor_prefix()
            start = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
            published = {key.removeprefix(prefix): value for key, value in start.items()}
            weights = WeightFile(
                "a.pth", published, {"pixel_rule": IMAGENET_PIXEL_RULE}, "a stand-in", is_backbone=True
            )
            monkeypatch.setattr(build, "read_pretrained", lambda *named: {(settings.backbone, True): weights}[named])
        return settings, start

    return settings_and_start


def test_each_recipe_has_its_expectation():
    """Prevents a recipe that is run without a look at what it does."""
    assert [situation for situation, _ in RECIPES] == list(EXPECTED)


def phase_by_phase(optim, settings, phases):
    """Let a training come to each of its epochs without a step: [(name of the phase, rate at the end of the epoch,
    names of the frozen parameters, whether the optimiser has all others)]."""
    schedule, epochs = LRSchedule(settings), []
    for phase, epoch, begins in remaining_epochs(phases, Progress(settings.Init_Epoch)):
        if begins:
            unfreeze(optim, phase, settings)
        rate = schedule.of_epoch(optim.optimizer, phase, epoch)(1.0)
        moved = {id(parameter) for group in optim.optimizer.param_groups for parameter in group["params"]}
        frozen = {name for name, parameter in optim.model.named_parameters() if not parameter.requires_grad}
        has_all = all(
            id(parameter) in moved for name, parameter in optim.model.named_parameters() if name not in frozen
        )
        epochs.append((phase.name, rate, frozen, has_all))
        schedule.end_epoch()
    return epochs


@pytest.mark.parametrize(("situation", "recipe"), RECIPES, ids=[situation for situation, _ in RECIPES])
def test_a_recipe_is_built_as_it_says(situation, recipe, start_of):
    """Prevents a recipe that ends in an error, starts from other weights, trains other epochs or layers than it says,
    or at another rate."""
    names, rate, prefixes = EXPECTED[situation]
    settings, start = start_of(recipe)
    runtime, phases = init_runtime(settings), build_phases(settings)
    model = build.build_detector(settings, CLASSES, runtime)
    state = model.state_dict()
    arrived = {
        key for key, value in start.items() if state[key].shape == value.shape and torch.equal(state[key], value)
    }
    # What predicts classes of another number or of other names is made anew.
    assert all("cls_preds" in key or "yolo_head" in key for key in start.keys() - arrived)
    assert len(arrived) >= 0.9 * len(start)
    optim = build.build_optim(settings, model, build.build_loss(settings, model), phases, runtime, images=10)
    assert type(optim.optimizer).__name__.lower() == settings.optimizer_type
    epochs = phase_by_phase(optim, settings, phases)
    assert {group["lr_scale"] for group in optim.optimizer.param_groups} == {1.0, *settings.lr_scale.values()}
    assert [name for name, *_ in epochs] == names
    assert epochs[0][1] == pytest.approx(rate, rel=1e-6)
    for name, _, frozen, has_all in epochs:
        wanted = (*prefixes, model.extractor_prefix()) if name == "frozen" else prefixes
        assert frozen == {key for key, _ in model.named_parameters() if wanted and key.startswith(wanted)}
        assert has_all


@pytest.mark.parametrize("situation", TRAINED)
def test_a_recipe_trains(situation, start_of, save_dir, without_pictures):
    """Prevents a recipe that ends in an error, trains other epochs or layers than it says, or at another rate."""
    names, rate, prefixes = EXPECTED[situation]
    settings, start = start_of(dict(RECIPES)[situation])
    folder, scores = train.main(settings)

    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == names
    assert rows[-1]["epoch"] == "2"
    assert all(math.isfinite(float(row[loss])) for row in rows for loss in ("loss", "val_loss"))
    assert float(rows[0]["lr"]) == pytest.approx(rate, rel=1e-6)
    assert 0 <= scores["map50"] <= 1
    best, last = (
        torch.load(save_dir / f"{name}_epoch_weights.pth", weights_only=True)["model"] for name in ("best", "last")
    )
    assert best.keys() == last.keys()

    unchanged = {key for key, value in start.items() if torch.equal(value, last[key])}
    assert {key for key in start if prefixes and key.startswith(prefixes)} <= unchanged
    # A map on which no object lies teaches its class branch, and what predicts its boxes, nothing.
    kernels = {key for key, value in start.items() if value.ndim == 4}
    taught = {key for key in kernels if "cls_convs" not in key and "_preds" not in key}
    learns = {key for key in taught if not (prefixes and key.startswith(prefixes))}
    assert learns and len(learns & unchanged) <= 0.02 * len(learns)
