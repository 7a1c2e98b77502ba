import pytest
import torch
from torch import nn

from utils.training.nonfinite import KeptStatistics, NotFiniteError, Verdicts, is_not_finite


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0], [1.0, -1e18]], False),
        ([[0.0], [1.0, -3e38]], True),
        ([[1.0], [2.0, float("nan")]], True),
        ([[float("inf")], [0.0]], True),
        ([[0.0], [-float("inf"), 5.0]], True),
        ([], False),
    ],
)
def test_what_is_not_finite(values, expected):
    """Prevents one NaN among millions of gradients from being overseen, and finite ones whose squares are not, which
    would stay in Adam's state for good."""
    assert bool(is_not_finite([torch.tensor(value) for value in values])) is expected


def test_verdicts_known_at_once():
    """Prevents a step from being judged by the one before it, where nobody has to wait."""
    verdicts = Verdicts(is_late=False)
    flags = [True, False, True]
    assert [verdicts.learn(torch.tensor(flag)) for flag in flags] == flags
    assert verdicts.finish() is None


def test_late_verdicts_come_one_step_later_and_once():
    """Prevents a verdict that is lost at the end of an epoch, that counts twice, or that a later step overwrites."""
    verdicts, flag = Verdicts(is_late=True), torch.tensor(True)
    assert verdicts.finish() is None
    assert verdicts.learn(flag) is None
    flag.fill_(False)  # the device goes on
    assert verdicts.learn(flag) is True
    assert verdicts.learn(torch.tensor(True)) is False
    assert (verdicts.finish(), verdicts.finish()) == (True, None)


def test_statistics_come_back_after_a_bad_step():
    """Prevents NaN that the forward pass leaves in BatchNorm, and good steps whose statistics are taken back."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1), nn.BatchNorm1d(2))
    statistics = KeptStatistics(model)
    statistics.remember()
    model[0].running_mean.fill_(float("nan"))
    model[2].running_var.fill_(7.0)
    statistics.settle(torch.tensor(True))
    assert (model[0].running_mean.item(), model[2].running_var.tolist()) == (0.0, [1.0, 1.0])
    model[2].running_mean.copy_(torch.tensor([3.0, 4.0]))
    statistics.settle(torch.tensor(False))
    model[2].running_mean.fill_(9.0)
    statistics.settle(torch.tensor(True))
    assert (model[0].running_var.item(), model[2].running_mean.tolist()) == (1.0, [3.0, 4.0])


def test_statistics_that_overflow_by_themselves_are_taken_back():
    """Prevents inf in a checkpoint from a step whose loss and gradient are numbers: what is divided by inf is 0."""
    statistics = KeptStatistics(nn.BatchNorm2d(2))
    statistics.remember()
    mean, variance = statistics.buffers
    mean.copy_(torch.tensor([1.0, 2.0]))
    variance.copy_(torch.tensor([float("inf"), 3.0]))
    statistics.settle(torch.tensor(False))
    assert (mean.tolist(), variance.tolist()) == ([1.0, 2.0], [1.0, 3.0])


def test_a_model_without_statistics():
    """Prevents a crash on networks without BatchNorm, such as those with LayerNorm."""
    statistics = KeptStatistics(nn.Linear(1, 1))
    statistics.remember()
    statistics.settle(torch.tensor(True))


def test_the_error_carries_its_batches_and_its_exit_status():
    """Prevents a black box without images, and a status that a cluster takes for an ordinary mistake."""
    error = NotFiniteError("Nothing works.", iter([1, 2]))
    assert (str(error), error.batches, error.exit_status) == ("Nothing works.", [1, 2], 3)
    assert isinstance(error, ValueError) and NotFiniteError("").batches == []
