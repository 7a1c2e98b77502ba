"""Losses and layers that are no finite number, once and for good."""

import pytest
import torch
from runs import checkpoint_of, fault, is_finite, run_folder, train_images, train_with

pytestmark = pytest.mark.faults
# Of which the first two calls are of the preflight.
LOSSES = "utils.training.engine:OptimWrapper.compute_loss"


def test_one_bad_step_is_left_out_and_counted(settings, tmp_path):
    """Prevents a single NaN from entering the weights, their average or the optimiser, from where none comes back."""
    finished = train_with(settings | {"save_dir": str(tmp_path)}, fault(LOSSES, 12, "spoil_loss"))
    assert finished.status == 0, finished.error
    assert "note: 1 step was left out of epoch 2: the loss or its gradient was no finite number" in finished.said
    content = checkpoint_of(tmp_path)
    assert is_finite(content["model"]) and is_finite(content["training"])
    assert [row["epoch"] for row in content["log"]["rows"]] == [1, 2, 3, 4, 5]
    assert all(0 < row["loss"] < 100 for row in content["log"]["rows"])


def test_bad_steps_in_a_row_end_the_run_with_a_crash_dump(settings, tmp_path):
    """Prevents hours of training after the last useful step, a checkpoint of NaN, and a cause nobody can find: the
    crash dump names the layer that was not finite first, and the images."""
    spoiled = fault("utils.training.build:build_detector", 1, "spoil_layer", "head.obj_preds.0", 20)
    finished = train_with(settings | {"save_dir": str(tmp_path)}, spoiled)
    assert finished.status == 3, finished
    assert "Traceback" not in finished.error
    assert "was no finite number in 5 steps in a row." in finished.error
    assert "first of all the output of layer head.obj_preds.0, with the images " in finished.error
    content = checkpoint_of(tmp_path)
    assert is_finite(content["model"]) and is_finite(content["training"])
    dump = torch.load(run_folder(tmp_path) / "black_box.pth", weights_only=True)
    assert dump["first_not_finite"] == "the output of layer head.obj_preds.0"
    assert dump["settings"]["UnFreeze_Epoch"] == 5 and is_finite(dump["model"])
    assert set(dump["paths"]) <= {str(path) for path in train_images(settings)}
    assert len(dump["paths"]) == sum(len(images) for images in dump["images"]) > 0
