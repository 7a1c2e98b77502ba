import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from nets import build_criterion, build_model
from tests.checkpoint.test_resume import CONTRACT
from utils.checkpoint.run_folder import rehearse_disk
from utils.config.cli import script_constants
from utils.data.annotations import Records
from utils.runtime.device import Place, Precision
from utils.runtime.distributed import Ranks
from utils.training.freezing import frozen_parameters
from utils.training.optim import ModelEma
from utils.training.phases import Phase
from utils.training.preflight import is_out_of_memory, memory_words, most_boxes, rehearse_steps
from utils.weights.save import save_content

CPU = torch.device("cpu")
FROZEN, UNFROZEN = Phase(True, 0, 2, 4), Phase(False, 2, 6, 2)
SHAPES = [(32, 64), (64, 64), (32, 32)]
PLACE = Place(CPU, Ranks(), Precision(torch.float32, False, ""), print)


def settings_of(**changes):
    values = {"input_shape": [64, 64], "Unfreeze_batch_size": 2, "Freeze_batch_size": 4, "Freeze_Train": True}
    return SimpleNamespace(**script_constants(vars(train)) | values | changes)


def records_of(*counts):
    boxes = [(5, 5, 30, 30)] * sum(counts)
    return Records(["a.jpg"] * len(counts), [(64, 64)] * len(counts), counts, boxes, [0] * sum(counts))


def everything(model, average):
    """What a rehearsal must leave as it is: tensors; what trains and what rests; random numbers to come."""
    tensors = [value.clone() for part in (model, average.model) for value in part.state_dict().values()]
    trains = [parameter.requires_grad for parameter in model.parameters()]
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    return tensors, (trains, model.resting, model.extractor_rests, states)


def rehearsed(criterion=None, settings=None, phases=(FROZEN, UNFROZEN), backbone_frozen=True):
    """What is said of the rehearsal of a small training; holds that it leaves no trace, also where it fails."""
    model, settings = build_model("yolox_nano", 2), settings or settings_of()
    criterion = criterion or build_criterion(model)
    model.freeze(frozen_parameters(model, settings, backbone_frozen))
    average = ModelEma(model, 100)
    tensors, others = everything(model, average)
    try:
        return rehearse_steps(
            model, average.model, criterion, settings, phases, SHAPES, records_of(3, 1, 0, 2, 5), PLACE
        )
    finally:
        after, others_after = everything(model, average)
        assert all(map(torch.equal, tensors, after))
        assert others == others_after
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("optimizer_type", ["sgd", "adamw", "rmsprop"])
def test_the_largest_steps_are_tried_and_leave_no_trace(optimizer_type):
    """Prevents memory that runs out at the unfreeze epoch, after hours; and a training that is another one for having
    been rehearsed: weights, statistics, what is frozen and random numbers stay as they were."""
    words = rehearsed(settings=settings_of(optimizer_type=optimizer_type)).split(", ")
    assert [part.rsplit(" ", 2)[0] for part in words] == [
        "frozen step of 4 x 64 x 64",
        "unfrozen step of 2 x 64 x 64",
        "validation batch of 4",
    ]


def test_layers_that_rest_before_the_unfreeze_epoch_still_rest_after_it():
    """Prevents a run that goes on at its unfreeze epoch from skipping what eases it: there the frozen phase is past."""
    assert rehearsed(phases=[UNFROZEN]).startswith("unfrozen step of 2")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
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

    def criterion(raw, targets):
        if len(targets) == fails_at:
            raise error
        return usual(raw, targets)

    with pytest.raises(ValueError) as found:
        rehearsed(criterion)
    assert str(found.value) == (
        f"Memory does not suffice for the {phase} phase with {name} and input_shape = [64, 64]: lower "
        f"{name.split()[0]} (and raise accumulate as much, for the same steps), or input_shape, or take a smaller "
        "model_name. Nothing was changed."
    )


def test_other_errors_keep_their_words():
    """Prevents every failure of a step from being called a lack of memory."""

    def criterion(raw, targets):
        raise RuntimeError("The size of tensor a (3) must match")

    with pytest.raises(RuntimeError, match="The size of tensor a"):
        rehearsed(criterion)


def test_multi_scale_is_named_where_memory_runs_out():
    """Prevents a search for the cause in input_shape alone."""
    words = memory_words(settings_of(multi_scale=True, multi_scale_range=[0.5, 1.5]), UNFROZEN)
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
def test_the_most_boxes_of_a_sample(counts, mosaic, mixup, expected):
    """Prevents a rehearsal with fewer boxes than a crowd will bring: memory of the assignment grows with them."""
    assert most_boxes(records_of(*counts), settings_of(mosaic=mosaic, mixup=mixup)) == expected


def disk(monkeypatch, tmp_path, free, **changes):
    """What is said of a disk with so many bytes free, for a checkpoint of a model of 4 MB."""
    path, model = tmp_path / "last_checkpoint.pth", torch.nn.Linear(1000, 1000, bias=False)
    content = {key: {} for key in ("run", "training", "ranks", "log")}
    save_content(path, content | {"model": model.state_dict(), "contract": CONTRACT})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free if folder == tmp_path else 0))
    return rehearse_disk(path, settings_of(**changes), [FROZEN, UNFROZEN], model)


def test_a_disk_that_suffices(monkeypatch, tmp_path):
    """Prevents a run from being refused: six epochs keep 2, 4, 6 and one more; with best, last, their copies and a
    file being written 9 of 4 MB, the checkpoint, and 67 MB for the rest."""
    assert disk(monkeypatch, tmp_path, 10**9, save_period=2) == ("checkpoint of 4 MB, 107 MB to come, 1000 MB free")
    assert "95 MB to come" in disk(monkeypatch, tmp_path, 10**9, save_period=2, keep_checkpoints=1)
    assert "107 MB to come" in disk(monkeypatch, tmp_path, 10**9, save_period=2, keep_checkpoints=9)


def test_a_disk_that_is_too_small_is_found_now(monkeypatch, tmp_path):
    """Prevents a disk that is full at night; the sentence says how much is missing, and which constants change it."""
    with pytest.raises(ValueError) as error:
        disk(monkeypatch, tmp_path, 10**8, save_period=2)
    assert str(error.value) == (
        "save_dir is 'logs', whose disk has 100 MB free; this run will write about 107 MB (4 files ep*.pth of 4 MB "
        "each among them). Free space, choose another save_dir, raise save_period, or set keep_checkpoints = 3."
    )


def test_a_checkpoint_that_cannot_be_read_back_is_found_now(monkeypatch, tmp_path):
    """Prevents hours of training whose state turns out to be unreadable, or was never written."""
    path = tmp_path / "last_checkpoint.pth"
    with pytest.raises(ValueError, match=f"save_dir is 'logs', and {path} could not be written there, as said above;"):
        rehearse_disk(path, settings_of(), [UNFROZEN], torch.nn.Linear(1, 1))
    path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match=f"{path} is cut off"):
        rehearse_disk(path, settings_of(), [UNFROZEN], torch.nn.Linear(1, 1))
