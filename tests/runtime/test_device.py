import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launched import SETTINGS, free_port, on_ranks
from torch import nn

from nets import build_criterion, build_model
from utils.data.annotations import Records, read_source, to_records
from utils.data.augment import AugmentSettings
from utils.data.loader import build_train_loader
from utils.data.sampling import TrainShapes
from utils.io.class_names import read_class_names
from utils.runtime import device as machine
from utils.runtime import distributed as processes
from utils.runtime.device import Place, Precision
from utils.runtime.distributed import Agreement, Ranks
from utils.training.engine import Stepper, train_one_epoch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")
LAUNCHER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


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
    machine.set_up(SimpleNamespace(**SETTINGS | {"cpu_threads": 0}))
    assert torch.get_num_threads() == 1


def test_one_process_follows_itself():
    """Prevents a training on one device from asking other ranks for BatchNorm's statistics."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean += 3
    processes.follow_main(norm)
    assert norm.running_mean.tolist() == [3, 3]


def test_one_process_has_nobody_to_ask():
    """Prevents a call into a process group that does not exist."""
    values = torch.tensor([3.0, 4.0])
    assert processes.sum_over_ranks(values) is values
    assert processes.from_main("logs") == "logs"
    assert processes.gathered({"seed": 3}) == [{"seed": 3}]
    agreement = Agreement(Ranks())
    assert agreement(True, False) == (True, False)
    assert agreement.finish() == ()
    assert processes.world_size() == 1
    assert Ranks(2, 0, 4).of_all == (2, 4)
    with processes.without_sync(nn.Linear(1, 1)) as nothing:
        assert nothing is None


@pytest.mark.parametrize(("rank", "expected"), [(0, ["fetched", "met"]), (1, ["met", "fetched"]), (None, ["fetched"])])
def test_the_main_rank_fetches_first(monkeypatch, rank, expected):
    """Prevents every rank from downloading the same weights at once, ranks that wait for each other twice, and a single
    process that waits for anybody."""
    events = []
    monkeypatch.setattr(processes, "is_distributed", lambda: rank is not None)
    monkeypatch.setattr(processes.dist, "barrier", lambda: events.append("met"))
    with processes.main_rank_first(Ranks(rank or 0, rank or 0, 1 if rank is None else 2)):
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
        processes.join_ranks(True, use_cuda=False)
    assert str(error.value) == (
        "distributed is True, but this process was not started by a launcher; set distributed = False for one process, "
        "or start with: CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py"
    )
    assert processes.join_ranks(False, use_cuda=True) == Ranks(0, 0, 1)
    processes.leave_ranks()  # without a process group, nothing to leave


def launched_as(monkeypatch, gpus, **changes):
    """The environment of a launcher on a machine with so many GPUs. Returns the backends that ranks join with."""
    backends = []
    for name, value in (LAUNCHER | {"LOCAL_WORLD_SIZE": "2"} | changes).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend, timeout: backends.append(backend))
    return backends


@pytest.mark.parametrize("distributed", [True, False])
def test_a_launcher_is_recognised_by_its_environment(monkeypatch, distributed):
    """Prevents torchrun from starting several single trainings where the constant was not set; several of them on one
    GPU where Cuda is False on purpose; and messages between CPUs that go by way of the GPUs."""
    backends = launched_as(monkeypatch, gpus=2)
    assert processes.join_ranks(distributed, use_cuda=True) == Ranks(1, 1, 2)
    assert processes.join_ranks(distributed, use_cuda=False) == Ranks(1, 1, 2)
    launched_as(monkeypatch, gpus=0)
    assert backends == ["cpu:gloo,cuda:nccl", "gloo"]


def test_an_incomplete_environment_of_a_launcher_is_named(monkeypatch):
    """Prevents each of several processes from training alone, and over the files of the others."""
    launched_as(monkeypatch, 0, LOCAL_RANK="", MASTER_ADDR="")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR is not in the environment; exp"):
        processes.join_ranks(False, use_cuda=False)
    launched_as(monkeypatch, 0, WORLD_SIZE="", MASTER_ADDR="")  # such as a RANK that means something else
    assert processes.join_ranks(False, use_cuda=False) == Ranks()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Prevents CUDA's 'invalid device ordinal' on the last ranks, while the first ones wait for them; all ranks must
    say it."""
    for rank in ("0", "2"):
        launched_as(monkeypatch, 2, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="3", WORLD_SIZE="3")
        with pytest.raises(ValueError) as error:
            processes.join_ranks(False, use_cuda=True)
        assert str(error.value) == (
            "3 processes were started on this machine for 2 GPUs; each takes one: start with --nproc_per_node=2, or "
            "train on the CPU with --Cuda=False."
        )
    launched_as(monkeypatch, 1, LOCAL_WORLD_SIZE="")
    with pytest.raises(ValueError, match="2 processes were started on this machine for 1 GPUs"):
        processes.join_ranks(False, use_cuda=True)


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
    assert processes.describe_ranks() == []
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    monkeypatch.setattr(processes.dist, "get_backend_config", lambda: backend)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.describe_ranks() == [("processes", text)]


