"""The schedule of the learning rate: how high, how it falls, and how newly trained parameters warm up."""

import math

import torch
from torch.optim import lr_scheduler

from utils.config.optimizers import rate_scale
from utils.io.errors import UserError
from utils.training.optim import set_rate

# Batch size for which Init_lr is written; other batches scale it in proportion.
NOMINAL_BATCH = 64
# Bounds of the scaled learning rate, times rate_scale; those of Min_lr are a hundredth of them.
LR_LIMITS = {
    "sgd": (5e-4, 5e-2),
    "adam": (1e-4, 2e-3),
    "adamw": (1e-4, 2e-3),
    "rmsprop": (1e-4, 5e-4),
    "adagrad": (1e-3, 2e-2),
}
WARMUP_FRACTION, WARMUP_EPOCHS = 0.05, (1, 3)
FINAL_FRACTION, FINAL_EPOCHS = 0.05, (1, 15)
FLAT_FRACTION = 0.55
# Where the steps lie unless the constants say it, as fractions of all epochs; and what a step leaves of the rate.
STEP_FRACTION, MILESTONE_FRACTIONS, STEP_FACTOR = 1 / 3, (0.7, 0.9), 0.1
PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def lr_limits(settings):
    """(lowest, highest) learning rate that the optimiser may have in this network, whatever the batch size."""
    scale = rate_scale(settings.optimizer_type, settings.model_name, settings.backbone)
    return tuple(limit * scale for limit in LR_LIMITS[settings.optimizer_type])


def scale_lr(initial, minimum, limits, batch_size):
    """Learning rates for a batch size.

    initial, minimum: Init_lr and Min_lr (None: Init_lr / 100) for a batch of 64. limits: from lr_limits. batch_size:
    images per optimiser step, accumulation included. Returns (highest, lowest), clamped to the limits.
    """
    low, high = limits
    minimum = initial * 0.01 if minimum is None else minimum
    share = batch_size / NOMINAL_BATCH
    return min(max(share * initial, low), high), min(max(share * minimum, low * 0.01), high * 0.01)


def lr_range(settings, phase):
    """(highest, lowest) learning rate of a phase, by its batch size and accumulate."""
    images = phase.batch_size * settings.accumulate
    return scale_lr(settings.Init_lr, settings.Min_lr, lr_limits(settings), images)


def warmup_epochs(epochs):
    """How many epochs newly trained parameters take to reach the full learning rate."""
    return _part_of(epochs, WARMUP_FRACTION, WARMUP_EPOCHS)


def _part_of(epochs, share, limits):
    # A quarter at most, so that trainings of two or three epochs keep a schedule between warm-up and end.
    return min(max(share * epochs, limits[0]), limits[1], epochs / 4)


