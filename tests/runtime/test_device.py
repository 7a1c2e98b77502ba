import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launched import SETTINGS

from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime import device as device_module
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")


@pytest.fixture(autouse=True)
def flags_of_torch(monkeypatch):
    """Puts torch's flags and threads back, which hold for the whole process."""
    # Set first, so that monkeypatch knows to delete it in the end, whoever has set it meanwhile.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.backends.cudnn.benchmark = before[0]
    torch.use_deterministic_algorithms(before[1])
    torch.set_num_threads(before[2])


def context(device="cpu", world_size=1):
    return RuntimeContext(torch.device(device), DistInfo(0, 0, world_size), FLOAT32)


@pytest.mark.parametrize(
    ("fp16", "native", "dtype", "sentence"),
    [
        (True, True, torch.bfloat16, "mixed bfloat16, native on this CPU"),
        (True, False, torch.float32, "float32: fp16 = True, but this CPU has no native bfloat16"),
        (False, True, torch.float32, "float32 (fp16 = False)"),
    ],
)
def test_precision_on_a_cpu(monkeypatch, fp16, native, dtype, sentence):
    """Prevents emulated bfloat16, which is slower than float32, and a choice that is not said."""
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: native)
    assert device_module.choose_precision(fp16, CPU) == Precision(dtype, False, sentence)


@pytest.mark.parametrize(
    ("fp16", "native", "dtype", "scales"),
    [
        (True, True, torch.bfloat16, False),
        (True, False, torch.float16, True),
        (False, True, torch.float32, False),
    ],
)
def test_precision_on_a_gpu(monkeypatch, fp16, native, dtype, scales):
    """Prevents float16 without loss scaling, whose small gradients are lost."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert device_module.choose_precision(fp16, torch.device("cuda"))[:2] == (dtype, scales)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"avx2": True, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_native_bfloat16_of_the_cpu(monkeypatch, capabilities, native):
    """Prevents bfloat16 on CPUs that only emulate it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert device_module.cpu_has_bfloat16() is native


