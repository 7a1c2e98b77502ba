"""One epoch of training. Receives everything it needs and builds nothing."""

import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from utils.device import sum_over_ranks, without_sync, world_size

# How often the progress bar reads losses from the device: each reading waits for the device.
SECONDS_BETWEEN_READINGS = 1.0


class EpochResult(NamedTuple):
    """losses: {part: mean over the images of all ranks}; learning_rate: of the last step; unreadable: paths that failed
    to decode.
    """

    losses: dict
    learning_rate: float
    images_per_second: float
    data_wait: float
    seconds: float
    unreadable: list


class Stepper:
    """The optimiser step: gradients are gathered, scaled, clipped and applied, and the average of the weights follows.

    clip_grad_norm: largest norm of all gradients together, 0 for no clipping; clip_norm_type: 2 for the Euclidean norm,
    inf for the largest gradient.
    """

    def __init__(self, model, optimizer, ema, precision, device, clip_grad_norm=0.0, clip_norm_type=2.0):
        self.model, self.optimizer, self.ema, self.precision = model, optimizer, ema, precision
        self.device, self.clip_grad_norm, self.clip_norm_type = device, clip_grad_norm, clip_norm_type
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scales)
        self.counts = []

    def losses(self, network, criterion, images, targets):
        """Forward in the run's precision, loss in float32. Returns {part: scalar tensor} and "count", see gather."""
        dtype = self.precision.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            raw = network(images)
        return criterion(raw, targets)

    def gather(self, losses):
        """Add the gradient of a batch to those gathered since the last step, as if all were one batch.

        losses: with "loss", the sum over the batch divided by the larger number of "count", (2,) positives and images.
        One batch divides by the larger of all counts together, those of other ranks included. They are known only at
        its end: until then the counts of the first part stand for them, and step() corrects that.
        """
        count = sum_over_ranks(losses["count"])
        self.counts.append(count)
        # Ranks average their gradients; the sum is wanted.
        weight = losses["count"].max() / self.counts[0].max() * world_size()
        self.scaler.scale(losses["loss"] * weight).backward()

    def step(self):
        """Apply the gradients gathered so far and clear them."""
        if len(self.counts) > 1:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, self.counts[0].max() / sum(self.counts).max())
        self.counts.clear()
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm, self.clip_norm_type)
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
    batches, device, sums = len(loader), stepper.device, {}
    rate, images_seen, waited, unreadable, last_reading = 0.0, 0, 0.0, [], 0.0
    start = ready = time.perf_counter()
    with tqdm(total=batches, desc=description, leave=False, disable=None if description else True) as bar:
        for number, batch in enumerate(loader):
            waited += time.perf_counter() - ready
            images = batch.images.to(device, non_blocking=True)
            targets = batch.targets.to(device, non_blocking=True)
            ends_window = (number + 1) % accumulate == 0 or number + 1 == batches
            with nullcontext() if ends_window else without_sync(network):
                losses = stepper.losses(network, criterion, images, targets)
                stepper.gather(losses)
            if ends_window:
                rate = set_rates((number + 1) / batches)
                stepper.step()
            for part, value in losses.items():
                if part != "count":
                    sums[part] = sums.get(part, 0) + value.detach() * len(images)
            images_seen += len(images)
            unreadable += batch.unreadable
            bar.update()
            ready = time.perf_counter()
            if ready - last_reading > SECONDS_BETWEEN_READINGS:
                mean = sums["loss"].item() / images_seen
                bar.set_postfix(loss=f"{mean:.3f}")
                if not math.isfinite(mean) and world_size() == 1:  # of several ranks none may leave the others alone
                    break
                last_reading = time.perf_counter()
    means = _means_over_ranks(sums, images_seen, device)
    seconds = time.perf_counter() - start
    return EpochResult(means, rate, images_seen / seconds, waited / seconds, seconds, unreadable)


def _means_over_ranks(sums, images, device):
    """{part: mean loss over the images of all ranks} from {part: sum over this rank's images}."""
    if not sums:
        return {}
    *totals, images = sum_over_ranks(torch.stack([*sums.values(), torch.tensor(float(images), device=device)])).tolist()
    return {part: total / images for part, total in zip(sums, totals, strict=True)}
