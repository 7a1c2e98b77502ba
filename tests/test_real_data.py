"""A short training on real photographs from public weights; needs a folder named by YOLO_REAL_DATA."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_blood_cells_from_public_weights(real_data, tmp_path):
    """Prevents a training that only works on drawn pictures: boxes without area, public weights, another class count.

    Three epochs, two of them frozen, on a third of the pixels: the losses fall, across the unfreeze epoch as well, and
    the mAP rises well above that of a network that guesses.
    """
    splits = real_data / "data/bccd/ImageSets/Main"
    (tmp_path / "classes.txt").write_text("RBC\nWBC\nPlatelets\n")
    command = [
        *(sys.executable, "train.py", f"--classes_path={tmp_path / 'classes.txt'}", f"--save_dir={tmp_path}"),
        *(f"--train_annotation_path={splits / 'train.txt'}", f"--val_annotation_path={splits / 'val.txt'}"),
        *(f"--model_path={real_data / 'weights/yolox_nano_coco.pth'}", "--input_shape=[224,224]"),
        *("--Freeze_Epoch=2", "--UnFreeze_Epoch=3", "--eval_period=1"),
    ]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert "636 of 642 tensors loaded" in process.stdout
    assert process.stdout.count("have no area") == 2
    with open(next(tmp_path.glob("loss_*/results.csv")), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["frozen", "frozen", "unfrozen"]
    losses = [float(row["loss"]) - float(row["loss_l1"]) for row in rows]
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] < 1.2 * losses[1]
    assert float(rows[-1]["map50"]) > 0.05
