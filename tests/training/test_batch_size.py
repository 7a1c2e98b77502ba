import json
from types import SimpleNamespace

import pytest
import torch
from launched import on_ranks

import train
from nets import build_criterion, build_model
from utils.checkpoint.run_folder import save_settings
from utils.config.constants import read_constants, to_plain
from utils.config.optimizers import fill_in
from utils.data.annotations import Annotations
from utils.io.errors import UserError
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo, all_reduce_sum
from utils.training import batch_size
from utils.training.batch_size import allowed_sizes, choose_batch_sizes, largest_batch, needed_bytes

RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), Precision(torch.float32, False, ""))
SIZES = [2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
TWO_PHASES = {"Freeze_Train": True, "model_path": "a.pth", "Freeze_Epoch": 2, "UnFreeze_Epoch": 5}
BOTH_OPEN = {"Freeze_batch_size": 0, "Unfreeze_batch_size": 0}


def settings_of(**changes):
    values = {"input_shape": [64, 64], "Unfreeze_batch_size": 0, "Freeze_batch_size": 16, "classes_path": ""}
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | values | changes))


def annotations_of(images):
    return Annotations(["a.jpg"] * images, [(64, 64)] * images, [1] * images, [(5, 5, 30, 30)] * images, [0] * images)


class Steps:
    """A measurement of steps that need fixed + each * images bytes, on a GPU on which `most` images find memory."""

    def __init__(self, fixed, each, most=1000, error=OUT_OF_MEMORY, steeper_from=1000):
        self.fixed, self.each, self.most, self.error, self.steeper_from = fixed, each, most, error, steeper_from
        self.tried = []

    def __call__(self, count):
        self.tried.append(count)
        if count > self.most:
            raise self.error
        return self.fixed + self.each * count * (2 if count >= self.steeper_from else 1)


@pytest.mark.parametrize(
    ("steps", "expected", "tried"),
    [
        # 100 + 20 n <= 1000: 45 images, of which 40 is allowed
        (Steps(100, 20), 40, [2, 4, 8, 40]),
        (Steps(100, 22.5), 40, [2, 4, 8, 40]),
        (Steps(0, 1), 64, [2, 4, 8, 64]),
        (Steps(500, 0), 64, [2, 4, 8, 64]),
        (Steps(100, 100), 8, [2, 4, 8]),
        (Steps(100, 300), 2, [2, 4]),
        (Steps(900, 100), 0, [2]),
        # what the line does not know: a step that needs twice as much from 32 images on, or finds no memory
        (Steps(100, 20, steeper_from=32), 24, [2, 4, 8, 40, 24, 32]),
        (Steps(100, 20, most=30), 24, [2, 4, 8, 40, 24, 32]),
        (Steps(100, 20, most=8), 8, [2, 4, 8, 40, 24, 16]),
        (Steps(100, 20, most=2), 2, [2, 4]),
        (Steps(100, 20, most=1), 0, [2]),
        (Steps(100, 20, most=16, error=RuntimeError("cuDNN error: ALLOC_FAILED")), 16, [2, 4, 8, 40, 24, 16]),
    ],
)
def test_the_largest_batch(steps, expected, tried):
    """Prevents a batch that does not fit, one that is smaller than need be, and a search that takes minutes."""
    assert largest_batch(steps, 1000, SIZES) == expected
    assert steps.tried == tried


@pytest.mark.parametrize(("sizes", "expected"), [([1], 1), ([2], 2), ([2, 4], 4), ([2, 4, 8], 8)])
def test_few_sizes(sizes, expected):
    """Prevents a failure where there are fewer images than a line needs points."""
    steps = Steps(100, 20)
    assert largest_batch(steps, 1000, sizes) == expected
    assert steps.tried == sizes


def test_other_errors_keep_their_words():
    """Prevents a mistake in a network from being taken for a lack of memory, and a search that ends in a batch of 0."""
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        largest_batch(Steps(0, 0, most=4, error=RuntimeError("The size of tensor a (3) must match")), 1000, SIZES)


