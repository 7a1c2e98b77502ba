"""Settings that will train badly, said before time is spent on them."""

import math

from utils.config.optimizers import SUITABLE
from utils.io.text import counted
from utils.training.compile import uses_compiler
from utils.training.lr_schedule import NOMINAL_BATCH, lr_limits, lr_range
from utils.training.phases import count_steps, is_pretrained


def setting_hints(settings, phases, images, world_size=1):
    """Sentences on settings that will train badly, before time is spent on them."""
    if settings.Freeze_Train and not is_pretrained(settings):
        yield "Freeze_Train is True, but the backbone is untrained (model_path = ''): nothing is worth freezing."
    if any(min(phase.batch_size // world_size, images) == 1 for phase in phases):
        yield "A batch of 1 image gives BatchNorm no statistics: use batch sizes of 2 or more."
    if settings.weight_decay and not SUITABLE[settings.optimizer_type].weight_decay:
        yield (
            f"optimizer_type is {settings.optimizer_type!r} and weight_decay {settings.weight_decay}: the decay is "
            "added to the gradient, where the step size cancels most of it, and the rest falls on rarely used weights. "
            "Meant is nearly always optimizer_type = 'adamw'; else set weight_decay = 0."
        )
    yield from _rate_hints(settings, phases, images)
    rests = settings.freeze_layers or settings.freeze_blocks or settings.train_only
    if rests and not settings.freeze_whole_run and not any(phase.frozen for phase in phases):
        yield "freeze_whole_run is False, but no epoch belongs to the phase of Freeze_Train: nothing is frozen."
    for name in ("multi_scale", "copy_paste"):
        if getattr(settings, name) and round(settings.special_aug_ratio * settings.UnFreeze_Epoch) == 0:
            yield f"{name} ends with the other augmentation, and special_aug_ratio leaves no epoch for it."
    if uses_compiler(settings) and settings.multi_scale:
        yield "With compile and multi_scale only batches of input_shape itself run compiled; choose one of the two."
    steps, wanted, change = _steps(settings, phases, images)
    if steps < wanted:
        start = "from weights" if is_pretrained(settings) else "from scratch"
        yield (
            f"Only {counted(steps, 'optimiser step')} in all; training {start} wants at least {wanted}: {change}, or "
            "lower the batch size or accumulate."
        )


def few_steps_hint(settings, phases, images, last_epoch):
    """The sentence at the end of a training on steps that were too few, '' where they were enough.

    images: samples of an epoch, 0 where that is not known. last_epoch: how many epochs were done, which patience may
    have made fewer than were planned.
    """
    done = [phase._replace(last=min(phase.last, last_epoch)) for phase in phases if phase.first < last_epoch]
    steps, wanted, change = _steps(settings, done, images)
    if not 0 < steps < wanted:
        return ""
    if last_epoch < settings.UnFreeze_Epoch:
        change = f"raise patience from {settings.patience}, which ended the training"
    return f"Only {steps} of about {wanted} steps were made: {change}."


def _steps(settings, phases, images):
    """(optimiser steps, how many they should be, what makes them so many). Where a training goes on from weights of its
    own, whose steps nobody counts, any are enough."""
    wanted = 0 if settings.Init_Epoch else 300 if is_pretrained(settings) else 1000
    steps = count_steps(phases, images, settings.accumulate)
    name = "Freeze_Epoch and UnFreeze_Epoch" if phases[-1].frozen else "UnFreeze_Epoch"
    epochs = math.ceil(settings.UnFreeze_Epoch * wanted / max(steps, 1))
    return steps, wanted, f"raise {name} to about {epochs}"


def _rate_hints(settings, phases, images):
    for phase in phases:
        batches = math.ceil(images / phase.batch_size)
        if settings.accumulate > batches:
            yield (
                f"accumulate is {settings.accumulate}, but an epoch of the {phase.name} phase has "
                f"{counted(batches, 'batch')}, after which every step ends; the learning rate counts on more. Lower "
                "accumulate."
            )
        asked = settings.Init_lr * phase.batch_size * settings.accumulate / NOMINAL_BATCH
        highest, _ = lr_range(settings, phase)
        if not math.isclose(asked, highest):
            low, high = lr_limits(settings)
            yield (
                f"Init_lr {settings.Init_lr:g} is {asked:.1e} for the batches of the {phase.name} phase; it is kept "
                f"within {low:g} to {high:.2g} for {settings.optimizer_type} here, so {highest:.1e} is used."
            )
    if settings.lr_decay_type == "plateau" and settings.Init_Epoch:
        yield "With 'plateau' the rate begins at its highest again; set Init_lr to that of the last epoch's line."
    end = {"multistep": min(settings.lr_milestones, default=0), "step": settings.lr_step_size or 0}
    if end.get(settings.lr_decay_type, 0) >= settings.UnFreeze_Epoch:
        yield (
            f"lr_decay_type is {settings.lr_decay_type!r}, and its first step, in epoch {end[settings.lr_decay_type]}, "
            f"comes after UnFreeze_Epoch {settings.UnFreeze_Epoch}: the rate never falls."
        )
