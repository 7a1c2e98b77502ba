import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from launched import free_port, on_ranks
from torch import nn

from nets import build_criterion, build_model
from utils.data.annotations import Annotations, build_annotations
from utils.data.augment import AugmentOptions
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.loader import LoaderOptions, build_train_loader
from utils.data.sampling import MultiScale
from utils.io.class_names import read_class_names
from utils.runtime import distributed
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import AsyncFlags, DistInfo, MixedPrecision
from utils.training.engine import LossMeter, OptimWrapper, train_one_epoch

ROOT = Path(__file__).resolve().parents[2]
FLOAT32 = Precision(torch.float32, False, "")
BFLOAT16 = Precision(torch.bfloat16, False, "")
LAUNCHER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def context(device="cpu", world_size=1, precision=FLOAT32):
    return RuntimeContext(torch.device(device), DistInfo(0, 0, world_size), precision)


def test_one_process_follows_itself():
    """Prevents a training on one device from asking other ranks for BatchNorm's statistics."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean += 3
    distributed.broadcast_buffers(norm)
    assert norm.running_mean.tolist() == [3, 3]


def test_one_process_has_nobody_to_ask():
    """Prevents a call into a process group that does not exist."""
    values = torch.tensor([3.0, 4.0])
    assert distributed.all_reduce_sum(values) is values
    assert distributed.broadcast_object("logs") == "logs"
    assert distributed.gather_objects({"seed": 3}) == [{"seed": 3}]
    flags = AsyncFlags(DistInfo())
    assert flags(True, False) == (True, False)
    assert flags.finish() == ()
    assert distributed.world_size() == 1
    assert DistInfo().is_main and not DistInfo(1, 1, 2).is_main
    with distributed.no_sync(nn.Linear(1, 1)) as nothing:
        assert nothing is None


def test_alone_among_others(monkeypatch):
    """Prevents a rank that waits for ever because another one's trial of a step ran out of memory; and several GPUs of
    one process in a trial of one rank."""
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    runtime, values, model = context(world_size=2), torch.tensor([3.0]), nn.Linear(1, 1)
    with distributed.alone():
        assert distributed.all_reduce_sum(values) is values
        assert distributed.world_size() == 1
        assert isinstance(distributed.wrap_model(model, runtime), MixedPrecision)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    assert distributed.world_size() == 2


@pytest.mark.parametrize(("rank", "expected"), [(0, ["fetched", "met"]), (1, ["met", "fetched"]), (None, ["fetched"])])
def test_the_main_rank_fetches_first(monkeypatch, rank, expected):
    """Prevents every rank from downloading the same weights at once, ranks that wait for each other twice, and a single
    process that waits for anybody."""
    events = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: rank is not None)
    monkeypatch.setattr(distributed.dist, "barrier", lambda: events.append("met"))
    with distributed.rank_zero_first(DistInfo(rank or 0, rank or 0, 1 if rank is None else 2)):
        events.append("fetched")
    assert events == expected


def test_distributed_without_a_launcher_shows_the_command(monkeypatch):
    """Prevents a KeyError, or a silent run on one GPU, where the launcher was forgotten."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError) as error:
        distributed.init_distributed(True, use_cuda=False)
    assert str(error.value) == (
        "distributed is True, but this process was not started by a launcher; set distributed = False for one process, "
        "or start with: CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py"
    )
    assert distributed.init_distributed(False, use_cuda=True) == DistInfo(0, 0, 1)
    distributed.shut_down()  # without a process group, nothing to leave


def launched_as(monkeypatch, gpus, **changes):
    """The environment of a launcher on a machine with so many GPUs. Returns the backends that ranks join with."""
    backends = []
    for name, value in (LAUNCHER | {"LOCAL_WORLD_SIZE": "2"} | changes).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: backends.append(backend))
    return backends


@pytest.mark.parametrize("demanded", [True, False])
def test_a_launcher_is_recognised_by_its_environment(monkeypatch, demanded):
    """Prevents torchrun from starting several single trainings where the constant was not set; several of them on one
    GPU where Cuda is False on purpose; and messages between CPUs that go by way of the GPUs."""
    backends = launched_as(monkeypatch, gpus=2)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: True)
    assert distributed.init_distributed(demanded, use_cuda=True) == DistInfo(1, 1, 2)
    assert distributed.init_distributed(demanded, use_cuda=False) == DistInfo(1, 1, 2)
    launched_as(monkeypatch, gpus=0)
    assert backends == ["cpu:gloo,cuda:nccl", "gloo"]