@pytest.mark.parametrize(
    ("images", "ranks", "expected"),
    [
        (1000, 1, SIZES),
        (40, 1, SIZES[:7]),
        (5, 1, [2, 4]),
        (1, 1, [1]),
        (100, 4, [2, 4, 8, 16, 24]),
        (5, 4, [1]),
        (0, 1, [1]),
    ],
)
def test_sizes_that_may_be_taken(images, ranks, expected):
    """Prevents a batch of more images than there are, or of one where there may be two."""
    assert allowed_sizes(images, ranks) == expected


@pytest.mark.parametrize(
    ("step", "validation", "is_graphed", "expected"),
    [(700, 300, False, 700), (700, 900, False, 900), (700, 300, True, 1300), (700, 900, True, 1500), (50, 0, True, 50)],
)
def test_what_a_phase_needs(step, validation, is_graphed, expected):
    """Prevents a training that fits in its first steps and not once a graph keeps their memory: 100 bytes lie there."""
    assert needed_bytes(100, step, validation, is_graphed) == expected


def chosen(settings, images=100, runtime=RUNTIME):
    model = build_model("yolox_nano", 2)
    return choose_batch_sizes(settings, model, build_criterion(model), runtime, annotations_of(images))


@pytest.mark.parametrize(("images", "expected"), [(100, 8), (7, 4), (1, 1)])
def test_a_cpu_takes_eight(tmp_path, capsys, images, expected):
    """Prevents minutes of measuring where nothing is to be found, and a number that settings.json does not hold."""
    settings = settings_of()
    new = chosen(settings, images)
    assert (settings.Unfreeze_batch_size, new.Unfreeze_batch_size, new.Freeze_batch_size) == (0, expected, 16)
    line = f"Unfreeze_batch_size is 0 and becomes {expected}, which on a CPU is not measured\n"
    assert capsys.readouterr().out == line
    save_settings(tmp_path, to_plain(vars(new)))
    assert json.loads((tmp_path / "settings.json").read_text())["Unfreeze_batch_size"] == expected


def test_ranks_of_a_cpu_share_eight(monkeypatch):
    """Prevents a batch that ranks cannot share evenly: three of them take two images each."""
    assert chosen(settings_of(), 100, RUNTIME._replace(dist=DistInfo(0, 0, 3))).Unfreeze_batch_size == 6


def test_sizes_that_are_given_stay():
    """Prevents a search nobody asked for."""
    settings = settings_of(Unfreeze_batch_size=3)
    assert choose_batch_sizes(settings, None, None, RUNTIME, annotations_of(1)) is settings


def test_only_phases_that_come_are_measured(capsys):
    """Prevents time that is spent on a phase that nobody trains; its size stays open for a run that is continued."""
    new = chosen(settings_of(**BOTH_OPEN))
    assert (new.Freeze_batch_size, new.Unfreeze_batch_size) == (0, 8)
    new = chosen(settings_of(**TWO_PHASES | BOTH_OPEN | {"Freeze_Epoch": 5}))
    assert (new.Freeze_batch_size, new.Unfreeze_batch_size) == (8, 0)


@pytest.fixture
def gpu(monkeypatch):
    """A runtime that passes for one on a GPU of 1,000 bytes, of which 900 may be used; steps: {phase: Steps}."""
    runtime = SimpleNamespace(**RUNTIME._asdict(), on_gpu=True, uses_data_parallel=False)
    state = SimpleNamespace(steps={"frozen": Steps(100, 10), "unfrozen": Steps(100, 20)}, runtime=runtime)
    cuda = {"empty_cache": lambda: None, "mem_get_info": lambda device: (800, 1000)}
    cuda |= {"memory_reserved": lambda device: 200}
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(batch_size, "OptimWrapper", lambda *_: None)
    monkeypatch.setattr(batch_size, "_measure", lambda optim, settings, phase, *_: state.steps[phase.name])
    return state


