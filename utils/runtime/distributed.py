"""Several processes that train together: joining, exchanging, wrapping the model."""

import os
import platform
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import NamedTuple

import torch
from torch import distributed as dist
from torch import nn

from utils.io.errors import UserError
from utils.io.logger import logger

LAUNCH_COMMAND = "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py"
# What torchrun, and launchers like it, tell each process they start.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
LAUNCHER_VARIABLES = (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT")
# Not empty inside of alone().
_alone = []


class DistInfo(NamedTuple):
    """This process among all: rank in 0..world_size - 1, local_rank on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self):
        return self.rank == 0


def local_world_size():
    """How many ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def init_distributed(distributed, use_cuda):
    """Join the process group that a launcher prepared, once; whether there is one, the environment says.

    distributed: the constant, which demands a launcher. Returns DistInfo. Raises ValueError where there is none though
    it is demanded, where the launcher's environment is incomplete, and for more processes than the machine has GPUs.
    """
    missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name)]
    if missing and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not in the environment; expected "
            f"all of {', '.join(LAUNCHER_VARIABLES)}, as torchrun sets them: {LAUNCH_COMMAND}"
        )
    if missing and distributed:
        raise UserError(
            "distributed is True, but this process was not started by a launcher; set distributed = False for one "
            f"process, or start with: {LAUNCH_COMMAND}"
        )
    if missing:
        return DistInfo()
    dist_info = DistInfo(*(int(os.environ[name]) for name in RANK_VARIABLES))
    if is_distributed():
        return dist_info
    on_gpu = use_cuda and torch.cuda.is_available()
    if on_gpu:
        gpus, processes = torch.cuda.device_count(), max(local_world_size(), dist_info.local_rank + 1)
        if processes > gpus:
            raise UserError(
                f"{processes} processes were started on this machine for {gpus} GPUs; each takes one: start with "
                f"--nproc_per_node={gpus}, or train on the CPU with --Cuda=False."
            )
        torch.cuda.set_device(dist_info.local_rank)
    # The main rank scores and draws while the others wait, which shall not count as a dead rank.
    timeout = timedelta(hours=3)
    own_store = _store_after_restart(dist_info, timeout)
    # Windows has no nccl.
    backend = "cpu:gloo,cuda:nccl" if on_gpu and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout, **own_store)
    return dist_info


def _store_after_restart(dist_info, timeout):
    """What init_process_group takes besides where torchrun has started the processes of one machine again.

    torchrun keeps its store for all attempts: a rank could meet the address of one that is gone in it, and fail.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, *_ = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    return {"store": store, "rank": dist_info.rank, "world_size": dist_info.world_size}


def shut_down():
    """End the process group, if there is one.

    Not while an error is on its way: the other ranks would fail in turn, and the launcher end this one before it has
    said what is wrong. The end of the process follows then.
    """
    if is_distributed() and sys.exc_info()[0] is None:
        dist.destroy_process_group()


def launch_id():
    """A text that is the same for all attempts of one torchrun, on the main rank; '' without torchrun."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run_id != "none":
        return run_id
    # Without --rdzv_id all runs have this one. The folder, which torchrun makes for itself, tells apart containers in
    # which names and numbers repeat.
    folder = os.environ.get("TORCHELASTIC_ERROR_FILE", "").rpartition("/attempt_")[0]
    return " ".join((platform.node(), str(os.getppid()), folder))


def restart_count():
    """How often torchrun has started these processes again. All ranks must call: a machine counts its own failures."""
    count = torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if is_distributed():
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return int(count)


class MixedPrecision(nn.Module):
    """A network whose forward pass runs in the precision of a training, in whichever thread it is called."""

    def __init__(self, network, runtime):
        super().__init__()
        self.network, self.autocast = network, runtime.autocast

    def forward(self, *inputs):
        with self.autocast():
            return self.network(*inputs)


