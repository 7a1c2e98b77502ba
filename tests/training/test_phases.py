from types import SimpleNamespace

import pytest
import torch

from nets import build_criterion, build_model
from utils.checkpoint.checkpointer import Progress
from utils.io.errors import UserError
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training import phases as module
from utils.training.engine import OptimWrapper
from utils.training.freezing import frozen_parameter_names
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups
from utils.training.phases import (
    Phase,
    build_phases,
    check_batches,
    count_steps,
    remaining_epochs,
    remaining_phases,
    start_phase,
    unfreeze_begun,
    val_batch_size,
)

WEIGHTS = {"model_path": "a.pth"}
FROZEN, UNFROZEN = Phase(True, 0, 10, 4), Phase(False, 10, 100, 2)


def settings_of(**changes):
    values = {"Freeze_Train": True, "Init_Epoch": 0, "Freeze_Epoch": 10, "UnFreeze_Epoch": 100}
    values |= {"model_path": "", "pretrained": False, "Freeze_batch_size": 16, "Unfreeze_batch_size": 8}
    values |= {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True, "lr_scale": {}}
    values |= {"weight_decay": 5e-4, "compile": False, "input_shape": [64, 64]}
    return SimpleNamespace(**values | changes)


def test_epochs_in_words():
    """Prevents "epochs 1-1"."""
    assert [FROZEN.epochs, UNFROZEN.epochs, Phase(True, 3, 4, 2).epochs] == ["epochs 1-10", "epochs 11-100", "epoch 4"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (WEIGHTS, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"model_path": ""}, [(False, 0, 100, 8)]),
        ({"pretrained": True}, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"pretrained": "IMAGENET1K_V2", "Init_Epoch": 10}, [(False, 10, 100, 8)]),
        (WEIGHTS | {"Freeze_Train": False}, [(False, 0, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 4}, [(True, 4, 10, 16), (False, 10, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 10}, [(False, 10, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 40}, [(False, 40, 100, 8)]),
        (WEIGHTS | {"Freeze_Epoch": 100}, [(True, 0, 100, 16)]),
    ],
)
def test_the_phases_are_those_that_the_constants_describe(changes, expected):
    """Prevents epochs trained twice, left out, or with the batch size of the other phase."""
    phases = build_phases(settings_of(**changes))
    assert [tuple(phase) for phase in phases] == expected
    assert [phase.name for phase in phases] == ["frozen" if frozen else "unfrozen" for frozen, *_ in expected]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [(True, 0, True), (True, 1, False), (False, 2, True), (False, 3, False)]),
        (1, [(True, 1, True), (False, 2, True), (False, 3, False)]),
        (2, [(False, 2, True), (False, 3, False)]),
        (4, []),
    ],
)
def test_the_epochs_that_are_left(start, expected):
    """Prevents epochs that train twice, or never, where a run goes on: within a phase, between two, and at the end;
    and a network that is not made ready where its phase begins or goes on."""
    phases = [Phase(True, 0, 2, 16), Phase(False, 2, 4, 8)]
    left = remaining_epochs(phases, Progress(start))
    assert [(phase.frozen, *rest) for phase, *rest in left] == expected
    assert list(remaining_epochs([], Progress(0))) == []
    assert remaining_phases(phases, Progress(start)) == [phase for phase in phases if phase.last > start]


@pytest.mark.parametrize(
    ("images", "accumulate", "expected"),
    [
        (32, 1, 2 * 2 + 3 * 4),
        (33, 1, 2 * 3 + 3 * 5),
        (33, 2, 2 * 2 + 3 * 3),  # windows of 2 and 1 batches, and of 2, 2 and 1
        (33, 100, 2 + 3),
        (1, 4, 5),
    ],
)
def test_steps(images, accumulate, expected):
    """Prevents an average of weights that looks back over too many steps because batches were counted as steps."""
    assert count_steps([Phase(True, 0, 2, 16), Phase(False, 2, 5, 8)], images, accumulate) == expected
    assert count_steps([], images, accumulate) == 0


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_once():
    """Prevents a run that fails at the unfreeze epoch, after hours."""
    settings = settings_of(**WEIGHTS, Unfreeze_batch_size=6)
    assert build_phases(settings, 2) == build_phases(settings)
    with pytest.raises(UserError) as error:
        build_phases(settings, world_size=4)
    assert str(error.value) == (
        "Unfreeze_batch_size is 6, which 4 processes cannot share evenly; set it to 4, or another multiple of 4."
    )
    with pytest.raises(UserError, match=r"^Freeze_batch_size is 2, .* share evenly; set it to 3, "):
        build_phases(settings_of(**WEIGHTS, Freeze_batch_size=2), world_size=3)
    check_batches([], 3)


