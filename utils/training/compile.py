"""torch.compile where it pays: tried on a few steps, dropped where it fails or is slower."""

import time

import torch
from torch import nn

TRIED_STEPS = 3

# Compiled steps have to be this much faster, or the gain is noise.
WORTH = 0.97


class CompiledNetwork(nn.Module):
    """Runs the compiled network on batches of one shape, and the network itself on all others.

    Such as the last batch of an epoch: translating the network for it would take longer than it saves.
    """

    def __init__(self, model, shape):
        super().__init__()
        self.model, self.shape = model, tuple(shape)
        self.compiled = torch.compile(model, dynamic=False)

    def forward(self, images):
        return self.compiled(images) if tuple(images.shape) == self.shape else self.model(images)


def compile_if_faster(model, criterion, stepper, shape, place):
    """The model compiled, or the model itself where that fails or is not faster; a line says which.

    model: in any mode, left in train mode with its weights and statistics as they were. stepper: gives precision and
    device. shape: (batch, 3, H, W) of the steps that are tried. place: where the training runs.
    """
    say = place.say
    if place.uses_data_parallel:
        say(
            "note: compile is True, but one process drives several GPUs here: start one process per GPU with torchrun, "
            "or choose one by gpu_ids."
        )
        return model
    images = torch.full(shape, 114, dtype=torch.uint8, device=stepper.device)
    batch = images.contiguous(memory_format=torch.channels_last), torch.zeros(shape[0], 16, 5, device=stepper.device)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    say("torch.compile is tried on a few steps, which takes up to some minutes ...")
    try:
        compiled = CompiledNetwork(model, shape)
        seconds = [_seconds_per_step(network, criterion, stepper, batch) for network in (model, compiled)]
    except Exception as error:  # a compiler fails in countless ways, and none of them may end a training
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        say(f"note: torch.compile fails here ({type(error).__name__}: {reason}); training goes on without it.")
        return model
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])
    eager, fast = seconds
    if fast > WORTH * eager:
        say(f"note: compiled steps take {fast:.3f} s, others {eager:.3f} s; training goes on without torch.compile.")
        return model
    say(f"torch.compile: {fast:.3f} s per step instead of {eager:.3f} s")
    return compiled


def _seconds_per_step(network, criterion, stepper, batch):
    for step in range(TRIED_STEPS + 1):
        if step == 1:  # the first one compiles, and fills caches
            start = _now(stepper.device)
        stepper.losses(network, criterion, *batch)["loss"].backward()
    return (_now(stepper.device) - start) / TRIED_STEPS


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