def test_gpus_without_nccl_exchange_by_gloo(monkeypatch):
    """Prevents several GPUs on Windows, whose torch has no nccl, from ending in a trace."""
    backends = launched_as(monkeypatch, gpus=2)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: False)
    distributed.init_distributed(False, use_cuda=True)
    assert backends == ["gloo"]


def test_an_incomplete_environment_of_a_launcher_is_named(monkeypatch):
    """Prevents each of several processes from training alone, and over the files of the others."""
    launched_as(monkeypatch, 0, LOCAL_RANK="", MASTER_ADDR="")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR is not in the environment; exp"):
        distributed.init_distributed(False, use_cuda=False)
    launched_as(monkeypatch, 0, WORLD_SIZE="", MASTER_ADDR="")  # such as a RANK that means something else
    assert distributed.init_distributed(False, use_cuda=False) == DistInfo()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Prevents CUDA's 'invalid device ordinal' on the last ranks, while the first ones wait for them; all ranks must
    say it."""
    for rank in ("0", "2"):
        launched_as(monkeypatch, 2, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="3", WORLD_SIZE="3")
        with pytest.raises(ValueError) as error:
            distributed.init_distributed(False, use_cuda=True)
        assert str(error.value) == (
            "3 processes were started on this machine for 2 GPUs; each takes one: start with --nproc_per_node=2, or "
            "train on the CPU with --Cuda=False."
        )
    launched_as(monkeypatch, 1, LOCAL_WORLD_SIZE="")
    with pytest.raises(ValueError, match="2 processes were started on this machine for 1 GPUs"):
        distributed.init_distributed(False, use_cuda=True)


@pytest.mark.parametrize(
    ("environment", "backend", "text"),
    [
        ({}, "cpu:gloo,cuda:gloo", "4, started by a launcher; gloo between CPUs"),
        (
            {"LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"},
            "cpu:gloo,cuda:nccl",
            "4 on this machine, started by torchrun; nccl between GPUs",
        ),
        (
            {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "birds"},
            "cpu:gloo,cuda:gloo",
            "2 on this machine, 4 on 2 machines, started by torchrun; gloo between CPUs",
        ),
    ],
)
def test_one_line_says_who_trains(monkeypatch, environment, backend, text):
    """Prevents a run on fewer processes or machines than were meant, which nobody notices."""
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.describe_ranks() == []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda: backend)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.describe_ranks() == [("processes", text)]


def test_attempts_of_one_launch_are_known(monkeypatch):
    """Prevents a restart that goes on with another run: of another launch, or in a container, where all have the same
    numbers; and one that begins anew because its second attempt looks like another launch."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert (distributed.launch_id(), distributed.restart_count()) == ("", 0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "birds")
    assert (distributed.launch_id(), distributed.restart_count()) == ("birds", 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    found = []
    for folder in ("a/none_x/attempt_0", "a/none_x/attempt_1", "b/none_y/attempt_0"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/{folder}/0/error.json")
        found.append(distributed.launch_id())
    assert found[0] == found[1] != found[2]
    assert str(os.getppid()) in found[0]


def test_an_error_on_its_way_keeps_the_process_group(monkeypatch):
    """Prevents a rank's mistake that nobody reads: the others fail as soon as it leaves, and the launcher then ends
    it before it has said a word."""
    left = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: left.append(True))
    with pytest.raises(KeyError):
        try:
            raise KeyError
        finally:
            distributed.shut_down()
    assert left == []
    distributed.shut_down()
    assert left == [True]


def test_sync_bn_on_one_device_says_that_it_does_nothing(capsys):
    """Prevents sync_bn from failing on a CPU, and from being left out silently."""
    model = nn.Sequential(nn.BatchNorm2d(1))
    assert distributed.convert_sync_bn(model, False, context()) is model
    assert capsys.readouterr().out == ""
    assert distributed.convert_sync_bn(model, True, context()) is model
    assert type(model[0]) is nn.BatchNorm2d
    assert capsys.readouterr().out == (
        "note: sync_bn is True, but it takes GPUs and a launcher: ordinary BatchNorm is used.\n"
    )


def test_sync_bn_between_gpus(monkeypatch, capsys):
    """Prevents sync_bn without effect where it can work, weights and statistics that are lost in the exchange, and
    layers that share their statistics unasked."""
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    ordinary = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    nn.init.constant_(ordinary[1][0].running_mean, 3.0)
    before = {key: value.clone() for key, value in ordinary.state_dict().items()}
    assert distributed.convert_sync_bn(ordinary, False, context("cuda", 2)) is ordinary
    assert type(ordinary[1][0]) is nn.BatchNorm2d
    shared = distributed.convert_sync_bn(ordinary, True, context("cuda", 2))
    assert [type(part) for part in shared.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)] == [
        nn.SyncBatchNorm
    ]
    assert shared.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in shared.state_dict().items())
    assert capsys.readouterr().out == ""
    # Ranks on a CPU cannot share them.
    layer = nn.BatchNorm2d(2)
    assert distributed.convert_sync_bn(layer, True, context("cpu", 2)) is layer
    assert capsys.readouterr().out.startswith("note: sync_bn is True, but it takes GPUs and a launcher")


