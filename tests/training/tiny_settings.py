"""Settings of trainings on tiny data, and the objects in them."""

from types import SimpleNamespace

import torch
from voc_folder import box_xml, make_voc

import train
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo

RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), Precision(torch.float32, False, ""))
NAMES = ["cat", "dog"]
TOP_LEFT = {"mode": "topleft", "pad": 114}
CAT, DOG = box_xml("cat", (10, 10, 60, 40)), box_xml("dog", (30, 5, 90, 45))
CROWD = box_xml("dog", (20, 20, 70, 45), difficult=1)


def settings_of(**changes):
    small = {"input_shape": [64, 64], "num_workers": 0, "classes_path": ""}
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | small | changes))


def make_settings(folder, train_images, val_images=None, names=NAMES, **changes):
    """Settings of a tiny VOC folder with these images, {id: objects}, to train and to validate on."""
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    paths = {
        "train_annotation_path": make_voc(folder / "train", train_images),
        "val_annotation_path": make_voc(folder / "val", val_images or {"v": [CAT, DOG]}),
    }
    return settings_of(**paths, **{"classes_path": str(folder / "classes.txt")} | changes)