def test_attempts_of_one_launch_are_known(monkeypatch):
    """Prevents a restart that goes on with another run: of another launch, or in a container, where all have the same
    numbers; and one that begins anew because its second attempt looks like another launch."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert (processes.launch_id(), processes.restart_count()) == ("", 0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "birds")
    assert (processes.launch_id(), processes.restart_count()) == ("birds", 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    found = []
    for folder in ("a/none_x/attempt_0", "a/none_x/attempt_1", "b/none_y/attempt_0"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/{folder}/0/error.json")
        found.append(processes.launch_id())
    assert found[0] == found[1] != found[2]
    assert str(os.getppid()) in found[0]


def test_an_error_on_its_way_keeps_the_process_group(monkeypatch):
    """Prevents a rank's mistake that nobody reads: the others fail as soon as it leaves, and the launcher then ends
    it before it has said a word."""
    left = []
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: left.append(True))
    with pytest.raises(KeyError):
        try:
            raise KeyError
        finally:
            processes.leave_ranks()
    assert left == []
    processes.leave_ranks()
    assert left == [True]


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
    assert processes.with_sync_bn(model, False, place()) is model
    assert capsys.readouterr().out == ""
    assert processes.with_sync_bn(model, True, place()) is model
    assert type(model[0]) is nn.BatchNorm2d
    assert capsys.readouterr().out == (
        "note: sync_bn is True, but it takes GPUs and a launcher: ordinary BatchNorm is used.\n"
    )


def test_sync_bn_between_gpus(monkeypatch, capsys):
    """Prevents sync_bn without effect where it can work, weights and statistics that are lost in the exchange, and
    layers that share their statistics unasked."""
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    ordinary = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    nn.init.constant_(ordinary[1][0].running_mean, 3.0)
    before = {key: value.clone() for key, value in ordinary.state_dict().items()}
    assert processes.with_sync_bn(ordinary, False, place("cuda", 2)) is ordinary
    assert type(ordinary[1][0]) is nn.BatchNorm2d
    shared = processes.with_sync_bn(ordinary, True, place("cuda", 2))
    assert [type(part) for part in shared.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)] == [
        nn.SyncBatchNorm
    ]
    assert shared.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in shared.state_dict().items())
    assert capsys.readouterr().out == ""
    # Ranks on a CPU cannot share them.
    layer = nn.BatchNorm2d(2)
    assert processes.with_sync_bn(layer, True, place("cpu", 2)) is layer
    assert capsys.readouterr().out.startswith("note: sync_bn is True, but it takes GPUs and a launcher")


def test_one_device_needs_no_wrapper():
    """Prevents state-dict keys with a prefix, and the cost of a wrapper, on one device."""
    model = nn.Linear(1, 1)
    assert processes.parallel(model, place()) is model


def meet(place):
    """What a rank learns from the others."""
    rank, agreement = place.ranks.rank, Agreement(place.ranks)
    return {
        "place": (*place.ranks, type(processes.parallel(nn.Linear(2, 1), place)).__name__),
        "heard": [agreement(call == 3 and rank == 1, call == 5) for call in range(1, 7)],
        "finish": (agreement.finish(), agreement.finish()),
        "from_main": processes.from_main({"tally": torch.ones(2), "path": "logs"} if rank == 0 else None),
        "gathered": processes.gathered(f"of {rank}"),
        "restarts": processes.restart_count(),
    }


def first_images(count):
    """Records of the first images of the drawn sample, and its class names."""
    names = read_class_names(ROOT / "model_data/sample_classes.txt")
    records, _ = to_records(read_source(str(ROOT / "VOCdevkit/Sample/ImageSets/Main/train.txt"), "train"), names)
    paths, boxes = [records.path(index) for index in range(count)], slice(records.first[count])
    counts = np.diff(records.first)[:count]
    return Records(paths, records.sizes_hw[:count], counts, records.boxes_xyxy[boxes], records.classes[boxes]), names


def weights_of(model):
    """All parameters, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def first_steps(place, images, accumulate):
    """Three steps of yolox_nano with resting BatchNorm on augmented images, 8 in a batch of all ranks together.

    Returns a dict: all weights before and after, the losses of the batches of all ranks, a number for each image that
    this rank saw, which tells where its boxes are, by batch.
    """
    records, names = first_images(images)
    torch.manual_seed(3)
    model = build_model("yolox_nano", len(names)).to(memory_format=torch.channels_last)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():  # gives the norms statistics; with those of a new network no signal comes through
        model.train()(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    resting = {id(own) for norm in norms for own in norm.parameters()}
    model.freeze({key for key, own in model.named_parameters() if id(own) in resting})
    start = weights_of(model)
    criterion, sums, seen = build_criterion(model), [], []
    augment = AugmentSettings(augment_epochs=1, mosaic_prob=0.5, mixup=True, mixup_prob=0.5)
    loader = build_train_loader(records, augment, 11, TrainShapes([(64, 64)]), 8, 0, *place.ranks.of_all)

    def recorded(raw, targets):
        parts = criterion(raw, targets)
        seen.append(targets[..., :4].sum(dim=(1, 2)).tolist())
        sums.append(torch.cat(((parts["loss"].detach() * parts["count"].max())[None], parts["count"].float())))
        return parts

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepper = Stepper(model, torch.optim.SGD(trained, lr=1e-3, momentum=0.9), None, place.precision, place.device, 10.0)
    network = processes.parallel(model.train(), place)
    train_one_epoch(network, recorded, loader, stepper, lambda share: 1e-3, accumulate, "")
    whole = processes.sum_over_ranks(torch.stack(sums))
    losses = (whole[:, 0] / whole[:, 1:].max(dim=1).values).tolist()
    return {"start": start, "end": weights_of(model), "losses": losses, "seen": seen}


STEPS = {"three batches": (21, 1), "windows of two batches": (37, 2)}


def meet_and_step(place):
    """All that the tests of two ranks look at, in one go: starting processes takes longer than what they do."""
    return meet(place) | {name: first_steps(place, *choice) for name, choice in STEPS.items()}


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
        assert result["place"] == (rank, rank, 2, "DistributedDataParallel")
        assert result["heard"] == [nothing, nothing, nothing, (True, False), nothing, (False, True)]
        assert result["finish"] == (nothing, ())
        assert result["from_main"]["path"] == "logs" and result["from_main"]["tally"].tolist() == [1, 1]
        assert result["gathered"] == (["of 0", "of 1"] if rank == 0 else None)
        assert result["restarts"] == 1


@pytest.mark.parametrize(("name", "batches"), [("three batches", 3), ("windows of two batches", 5)])
def test_two_ranks_train_like_one(two_ranks, name, batches):
    """Prevents ranks that see other samples, or other augmentation, than one process does, and losses that each rank
    divides by its own number of objects: samples, losses and weights are the same. The last batch has 5 images, 3 for
    one rank and 2 for the other."""
    alone, shared = first_steps(place(), *STEPS[name]), [result[name] for result in two_ranks]
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
from utils.runtime import device as machine, distributed as processes
found = machine.set_up(SimpleNamespace(**SETTINGS))
assert found.ranks == (0, 0, 1) and processes.is_distributed()
network = processes.parallel(torch.nn.Linear(2, 1), found)
network(torch.ones(1, 2)).sum().backward()
print(type(network).__name__, network.module.weight.grad.tolist())
del network  # it holds the process group, whose threads must not outlive the program
processes.leave_ranks()
assert not processes.is_distributed()
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
