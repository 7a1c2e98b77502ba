"""One epoch of training. Receives everything it needs and builds nothing."""

import math
import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from utils.data.prefetch import on_device
from utils.runtime.distributed import all_reduce_sum, no_sync, world_size
from utils.training.nonfinite import (
    MAX_IN_A_ROW,
    SCALE_HALVINGS,
    BatchNormBackup,
    DelayedFlag,
    NonFiniteLossError,
    is_not_finite,
)
from utils.training.optim import load_optimizer_state, skips_on_device

# How often the progress bar reads losses from the device: each reading waits for the device.
SECONDS_BETWEEN_READINGS = 1.0


class EpochResult(NamedTuple):
    """losses: {part: mean over the images of all ranks}; learning_rate: of the last step; unreadable: paths that failed
    to decode; truncated: of images that lack their end; skipped: steps left out, as they were not finite;
    peak_memory: bytes of the GPU's memory at most, None on a CPU.
    """

    losses: dict
    learning_rate: float
    images_per_second: float
    data_wait: float
    seconds: float
    unreadable: list
    truncated: list = ()
    skipped: int = 0
    peak_memory: int | None = None


class LossMeter:
    """What an epoch has brought so far.

    sums: of each part of the loss over this rank's images, and how many images these are, in one tensor on the device;
    batches that are not finite are left out. The rest is as in EpochResult.
    """

    def __init__(self):
        self.parts, self.sums, self.images, self.seconds, self.waited = [], None, 0, 0.0, 0.0
        self.learning_rate, self.skipped, self.unreadable, self.truncated = 0.0, 0, [], []

    def state_dict(self):
        """All of it, as plain types and tensors."""
        state = {**vars(self), "unreadable": list(self.unreadable), "cut_off": list(self.truncated)}
        del state["truncated"]
        return state

    def load_state_dict(self, state):
        """Go on with what state_dict gave."""
        vars(self).update({"truncated" if name == "cut_off" else name: value for name, value in state.items()})

    def update(self, losses, images):
        """Add the losses of a step, {part: scalar tensor}, as means over so many images."""
        self.parts = [part for part in losses if part != "count"]
        values = torch.stack([losses[part].detach().float() for part in self.parts])
        row = torch.cat((values, values.new_ones(1))) * images
        row = torch.where(row.isfinite().all(), row, 0)
        self.sums = row if self.sums is None else self.sums.to(row.device) + row
        self.images += images

    def mean_loss(self):
        """The mean loss of this rank so far; waits for the device."""
        loss, images = self.sums[[self.parts.index("loss"), -1]].tolist()
        return loss / images if images else math.nan

    def result(self):
        """The EpochResult, with the losses of all ranks."""
        *totals, images = all_reduce_sum(self.sums).tolist() if self.parts else (0,)
        return EpochResult(
            {part: total / images if images else math.nan for part, total in zip(self.parts, totals, strict=True)},
            self.learning_rate,
            self.images / self.seconds if self.seconds else 0.0,
            self.waited / self.seconds if self.seconds else 0.0,
            self.seconds,
            self.unreadable,
            self.truncated,
            self.skipped,
        )


