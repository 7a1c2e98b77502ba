from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets.losses import Criterion
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training.engine import OptimWrapper
from utils.training.nonfinite import (
    BatchNormBackup,
    DelayedFlag,
    NonFiniteLossError,
    first_not_finite,
    is_not_finite,
    usual_skips,
    write_crash_dump,
)

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0], [1.0, -1e18]], False),
        ([[0.0], [1.0, -3e38]], True),
        ([[1.0], [2.0, NAN]], True),
        ([[float("inf")], [0.0]], True),
        ([[0.0], [-float("inf"), 5.0]], True),
        ([], False),
    ],
)
def test_what_is_not_finite(values, expected):
    """Prevents one NaN among millions of gradients from being overseen, and finite ones whose squares are not, which
    would stay in Adam's state for good."""
    assert bool(is_not_finite([torch.tensor(value) for value in values])) is expected


@pytest.mark.parametrize(
    ("steps", "is_first", "expected"), [(14, True, 16), (14, False, 2), (10_000, False, 7), (0, False, 2)]
)
def test_skips_that_are_usual_in_float16(steps, is_first, expected):
    """Prevents a search for a cause where a GradScaler has only found its scale; 65,536 is halved 16 times at most."""
    assert usual_skips(steps, is_first) == expected


def test_flags_known_at_once():
    """Prevents a step from being taken for the one before it, where nobody has to wait."""
    delayed = DelayedFlag(is_late=False)
    flags = [True, False, True]
    assert [delayed.push(torch.tensor(flag)) for flag in flags] == flags
    assert delayed.flush() is None


def test_late_flags_come_one_step_later_and_once():
    """Prevents a flag that is lost at the end of an epoch, that counts twice, or that a later step overwrites."""
    delayed, flag = DelayedFlag(is_late=True), torch.tensor(True)
    assert delayed.flush() is None
    assert delayed.push(flag) is None
    flag.fill_(False)  # the device goes on
    assert delayed.push(flag) is True
    assert delayed.push(torch.tensor(True)) is False
    assert (delayed.flush(), delayed.flush()) == (True, None)