def test_native_bfloat16_where_torch_names_no_capabilities(monkeypatch):
    """Prevents a crash with versions of torch that cannot say what the CPU does."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert device_module.cpu_has_bfloat16() is True


def test_the_device_falls_back_to_the_cpu_and_says_so(monkeypatch):
    """Prevents a crash, or a silent slow run, where there is no usable GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = "Cuda is True, but torch finds no usable GPU: the CPU is used."
    assert device_module.choose_device(True) == (CPU, sentence)
    assert device_module.choose_device(False) == (CPU, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_module.choose_device(True, local_rank=2) == (torch.device("cuda", 2), "")
    assert device_module.choose_device(False) == (CPU, "")


@pytest.mark.parametrize(("gpu_ids", "expected"), [("0, 2", "0,2"), ("1", "1"), ("", "7"), (1, "1")])
def test_gpu_ids_choose_the_visible_gpus(monkeypatch, gpu_ids, expected):
    """Prevents gpu_ids with a space from hiding all GPUs, '' from undoing what the shell has set, and a number from
    ending in a trace before it is refused."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    device_module.choose_gpus(gpu_ids)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_gpus_are_chosen_before_cuda_is_asked(monkeypatch, capsys):
    """Prevents gpu_ids without effect: once CUDA has started, the variable is not read again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen = []

    def is_available():
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    device_module.init_runtime(SimpleNamespace(**SETTINGS | {"gpu_ids": "0,3", "Cuda": True}))
    assert seen and set(seen) == {"0,3"}
    assert "note: Cuda is True, but torch finds no usable GPU" in capsys.readouterr().out


def test_importing_the_program_does_not_start_cuda():
    """Prevents an import that asks for GPUs before gpu_ids can choose them."""
    code = (
        "import torch\ndef asked(*_): raise SystemExit('CUDA was asked')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = asked\nimport train"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_set_up_says_what_runs_where_and_seeds(capsys):
    """Prevents runs that cannot be told apart later, and start weights that differ from run to run."""
    torch.manual_seed(0)
    found = device_module.init_runtime(SimpleNamespace(**SETTINGS))
    first = torch.rand(3)
    device_module.init_runtime(SimpleNamespace(**SETTINGS))
    assert torch.equal(first, torch.rand(3))
    device_module.init_runtime(SimpleNamespace(**SETTINGS | {"seed": 12}))
    assert not torch.equal(first, torch.rand(3))
    assert (found.device, found.dist, found.precision.dtype) == (CPU, DistInfo(0, 0, 1), torch.float32)
    assert not found.on_gpu
    found.synchronize()  # nothing to wait for on a CPU
    lines = capsys.readouterr().out
    for part in (f", {torch.__version__}", "cuDNN", "CPU, 1 thread,", "GiB memory", "float32 (fp16 = False)"):
        assert part in lines
    assert "note:" not in lines


@pytest.mark.parametrize(
    ("cudnn_benchmark", "deterministic", "benchmark"),
    [(True, False, True), (False, False, False), (True, True, False), (False, True, False)],
)
def test_algorithms(cudnn_benchmark, deterministic, benchmark):
    """Prevents constants without effect, and a search for fast algorithms that undoes deterministic."""
    device_module.init_runtime(
        SimpleNamespace(**SETTINGS | {"cudnn_benchmark": cudnn_benchmark, "deterministic": deterministic})
    )
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    # An operation that has no such algorithm warns, and does not end the training.
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_a_workspace_that_the_user_set_stays(monkeypatch):
    """Prevents a choice made in the shell from being undone."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device_module.choose_algorithms(cudnn_benchmark=True, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_cpu_threads(capsys):
    """Prevents cpu_threads without effect, and 0 from undoing what the environment has set."""
    torch.set_num_threads(1)
    device_module.init_runtime(SimpleNamespace(**SETTINGS | {"cpu_threads": 2}))
    assert torch.get_num_threads() == 2
    assert "CPU, 2 threads" in capsys.readouterr().out
    torch.set_num_threads(1)
    device_module.init_runtime(SimpleNamespace(**SETTINGS | {"cpu_threads": 0}))
    assert torch.get_num_threads() == 1


def test_several_gpus_in_one_process(monkeypatch):
    """Prevents DataParallel where there is one GPU, or none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert context("cuda").uses_data_parallel and not context("cpu").uses_data_parallel
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not context("cuda").uses_data_parallel


def test_other_ranks_are_silent(monkeypatch, capsys):
    """Prevents every line from appearing once per GPU."""
    monkeypatch.setattr(device_module, "init_distributed", lambda *_: DistInfo(1, 1, 2))
    found = device_module.init_runtime(SimpleNamespace(**SETTINGS))
    logger.info("epoch 1")
    logger.warning("sync_bn has no effect")
    assert capsys.readouterr().out == ""
    assert not found.dist.is_main


@pytest.mark.parametrize(
    ("device", "world_size", "cores", "asked", "expected"),
    [
        ("cpu", 1, 16, -1, 0),
        ("cpu", 1, 16, 3, 3),
        ("cuda", 1, 6, -1, 4),
        ("cuda", 1, 32, -1, 16),
        ("cuda", 4, 18, -1, 4),
        ("cuda", 8, 4, -1, 1),
        ("cuda", 1, 1, -1, 1),
        ("cuda", 1, 32, 0, 0),
        ("cuda", 1, 4, 12, 12),
    ],
)
def test_workers(monkeypatch, device, world_size, cores, asked, expected):
    """Prevents loaders that take the CPU from the network, or more processes than the machine has cores."""
    monkeypatch.setattr(device_module, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world_size))
    assert context(device, world_size).workers(asked) == expected


def test_a_container_has_the_cores_that_it_may_use(monkeypatch):
    """Prevents sixteen workers in a container that was given two cores of a large machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {4, 5}, raising=False)
    assert device_module.available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert device_module.available_cores() == 1


def test_a_gpu_that_torch_does_not_support_is_one_sentence(monkeypatch):
    """Prevents a trace after the data were read, where a card is too old or too new for this torch."""

    def fails(*_):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmany more lines")

    monkeypatch.setattr(torch.nn.functional, "conv2d", fails)
    monkeypatch.setattr(torch, "ones", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(UserError) as error:
        device_module.check_kernels(torch.device("cuda"))
    assert str(error.value) == (
        f"Tesla K80 (compute capability 3.7) does not run torch {torch.__version__}, which is built for sm_75, sm_80 "
        "(CUDA error: no kernel image is available for execution on the device): install a torch that supports this "
        "GPU, update its driver, or train on the CPU by Cuda = False."
    )


def test_choosing_a_device_rules_out_tf32(monkeypatch):
    """Prevents scores that are lower on a GPU than on a CPU: torch cuts float32 to TF32 there by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    device_module.choose_device(False)
    assert torch.backends.cudnn.allow_tf32 is False


def test_a_device_that_computes_passes():
    """Prevents a check that refuses all."""
    device_module.check_kernels(CPU)


@pytest.mark.parametrize(("count", "launched", "is_told"), [(1, False, False), (4, False, True), (4, True, False)])
def test_several_gpus_without_a_launcher_hear_of_it(monkeypatch, count, launched, is_told):
    """Prevents people from training with DataParallel because nobody told them how to start one process per GPU."""
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(device_module, "is_distributed", lambda: launched)
    rows = dict(device_module.describe(torch.device("cuda")))
    assert rows["device"] == f"{count} x NVIDIA H100, 80.0 GiB each"
    assert ("several GPUs" in rows) is is_told
    assert not is_told or rows["several GPUs"].endswith(": torchrun --nproc_per_node=4 train.py")
