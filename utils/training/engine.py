"""One epoch of training. Receives everything it needs and builds nothing."""

import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from utils.runtime.distributed import sum_over_ranks, without_sync, world_size
from utils.training.nonfinite import HALVINGS, MOST_IN_A_ROW, KeptStatistics, NotFiniteError, Verdicts, is_not_finite
from utils.training.optim import leaves_out_by_itself

# How often the progress bar reads losses from the device: each reading waits for the device.
SECONDS_BETWEEN_READINGS = 1.0


class EpochResult(NamedTuple):
    """losses: {part: mean over the images of all ranks}; learning_rate: of the last step; unreadable: paths that failed
    to decode; cut_off: of images that lack their end; skipped: steps left out, as they were not finite.
    """

    losses: dict
    learning_rate: float
    images_per_second: float
    data_wait: float
    seconds: float
    unreadable: list
    cut_off: list = ()
    skipped: int = 0


class Tally:
    """What an epoch has brought so far. A plain dict of it, state(), takes an interrupted epoch up again: Tally(state).

    sums: of each part of the loss over this rank's images, and how many images these are, in one tensor on the device;
    batches that are not finite are left out. The rest is as in EpochResult.
    """

    def __init__(self, state=None):
        self.parts, self.sums, self.images, self.seconds, self.waited = [], None, 0, 0.0, 0.0
        self.learning_rate, self.skipped, self.unreadable, self.cut_off = 0.0, 0, [], []
        vars(self).update(state or {})

    def state(self):
        """All of it, as plain types and tensors."""
        return {**vars(self), "unreadable": list(self.unreadable), "cut_off": list(self.cut_off)}

    def add(self, losses, images):
        """Add the losses of a step, {part: scalar tensor}, as means over so many images."""
        self.parts = [part for part in losses if part != "count"]
        values = torch.stack([losses[part].detach().float() for part in self.parts])
        row = torch.cat((values, values.new_ones(1))) * images
        row = torch.where(row.isfinite().all(), row, 0)
        self.sums = row if self.sums is None else self.sums.to(row.device) + row
        self.images += images

    def result(self):
        """The EpochResult, with the losses of all ranks."""
        *totals, images = sum_over_ranks(self.sums).tolist() if self.parts else (0,)
        return EpochResult(
            {part: total / images if images else math.nan for part, total in zip(self.parts, totals, strict=True)},
            self.learning_rate,
            self.images / self.seconds if self.seconds else 0.0,
            self.waited / self.seconds if self.seconds else 0.0,
            self.seconds,
            self.unreadable,
            self.cut_off,
            self.skipped,
        )


