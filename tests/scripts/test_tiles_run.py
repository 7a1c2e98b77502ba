"""A training in tiles, and what is then found in them."""

import json

import pytest
import torch

from tests.scripts.programs import QUICK, run_here
from utils.inference.detector import Detector


@pytest.fixture(scope="module")
def run_in_tiles(few_images, tmp_path_factory):
    """One epoch of yolox_nano on tiles: (its folder, what it said, the options of the data)."""
    save_dir = tmp_path_factory.mktemp("tiles")
    data = [f"--{name}={value}" for name, value in few_images.items()]
    options = [*QUICK, *data, "--UnFreeze_Epoch=1", "--tile=128", "--tile_overlap=0.25", f"--save_dir={save_dir}"]
    finished = run_here("train.py", *options)
    assert finished.status == 0, finished.error
    (folder,) = save_dir.glob("loss_20*")
    return folder, finished.said, few_images


def test_a_training_learns_tiles_and_its_weights_remember_them(run_in_tiles):
    """Prevents a detector that looks at whole images for the objects that it knows from tiles."""
    folder, said, _ = run_in_tiles
    assert "In tiles of 128 pixels, 10 images are 100 to train on, 23 of them without objects.\n" in said
    assert Detector(folder / "last_epoch_weights.pth").tiles == (128, 0.25)
    assert Detector(folder / "last_epoch_weights.pth", tile=0).tiles.tile == 0


def test_get_map_gives_the_number_of_the_training_in_tiles(run_in_tiles, tmp_path):
    """Prevents a score of tiles in the training, and one of images in the tools."""
    folder, _, data = run_in_tiles
    given = f"--model_path={folder / 'last_epoch_weights.pth'}", f"--annotation_path={data['val_annotation_path']}"
    finished = run_here("tools/get_map.py", *given, "--resamplings=0", f"--map_out_path={tmp_path}")
    assert finished.status == 0, finished.error
    results = json.loads((tmp_path / "results.json").read_text())
    scores = torch.load(folder / "last_epoch_weights.pth", weights_only=True)["contract"]["scores"]
    assert results["map50"] == pytest.approx(scores["map50"], abs=1e-9) and scores["map50"] > 0
    assert len(json.loads((tmp_path / "ground_truth.json").read_text())["images"]) == 6