def test_each_phase_has_its_own(gpu, capsys):
    """Prevents a frozen phase with the small batches of the other: 900 bytes hold 80 images frozen, and 40 else."""
    new = chosen(settings_of(**TWO_PHASES | BOTH_OPEN), runtime=gpu.runtime)
    assert (new.Freeze_batch_size, new.Unfreeze_batch_size) == (64, 40)
    assert capsys.readouterr().out.splitlines() == [
        "Freeze_batch_size is 0 and becomes 64, the most that 0 takes of these images",
        "Unfreeze_batch_size is 0 and becomes 40, the largest that fits into 0.0 GiB of the GPU's memory",
    ]


def test_images_on_the_gpu_have_their_half(gpu):
    """Prevents a batch in the memory that cache = 'gpu' fills later: 0.9 of 600 bytes hold 22 images."""
    assert chosen(settings_of(cache="gpu"), runtime=gpu.runtime).Unfreeze_batch_size == 16


def test_nothing_fits(gpu):
    """Prevents a batch of 0, or advice to lower it."""
    gpu.steps["unfrozen"] = Steps(900, 20)
    with pytest.raises(UserError) as error:
        chosen(settings_of(multi_scale=True), runtime=gpu.runtime)
    assert str(error.value) == (
        "Memory does not suffice for the unfrozen phase with a batch of 2 images, the smallest that "
        "Unfreeze_batch_size = 0 takes, and input_shape = [64, 64] times 1.25 by multi_scale_range: lower input_shape, "
        "or take a smaller model_name. Nothing was changed."
    )


def test_ranks_that_share_statistics_are_told(gpu):
    """Prevents ranks that wait for each other for ever, each in a step of another size."""
    gpu.runtime.dist = DistInfo(0, 0, 2)
    with pytest.raises(UserError, match=r"^Unfreeze_batch_size is 0, which several processes with sync_bn = True "):
        chosen(settings_of(sync_bn=True), runtime=gpu.runtime)


def test_a_real_step_is_measured(monkeypatch):
    """Prevents a search that measures something else than what is trained: step, then validation of twice as many;
    their peaks are 300 and 500 bytes, 100 of them at rest. The model stays as it was."""
    model, seen, peaks = build_model("yolox_nano", 2), [], [300, 500, 300]
    cuda = {"memory_allocated": lambda: 100, "max_memory_allocated": lambda: peaks.pop(0)}
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        cuda[name] = lambda: None
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    settings, before = settings_of(ema=False), [value.clone() for value in model.state_dict().values()]
    model.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    optimizer = batch_size.build_optimizer("sgd", batch_size.parameter_groups(model, 0.0, 0), 0.9)
    optim = batch_size.OptimWrapper(model, build_criterion(model), optimizer, None, RUNTIME)
    for is_last, expected, shapes in (
        (True, 500, [(4, 3, 64, 64), (8, 3, 64, 64)]),
        (False, 300, [(4, 3, 64, 64)]),
    ):
        phase = train.build_phases(settings)[0]
        assert batch_size._measure(optim, settings, phase, is_last, annotations_of(5))(4) == expected
        assert seen == shapes
        seen.clear()
    assert all(map(torch.equal, before, model.state_dict().values()))


def found_by_rank(runtime):
    """The number that a rank is left with: 40 images fit into the memory of the first, and 8 into that of the second,
    whose trial of 16 fails."""
    steps = Steps(100, 20) if runtime.dist.is_main else Steps(100, 40, most=10)

    def measure(count):
        assert all_reduce_sum(torch.ones(1)).item() == 1  # waits for nobody
        return steps(count)

    batch_size._measure, batch_size._budget, batch_size.OptimWrapper = (
        lambda *_: measure,
        lambda *_: 1000,
        lambda *_: None,
    )
    like_gpu = SimpleNamespace(**runtime._asdict(), on_gpu=True, uses_data_parallel=False)
    new = choose_batch_sizes(settings_of(), build_model("yolox_nano", 2), None, like_gpu, annotations_of(500))
    return new.Unfreeze_batch_size, steps.tried


@pytest.mark.slow
def test_ranks_get_the_same_number(tmp_path):
    """Prevents ranks with batches of two sizes, or that wait for ever for one whose trial has failed."""
    assert on_ranks(found_by_rank, 2, tmp_path) == [(16, [2, 4, 8, 40]), (16, [2, 4, 8, 16])]
