"""What the bare training steps cost on this machine: forward, loss and backward on one fixed batch, nothing else.

python benchmarks/step.py [--frozen_steps=130 --unfrozen_steps=520 ...]

First, seconds per step of each variant, frozen and unfrozen, and what a step calls. Then, where counts are given, so
many bare steps in a row with the constants of train.py, to hold against a whole training of as many steps: compare `CPU
seconds` with user plus system time of `/usr/bin/time -v python train.py ...` on the same idle machine.
"""

import cProfile
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nets import build_criterion, build_model
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.runtime import device as machine
from utils.training.freezing import select

# ----------------------------------------------------------------------------------------------------------------------
#   model_name      The network measured.
#   num_classes     Its classes.
#   input_shape     [height, width] of its input.
#   frozen_batch    Images in a batch of the frozen phase.
#   unfrozen_batch  Images in a batch of the unfrozen phase.
#   boxes           Boxes in each image of the fixed batch.
#   frozen_steps    Bare steps of the frozen phase to run for the total; 0 leaves them out.
#   unfrozen_steps  Bare steps of the unfrozen phase to run for the total; 0 leaves them out.
#   repeats         Steps per variant, after two that do not count.
#   Cuda            Use the GPU where there is one.
#   fp16            Mixed precision in the variant of that name, as in train.py.
# ----------------------------------------------------------------------------------------------------------------------
model_name = "yolox_nano"
num_classes = 3
input_shape = [416, 416]
frozen_batch = 16
unfrozen_batch = 8
boxes = 40
frozen_steps = 0
unfrozen_steps = 0
repeats = 8
Cuda = True
fp16 = True


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that run inside of it. counts: {name: how often}."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    @property
    def total(self):
        return sum(self.counts.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def fixed_batch(batch_size, settings, device):
    """Random pixels and boxes: images (B, 3, H, W) uint8 channels_last, targets (B, 64 or more, 5)."""
    generator = torch.Generator().manual_seed(0)
    height, width = settings.input_shape
    images = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8, generator=generator)
    targets = torch.zeros(batch_size, max(64, settings.boxes), 5)
    targets[..., 4] = -1
    size = torch.tensor([width, height])
    corner = torch.rand(batch_size, settings.boxes, 2, generator=generator) * size * 0.8
    side = torch.rand(batch_size, settings.boxes, 2, generator=generator) * size * 0.2
    targets[:, : settings.boxes, :4] = torch.cat((corner, corner + side), dim=-1)
    targets[:, : settings.boxes, 4] = torch.randint(
        settings.num_classes, (batch_size, settings.boxes), generator=generator
    )
    return images.permute(0, 3, 1, 2).to(device), targets.to(device)


def bare_step(model, criterion, batch, device, dtype):
    """One forward, loss and backward pass; gradients are dropped."""
    images, targets = batch
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        raw = model(images)
    criterion(raw, targets)["loss"].backward()
    model.zero_grad(set_to_none=True)


def measure(model, criterion, batch, device, dtype, steps):
    """Wall and CPU seconds of so many bare steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), sum(os.times()[:2])
    for _ in range(steps):
        bare_step(model, criterion, batch, device, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, sum(os.times()[:2]) - cpu


def make(settings, device, memory_format, frozen):
    """A network in train mode, its criterion and a fixed batch."""
    model = build_model(settings.model_name, settings.num_classes).to(device, memory_format=memory_format)
    model.freeze(select(model, ["backbone"], "frozen") if frozen else ())
    batch = fixed_batch(settings.frozen_batch if frozen else settings.unfrozen_batch, settings, device)
    return model.train(), build_criterion(model), batch


def count_calls(settings, device, dtype):
    """(operators, calls of Python functions) of an unfrozen step."""
    model, criterion, batch = make(settings, device, torch.channels_last, False)
    bare_step(model, criterion, batch, device, dtype)
    profile = cProfile.Profile()
    profile.runcall(bare_step, model, criterion, batch, device, dtype)
    with OperatorCounter() as counter:
        bare_step(model, criterion, batch, device, dtype)
    return counter.total, sum(entry.callcount for entry in profile.getstats() if not isinstance(entry.code, str))


def main(settings):
    """Print both tables."""
    device, _ = machine.choose_device(settings.Cuda)
    precision = machine.choose_precision(settings.fp16, device)
    for name, text in (*machine.describe(device), ("precision", precision.sentence)):
        print(f"{name:14s} {text}")
    print(f"\n{'variant':34s} {'phase':9s} {'batch':>5s} {'wall s/step':>12s} {'CPU s/step':>11s}")
    variants = {
        "float32": (torch.contiguous_format, torch.float32),
        "float32, channels_last": (torch.channels_last, torch.float32),
        "mixed, channels_last (train.py)": (torch.channels_last, precision.dtype),
    }
    for name, (memory_format, dtype) in variants.items():
        for frozen in (True, False):
            model, criterion, batch = make(settings, device, memory_format, frozen)
            measure(model, criterion, batch, device, dtype, 2)
            wall, cpu = measure(model, criterion, batch, device, dtype, settings.repeats)
            phase = "frozen" if frozen else "unfrozen"
            per_step = f"{wall / settings.repeats:12.3f} {cpu / settings.repeats:11.3f}"
            print(f"{name:34s} {phase:9s} {len(batch[0]):5d} {per_step}")
    operators, calls = count_calls(settings, device, precision.dtype)
    print(f"\nan unfrozen step of train.py: {operators} operators, {calls} calls of Python functions")
    if settings.frozen_steps or settings.unfrozen_steps:
        total_wall = total_cpu = 0.0
        for frozen, steps in ((True, settings.frozen_steps), (False, settings.unfrozen_steps)):
            model, criterion, batch = make(settings, device, torch.channels_last, frozen)
            wall, cpu = measure(model, criterion, batch, device, precision.dtype, steps)
            total_wall, total_cpu = total_wall + wall, total_cpu + cpu
        print(f"\n{settings.frozen_steps} frozen and {settings.unfrozen_steps} unfrozen bare steps:", end=" ")
        print(f"{total_wall:.1f} s wall, {total_cpu:.1f} CPU seconds")


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