def test_statistics_come_back_after_a_bad_step():
    """Prevents NaN that the forward pass leaves in BatchNorm, and good steps whose statistics are taken back."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1), nn.BatchNorm1d(2))
    backup = BatchNormBackup(model)
    backup.save()
    model[0].running_mean.fill_(NAN)
    model[2].running_var.fill_(7.0)
    backup.restore_where(torch.tensor(True))
    assert (model[0].running_mean.item(), model[2].running_var.tolist()) == (0.0, [1.0, 1.0])
    model[2].running_mean.copy_(torch.tensor([3.0, 4.0]))
    backup.restore_where(torch.tensor(False))
    model[2].running_mean.fill_(9.0)
    backup.restore_where(torch.tensor(True))
    assert (model[0].running_var.item(), model[2].running_mean.tolist()) == (1.0, [3.0, 4.0])


def test_statistics_that_overflow_by_themselves_are_taken_back():
    """Prevents inf in a checkpoint from a step whose loss and gradient are numbers: what is divided by inf is 0."""
    backup = BatchNormBackup(nn.BatchNorm2d(2))
    backup.save()
    mean, variance = backup.buffers
    mean.copy_(torch.tensor([1.0, 2.0]))
    variance.copy_(torch.tensor([float("inf"), 3.0]))
    backup.restore_where(torch.tensor(False))
    assert (mean.tolist(), variance.tolist()) == ([1.0, 2.0], [1.0, 3.0])


def test_a_model_without_statistics():
    """Prevents a crash on networks without BatchNorm, such as those with LayerNorm."""
    backup = BatchNormBackup(nn.Linear(1, 1))
    backup.save()
    backup.restore_where(torch.tensor(True))


def test_the_error_carries_its_batches_and_its_exit_status():
    """Prevents a crash dump without images, and a status that a cluster takes for an ordinary mistake."""
    error = NonFiniteLossError("Nothing works.", iter([1, 2]))
    assert (str(error), error.batches, error.exit_status) == ("Nothing works.", [1, 2], 3)
    assert isinstance(error, ValueError) and NonFiniteLossError("").batches == []


class Toy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))


class MeanLoss(Criterion):
    def forward(self, raw, _targets):
        return {"loss": raw.mean(), "box": 2 * raw.mean(), "count": torch.ones(2)}


def batch_of(*images):
    return SimpleNamespace(images=torch.tensor(images), targets=torch.zeros(len(images), 1, 5))


def optim_of(model, criterion=None, dtype=torch.float32):
    runtime = RuntimeContext(CPU, DistInfo(), Precision(dtype, False, ""))
    return OptimWrapper(model, criterion or MeanLoss(), torch.optim.SGD(model.parameters(), 0.1), None, runtime)


GOOD = batch_of([1.0, 2.0], [3.0, 5.0])


def test_the_first_layer_is_named():
    """Prevents a search from the end: all layers behind the broken one give NaN too; and hooks that stay behind."""
    model = Toy()
    with torch.no_grad():
        model[2][0].weight[0, 0] = NAN
    assert first_not_finite(optim_of(model), GOOD) == "the output of layer 2.0"
    assert not any(part._forward_hooks for part in model.modules())
    assert first_not_finite(optim_of(Toy()), batch_of([1.0, 2.0], [NAN, 5.0])) == "the output of layer 0"
    assert first_not_finite(optim_of(Toy()), GOOD) == ""


def test_a_loss_is_named():
    """Prevents the blame on the network where the loss itself fails: the first part that does."""

    class Broken(MeanLoss):
        def forward(self, raw, targets):
            return super().forward(raw, targets) | {"box": raw.mean() * float("inf")}

    assert first_not_finite(optim_of(Toy(), Broken()), GOOD) == "the loss 'box'"


def test_a_gradient_is_named():
    """Prevents a cause that stays unknown because the forward pass is well: the root of 0 has an endless slope."""

    class Steep(MeanLoss):
        def forward(self, raw, targets):
            return super().forward(raw, targets) | {"loss": (raw * 0).sqrt().sum()}

    assert first_not_finite(optim_of(Toy(), Steep()), GOOD).startswith("the gradient of 0.")


def test_the_step_is_run_again_in_its_own_precision():
    """Prevents a cause that float32 does not show: what overflows in mixed precision is well in it."""
    model, seen = Toy(), []
    model[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    first_not_finite(optim_of(model, dtype=torch.bfloat16), GOOD)
    assert seen == [torch.bfloat16]


def test_what_is_left_of_a_bad_step(tmp_path):
    """Prevents a crash dump that lacks what the step needs to be run again, that holds the statistics the search left,
    or that torch refuses to load."""
    model, path = Toy(), tmp_path / "black_box.pth"
    bad = batch_of([NAN, 2.0], [3.0, 5.0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = write_crash_dump(path, optim_of(model), [GOOD, bad], ["a.jpg", "b.jpg"], {"seed": 3}, 4)
    assert words == "the output of layer 0"
    assert all(parameter.grad is None for parameter in model.parameters())
    dump = torch.load(path, weights_only=True)
    assert (dump["paths"], dump["settings"], dump["epoch"]) == (["a.jpg", "b.jpg"], {"seed": 3}, 5)
    assert dump["first_not_finite"] == words
    assert torch.equal(dump["images"][0], GOOD.images) and torch.equal(dump["targets"][1], bad.targets)
    assert all(torch.equal(value, before[key]) for key, value in dump["model"].items())


@pytest.mark.parametrize("batches", [[], [GOOD]])
def test_a_step_that_is_well_when_run_again(tmp_path, batches):
    """Prevents a cause out of thin air, such as where a GPU had a bad moment."""
    words = write_crash_dump(tmp_path / "dump.pth", optim_of(Toy()), batches, [], {}, 0)
    assert words == "nothing any more"


def test_a_dump_that_finds_no_room(tmp_path, capsys):
    """Prevents a full disk, or one that a rank does not see, from hiding the cause that was searched for."""
    bad = batch_of([NAN, 2.0], [3.0, 5.0])
    path = tmp_path / "gone" / "dump.pth"
    assert write_crash_dump(path, optim_of(Toy()), [bad], [], {}, 0) == "the output of layer 0"
    assert capsys.readouterr().out == f"note: {path} could not be written: No such file or directory\n"
    assert write_crash_dump(None, optim_of(Toy()), [bad], [], {}, 0) == "the output of layer 0"
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []
