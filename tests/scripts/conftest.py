from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from runs import make_data

from tests.scripts.drawn_data import SIDE, draw_data, plant_errors
from tests.scripts.programs import CLASSES, leave_out_pictures
from utils.io.logger import end_log_file, setup_logging

# Enough for a mAP@0.5 of about 0.8 on what draw_data draws, so that scores and boxes of this network say something.
TRAINED = {
    "input_shape": [SIDE, SIDE],
    "UnFreeze_Epoch": 4,
    "eval_period": 2,
    "save_period": 2,
    "mosaic": False,
    "scale_range": [0.9, 1.1],
    "aspect_jitter": 0.05,
    "colour_jitter": [0.0, 0.0, 0.0],
    "Init_lr": 0.3,
    "Cuda": False,
    "fp16": False,
}
WRONG_LABELS = 0.06


class Trained(NamedTuple):
    """A run that is over: its folder, what it said, the lists of its labels {split: path}, and the errors in them."""

    folder: Path
    said: str
    lists: dict[str, str]
    planted: list


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The one whole training that tests of several programs look at, from scratch, on labels of which some are wrong.

    It takes seconds, so that few files should use it: each process of pytest-xdist has its own.
    """
    import train  # only where it is needed: it takes seconds

    folder, random, lists, planted = tmp_path_factory.mktemp("trained"), np.random.default_rng(5), {}, []
    draw_data(folder, {"train": 400, "val": 40}, seed=5)
    for split in ("train", "val"):
        lists[split] = str(folder / f"wrong_{split}.txt")
        planted += plant_errors(folder / f"{split}.txt", lists[split], random, WRONG_LABELS)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    paths = {f"{split}_annotation_path": path for split, path in lists.items()}
    paths |= {"classes_path": str(folder / "classes.txt"), "save_dir": str(folder / "logs")}
    setup_logging()
    run_folder, _ = train.main(train.config(**TRAINED, **paths))
    end_log_file()
    return Trained(run_folder, (run_folder / "train.log").read_text(encoding="utf-8"), lists, planted)


@pytest.fixture(scope="session")
def few_images(tmp_path_factory):
    """A VOC folder with a few images of the sample: the constants that name its two splits."""
    return make_data(tmp_path_factory.mktemp("few") / "data", train=10, val=6)


@pytest.fixture
def without_pictures(monkeypatch):
    """Trainings draw no pictures, see leave_out_pictures."""
    leave_out_pictures(monkeypatch)
