import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils import device as machine
from utils.device import Place, Precision, Ranks

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")
SETTINGS = {"gpu_ids": "", "Cuda": False, "distributed": False, "fp16": False, "seed": 11}
SETTINGS |= {"cudnn_benchmark": True, "deterministic": False, "cpu_threads": 0}


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


def place(device="cpu", world_size=1, say=print):
    return Place(torch.device(device), Ranks(0, 0, world_size), FLOAT32, say)


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
    monkeypatch.setattr(machine, "cpu_has_bfloat16", lambda: native)
    assert machine.choose_precision(fp16, CPU) == Precision(dtype, False, sentence)


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
    assert machine.choose_precision(fp16, torch.device("cuda"))[:2] == (dtype, scales)


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
    assert machine.cpu_has_bfloat16() is native


def test_native_bfloat16_where_torch_names_no_capabilities(monkeypatch):
    """Prevents a crash with versions of torch that cannot say what the CPU does."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert machine.cpu_has_bfloat16() is True


def test_the_device_falls_back_to_the_cpu_and_says_so(monkeypatch):
    """Prevents a crash, or a silent slow run, where there is no usable GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = "Cuda is True, but torch finds no usable GPU: the CPU is used."
    assert machine.choose_device(True) == (CPU, sentence)
    assert machine.choose_device(False) == (CPU, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device(True, local_rank=2) == (torch.device("cuda", 2), "")
    assert machine.choose_device(False) == (CPU, "")


@pytest.mark.parametrize(("gpu_ids", "expected"), [("0, 2", "0,2"), ("1", "1"), ("", "7")])
def test_gpu_ids_choose_the_visible_gpus(monkeypatch, gpu_ids, expected):
    """Prevents gpu_ids with a space from hiding all GPUs, and '' from undoing what the shell has set."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    machine.choose_gpus(gpu_ids)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_gpus_are_chosen_before_cuda_is_asked(monkeypatch, capsys):
    """Prevents gpu_ids without effect: once CUDA has started, the variable is not read again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen = []

    def is_available():
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    machine.set_up(SimpleNamespace(**SETTINGS | {"gpu_ids": "0,3", "Cuda": True}))
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
    found = machine.set_up(SimpleNamespace(**SETTINGS))
    first = torch.rand(3)
    machine.set_up(SimpleNamespace(**SETTINGS))
    assert torch.equal(first, torch.rand(3))
    machine.set_up(SimpleNamespace(**SETTINGS | {"seed": 12}))
    assert not torch.equal(first, torch.rand(3))
    assert (found.device, found.ranks, found.precision.dtype) == (CPU, Ranks(0, 0, 1), torch.float32)
    assert not found.on_gpu
    lines = capsys.readouterr().out
    for part in (f", {torch.__version__}", "cuDNN", "CPU, 1 threads", "GiB memory", "float32 (fp16 = False)"):
        assert part in lines
    assert "note:" not in lines


@pytest.mark.parametrize(
    ("cudnn_benchmark", "deterministic", "benchmark"),
    [(True, False, True), (False, False, False), (True, True, False), (False, True, False)],
)
def test_algorithms(cudnn_benchmark, deterministic, benchmark):
    """Prevents constants without effect, and a search for fast algorithms that undoes deterministic."""
    machine.set_up(SimpleNamespace(**SETTINGS | {"cudnn_benchmark": cudnn_benchmark, "deterministic": deterministic}))
    assert torch.backends.cudnn.benchmark is benchmark
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    # An operation that has no such algorithm warns, and does not end the training.
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_a_workspace_that_the_user_set_stays(monkeypatch):
    """Prevents a choice made in the shell from being undone."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    machine.choose_algorithms(cudnn_benchmark=True, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_cpu_threads(capsys):
    """Prevents cpu_threads without effect, and 0 from undoing what the environment has set."""
    torch.set_num_threads(1)
    machine.set_up(SimpleNamespace(**SETTINGS | {"cpu_threads": 2}))
    assert torch.get_num_threads() == 2
    assert "CPU, 2 threads" in capsys.readouterr().out
    torch.set_num_threads(1)
    machine.set_up(SimpleNamespace(**SETTINGS))
    assert torch.get_num_threads() == 1


def test_one_process_follows_itself():
    """Prevents a training on one device from asking other ranks for BatchNorm's statistics."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean += 3
    machine.follow_main(norm)
    assert norm.running_mean.tolist() == [3, 3]


def test_one_process_has_nobody_to_ask():
    """Prevents a call into a process group that does not exist."""
    values = torch.tensor([3.0, 4.0])
    assert machine.told_by_main(2.5, CPU) == 2.5
    assert machine.told_by_main(None, CPU) is None
    assert machine.sum_over_ranks(values) is values
    assert machine.world_size() == 1
    assert Ranks(2, 0, 4).of_all == (2, 4)
    with machine.without_sync(nn.Linear(1, 1)) as nothing:
        assert nothing is None


@pytest.mark.parametrize(("rank", "expected"), [(0, ["fetched", "met"]), (1, ["met", "fetched"]), (None, ["fetched"])])
def test_the_main_rank_fetches_first(monkeypatch, rank, expected):
    """Prevents every rank from downloading the same weights at once, ranks that wait for each other twice, and a single
    process that waits for anybody."""
    events = []
    monkeypatch.setattr(machine, "is_distributed", lambda: rank is not None)
    monkeypatch.setattr(machine.dist, "barrier", lambda: events.append("met"))
    with machine.main_rank_first(Ranks(rank or 0, rank or 0, 1 if rank is None else 2)):
        events.append("fetched")
    assert events == expected


def test_several_gpus_in_one_process(monkeypatch):
    """Prevents DataParallel where there is one GPU, or none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place("cuda").uses_data_parallel and not place("cpu").uses_data_parallel
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not place("cuda").uses_data_parallel


def test_other_ranks_are_silent(monkeypatch, capsys):
    """Prevents every line from appearing once per GPU."""
    monkeypatch.setattr(machine, "join_ranks", lambda *_: Ranks(1, 1, 2))
    found = machine.set_up(SimpleNamespace(**SETTINGS))
    found.say("epoch 1")
    assert capsys.readouterr().out == ""
    assert not found.ranks.is_main and Ranks().is_main


def test_distributed_without_a_launcher_shows_the_command(monkeypatch):
    """Prevents a KeyError, or a silent run on one GPU, where the launcher was forgotten."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError) as error:
        machine.join_ranks(True, use_cuda=False)
    assert str(error.value) == (
        "distributed is True, but this process was not started by a launcher; set distributed = False for one process, "
        "or start with: CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py --distributed=True"
    )
    assert machine.join_ranks(False, use_cuda=True) == Ranks(0, 0, 1)
    machine.leave_ranks()  # without a process group, nothing to leave


@pytest.mark.parametrize(
    ("device", "world_size", "cores", "asked", "expected"),
    [
        ("cpu", 1, 16, -1, 0),
        ("cpu", 1, 16, 3, 3),
        ("cuda", 1, 6, -1, 6),
        ("cuda", 1, 32, -1, 8),
        ("cuda", 4, 16, -1, 4),
        ("cuda", 8, 4, -1, 1),
        ("cuda", 1, None, -1, 1),
        ("cuda", 1, 32, 0, 0),
        ("cuda", 1, 4, 12, 12),
    ],
)
def test_workers(monkeypatch, device, world_size, cores, asked, expected):
    """Prevents loaders that take the CPU from the network, or more processes than the machine has cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world_size))
    assert place(device, world_size).workers(asked) == expected


def test_sync_bn_on_one_device_says_that_it_does_nothing(capsys):
    """Prevents sync_bn from failing on a CPU, and from being left out silently."""
    model = nn.Sequential(nn.BatchNorm2d(1))
    assert machine.with_sync_bn(model, False, place()) is model
    assert capsys.readouterr().out == ""
    assert machine.with_sync_bn(model, True, place()) is model
    assert type(model[0]) is nn.BatchNorm2d
    assert capsys.readouterr().out == (
        "note: sync_bn is True, but it takes GPUs and distributed = True: ordinary BatchNorm is used.\n"
    )


def test_sync_bn_between_gpus(monkeypatch, capsys):
    """Prevents sync_bn without effect where it can work, weights and statistics that are lost in the exchange, and
    layers that share their statistics unasked."""
    monkeypatch.setattr(machine, "is_distributed", lambda: True)
    ordinary = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    nn.init.constant_(ordinary[1][0].running_mean, 3.0)
    before = {key: value.clone() for key, value in ordinary.state_dict().items()}
    assert machine.with_sync_bn(ordinary, False, place("cuda", 2)) is ordinary
    assert type(ordinary[1][0]) is nn.BatchNorm2d
    shared = machine.with_sync_bn(ordinary, True, place("cuda", 2))
    assert [type(part) for part in shared.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)] == [
        nn.SyncBatchNorm
    ]
    assert shared.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in shared.state_dict().items())
    assert capsys.readouterr().out == ""
    # Ranks on a CPU cannot share them.
    layer = nn.BatchNorm2d(2)
    assert machine.with_sync_bn(layer, True, place("cpu", 2)) is layer
    assert capsys.readouterr().out.startswith("note: sync_bn is True, but it takes GPUs and distributed = True")


def test_one_device_needs_no_wrapper():
    """Prevents state-dict keys with a prefix, and the cost of a wrapper, on one device."""
    model = nn.Linear(1, 1)
    assert machine.parallel(model, place()) is model


DISTRIBUTED = """
import torch
from utils import device as machine
from types import SimpleNamespace
settings = dict(gpu_ids="", Cuda=False, fp16=False, seed=11, cudnn_benchmark=True, deterministic=False, cpu_threads=0)
found = machine.set_up(SimpleNamespace(**settings, distributed=True))
assert found.ranks == (0, 0, 1) and machine.is_distributed()
network = machine.parallel(torch.nn.Linear(2, 1), found)
assert type(network).__name__ == "DistributedDataParallel"
network(torch.ones(1, 2)).sum().backward()
print("gradient", network.module.weight.grad.tolist())
machine.leave_ranks()
assert not machine.is_distributed()
"""


def test_a_launched_process_joins_and_leaves():
    """Prevents distributed = True from failing on a machine with one device, or from hanging at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment = os.environ | launcher | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED], cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "gradient [[1.0, 1.0]]" in result.stdout