def test_one_device_wraps_for_precision_alone():
    """Prevents the cost of DistributedDataParallel or DataParallel on one device, and training a copy of the
    model."""
    model = nn.Linear(1, 1)
    network = distributed.wrap_model(model, context())
    assert type(network) is MixedPrecision and network.network is model
    assert network(torch.ones(1, 1)).dtype == torch.float32


@pytest.mark.parametrize("option", ["broadcast_buffers", "forward_sync_buffers"])
@pytest.mark.parametrize(("norm", "broadcasts"), [(nn.BatchNorm2d, True), (nn.SyncBatchNorm, False)])
def test_statistics_are_exchanged_where_ranks_differ(monkeypatch, norm, broadcasts, option):
    """Prevents statistics from being sent in every step where SyncBatchNorm gives all ranks the same, and a warning of
    torch's on the name that this option had before."""
    given = {}

    def older(network, device_ids, gradient_as_bucket_view, broadcast_buffers=True):
        given.update(broadcast_buffers=broadcast_buffers)

    def newer(network, device_ids, gradient_as_bucket_view, broadcast_buffers=None, forward_sync_buffers=True):
        given.update(forward_sync_buffers=forward_sync_buffers)

    wrapper = older if option == "broadcast_buffers" else newer
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", wrapper)
    distributed.wrap_model(nn.Sequential(norm(2)), context())
    assert given == {option: broadcasts}


def test_threads_compute_in_the_precision_of_the_run():
    """Prevents DataParallel's replicas, which run in threads of their own, from computing in float32: the autocast of
    the caller does not reach other threads."""
    network = distributed.wrap_model(nn.Linear(2, 2), context(precision=BFLOAT16))
    with ThreadPoolExecutor(2) as threads:
        raw = list(threads.map(network, [torch.ones(1, 2), torch.zeros(1, 2)]))
    assert [part.dtype for part in raw] == [torch.bfloat16] * 2
    assert network(torch.ones(1, 2)).dtype == torch.bfloat16


def meet(runtime):
    """What a rank learns from the others."""
    rank, flags = runtime.dist.rank, AsyncFlags(runtime.dist)
    return {
        "dist": (*runtime.dist, type(distributed.wrap_model(nn.Linear(2, 1), runtime)).__name__),
        "heard": [flags(call == 3 and rank == 1, call == 5) for call in range(1, 7)],
        "finish": (flags.finish(), flags.finish()),
        "broadcast": distributed.broadcast_object({"sums": torch.ones(2), "path": "logs"} if rank == 0 else None),
        "gathered": distributed.gather_objects(f"of {rank}"),
        "restarts": distributed.restart_count(),
    }


def first_images(count):
    """Annotations of the first images of the drawn sample, and its class names."""
    names = read_class_names(ROOT / "model_data/sample_classes.txt")
    annotations, _ = build_annotations(
        read_raw_annotations(str(ROOT / "VOCdevkit/Sample/ImageSets/Main/train.txt"), "train"), names
    )
    paths, boxes = [annotations.path(index) for index in range(count)], slice(annotations.offsets[count])
    counts = np.diff(annotations.offsets)[:count]
    return Annotations(
        paths, annotations.sizes_hw[:count], counts, annotations.boxes_xyxy[boxes], annotations.classes[boxes]
    ), names