class Loader(list):
    """Batches of two dim images, whose sampler remembers what it was told."""

    def __init__(self, count):
        images = torch.randint(20, 90, (count, 2, 3, 64, 64), dtype=torch.uint8)
        super().__init__(SimpleNamespace(images=part) for part in images)
        self.told, self.batch_sampler = [], SimpleNamespace(set_epoch=lambda *epoch: self.told.append(epoch))


def optim_of(settings, dtype=torch.float32, world_size=1):
    """An OptimWrapper as a training has it before its first phase, which is frozen."""
    model = build_model("yolox_nano", 2)
    model.freeze(frozen_parameter_names(model, settings, True))
    optimizer = build_optimizer("sgd", parameter_groups(model, 5e-4, 0), 0.9)
    runtime = RuntimeContext(torch.device("cpu"), DistInfo(0, 0, world_size), Precision(dtype, False, ""))
    return OptimWrapper(model, build_criterion(model), optimizer, ModelEMA(model, 100), runtime)


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(model, before):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def test_a_phase_that_unfreezes_measures_statistics_in_float32():
    """Prevents statistics, and what is taken back for them, with the 7 bits of bfloat16; a network that then runs in
    another precision than the training's; and an average that keeps scales of other statistics."""
    optim, loader = optim_of(settings_of(), torch.bfloat16), Loader(2)
    model, dtypes, before = optim.model, [], state_of(optim.model)
    norm = model.get_submodule("backbone.backbone.dark2.1.conv1.bn")
    norm.register_forward_pre_hook(lambda layer, inputs: dtypes.append((inputs[0].dtype, layer.training)))
    conv = model.get_submodule("backbone.backbone.dark2.1.conv1.conv")
    conv.register_forward_hook(lambda layer, inputs, output: dtypes.append(output.dtype))
    network = start_phase(UNFROZEN, optim, loader, settings_of())
    assert dtypes == [torch.float32, (torch.float32, False)] * 2 and loader.told == [(10, 2)]
    backbone = {key for key in before if key.startswith("backbone.backbone.") and ".bn." in key}
    assert changed(model, before) == {key for key in backbone if not key.endswith("num_batches_tracked")}
    assert changed(optim.ema.model, state_of(model)) == set()
    assert [group["start_epoch"] for group in optim.optimizer.param_groups] == [0, 0, 10, 10]
    network(loader[0].images)
    assert dtypes[4:] == [torch.bfloat16] and norm.training


def test_a_frozen_phase_changes_nothing():
    """Prevents statistics of pretrained layers from being replaced while they stay frozen."""
    optim, loader = optim_of(settings_of()), Loader(1)
    before = state_of(optim.model)
    start_phase(FROZEN, optim, loader, settings_of())
    assert changed(optim.model, before) == set() and loader.told == [(0, 4)]
    assert not optim.model.get_submodule("backbone.backbone.stem.conv.bn").training
    assert optim.model.get_submodule("head.stems.0.bn").training
    assert len(optim.optimizer.param_groups) == 2


def test_a_phase_is_compiled_for_the_batch_of_a_rank(monkeypatch):
    """Prevents a network compiled for a size of batch that no rank ever gets."""
    monkeypatch.setattr(module, "compile_network", lambda network, optim, shape: shape)
    settings = settings_of(compile=True, input_shape=[64, 96])
    assert start_phase(FROZEN, optim_of(settings, world_size=2), Loader(1), settings) == (2, 3, 64, 96)


@pytest.mark.parametrize(
    ("progress", "starts"),
    [(Progress(0), [0, 0]), (Progress(10), [0, 0]), (Progress(10, 4), [0, 0, 10, 10]), (Progress(50), [0, 0, 10, 10])],
)
def test_what_trained_when_a_run_was_broken_off_trains_again(progress, starts):
    """Prevents an optimiser whose groups are not those of its checkpoint, around the unfreeze epoch."""
    optim = optim_of(settings_of())
    unfreeze_begun(optim, [FROZEN, UNFROZEN], progress, settings_of())
    assert [group["start_epoch"] for group in optim.optimizer.param_groups] == starts
    assert optim.model.backbone_frozen is (len(starts) == 2)


@pytest.mark.parametrize(("batch_size", "world_size", "expected"), [(8, 1, 16), (8, 4, 4), (2, 8, 1)])
def test_ranks_share_a_validation_batch(batch_size, world_size, expected):
    """Prevents validation batches that grow with the number of GPUs, until their memory is full."""
    assert val_batch_size(SimpleNamespace(Unfreeze_batch_size=batch_size), world_size) == expected
