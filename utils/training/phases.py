"""How the constants become phases, and how a phase begins."""

import math
from typing import NamedTuple

from utils.io.errors import UserError
from utils.runtime.distributed import wrap_model
from utils.training.compile import compile_network, uses_compiler
from utils.training.freezing import frozen_parameter_names, lr_scales, recalibrate_batch_norm
from utils.training.optim import add_param_groups, parameter_groups


class Phase(NamedTuple):
    """Epochs first..last - 1 (counted from 0), with the backbone frozen or not."""

    frozen: bool
    first: int
    last: int
    batch_size: int

    @property
    def name(self):
        return "frozen" if self.frozen else "unfrozen"

    @property
    def epochs(self):
        """Its epochs as people count them: "epoch 1", "epochs 1-10"."""
        return f"epochs {self.first + 1}-{self.last}" if self.last > self.first + 1 else f"epoch {self.last}"

    @property
    def size_constant(self):
        """The constant that says batch_size."""
        return "Freeze_batch_size" if self.frozen else "Unfreeze_batch_size"


def is_pretrained(settings):
    """Whether the backbone starts from weights."""
    return bool(settings.model_path or settings.pretrained)


def build_phases(settings, world_size=1):
    """The one or two phases that the constants describe. A frozen one takes pretrained weights.

    Raises UserError where so many processes cannot share a batch evenly.
    """
    freezes = settings.Freeze_Train and is_pretrained(settings)
    border = min(settings.Freeze_Epoch, settings.UnFreeze_Epoch) if freezes else 0
    phases = [
        Phase(True, settings.Init_Epoch, border, settings.Freeze_batch_size),
        Phase(False, max(settings.Init_Epoch, border), settings.UnFreeze_Epoch, settings.Unfreeze_batch_size),
    ]
    phases = [phase for phase in phases if phase.first < phase.last]
    check_batches(phases, world_size)
    return phases


def remaining_phases(phases, progress):
    """The phases that are not done. progress: with `epoch`, how many are done."""
    return [phase for phase in phases if phase.last > progress.epoch]


def remaining_epochs(phases, progress):
    """Yield (phase, epoch, whether the phase begins here or goes on from a checkpoint) for each epoch that is left."""
    for phase in phases:
        first = max(phase.first, progress.epoch)
        yield from ((phase, epoch, epoch == first) for epoch in range(first, phase.last))


def is_scored(settings, epoch):
    """Whether the mAP is measured after an epoch, counted from 0."""
    return settings.eval_flag and ((epoch + 1) % settings.eval_period == 0 or epoch + 1 == settings.UnFreeze_Epoch)


def count_steps(phases, images, accumulate):
    """Optimiser steps of all phases."""
    return sum((p.last - p.first) * math.ceil(math.ceil(images / p.batch_size) / accumulate) for p in phases)


def val_batch_size(settings, world_size):
    """Images of a validation batch of each rank: without gradients twice as many as in training fit."""
    # Where no phase is unfrozen its batch size may still be 0.
    return max(2 * (settings.Unfreeze_batch_size or settings.Freeze_batch_size) // world_size, 1)


def check_batches(phases, world_size):
    """Raise UserError where a batch cannot be shared out evenly between the ranks."""
    for phase in phases:
        if phase.batch_size % world_size:
            nearest = max(phase.batch_size // world_size, 1) * world_size
            raise UserError(
                f"{phase.size_constant} is {phase.batch_size}, which {world_size} processes cannot share evenly; set "
                f"it to {nearest}, or another multiple of {world_size}."
            )


def unfreeze(optim, phase, settings):
    """Let a phase's layers train. optim: an OptimWrapper. Returns names of BatchNorm layers that were frozen before."""
    model, lr_scale_of = optim.model, lr_scales(optim.model, settings.lr_scale)
    unfrozen_norms = model.freeze(frozen_parameter_names(model, settings, phase.frozen))
    add_param_groups(optim.optimizer, parameter_groups(model, settings.weight_decay, phase.first, lr_scale_of))
    return unfrozen_norms


def unfreeze_begun(optim, phases, progress, settings):
    """Let all train that trained when a training was broken off, phase after phase, for its optimiser's state."""
    for phase in phases:
        if progress.has_begun(phase):
            unfreeze(optim, phase, settings)


def start_phase(phase, optim, train_loader, settings):
    """The network as a phase trains it: unfrozen without a leap of the loss, wrapped for its devices, compiled.

    optim: an OptimWrapper, which gets what trains from now on.
    """
    model, runtime = optim.model, optim.runtime
    train_loader.batch_sampler.set_epoch(phase.first, phase.batch_size)
    unfrozen_norms = unfreeze(optim, phase, settings)
    if unfrozen_norms:
        recalibrate_batch_norm(model, unfrozen_norms, train_loader, runtime.device)
        if optim.ema:
            optim.ema.copy_layers(model, unfrozen_norms)
    optim.begin_phase()
    network = wrap_model(model.train(), runtime)
    if uses_compiler(settings):
        shape = (phase.batch_size // runtime.dist.world_size, 3, *settings.input_shape)
        network = compile_network(network, optim, shape)
    return network