def weights_of(model):
    """All parameters, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def first_steps(runtime, images, accumulate):
    """Three steps of yolox_nano with frozen BatchNorm on augmented images, 8 in a batch of all ranks together.

    Returns a dict: all weights before and after, the losses of the batches of all ranks, a number for each image that
    this rank saw, which tells where its boxes are, by batch.
    """
    annotations, names = first_images(images)
    torch.manual_seed(3)
    model = build_model("yolox_nano", len(names)).to(memory_format=torch.channels_last)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():  # gives the norms statistics; with those of a new network no signal comes through
        model.train()(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    frozen = {id(own) for norm in norms for own in norm.parameters()}
    model.freeze({key for key, own in model.named_parameters() if id(own) in frozen})
    start = weights_of(model)
    criterion, sums, seen = build_criterion(model), [], []
    augment = AugmentOptions(augment_epochs=1, mosaic_prob=0.5, mixup=True, mixup_prob=0.5)
    options = LoaderOptions(rank=runtime.dist.rank, world_size=runtime.dist.world_size)
    loader = build_train_loader(annotations, augment, 11, MultiScale([(64, 64)]), 8, options)

    def record(_criterion, inputs, losses):
        seen.append(inputs[1][..., :4].sum(dim=(1, 2)).tolist())
        sums.append(torch.cat(((losses["loss"].detach() * losses["count"].max())[None], losses["count"])))

    criterion.register_forward_hook(record)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    optim = OptimWrapper(model, criterion, sgd, None, runtime, accumulate, clip_grad_norm=10.0)
    network = distributed.wrap_model(model.train(), runtime)
    train_one_epoch(network, loader, optim, lambda fraction: 1e-3, LossMeter())
    whole = distributed.all_reduce_sum(torch.stack(sums))
    losses = (whole[:, 0] / whole[:, 1:].max(dim=1).values).tolist()
    return {"start": start, "end": weights_of(model), "losses": losses, "seen": seen}


STEPS = {"three batches": (21, 1), "windows of two batches": (37, 2)}


def meet_and_step(runtime):
    """All that the tests of two ranks look at, in one go: starting processes takes longer than what they do."""
    return meet(runtime) | {name: first_steps(runtime, *choice) for name, choice in STEPS.items()}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two ranks found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        return on_ranks(meet_and_step, 2, tmp_path_factory.mktemp("ranks"))


def test_ranks_agree(two_ranks):
    """Prevents ranks that stop at different steps and then wait for each other for ever: what one wants at call 3, both
    hear at call 4; and an exchange that is left open when ranks part."""
    nothing = (False, False)
    for rank, result in enumerate(two_ranks):
        assert result["dist"] == (rank, rank, 2, "DistributedDataParallel")
        assert result["heard"] == [nothing, nothing, nothing, (True, False), nothing, (False, True)]
        assert result["finish"] == (nothing, ())
        assert result["broadcast"]["path"] == "logs" and result["broadcast"]["sums"].tolist() == [1, 1]
        assert result["gathered"] == (["of 0", "of 1"] if rank == 0 else None)
        assert result["restarts"] == 1


@pytest.mark.parametrize(("name", "batches"), [("three batches", 3), ("windows of two batches", 5)])
def test_two_ranks_train_like_one(two_ranks, name, batches):
    """Prevents ranks that see other samples, or other augmentation, than one process does, and losses that each rank
    divides by its own number of objects: samples, losses and weights are the same. The last batch has 5 images, 3 for
    one rank and 2 for the other."""
    alone, shared = first_steps(context(), *STEPS[name]), [result[name] for result in two_ranks]
    assert [len(batch) for batch in alone["seen"]] == [8] * (batches - 1) + [5]
    for number, batch in enumerate(alone["seen"]):
        assert [rank["seen"][number] for rank in shared] == [batch[::2], batch[1::2]]
    moved = alone["end"] - alone["start"]
    assert moved.count_nonzero() > 0.9 * moved.numel()
    for rank in shared:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        # 6e-6 after the first step; from then on rounding now and then gives a cell to another object.
        assert (rank["end"] - alone["end"]).norm() < 5e-3 * moved.norm()
    assert torch.equal(shared[0]["end"], shared[1]["end"])


DISTRIBUTED = """
import torch
from types import SimpleNamespace
from launched import SETTINGS
from utils.runtime import device, distributed
found = device.init_runtime(SimpleNamespace(**SETTINGS))
assert found.dist == (0, 0, 1) and distributed.is_distributed()
network = distributed.wrap_model(torch.nn.Linear(2, 1), found)
network(torch.ones(1, 2)).sum().backward()
print(type(network).__name__, network.module.network.weight.grad.tolist())
del network  # it holds the process group, whose threads must not outlive the program
distributed.shut_down()
assert not distributed.is_distributed()
"""


def test_one_launched_process_takes_the_same_way():
    """Prevents a launcher with one process from failing, or from hanging at the end."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
    environment = os.environ | LAUNCHER | alone | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED], cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "DistributedDataParallel [[1.0, 1.0]]" in result.stdout
    assert "processes      1, started by a launcher; gloo between CPUs\n" in result.stdout