class Stepper:
    """The optimiser step: gradients are gathered, scaled, clipped and applied, and the average of the weights follows.

    A step whose loss or gradient is not finite is left out: weights, average and statistics stay as they were.
    clip_grad_norm: largest norm of all gradients together, 0 for no clipping; clip_norm_type: 2 for the Euclidean norm,
    inf for the largest gradient.
    """

    def __init__(self, model, optimizer, ema, precision, device, clip_grad_norm=0.0, clip_norm_type=2.0):
        self.model, self.optimizer, self.ema, self.precision = model, optimizer, ema, precision
        self.device, self.clip_grad_norm, self.clip_norm_type = device, clip_grad_norm, clip_norm_type
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scales)
        self.total, self.gathered = None, []
        self.statistics = KeptStatistics(model)
        # Fused optimisers leave a bad step out by themselves, on the device; for others the host must know of it.
        self.verdicts = Verdicts(is_late=device.type == "cuda" and leaves_out_by_itself(optimizer))
        self.most_in_a_row = MOST_IN_A_ROW + (HALVINGS if precision.scales else 0)
        self.bad_in_a_row = 0

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
        count = losses["count"]
        self.total = sum_over_ranks(count) if self.total is None else self.total
        self.gathered.append({part: value.detach() for part, value in losses.items()})
        # Ranks average their gradients; the sum is wanted.
        weight = count.max() / self.total.max() * world_size()
        # So every gradient of every rank tells of a loss that is not finite.
        weight = torch.where(losses["loss"].isfinite(), weight, math.nan)
        self.scaler.scale(losses["loss"] * weight).backward()

    def step(self):
        """Apply the gradients gathered so far and clear them.

        Returns whether a step is known to have been left out: this one, or, where the device must not be waited for,
        the one before. And this step's losses, {part: scalar tensor}: weighed by their images, the ranks' values have
        the mean of what the step lowers; NaN on all ranks where it is left out.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        total, batches, self.gathered = self.total, self.gathered, []
        if len(batches) > 1:
            total = total + sum_over_ranks(sum(losses["count"] for losses in batches[1:]))
            torch._foreach_mul_(gradients, self.total.max() / total.max())
        self.total = None
        is_bad = is_not_finite(gradients).to(self.device)
        # Every batch has divided by its own counts.
        share = total[1] / sum(losses["count"][1] for losses in batches) / total.max()
        share = torch.where(is_bad, math.nan, share)
        means = {
            part: sum(losses[part].float() * losses["count"].max() for losses in batches) * share
            for part in batches[0]
            if part != "count"
        }
        self.statistics.settle(is_bad)
        known = self._count(self.verdicts.learn(is_bad))
        if self.verdicts.is_late or not known or self.scaler.is_enabled():
            self._apply(is_bad)
        self.optimizer.zero_grad(set_to_none=True)
        return known, means

    def finish(self):
        """Whether the last step was left out, where step() could not know it."""
        return self._count(self.verdicts.finish())

    def _count(self, known):
        if known is not None:
            self.bad_in_a_row = self.bad_in_a_row + 1 if known else 0
        return bool(known)

    def _apply(self, is_bad):
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm, self.clip_norm_type)
        if self.verdicts.is_late and not self.scaler.is_enabled():
            self.optimizer.found_inf = is_bad.float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            is_sure = not (self.verdicts.is_late or self.scaler.is_enabled())
            self.ema.update(self.model, None if is_sure else is_bad)


def train_one_epoch(
    network, criterion, loader, stepper, set_rates, accumulate, description, tally=None, first=0, after_step=None
):
    """Train on every batch of the loader once.

    network: the model, possibly wrapped for several devices, in train mode. set_rates: called before each step
    with the share of the epoch done, 0..1, and returns the learning rate. accumulate: batches per optimiser step; the
    last step of an epoch takes those that are left. description: of the progress bar, '' for none. tally, first: of the
    batches of this epoch that are done already, and how many. after_step: called with the number of batches done, once
    the tally holds them. Returns an EpochResult. Raises NotFiniteError where step after step has to be left out.
    """
    tally, batches, last_reading = tally or Tally(), first + len(loader), 0.0
    stepper.statistics.remember()
    ready, window, before = time.perf_counter(), [], []
    hidden = None if description else True
    with tqdm(total=batches, initial=first, desc=description, leave=False, disable=hidden) as bar:
        for done, batch in enumerate(loader, first + 1):
            tally.waited += time.perf_counter() - ready
            images = batch.images.to(stepper.device, non_blocking=True)
            targets = batch.targets.to(stepper.device, non_blocking=True)
            ends_window = done % accumulate == 0 or done == batches
            window.append(batch)
            with nullcontext() if ends_window else without_sync(network):
                losses = stepper.losses(network, criterion, images, targets)
                stepper.gather(losses)
            tally.unreadable += batch.unreadable
            tally.cut_off += batch.cut_off
            if ends_window:
                tally.learning_rate = set_rates(done / batches)
                is_left_out, losses = stepper.step()
                tally.skipped += is_left_out
                tally.add(losses, sum(len(one.images) for one in window))
                _stop_if_hopeless(stepper, before if stepper.verdicts.is_late else window)
                before, window = window, []
            bar.update()
            if ends_window and time.perf_counter() - last_reading > SECONDS_BETWEEN_READINGS:
                loss, images_counted = tally.sums[[tally.parts.index("loss"), -1]].tolist()
                bar.set_postfix(loss=f"{loss / images_counted:.3f}" if images_counted else "nan")
                last_reading = time.perf_counter()
            if ends_window and after_step:
                after_step(done)
            now = time.perf_counter()
            tally.seconds, ready = tally.seconds + now - ready, now
    tally.skipped += stepper.finish()
    _stop_if_hopeless(stepper, before)
    return tally.result()


def _stop_if_hopeless(stepper, batches):
    if stepper.bad_in_a_row >= stepper.most_in_a_row:
        raise NotFiniteError(
            f"The loss or its gradient was no finite number in {stepper.bad_in_a_row} steps in a row.", batches
        )
