"""What the training runs on: device, precision, seeds, and the lines that say so."""

import os
import platform
import random
from typing import NamedTuple

import numpy as np
import torch

from utils.io.errors import UserError
from utils.io.logger import logger, setup_logging
from utils.io.text import counted
from utils.runtime.distributed import DistInfo, describe_ranks, init_distributed, is_distributed, local_world_size

# Each worker holds some batches in memory, and the training itself needs some cores.
MAX_WORKERS, CORES_OF_TRAINING = 16, 2


class Precision(NamedTuple):
    """dtype of the forward pass; scales says whether float16 gradients need a GradScaler; sentence is for people."""

    dtype: torch.dtype
    scales: bool
    sentence: str


FLOAT32 = Precision(torch.float32, False, "float32")


class RuntimeContext(NamedTuple):
    """Where a training runs: device, this process among all, precision of the forward pass."""

    device: torch.device
    dist: DistInfo
    precision: Precision

    @property
    def on_gpu(self):
        return self.device.type == "cuda"

    @property
    def uses_data_parallel(self):
        """Whether one process drives several GPUs."""
        return self.on_gpu and torch.cuda.device_count() > 1 and not is_distributed()

    def autocast(self):
        """The context of a forward pass in the run's precision."""
        dtype = self.precision.dtype
        # Each weight is used once: a cache of those cast would only keep them, and confuse a CUDA graph.
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)

    def synchronize(self):
        """Wait until the device has done what it was asked to, so that a clock sees it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def workers(self, num_workers):
        """Loader processes: num_workers, or for -1 what suits: on a CPU the network needs the cores itself."""
        if num_workers >= 0 or not self.on_gpu:
            return max(num_workers, 0)
        return max(1, min(MAX_WORKERS, (available_cores() - CORES_OF_TRAINING) // local_world_size()))


def available_cores():
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def init_runtime(settings):
    """Choose GPUs, ranks, device and precision by the constants, seed torch, and log what runs where.

    settings: with gpu_ids, Cuda, distributed, fp16, seed, cudnn_benchmark, deterministic, cpu_threads. Returns a
    RuntimeContext. Raises UserError, see init_distributed.
    """
    choose_gpus(settings.gpu_ids)
    dist_info = init_distributed(settings.distributed, settings.Cuda)
    setup_logging(dist_info.is_main)
    device, sentence = choose_device(settings.Cuda, dist_info.local_rank)
    wanted = settings.gpu_ids.count(",") + 1
    if device.type == "cuda" and settings.gpu_ids and torch.cuda.device_count() != wanted:
        sentence = (
            f"gpu_ids is {settings.gpu_ids!r}, but only {torch.cuda.device_count()} of these {wanted} GPUs exist."
        )
    elif sentence and settings.gpu_ids:
        sentence += f" gpu_ids is {settings.gpu_ids!r}: do these GPUs exist?"
    if device.type == "cuda":
        check_kernels(device)
    precision = choose_precision(settings.fp16, device)
    choose_algorithms(settings.cudnn_benchmark, settings.deterministic)
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    # All generators, for whatever a user adds; the project's own augmentation draws from none of them.
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    torch.manual_seed(settings.seed)
    for name, text in (*describe(device), *describe_ranks(), ("precision", precision.sentence)):
        logger.info(f"{name:14s} {text}")
    if sentence:
        logger.warning(sentence)
    return RuntimeContext(device, dist_info, precision)


def check_kernels(device):
    """Run a small convolution on a GPU. Raises UserError where this torch has no kernels for it, or a driver fails."""
    try:
        images, weights = torch.ones(1, 8, 8, 8, device=device), torch.ones(8, 8, 3, 3, device=device)
        torch.nn.functional.conv2d(images, weights).sum().item()
    except RuntimeError as error:
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name} (compute capability {major}.{minor}) does not run torch {torch.__version__}, which is built for "
            f"{', '.join(torch.cuda.get_arch_list())} ({reason}): install a torch that supports this GPU, update its "
            "driver, or train on the CPU by Cuda = False."
        ) from error


def choose_gpus(gpu_ids):
    """Make only the GPUs of gpu_ids ('0,2'; '' for all) visible. Has to run before CUDA starts."""
    if gpu_ids:
        # It may still be a number, which is refused later by a sentence.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu_ids).replace(" ", "")


def choose_algorithms(cudnn_benchmark, deterministic):
    """Let cuDNN try which convolution is fastest, or allow only algorithms that give the same numbers every time."""
    if deterministic:
        # Read when cuBLAS starts, which is later than this.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = cudnn_benchmark and not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def choose_device(use_cuda, local_rank=0):
    """The device to train on, and a sentence where it is not what was asked for (else '')."""
    require_float32()
    if use_cuda and torch.cuda.is_available():
        return torch.device("cuda", local_rank), ""
    sentence = "Cuda is True, but torch finds no usable GPU: the CPU is used." if use_cuda else ""
    return torch.device("cpu"), sentence


def require_float32():
    """Let convolutions in float32 have all its digits.

    By default torch computes them on a GPU in TF32, with three digits: yolox_nano lost 0.003 AP and 0.010 AR of it.
    """
    torch.backends.cudnn.allow_tf32 = False


def choose_precision(fp16, device):
    """Mixed precision where it pays: bfloat16 where the device computes it natively, else float16 on GPUs.

    Returns a Precision whose sentence says what was chosen and why.
    """
    if not fp16:
        return Precision(torch.float32, False, "float32 (fp16 = False)")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, False, "mixed bfloat16, native on this GPU")
        return Precision(torch.float16, True, "mixed float16 with loss scaling (this GPU has no native bfloat16)")
    if cpu_has_bfloat16():
        return Precision(torch.bfloat16, False, "mixed bfloat16, native on this CPU")
    return Precision(torch.float32, False, "float32: fp16 = True, but this CPU has no native bfloat16")


def cpu_has_bfloat16():
    """Whether the CPU multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return hasattr(torch.cpu, "_is_avx512_bf16_supported") and torch.cpu._is_avx512_bf16_supported()


def describe(device):
    """Versions and hardware, for the head of a run: list of (name, text)."""
    cuda = f"{torch.version.cuda or 'none'}, cuDNN {torch.backends.cudnn.version() or 'none'}"
    rows = [("Python, torch", f"{platform.python_version()}, {torch.__version__}"), ("CUDA", cuda)]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        count = torch.cuda.device_count()
        rows.append(("device", f"{count} x {properties.name}, {properties.total_memory / 2**30:.1f} GiB each"))
        if count > 1 and not is_distributed():
            rows.append(("several GPUs", describe_data_parallel(count)))
    else:
        rows.append(("device", f"CPU, {counted(torch.get_num_threads(), 'thread')}, {_main_memory()}"))
    return rows


def describe_data_parallel(count):
    """What one process with so many GPUs does, and what is faster."""
    return (
        f"share each batch by DataParallel, which copies the network to all of them in every step; one process per GPU "
        f"is faster, up to {count} times as fast as one GPU: torchrun --nproc_per_node={count} train.py"
    )


def _main_memory():
    if not hasattr(os, "sysconf"):
        return "memory unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB memory"


def random_states(device):
    """The states of all random generators of this process, as plain types and tensors."""
    name, keys, *rest = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(states, device):
    """Put back what random_states gave."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state((states["numpy"][0], np.array(states["numpy"][1], np.uint32), *states["numpy"][2:]))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