def wrap_model(model, runtime):
    """The model as it is trained: in the run's precision, and on the devices there are.

    DistributedDataParallel under a launcher, DataParallel where one process drives several GPUs.
    """
    network = MixedPrecision(model, runtime)
    if _waits_for_others():
        ids = [runtime.dist.local_rank] if runtime.on_gpu else None
        wrapper = nn.parallel.DistributedDataParallel
        # SyncBatchNorm gives all ranks the same statistics already. Newer torch has another name for it.
        is_synced = any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
        is_newer = "forward_sync_buffers" in signature(wrapper).parameters
        name = "forward_sync_buffers" if is_newer else "broadcast_buffers"
        return wrapper(network, device_ids=ids, gradient_as_bucket_view=True, **{name: not is_synced})
    return nn.DataParallel(network) if runtime.uses_data_parallel else network


def convert_sync_bn(model, sync_bn, runtime):
    """The model with BatchNorm statistics shared between ranks, where sync_bn asks for it and the devices allow it."""
    if not sync_bn:
        return model
    if not (runtime.on_gpu and is_distributed()):
        logger.warning("sync_bn is True, but it takes GPUs and a launcher: ordinary BatchNorm is used.")
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def world_size():
    """How many processes train together."""
    return dist.get_world_size() if _waits_for_others() else 1


def all_reduce_sum(values):
    """The sum of a tensor over all ranks; the tensor itself where there is one."""
    if not _waits_for_others():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


@contextmanager
def rank_zero_first(dist_info):
    """What stands inside runs on the main rank before the others, so that it fetches files once for all."""
    if is_distributed() and not dist_info.is_main:
        dist.barrier()
    try:
        yield
    finally:
        if is_distributed() and dist_info.is_main:
            dist.barrier()


def broadcast_buffers(model):
    """Give the model of every rank the buffers of the main one: BatchNorm's statistics differ by a step's batch."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def broadcast_object(value):
    """What the main rank gives, on all ranks; the others may give None. value: plain objects and tensors of the CPU."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value):
    """What all ranks give, as a list in their order, on the main rank; None on the others. value: as in
    broadcast_object."""
    if not is_distributed():
        return [value]
    values = [None] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values


class AsyncFlags:
    """What any rank wants becomes known to all of them at the same call, without waiting for the slowest one.

    flags(wants_a, wants_b) -> (anyone wanted a, anyone wanted b), as booleans of the call before: their exchange
    runs beside the step in between. One process knows at once. All ranks must call equally often.
    """

    def __init__(self, dist_info):
        self.is_alone = dist_info.world_size == 1
        self._exchange = None

    def __call__(self, *wanted):
        if self.is_alone:
            return wanted
        known = self.finish() or (False,) * len(wanted)
        # On the CPU, so that no rank waits for its GPU.
        flags = torch.tensor(wanted, dtype=torch.int32)
        self._exchange = flags, dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True)
        return known

    def finish(self):
        """What the last call asked for, where that is not known yet, else (). Nothing may be open when ranks part."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return ()
        flags, work = exchange
        work.wait()
        return tuple(map(bool, flags.tolist()))


@contextmanager
def alone():
    """Steps inside are those of this rank by itself: no gradient or count is exchanged, so none waits for another one
    that has failed. Objects still are."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def _waits_for_others():
    return is_distributed() and not _alone


def no_sync(network):
    """A context in which a distributed network keeps its gradients to itself, to exchange them once per step."""
    return network.no_sync() if hasattr(network, "no_sync") else nullcontext()


def is_distributed():
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def describe_ranks():
    """How many processes train together, and who started them: [(name, text)], [] for one process alone."""
    if not is_distributed():
        return []
    here, machines = os.environ.get("LOCAL_WORLD_SIZE"), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    text = f"{here} on this machine" if here else f"{world_size()}"
    if machines > 1:
        text += f", {world_size()} on {machines} machines"
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "a launcher"
    links = "nccl between GPUs" if "nccl" in dist.get_backend_config() else "gloo between CPUs"
    return [("processes", f"{text}, started by {launcher}; {links}")]
