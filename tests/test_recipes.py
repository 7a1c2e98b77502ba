"""Runs every recipe of README.md for two epochs on a few images of the sample, in small."""

import csv
import math
import shutil
from pathlib import Path

import pytest
import torch
from test_readme import recipes, text_of

import train
from nets import build_model
from utils.config import check_training, script_constants

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "VOCdevkit/Sample"
RECIPES = recipes(text_of("README.md"))
TRAINED, VALIDATED = 8, 4
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
BOTH, FROZEN, UNFROZEN = ["frozen", "unfrozen"], ["frozen", "frozen"], ["unfrozen", "unfrozen"]
# By situation: the phase of each epoch trained; the learning rate at the end of the first of them, which lies in the
# middle of the course, half of the highest and lowest rate for batches of 4 (frozen) or 2 images (highest: batch *
# accumulate / 64 * Init_lr, within the limits); how the names begin of what rests to the end.
EXPECTED = {
    "The weights of a whole model, hundreds of images": (BOTH, 2.525e-3, ()),
    "The same, thousands of images": (BOTH, 3.15625e-4, ()),
    "The same with adamw": (BOTH, 1.515e-4, ()),
    "The same with adam": (BOTH, 1.515e-4, ()),
    "The weights of a backbone alone": (BOTH, 2.525e-3, ()),
    "From scratch": (UNFROZEN, 2.525e-4, ()),
    "From scratch with adamw": (UNFROZEN, 1.515e-4, ()),
    "YOLOv4-tiny from scratch": (UNFROZEN, 1.2625e-3, ()),
    "YOLOv4 on a GPU": (UNFROZEN, 2.525e-4, ()),
    "Few, and similar to COCO": (UNFROZEN, 1.2625e-3, ("backbone.",)),
    "Few, and different": (UNFROZEN, 1.2625e-3, BLOCKS),
    "Many, and similar": (UNFROZEN, 2.525e-4, ()),
    "Many, and different": (BOTH, 3.15625e-4, ()),
    "A weak GPU, or a CPU": (FROZEN, 1.01e-2, (BACKBONE,)),
    "Much memory": (BOTH, 2.525e-3, ()),
    "Little memory": (BOTH, 1.01e-2, ()),
    # Only the second epoch is trained, and it ends at the lowest rate.
    "Go on from weights in logs/": (["unfrozen"], 2.5e-5, ()),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A VOC folder with twelve images of the sample: the paths of its two splits, as train.py's constants."""
    root = tmp_path_factory.mktemp("data")
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    stems = (SAMPLE / "ImageSets/Main/trainval.txt").read_text().split()[: TRAINED + VALIDATED]
    for stem in stems:
        shutil.copy(SAMPLE / f"Annotations/{stem}.xml", root / "Annotations")
        shutil.copy(SAMPLE / f"JPEGImages/{stem}.jpg", root / "JPEGImages")
    constants = {}
    for split, part in (("train", stems[:TRAINED]), ("val", stems[TRAINED:])):
        path = root / f"ImageSets/Main/{split}.txt"
        path.write_text("\n".join(part))
        constants[f"{split}_annotation_path"] = str(path)
    return constants


@pytest.fixture(scope="module")
def start_files(tmp_path_factory):
    """Weight files to start from, in the form of a release: {"whole": path, "backbone": path}."""
    folder = tmp_path_factory.mktemp("weights")
    state = build_model("yolox_nano", 3).state_dict()
    backbone = {key: value for key, value in state.items() if key.startswith(BACKBONE)}
    files = {}
    for name, tensors in (("whole", state), ("backbone", backbone)):
        files[name] = folder / f"{name}.pth"
        torch.save({"model": tensors}, files[name])
    return files


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


def settings_of(recipe, data, start_files, save_dir):
    """train.py's constants as this recipe has them, in small."""
    changes = in_small(recipe) | data | {"save_dir": str(save_dir)}
    if recipe.get("model_path"):
        changes["model_path"] = str(start_files["backbone" if "backbone" in recipe["model_path"] else "whole"])
    return check_training(script_constants(vars(train)) | changes)


def test_each_recipe_has_its_expectation():
    """Prevents a recipe that is run without a look at what it does."""
    assert [situation for situation, _ in RECIPES] == list(EXPECTED)


@pytest.mark.parametrize(("situation", "recipe"), RECIPES, ids=[situation for situation, _ in RECIPES])
def test_a_recipe_trains(situation, recipe, data, start_files, save_dir):
    """Prevents a recipe that ends in an error, trains other epochs or layers than it says, or at another rate."""
    phases, rate, resting = EXPECTED[situation]
    settings = settings_of(recipe, data, start_files, save_dir)
    folder, scores = train.main(settings)

    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == phases
    assert rows[-1]["epoch"] == "2"
    assert all(math.isfinite(float(row[loss])) for row in rows for loss in ("loss", "val_loss"))
    assert float(rows[0]["lr"]) == pytest.approx(rate, rel=1e-6)
    assert 0 <= scores["map50"] <= 1
    best, last = (
        torch.load(save_dir / f"{name}_epoch_weights.pth", weights_only=True)["model"] for name in ("best", "last")
    )
    assert best.keys() == last.keys()

    if recipe.get("model_path"):
        start = torch.load(settings.model_path, weights_only=True)["model"]
        unchanged = {key for key, value in start.items() if torch.equal(value, last[key])}
        assert {key for key in start if resting and key.startswith(resting)} <= unchanged
        # A map on which no object lies teaches its class branch nothing.
        taught = {key for key in start if key.endswith("conv.weight") and "cls_convs" not in key}
        learns = {key for key in taught if not (resting and key.startswith(resting))}
        assert learns and not learns & unchanged