class OptimWrapper:
    """The optimiser step: gradients are gathered, scaled, clipped and applied, and the average of the weights follows.

    A step whose loss or gradient is not finite is skipped: weights, average and statistics stay as they were.
    ema: a ModelEMA or None. accumulate: batches per step. clip_grad_norm: largest norm of all gradients together, 0 for
    no clipping; clip_norm_type: 2 for the Euclidean norm, inf for the largest gradient. begin_phase must be called when
    other parameters train.
    """

    def __init__(self, model, criterion, optimizer, ema, runtime, accumulate=1, clip_grad_norm=0.0, clip_norm_type=2.0):
        self.model, self.criterion, self.optimizer, self.ema = model, criterion, optimizer, ema
        self.runtime, self.accumulate = runtime, accumulate
        self.clip_grad_norm, self.clip_norm_type = clip_grad_norm, clip_norm_type
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision.scales)
        self.total, self.gathered = None, []
        self.norm_backup = BatchNormBackup(model)
        # Fused optimisers skip a bad step by themselves, on the device; for others the host must know of it.
        self.found_inf = DelayedFlag(is_late=runtime.on_gpu and skips_on_device(optimizer))
        self.max_in_a_row = MAX_IN_A_ROW + (SCALE_HALVINGS if runtime.precision.scales else 0)
        self.bad_in_a_row = 0
        self.begin_phase()

    def begin_phase(self):
        """Note which parameters train from now on."""
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def eval_model(self):
        """The model that is evaluated and saved: the average of the weights where there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self):
        """All that moves beside the model's weights, which it refers to."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_in_a_row": self.bad_in_a_row,
            "average": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state):
        """Put back what state_dict gave. The model holds its weights already."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty where the training ran in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.bad_in_a_row = state["bad_in_a_row"]
        if self.ema and state["average"]:
            self.ema.load_state_dict(state["average"])
        elif self.ema:
            self.ema.model.load_state_dict(self.model.state_dict())

    def train_step(self, network, images, targets, ends_window=True, host_targets=None):
        """Learn from a batch. Returns what step() does where the batch ends its window, else None.

        network: the model as wrap_model gives it. images, targets: on the device. host_targets: see compute_loss.
        """
        with nullcontext() if ends_window else no_sync(network):
            self.backward(self.compute_loss(network, images, targets, host_targets))
        return self.step() if ends_window else None

    def compute_loss(self, network, images, targets, host_targets=None):
        """Forward in the run's precision, loss in float32. Returns {part: scalar tensor} and "count", see backward.

        network: the model as wrap_model gives it. host_targets: the targets in the host's memory, where they are known
        there: what a criterion makes of them then waits for no step.
        """
        extra = self.criterion.extra_inputs(targets if host_targets is None else host_targets, images)
        return self.criterion(network(images, *extra), targets)

    def backward(self, losses):
        """Add the gradient of a batch to those gathered since the last step, as if all were one batch.

        losses: with "loss", the sum over the batch divided by the larger number of "count", (2,) positives and images.
        One batch divides by the larger of all counts together, those of other ranks included. They are known only at
        its end: until then the counts of the first part stand for them, and step() corrects that.
        """
        count = losses["count"]
        self.total = all_reduce_sum(count) if self.total is None else self.total
        self.gathered.append({part: value.detach() for part, value in losses.items()})
        # Ranks average their gradients; the sum is wanted.
        weight = count.max() / self.total.max() * world_size()
        # So every gradient of every rank tells of a loss that is not finite.
        weight = torch.where(losses["loss"].isfinite(), weight, math.nan)
        self.scaler.scale(losses["loss"] * weight).backward()

    def step(self):
        """Apply the gradients gathered so far and clear them.

        Returns whether a step is known to have been skipped: this one, or, where the device must not be waited for, the
        one before. And this step's losses, {part: scalar tensor}: weighed by their images, the ranks' values have the
        mean of what the step lowers; NaN on all ranks where it is skipped.
        """
        is_bad, means = self._finish_gradients()
        known = self._count(self.found_inf.push(is_bad))
        # A fused optimiser and the scaler leave a bad step out by themselves; from others it is kept away here.
        if self.found_inf.is_late or not known or self.scaler.is_enabled():
            if self.ema:
                self.ema.advance()
            self._apply(is_bad)
        self.optimizer.zero_grad(set_to_none=True)
        return known, means

    def _finish_gradients(self):
        """(whether the step is bad, bool tensor (), its losses): gradients and statistics are then as it needs them."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        total, batches, self.gathered = self.total, self.gathered, []
        if len(batches) > 1:
            total = total + all_reduce_sum(sum(losses["count"] for losses in batches[1:]))
            torch._foreach_mul_(gradients, self.total.max() / total.max())
        self.total = None
        is_bad = is_not_finite(gradients).to(self.runtime.device)
        means = self._mean_losses(batches, total, is_bad)
        self.norm_backup.restore_where(is_bad)
        return is_bad, means

    def flush(self):
        """Whether the last step was skipped, where step() could not know it."""
        return self._count(self.found_inf.flush())

    @staticmethod
    def _mean_losses(batches, total, is_bad):
        # Every batch has divided by its own counts.
        fraction = total[1] / sum(losses["count"][1] for losses in batches) / total.max()
        fraction = torch.where(is_bad, math.nan, fraction)
        return {
            part: sum(losses[part].float() * losses["count"].max() for losses in batches) * fraction
            for part in batches[0]
            if part != "count"
        }

    def _count(self, known):
        if known is not None:
            self.bad_in_a_row = self.bad_in_a_row + 1 if known else 0
        return bool(known)

    def _apply(self, is_bad):
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self.clip_grad_norm, self.clip_norm_type)
        if self.found_inf.is_late and not self.scaler.is_enabled():
            self.optimizer.found_inf = is_bad.float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            is_sure = not (self.found_inf.is_late or self.scaler.is_enabled())
            self.ema.update(None if is_sure else is_bad)


