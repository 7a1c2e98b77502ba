"""One epoch of training. Receives everything it needs and builds nothing."""

import math
import time
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

LOSS_PARTS = ("loss", "box", "obj", "cls", "l1")
# How often the progress bar reads losses from the device: each reading waits for the device.
SECONDS_BETWEEN_READINGS = 1.0


class EpochResult(NamedTuple):
    """losses: {part: mean over images}; learning_rate: of the last step; unreadable: paths that failed to decode."""

    losses: dict
    learning_rate: float
    images_per_second: float
    data_wait: float
    seconds: float
    unreadable: list


class Stepper:
    """The optimiser step: gradients are scaled, clipped and applied, and the average of the weights follows."""

    def __init__(self, model, optimizer, ema, precision, device, clip_grad_norm):
        self.model, self.optimizer, self.ema, self.precision = model, optimizer, ema, precision
        self.device, self.clip_grad_norm = device, clip_grad_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scales)

    def losses(self, network, criterion, images, targets):
        """Forward in the run's precision, loss in float32. Returns {part: scalar tensor}."""
        dtype = self.precision.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            raw = network(images)
        return criterion(raw, targets)

    def step(self):
        """Apply the gradients gathered so far and clear them."""
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)


def train_one_epoch(network, criterion, loader, stepper, set_rates, accumulate, description):
    """Train on every batch of the loader once.

    network: the model, possibly wrapped for several devices, in train mode. set_rates: called before each step
    with the share of the epoch done, 0..1, and returns the learning rate. accumulate: batches per optimiser step; the
    last step of an epoch takes those that are left. description: of the progress bar, '' for none. An epoch whose loss
    is no longer finite is broken off. Returns an EpochResult.
    """
    batches, device = len(loader), stepper.device
    sums = torch.zeros(len(LOSS_PARTS), device=device)
    rate, images_seen, waited, unreadable, last_reading = 0.0, 0, 0.0, [], 0.0
    start = ready = time.perf_counter()
    with tqdm(total=batches, desc=description, leave=False, disable=None if description else True) as bar:
        for number, batch in enumerate(loader):
            waited += time.perf_counter() - ready
            images = batch.images.to(device, non_blocking=True)
            targets = batch.targets.to(device, non_blocking=True)
            losses = stepper.losses(network, criterion, images, targets)
            window = min(accumulate, batches - number // accumulate * accumulate)
            stepper.scaler.scale(losses["loss"] / window).backward()
            if (number + 1) % accumulate == 0 or number + 1 == batches:
                rate = set_rates((number + 1) / batches)
                stepper.step()
            sums += torch.stack([losses[part].detach() for part in LOSS_PARTS]) * len(images)
            images_seen += len(images)
            unreadable += batch.unreadable
            bar.update()
            ready = time.perf_counter()
            if ready - last_reading > SECONDS_BETWEEN_READINGS:
                mean = sums[0].item() / images_seen
                bar.set_postfix(loss=f"{mean:.3f}")
                if not math.isfinite(mean):
                    break
                last_reading = time.perf_counter()
    means = (sums / max(images_seen, 1)).tolist()
    seconds = time.perf_counter() - start
    return EpochResult(
        dict(zip(LOSS_PARTS, means, strict=True)), rate, images_seen / seconds, waited / seconds, seconds, unreadable
    )
