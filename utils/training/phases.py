"""How the constants become phases."""

import math
from typing import NamedTuple


class Phase(NamedTuple):
    """Epochs first..last - 1 (counted from 0), with the backbone frozen or not."""

    frozen: bool
    first: int
    last: int
    batch_size: int

    @property
    def name(self):
        return "frozen" if self.frozen else "unfrozen"


def starts_trained(settings):
    """Whether the backbone starts from weights."""
    return bool(settings.model_path or settings.pretrained)


def phases_of(settings):
    """The one or two phases that the constants describe. A frozen one takes pretrained weights."""
    freezes = settings.Freeze_Train and starts_trained(settings)
    border = min(settings.Freeze_Epoch, settings.UnFreeze_Epoch) if freezes else 0
    phases = [
        Phase(True, settings.Init_Epoch, border, settings.Freeze_batch_size),
        Phase(False, max(settings.Init_Epoch, border), settings.UnFreeze_Epoch, settings.Unfreeze_batch_size),
    ]
    return [phase for phase in phases if phase.first < phase.last]


def epochs_of(phases, start):
    """(phase, epoch) for each epoch that is left; start: with `epoch`, how many are done."""
    return ((phase, epoch) for phase in phases for epoch in range(max(phase.first, start.epoch), phase.last))


def steps_of(phases, images, accumulate):
    """Optimiser steps of all phases."""
    return sum((p.last - p.first) * math.ceil(math.ceil(images / p.batch_size) / accumulate) for p in phases)


def check_batches(phases, ranks):
    """Raise ValueError where a batch cannot be shared out evenly between the ranks."""
    for phase in phases:
        if phase.batch_size % ranks.world_size:
            name = "Freeze_batch_size" if phase.frozen else "Unfreeze_batch_size"
            nearest = max(phase.batch_size // ranks.world_size, 1) * ranks.world_size
            raise ValueError(
                f"{name} is {phase.batch_size}, which {ranks.world_size} processes cannot share evenly; set it to "
                f"{nearest}, or another multiple of {ranks.world_size}."
            )