def train_one_epoch(network, loader, optim, set_lr, meter, first=0, title="", after_step=None):
    """Train on every batch of the loader once.

    network: the model as wrap_model gives it, in train mode. optim: an OptimWrapper; the last step of an epoch takes
    the batches that are left. set_lr: called before each step with the fraction of the epoch done, 0..1, and returns
    the learning rate. meter, first: a LossMeter of the batches of this epoch that are done already, and how many.
    title: of the progress bar, '' for none. after_step: called with the number of batches done, once the meter holds
    them. Returns an EpochResult. Raises NonFiniteLossError where step after step has to be skipped.
    """
    device, accumulate = optim.runtime.device, optim.accumulate
    batches, last_reading = first + len(loader), 0.0
    optim.norm_backup.save()
    ready, window, before = time.perf_counter(), [], []
    with tqdm(total=batches, initial=first, desc=title, leave=False, disable=None if title else True) as bar:
        for done, (batch, images, targets) in enumerate(on_device(loader, device), first + 1):
            meter.waited += time.perf_counter() - ready
            ends_window = done % accumulate == 0 or done == batches
            window.append(batch)
            meter.unreadable += batch.unreadable
            meter.truncated += batch.truncated
            if ends_window:
                meter.learning_rate = set_lr(done / batches)
            stepped = optim.train_step(network, images, targets, ends_window, batch.targets)
            if ends_window:
                is_skipped, losses = stepped
                meter.skipped += is_skipped
                meter.update(losses, sum(len(one.images) for one in window))
                _stop_if_hopeless(optim, before if optim.found_inf.is_late else window)
                before, window = window, []
            bar.update()
            if ends_window and time.perf_counter() - last_reading > SECONDS_BETWEEN_READINGS:
                bar.set_postfix(loss=f"{meter.mean_loss():.3f}")
                last_reading = time.perf_counter()
            if ends_window and after_step:
                after_step(done)
            now = time.perf_counter()
            meter.seconds, ready = meter.seconds + now - ready, now
    meter.skipped += optim.flush()
    _stop_if_hopeless(optim, before)
    peak = torch.cuda.max_memory_allocated(device) if optim.runtime.on_gpu else None
    return meter.result()._replace(peak_memory=peak)


def _stop_if_hopeless(optim, batches):
    if optim.bad_in_a_row >= optim.max_in_a_row:
        raise NonFiniteLossError(
            f"The loss or its gradient was no finite number in {optim.bad_in_a_row} steps in a row.", batches
        )
