"""Small real trainings as processes: started, with faults inside where wanted, and compared bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from utils.checkpoint.resume import CHECKPOINT

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = PROJECT / "VOCdevkit/Sample"
FAULTY_TRAIN = Path(__file__).with_name("faulty_train.py")
EPOCHS, STEPS_PER_EPOCH, TRAIN_IMAGES = 5, 4, 26
# Two frozen epochs and three unfrozen ones, the last two without mosaic; every other epoch is measured. An epoch has 7
# batches, the last one smaller, in 4 steps, of which the last has but one batch.
SETTINGS = {
    "classes_path": str(PROJECT / "model_data/sample_classes.txt"),
    "input_shape": [64, 64],
    "Cuda": False,
    "fp16": False,
    "cpu_threads": 1,
    "Freeze_Train": True,
    "Freeze_Epoch": 2,
    "UnFreeze_Epoch": EPOCHS,
    "Freeze_batch_size": 4,
    "Unfreeze_batch_size": 4,
    "accumulate": 2,
    "eval_period": 2,
    "special_aug_ratio": 0.6,
}
# After each optimiser step of the training itself, not of the preflight.
STEP = "utils.training.optim:ModelEMA.update"
# What differs between two equal runs.
TIMES = ("images_per_second", "data_wait", "seconds", "gpu_memory")


class Finished(NamedTuple):
    """A process that ended: exit status, and what it wrote to its two streams."""

    status: int
    said: str
    error: str


def fault(target, call, action, *arguments, rank=0, lasts=False):
    """What faulty_train.py does after a call, counted from 1, of a function."""
    return {"target": target, "call": call, "action": action, "arguments": arguments, "lasts": lasts, "rank": rank}


def make_data(folder, train=TRAIN_IMAGES, val=10):
    """A folder in VOC's form with a few images of the sample. Returns the settings that name its lists."""
    lists = folder / "ImageSets/Main"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    stems = (SAMPLE / "ImageSets/Main/train.txt").read_text().split()
    parts = {"train": stems[:train], "val": stems[train : train + val]}
    for split, chosen in parts.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in chosen))
        for stem in chosen:
            shutil.copy(SAMPLE / f"JPEGImages/{stem}.jpg", folder / "JPEGImages")
            shutil.copy(SAMPLE / f"Annotations/{stem}.xml", folder / "Annotations")
    return {f"{split}_annotation_path": str(lists / f"{split}.txt") for split in parts}


def train_images(data):
    """The training images of what make_data gave, as paths."""
    path = Path(data["train_annotation_path"])
    return [path.parents[2] / f"JPEGImages/{stem}.jpg" for stem in path.read_text().split()]


def command_line(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


@contextmanager
def started(settings, faults=(), launcher=(sys.executable,), stdout=subprocess.PIPE):
    """A training of these settings, {name: value}, as a process with a group of its own, which ends with the block."""
    script = FAULTY_TRAIN if faults else PROJECT / "train.py"
    environment = {"FAULTS": json.dumps(list(faults), default=str), "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*launcher, str(script), *command_line(settings)],
        cwd=PROJECT,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()  # a launcher ends those it started
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def train_with(settings, *faults, launcher=(sys.executable,), timeout=300):
    """Run a training with these settings and faults to its end: Finished."""
    with started(settings, faults, launcher) as process:
        said, error = process.communicate(timeout=timeout)
    return Finished(process.returncode, said, error)


def run_folder(save_dir):
    """The folder of the only run under save_dir that has a checkpoint."""
    (path,) = Path(save_dir).glob(f"loss_20*/{CHECKPOINT}")
    return path.parent


def checkpoint_of(save_dir):
    """What the checkpoint of the only run under save_dir holds, read as untrusted files are."""
    return torch.load(run_folder(save_dir) / CHECKPOINT, weights_only=True)


def outcome(save_dir):
    """What must be equal in two runs: position, weights, average, optimiser, rates, losses, scores, random states."""
    content = checkpoint_of(save_dir)
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in content["log"]["rows"]]
    position = [content["run"][key] for key in ("epoch", "images", "is_over")]
    parts = {key: content[key] for key in ("model", "training", "ranks")}
    best = torch.load(run_folder(save_dir) / "best_epoch_weights.pth", weights_only=True)["model"]
    return parts | {"rows": rows, "position": position, "files": content["log"]["files"], "best": best}


def differences(found, expected, where=""):
    """The places at which two nested values differ, bit for bit."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return [place for key in found for place in differences(found[key], expected[key], f"{where}/{key}")]
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [place for number, pair in pairs for place in differences(*pair, f"{where}/{number}")]
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [where]
    return [] if found == expected else [f"{where}: {found!r} is not {expected!r}"[:300]]


def is_finite(content):
    """Whether all weights, averages and moments of a checkpoint are numbers."""
    if isinstance(content, dict):
        return all(map(is_finite, content.values()))
    if isinstance(content, list | tuple):
        return all(map(is_finite, content))
    return bool(content.isfinite().all()) if isinstance(content, torch.Tensor) else True
