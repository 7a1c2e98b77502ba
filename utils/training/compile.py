"""torch.compile where it works: tried on one step, left out where it fails."""

from contextlib import nullcontext

import torch
from torch import nn

from utils.io.logger import logger
from utils.runtime.distributed import all_reduce_sum, no_sync, world_size


class CompiledNetwork(nn.Module):
    """Runs the compiled network on batches of one shape, and the network itself on all others.

    Such as the last batch of an epoch: translating the network for it would take longer than it saves.
    """

    def __init__(self, network, shape):
        super().__init__()
        self.network, self.shape = network, tuple(shape)
        # In one piece or not at all: what stands in the way is then named. DistributedDataParallel has to break it.
        is_whole = not isinstance(network, nn.parallel.DistributedDataParallel)
        self.compiled = torch.compile(network, dynamic=False, fullgraph=is_whole)

    def forward(self, images, *inputs):
        run = self.compiled if tuple(images.shape) == self.shape else self.network
        return run(images, *inputs)

    def no_sync(self):
        """See utils.runtime.distributed.no_sync."""
        return self.network.no_sync() if hasattr(self.network, "no_sync") else nullcontext()


def uses_compiler(settings):
    """Whether the constant compile asks for torch.compile, as 'default', or True as in older scripts."""
    return str(settings.compile) in ("default", "True")


def compile_network(network, optim, shape):
    """The network compiled, or the network itself where that fails on any rank; a line says so.

    network: as wrap_model gives it, in train mode. optim: an OptimWrapper, whose model keeps its weights and
    statistics. shape: (batch, 3, H, W) of the batches that run compiled. All ranks must call.
    """
    runtime, model = optim.runtime, optim.model
    if runtime.uses_data_parallel:
        logger.warning(
            "compile is 'default', but one process drives several GPUs here: start one process per GPU with torchrun, "
            "or choose one by gpu_ids."
        )
        return network
    if optim.criterion.needs_host:
        logger.warning(
            "compile is 'default', but this network has another number of queries for each number of boxes, and would "
            "be translated for each; training goes on without it."
        )
        return network
    images = torch.full(shape, 114, dtype=torch.uint8, device=runtime.device)
    batch = images.contiguous(memory_format=torch.channels_last), torch.zeros(shape[0], 16, 5, device=runtime.device)
    before, reason = {name: value.clone() for name, value in model.named_buffers()}, ""
    logger.info("torch.compile translates the network, which takes up to some minutes ...")
    try:
        compiled = CompiledNetwork(network, shape)
        with no_sync(compiled):
            optim.compute_loss(compiled, *batch)["loss"].backward()
    except Exception as error:  # a compiler fails in countless ways, and none of them may end a training
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])
    works = all_reduce_sum(torch.tensor(float(not reason), device=runtime.device))
    if works < world_size():
        logger.warning(f"torch.compile fails here ({reason or 'on another process'}); training goes on without it.")
        return network
    return compiled