def cosine(progress, epochs):
    """The 'cos' schedule, 1 to 0: half a cosine after the warm-up, then a flat end.

    progress: epochs done, fractions allowed, 0..epochs. The warm-up and the flat end take 5 % of the epochs each, 1 to
    3 and 1 to 15 epochs, at most a quarter. Source: the schedule of the YOLOX release.
    """
    warmup, final = warmup_epochs(epochs), _part_of(epochs, FINAL_FRACTION, FINAL_EPOCHS)
    share = (progress - warmup) / max(epochs - warmup - final, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def flat_cosine(progress, epochs):
    """The 'flat_cos' schedule, 1 to 0: 1 for FLAT_FRACTION of the epochs, then half a cosine.

    progress, epochs: as in cosine. Source: the schedule of DEIM (Huang et al. 2025).
    """
    share = (progress - FLAT_FRACTION * epochs) / ((1 - FLAT_FRACTION) * epochs)
    return 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


# The schedules that change with every step: name -> function of progress and epochs.
SMOOTH = {"cos": cosine, "flat_cos": flat_cosine}


class LRSchedule:
    """The schedule that lr_decay_type names, from the highest rate down to the lowest, for one training.

    'cos' and 'flat_cos' fall with every step. All others change between epochs and are torch's own schedulers, which
    drive a rate of their own that starts at 1: every parameter group of the training takes its share of it.
    settings: with lr_decay_type, lr_step_size, lr_milestones, lr_gamma, lr_factor, lr_patience, lr_cooldown, Init_lr,
    Min_lr, Init_Epoch, UnFreeze_Epoch, optimizer_type, accumulate. Raises UserError where a function of the user
    returns no factor.
    """

    def __init__(self, settings):
        self.settings = settings
        self.epochs = settings.UnFreeze_Epoch
        self.smooth = None if callable(settings.lr_decay_type) else SMOOTH.get(settings.lr_decay_type)
        # A function says all there is to say; the other schedules end at the lowest rate.
        self.has_floor = not callable(settings.lr_decay_type)
        self._driven = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self.scheduler = _make_scheduler(self._driven, settings)
        if not isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            for _ in range(settings.Init_Epoch):
                self.end_epoch()

    def load_state_dict(self, state, epoch):
        """Go on with the state_dict of the schedule of a training that has done so many epochs.

        All schedules but 'plateau' follow from the constants and the epoch, also where these have changed since.
        """
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self._driven.param_groups[0]["lr"] = state.get("rate", 1.0)
            vars(self.scheduler).update({name: state[name] for name in PLATEAU_STATE if name in state})
        else:
            while self.scheduler.last_epoch < epoch:
                self.end_epoch()

    def state_dict(self):
        """What 'plateau' has seen so far, as plain types; {} for the other schedules."""
        if not isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            return {}
        seen = {name: getattr(self.scheduler, name) for name in PLATEAU_STATE}
        return {"rate": self._driven.param_groups[0]["lr"], **seen}

    def end_epoch(self, val_loss=None):
        """Go on to the next epoch. val_loss: what 'plateau' looks at; None and NaN tell it nothing."""
        self._driven.step()
        if not isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step()
        elif val_loss is not None and math.isfinite(val_loss):
            self.scheduler.step(val_loss)

    def rate(self, progress, highest, lowest):
        """The learning rate after so many epochs, before warm-up. highest, lowest: from scale_lr."""
        if self.smooth:
            return lowest + (highest - lowest) * self.smooth(progress, self.epochs)
        rate = highest * self._driven.param_groups[0]["lr"]
        return max(rate, min(lowest, highest)) if self.has_floor else rate

    def warmup(self, progress, start_epoch):
        """Which fraction of the rate parameters get that train from start_epoch on: 0 to 1, quadratically."""
        return min(max((progress - start_epoch) / warmup_epochs(self.epochs), 0.0), 1.0) ** 2

    def set_lr(self, optimizer, progress, highest, lowest):
        """Set the learning rate of every parameter group for the next step.

        progress: epochs done, 0..epochs. A group rises to the schedule from its start_epoch on, so that neither the
        first steps nor those after unfreezing undo what the weights know, and gets its lr_scale of it. Returns the
        highest rate set.
        """
        rate = self.rate(progress, highest, lowest)
        rates = []
        for group in optimizer.param_groups:
            rates.append(rate * group["lr_scale"] * self.warmup(progress, group["start_epoch"]))
            set_rate(group, rates[-1])
        return max(rates)

    def of_epoch(self, optimizer, phase, epoch):
        """A function that sets the rates of an epoch of a phase: fraction of the epoch done, 0..1 -> highest rate."""
        highest, lowest = lr_range(self.settings, phase)
        return lambda fraction: self.set_lr(optimizer, epoch + fraction, highest, lowest)


def _make_scheduler(optimizer, settings):
    kind, epochs = settings.lr_decay_type, settings.UnFreeze_Epoch
    gamma = STEP_FACTOR if settings.lr_gamma is None else settings.lr_gamma
    if callable(kind):
        return lr_scheduler.LambdaLR(optimizer, _checked(kind, epochs))
    if kind == "step":
        size = settings.lr_step_size or max(round(STEP_FRACTION * epochs), 1)
        return lr_scheduler.StepLR(optimizer, size, gamma)
    if kind == "multistep":
        milestones = settings.lr_milestones or [max(round(share * epochs), 1) for share in MILESTONE_FRACTIONS]
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    if kind == "exp":
        # Unless told otherwise the last epoch ends at the lowest rate.
        end = settings.Min_lr / settings.Init_lr if settings.Min_lr else 0.01
        steps = max(epochs - 1, 1)
        return lr_scheduler.ExponentialLR(optimizer, end ** (1 / steps) if settings.lr_gamma is None else gamma)
    if kind == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=settings.lr_factor, patience=settings.lr_patience, cooldown=settings.lr_cooldown
        )
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)


def _checked(function, epochs):
    """The user's function, after it has been asked for the factor of every epoch."""
    name = getattr(function, "__name__", repr(function))
    for epoch in range(epochs):
        factor = function(epoch)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
            raise UserError(
                f"lr_decay_type is your function {name}, and {name}({epoch}) is {factor!r}; expected the factor of "
                f"Init_lr in that epoch, a number of 0 or more, for each epoch from 0 to {epochs - 1}."
            )
    # torch asks for one epoch beyond the last.
    return lambda epoch: function(min(epoch, epochs - 1))


def preview_lr(settings, phases, groups):
    """What the rates will be, for a picture: (epochs done (P,), {key of groups: rates (P,)}).

    phases: with first, last (epochs, counted from 0) and batch_size. groups: {(lr_scale, start_epoch): any}.
    For 'plateau' nothing is known but the highest rate.
    """
    schedule, progress, rates = LRSchedule(settings), [], {key: [] for key in groups}
    for phase in phases:
        limits = lr_range(settings, phase)
        for epoch in range(phase.first, phase.last):
            for part in range(10):
                progress.append(epoch + (part + 1) / 10)
                rate = schedule.rate(progress[-1], *limits)
                for lr_scale, start_epoch in groups:
                    warmup = schedule.warmup(progress[-1], start_epoch)
                    rates[lr_scale, start_epoch].append(rate * lr_scale * warmup)
            schedule.end_epoch()
    return progress, rates
