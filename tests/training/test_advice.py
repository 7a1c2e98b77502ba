from types import SimpleNamespace

import pytest

import train
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.training.advice import LARGER, SMALLER, change_init_lr, shorten_steps
from utils.training.phases import Phase

PHASE = Phase(False, 0, 100, 8)


def settings_of(**changes):
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | changes))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "factor", "changes", "starts", "rates"),
    [
        (64, 1, SMALLER, {"Init_lr": 1e-3}, "lower Init_lr from 0.001 to 0.00025 (", "2.5e-04 instead of 1.0e-03"),
        # 8e-3 would be 3.2e-2 for so many images, and 2e-3 is the highest rate: a quarter of 8e-3 is still above it.
        (64, 4, SMALLER, {"Init_lr": 8e-3}, "lower Init_lr from 0.008 to 0.000125 (", "5.0e-04 instead of 2.0e-03"),
        # 1e-4 would be 6.25e-6, and 5e-4 is the lowest rate.
        (4, 1, LARGER, {"Init_lr": 1e-4, "optimizer_type": "sgd"}, "raise Init_lr from 0.0001 to 0.08 (", "5.0e-03 in"),
        (64, 1, LARGER, {"Init_lr": 1e-3}, "raise Init_lr from 0.001 to 0.002 (", "2.0e-03 instead of 1.0e-03"),
        (64, 1, SMALLER, {"Init_lr": 1e-3, "Min_lr": 5e-4}, "to 0.00025 and set Min_lr = None (", "2.5e-04 instead"),
    ],
)
def test_following_the_advice_changes_the_rate(batch_size, accumulate, factor, changes, starts, rates):
    """Prevents advice that changes nothing, as the rate is kept within limits, and one that Min_lr forbids."""
    settings = settings_of(accumulate=accumulate, **changes)
    words = change_init_lr(settings, PHASE._replace(batch_size=batch_size), factor)
    assert starts in words and f"(the highest rate is then {rates}" in words


@pytest.mark.parametrize(
    ("batch_size", "factor", "initial"),
    [(4, SMALLER, 1e-4), (8, SMALLER, 1e-3), (64, LARGER, 8e-3), (64, LARGER, 1.5e-3)],
)
def test_no_advice_where_the_limits_leave_no_room(batch_size, factor, initial):
    """Prevents the advice to change Init_lr where the rate is at its limit, or close to it."""
    assert change_init_lr(settings_of(Init_lr=initial), PHASE._replace(batch_size=batch_size), factor) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "lower clip_grad_norm (now 10)"),
        ({"model_name": "dfine_s"}, "lower clip_grad_norm (now 0.1)"),
        ({"clip_grad_norm": 0.0}, "set clip_grad_norm = 10"),
        ({"clip_grad_norm": 0.0, "model_name": "dfine_s"}, "set clip_grad_norm = 0.1"),
    ],
)
def test_gradients_are_clipped_shorter_than_now(changes, words):
    """Prevents the advice to set clip_grad_norm to what it is, or to a hundred times as much."""
    of_rate, of_clip = shorten_steps(settings_of(**changes), PHASE)
    assert of_rate.startswith("lower Init_lr from ") and of_clip == words
    assert shorten_steps(settings_of(Init_lr=1e-4, **changes), PHASE) == [words]
