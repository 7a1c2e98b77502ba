"""How weights move: learning rates, parameter groups, optimisers, and the running average of the weights."""

import copy
import math

import torch
from torch import nn

# Batch size for which Init_lr is written; other batches scale it in proportion.
NOMINAL_BATCH = 64
# Bounds of the scaled learning rate; those of Min_lr are a hundredth of them.
RATE_LIMITS = {"sgd": (5e-4, 5e-2), "adam": (3e-4, 1e-3), "adamw": (3e-4, 1e-3)}
WARMUP_SHARE, WARMUP_EPOCHS = 0.05, (1, 3)
FINAL_SHARE, FINAL_EPOCHS = 0.05, (1, 15)
# The running average looks back over this share of the run's steps.
EMA_HORIZON = 0.05


def scaled_rates(initial, minimum, optimizer_type, batch_size):
    """Learning rates for a batch size.

    initial, minimum: Init_lr and Min_lr (None: Init_lr / 100) for a batch of 64. batch_size: images per optimiser step,
    accumulation included. Returns (highest, lowest), clamped to the optimiser's limits.
    """
    low, high = RATE_LIMITS[optimizer_type]
    minimum = initial * 0.01 if minimum is None else minimum
    share = batch_size / NOMINAL_BATCH
    return min(max(share * initial, low), high), min(max(share * minimum, low * 0.01), high * 0.01)


def rate_at(progress, epochs, highest, lowest):
    """The cos schedule: half a cosine from highest to lowest after the warm-up, then a flat end.

    progress: epochs done, fractions allowed, 0..epochs. highest, lowest: from scaled_rates. The warm-up and the flat
    end take 5 % of the epochs each, 1 to 3 and 1 to 15 epochs, at most a quarter. Source: the schedule of the YOLOX
    release.
    """
    warmup, final = warmup_epochs(epochs), _part_of(epochs, FINAL_SHARE, FINAL_EPOCHS)
    share = (progress - warmup) / max(epochs - warmup - final, 1e-9)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def warmup_epochs(epochs):
    """How many epochs newly joined parameters take to reach the full learning rate."""
    return _part_of(epochs, WARMUP_SHARE, WARMUP_EPOCHS)


def _part_of(epochs, share, limits):
    # A quarter at most, so that trainings of two or three epochs keep a course between warm-up and end.
    return min(max(share * epochs, limits[0]), limits[1], epochs / 4)


def set_rates(optimizer, progress, epochs, highest, lowest):
    """Set the learning rate of every parameter group for the next step.

    progress: epochs done, 0..epochs. A group rises quadratically to the schedule's rate from the epoch it joined at, so
    that neither the first steps nor those after unfreezing undo what the weights know. Returns the highest rate set.
    """
    rate = rate_at(progress, epochs, highest, lowest)
    for group in optimizer.param_groups:
        share = min((progress - group["joined"]) / warmup_epochs(epochs), 1.0)
        group["lr"] = rate * max(share, 0.0) ** 2
    return max(group["lr"] for group in optimizer.param_groups)


def parameter_groups(module, weight_decay, joined):
    """Two optimiser groups of a module's parameters: decayed weights; biases and BatchNorm, which are not.

    Only parameters that require a gradient are taken. joined: epoch from which their learning rate warms up.
    """
    decayed, others = [], []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_weight = name == "weight" and not isinstance(part, nn.modules.batchnorm._BatchNorm)
                (decayed if is_weight else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "joined": joined},
        {"params": others, "weight_decay": 0.0, "joined": joined},
    ]


def build_optimizer(optimizer_type, groups, momentum):
    """sgd (Nesterov), adam or adamw over parameter groups; momentum is beta1 for the adams. Rates are set per step."""
    if optimizer_type == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)
    optimizer_class = torch.optim.AdamW if optimizer_type == "adamw" else torch.optim.Adam
    return optimizer_class(groups, lr=0.0, betas=(momentum, 0.999))


def take_in(optimizer, module, weight_decay, joined):
    """Add a module's trainable parameters that the optimiser lacks; the state of the others stays.

    joined: epoch from which the learning rate of the new ones warms up.
    """
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for group in parameter_groups(module, weight_decay, joined):
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        if group["params"]:
            optimizer.add_param_group(group)


class ModelEma:
    """Exponential running average of a model's weights, which is what is evaluated and saved.

    total_steps: optimiser steps of the whole run. The average looks back over 5 % of them: a decay made for long runs
    would hold a short one at its start. `ema.model` is an ordinary copy of the model in eval mode.
    """

    def __init__(self, model, total_steps):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.horizon = max(EMA_HORIZON * total_steps, 1.0)
        self.steps = 0

    @torch.no_grad()
    def update(self, model):
        """Move the average towards the model's present weights."""
        self.steps += 1
        # Early on there is little to look back on: the horizon grows with the steps taken.
        weight = 1 / min(self.horizon, (self.steps + 9) / 10 + 1)
        # The list functions, which torch's own optimisers use: one call instead of one per tensor.
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        # BatchNorm's running statistics are averages already: averaged again they would lag behind the weights.
        torch._foreach_copy_(list(self.model.buffers()), list(model.buffers()))
