"""Public weights on real photographs, measured and trained; needs a folder named by YOLO_REAL_DATA."""

import csv
import json
import re

import pytest

from tests.scripts.programs import run_here


@pytest.mark.slow
def test_blood_cells_from_public_weights(real_data, tmp_path, without_pictures):
    """Prevents a training that only works on drawn pictures: boxes without area, public weights, another class count.

    Three epochs, two of them frozen, on a third of the pixels: the losses fall, across the unfreeze epoch as well, and
    the mAP rises far above that of a network that guesses.
    """
    splits = real_data / "data/bccd/ImageSets/Main"
    (tmp_path / "classes.txt").write_text("RBC\nWBC\nPlatelets\n")
    finished = run_here(
        *("train.py", f"--classes_path={tmp_path / 'classes.txt'}", f"--save_dir={tmp_path}"),
        *(f"--train_annotation_path={splits / 'train.txt'}", f"--val_annotation_path={splits / 'val.txt'}"),
        *(f"--model_path={real_data / 'weights/yolox_nano_coco.pth'}", "--input_shape=[224,224]"),
        *("--Freeze_Train=True", "--Freeze_Epoch=2", "--UnFreeze_Epoch=3", "--eval_period=1"),
    )
    assert finished.status == 0, finished.error
    assert "0 of 3 classes go on from the file" in finished.said
    assert re.search(r"^warning +2  box without area inside its image  +drops the box", finished.said, re.MULTILINE)
    with open(next(tmp_path.glob("loss_*/results.csv")), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["frozen", "frozen", "unfrozen"]
    losses = [float(row["loss"]) - float(row["loss_l1"]) for row in rows]
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] < 1.2 * losses[1]
    # The epoch that unfreezes is a short one here, after which BatchNorm's statistics are still on their way.
    assert max(float(row["map50"]) for row in rows) > 0.15


@pytest.mark.slow
def test_public_weights_score_as_elsewhere(real_data, tmp_path):
    """Prevents mistakes that only cost accuracy: another pixel rule, padding, class order, box format or suppression.

    The expected numbers are what pycocotools made of another implementation's boxes, AP 0.3073; that ours are clipped
    to the picture adds 0.0015 to it.
    """
    finished = run_here(
        *("tools/get_map.py", "--model_name=yolox_nano", "--classes_path=model_data/coco_classes.txt"),
        *(f"--model_path={real_data / 'weights/yolox_nano_coco.pth'}", f"--map_out_path={tmp_path}"),
        f"--annotation_path={real_data / 'data/coco_tiny/annotations/instances_val2017.json'}",
        *("--input_shape=[416,416]", "--confidence=0.001", "--nms_iou=0.65"),
    )
    assert finished.status == 0, finished.error
    assert "80 images, 815 boxes" in finished.said
    scores = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    # Small, medium and large by the areas of the segments, as the file states them.
    expected = {"AP": 0.307, "AP50": 0.482, "AP75": 0.326, "AP_small": 0.113, "AP_medium": 0.326, "AP_large": 0.531}
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=0.003)
