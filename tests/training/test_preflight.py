import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from nets import build_criterion, build_model
from nets.losses import Criterion
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.data.annotations import Annotations
from utils.io.errors import UserError
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training.engine import OptimWrapper
from utils.training.freezing import frozen_parameter_names
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups
from utils.training.phases import Phase
from utils.training.preflight import (
    MemoryForecast,
    is_out_of_memory,
    max_boxes,
    out_of_memory_message,
    preflight,
    try_steps,
)

FROZEN, UNFROZEN = Phase(True, 0, 2, 4), Phase(False, 2, 6, 2)
SHAPES = [(32, 64), (64, 64), (32, 32)]
RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), Precision(torch.float32, False, ""))


def settings_of(**changes):
    values = {"input_shape": [64, 64], "Unfreeze_batch_size": 2, "Freeze_batch_size": 4, "Freeze_Train": True}
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | values | changes))


def annotations_of(*counts):
    boxes = [(5, 5, 30, 30)] * sum(counts)
    return Annotations(["a.jpg"] * len(counts), [(64, 64)] * len(counts), counts, boxes, [0] * sum(counts))


def everything(optim):
    """What a preflight must leave as it is: tensors; what trains and what is frozen; random numbers to come."""
    model, momenta = optim.model, [value for state in optim.optimizer.state.values() for value in state.values()]
    tensors = [*model.state_dict().values(), *optim.ema.model.state_dict().values(), *momenta]
    trains = [parameter.requires_grad for parameter in model.parameters()]
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    of_optim = optim.total, list(optim.gathered), optim.bad_in_a_row, len(optim.optimizer.param_groups), optim.ema.steps
    return [value.clone() for value in tensors], (trains, model.frozen_norms, model.backbone_frozen, states, of_optim)


def optim_of(settings, criterion=None):
    """What a small training steps with; criterion: None for the usual one."""
    model = build_model("yolox_nano", 2)
    model.freeze(frozen_parameter_names(model, settings, True))
    optimizer = build_optimizer(settings.optimizer_type, parameter_groups(model, 5e-4, 0), 0.9)
    return OptimWrapper(model, criterion or build_criterion(model), optimizer, ModelEMA(model, 100), RUNTIME)


def tried(criterion=None, settings=None, phases=(FROZEN, UNFROZEN)):
    """What is said of a small training's preflight; holds that it leaves no trace, also where it fails."""
    settings = settings or settings_of()
    optim = optim_of(settings, criterion)
    tensors, others = everything(optim)
    try:
        return try_steps(optim, settings, phases, SHAPES, annotations_of(3, 1, 0, 2, 5))
    finally:
        tensors_after, others_after = everything(optim)
        assert all(map(torch.equal, tensors, tensors_after))
        assert others == others_after
        assert all(parameter.grad is None for parameter in optim.model.parameters())


@pytest.mark.parametrize("optimizer_type", ["sgd", "adamw", "rmsprop"])
def test_the_largest_steps_are_tried_and_leave_no_trace(optimizer_type):
    """Prevents memory that runs out at the unfreeze epoch, after hours; and a training that is another one for having
    been tried: weights, statistics, what is frozen and random numbers stay as they were."""
    words, peaks = tried(settings=settings_of(optimizer_type=optimizer_type))
    assert [part.rsplit(" ", 2)[0] for part in words.split(", ")] == [
        "frozen step of 4 x 64 x 64",
        "unfrozen step of 2 x 64 x 64",
        "validation batch of 4",
    ]
    assert peaks == {}  # a CPU tells none


def test_layers_that_are_frozen_before_the_unfreeze_epoch_still_are_after_it():
    """Prevents a run that goes on at its unfreeze epoch from skipping what eases it: there the frozen phase is past."""
    assert tried(phases=[UNFROZEN])[0].startswith("unfrozen step of 2")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (RuntimeError(), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_memory):
    """Prevents advice to lower the batch size where something else is wrong, and a trace where that would help."""
    assert is_out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("fails_at", "error", "name", "phase"),
    [
        (4, torch.OutOfMemoryError("CUDA out of memory."), "Freeze_batch_size = 4", "frozen"),
        (2, RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Unfreeze_batch_size = 2", "unfrozen"),
    ],
)
def test_out_of_memory_names_what_to_lower(fails_at, error, name, phase):
    """Prevents a trace in epoch 51, and advice to lower the batch size of the other phase."""
    usual = build_criterion(build_model("yolox_nano", 2))

    class Fails(Criterion):
        def forward(self, raw, targets):
            if len(targets) == fails_at:
                raise error
            return usual(raw, targets)

    with pytest.raises(UserError) as found:
        tried(Fails())
    assert str(found.value) == (
        f"Memory does not suffice for the {phase} phase with {name} and input_shape = [64, 64]: lower "
        f"{name.split()[0]} (and raise accumulate as much, for the same steps), or input_shape, or take a smaller "
        "model_name. Nothing was changed."
    )


def test_other_errors_keep_their_words():
    """Prevents every failure of a step from being called a lack of memory."""

    class Fails(Criterion):
        def forward(self, raw, targets):
            raise RuntimeError("The size of tensor a (3) must match")

    with pytest.raises(RuntimeError, match="The size of tensor a"):
        tried(Fails())


def test_multi_scale_is_named_where_memory_runs_out():
    """Prevents a search for the cause in input_shape alone."""
    words = out_of_memory_message(settings_of(multi_scale=True, multi_scale_range=[0.5, 1.5]), UNFROZEN)
    assert "Unfreeze_batch_size = 2 and input_shape = [64, 64] times 1.5 by multi_scale_range: lower" in words


@pytest.mark.parametrize(
    ("counts", "mosaic", "mixup", "expected"),
    [
        ([3, 1, 0, 2, 5], False, False, 5),
        ([3, 1, 0, 2, 5], True, False, 11),
        ([3, 1, 0, 2, 5], False, True, 8),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], True, True, 44),
        ([0], True, True, 0),
        ([], True, False, 0),
    ],
)
def test_the_largest_number_of_boxes_of_a_sample(counts, mosaic, mixup, expected):
    """Prevents a preflight with fewer boxes than a crowd will bring: memory of the assignment grows with them."""
    assert max_boxes(annotations_of(*counts), settings_of(mosaic=mosaic, mixup=mixup)) == expected


@pytest.mark.parametrize(("counts", "expected"), [([7, 1, 1, 1, 5], 17), ([], 3)])
def test_pasted_boxes_count_among_them(counts, expected):
    """Prevents a preflight with fewer boxes than copy_paste brings, which pastes up to three."""
    assert max_boxes(annotations_of(*counts), settings_of(mosaic=True, mixup=False, copy_paste=0.5)) == expected


def test_the_preflight_of_a_loader(capsys):
    """Prevents a preflight of other shapes or images than the loader's, or one that nobody sees."""
    loader = SimpleNamespace(
        batch_sampler=SimpleNamespace(multi_scale=SimpleNamespace(shapes=SHAPES)),
        dataset=SimpleNamespace(annotations=annotations_of(3, 1)),
    )
    settings = settings_of()
    preflight(optim_of(settings), settings, [FROZEN], loader)
    assert capsys.readouterr().out.startswith("preflight: frozen step of 2 x 64 x 64 ")


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 2), (2, 4), (5, 4)])
def test_a_window_of_batches_is_tried(accumulate, batches):
    """Prevents memory that runs out at the second batch of a window, which finds the gradients of the first."""
    usual, seen = build_criterion(build_model("yolox_nano", 2)), []

    class Counts(Criterion):
        def forward(self, raw, targets):
            seen.append(len(targets))
            return usual(raw, targets)

    tried(Counts(), settings_of(accumulate=accumulate))
    assert seen == [4] * (batches // 2) + [2] * (batches // 2)


def test_a_peak_above_the_forecast_is_said_once(monkeypatch, capsys):
    """Prevents a training that takes more memory than preflight said, and nobody knows."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    memory = MemoryForecast({"frozen": 2 * 2**30, "unfrozen": 2.9 * 2**30})
    for phase in (FROZEN, FROZEN, UNFROZEN):
        memory.check(phase)
    assert capsys.readouterr().out == (
        "note: the frozen phase took 3.0 GiB of the GPU's memory, where preflight measured 2.0: leave room for it.\n"
    )
    MemoryForecast({}).check(FROZEN)  # as on a CPU
