import math
from types import SimpleNamespace

import numpy as np
import pytest

import train
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.reporting.hints.curves import curve_hints

CHANGES = {"Init_lr": 0.08, "UnFreeze_Epoch": 40, "optimizer_type": "sgd"}
FALLING = np.linspace(8, 3, 20).tolist()


def settings_of(**changes):
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | CHANGES | changes))


def rows_of(train, val=None, maps=(), lr=0.01, phase="unfrozen", first=1):
    """Rows of a history; maps: {epoch: mAP}; without val the validation loss is that of training."""
    val = train if val is None else val
    return [
        {
            "epoch": epoch,
            "phase": phase,
            "loss": loss,
            "val_loss": val_loss,
            "lr": lr,
            "map50": dict(maps).get(epoch),
            "data_wait": 0.0,
        }
        for epoch, (loss, val_loss) in enumerate(zip(train, val, strict=True), first)
    ]


def hints(rows, is_last=False, **settings):
    return dict(curve_hints(rows, settings_of(**settings), is_last))


def test_a_training_that_runs_well_is_left_alone():
    """Prevents hints that cry wolf: losses fall, scatter by a few percent, and are level at the end."""
    scatter = np.random.default_rng(0).uniform(0.97, 1.03, (2, 60))
    losses = 3 + 7 * np.exp(-np.arange(60) / 8)
    train, val = (losses * scatter).tolist()
    maps = {epoch: 0.9 - 0.8 * math.exp(-epoch / 8) for epoch in range(5, 61, 5)}
    rows = rows_of(train, val, maps)
    for count in range(61):
        assert hints(rows[:count], is_last=count == 60, UnFreeze_Epoch=60) == {}


def test_the_first_epochs_from_scratch_are_no_overfitting():
    """Prevents an alarm where the validation loss explodes before it falls, as it does from scratch."""
    train = [10.3, 10.0, 9.7, 9.4, 8.8, 8.2, 8.0, 7.6, 7.2, 7.2, 6.7, 6.4, 6.3, 5.9, 5.8]
    val = [10.0, 9.9, 166, 2900, 2503, 330, 65, 14.1, 10.9, 7.5, 6.4, 5.8, 5.4, 5.0, 4.9]
    late = [10.0, 9.9, 9.8, 9.8, 9.8, 9.8, 12, 166, 2900, 2503, 330, 65, 14.1, 10.9, 7.5]
    for losses in (val, late):
        for count in range(16):
            assert hints(rows_of(train[:count], losses[:count], {5: 0.0, 10: 0.2})) == {}


def test_overfitting_by_the_validation_loss():
    """Prevents a long training on few images from going on without a word: it is over by a tenth, and still rises."""
    val = [*np.linspace(8, 4, 10), *np.linspace(4.1, 5, 10)]
    (topic, sentence), *others = hints(rows_of(FALLING, val)).items()
    assert (topic, others) == ("overfitting", [])
    assert sentence.startswith(
        "Overfitting: the training loss falls on, but the validation loss rose from 4.00 in epoch 10 to 4.90. best"
    )
    assert hints(rows_of(FALLING, [*np.linspace(8, 4, 10), *np.linspace(4.3, 4.1, 10)])) == {}


def test_overfitting_by_the_map():
    """Prevents a fall of the mAP from being overlooked while the validation loss is level; two bad evaluations, or a
    small fall, are chance."""
    level = [8.0] * 5 + [4.0] * 15
    sentence = hints(rows_of(FALLING, level, {5: 0.7, 8: 0.8, 11: 0.74, 14: 0.73, 17: 0.72}))["overfitting"]
    assert "but the mAP@0.5 fell from 0.800 in epoch 8 to 0.720. best" in sentence
    assert hints(rows_of(FALLING, level, {5: 0.7, 8: 0.8, 11: 0.74, 14: 0.73})) == {}
    assert hints(rows_of(FALLING, level, {5: 0.7, 8: 0.8, 11: 0.76, 14: 0.77, 17: 0.76})) == {}


def test_a_loss_that_rises_in_both_is_no_overfitting():
    """Prevents "overfitting" where the training itself fails."""
    losses = [*np.linspace(8, 4, 10), *np.linspace(4.1, 5, 10)]
    assert "overfitting" not in hints(rows_of(losses, losses))


def test_underfitting_is_told_at_the_end():
    """Prevents a training that stops too early from looking complete; before its end any loss falls."""
    rows = rows_of(np.linspace(9, 5, 40))
    assert hints(rows) == {}
    assert hints(rows, is_last=True) == {
        "underfitting": "Both losses were still falling at the end, in the second half by 28% in training and by "
        "28% in validation: raise UnFreeze_Epoch from 40 to 60 or more."
    }


@pytest.mark.parametrize(
    "val",
    [
        np.linspace(5.6, 5, 40),  # falls little
        [*np.linspace(9, 5, 32), *[5.0] * 8],  # has come to rest
        [*[5.0] * 20, *[4.9] * 20],  # a step where the augmentation ends
    ],
)
def test_losses_that_have_come_to_rest_are_no_underfitting(val):
    """Prevents every training from being called too short."""
    assert hints(rows_of(np.linspace(9, 5, 40), val), is_last=True) == {}


def test_l1_is_no_part_of_the_curve():
    """Prevents the L1 loss, which sets in when the augmentation ends, from looking like jumps or a rise."""
    rows = rows_of(FALLING)
    for row in rows[10:]:
        row |= {"loss": row["loss"] + 5, "loss_l1": 5.0}
    assert hints(rows) == {}


def test_a_loss_that_jumps():
    """Prevents a learning rate that is too high from being taken for bad luck; one jump is bad luck."""
    train = list(FALLING)
    train[9] *= 1.6
    assert hints(rows_of(train, FALLING)) == {}
    train[14] *= 1.6
    assert hints(rows_of(train, FALLING)) == {
        "jumps": "The loss jumps by more than 25%, 2 times, last in epoch 15: the steps are too large, so lower "
        "Init_lr from 0.08 to 0.02 (the highest rate is then 2.5e-03 instead of 1.0e-02), or lower clip_grad_norm (now "
        "10)."
    }


def test_jumps_at_the_lowest_rate():
    """Prevents the advice to lower Init_lr where the limits of the rate hold it up."""
    train = list(FALLING)
    train[9] *= 1.6
    train[14] *= 1.6
    sentence = hints(rows_of(train, FALLING), Init_lr=1e-4)["jumps"]
    assert sentence.endswith("the steps are too large, so lower clip_grad_norm (now 10).")


def test_unfreezing_is_no_jump():
    """Prevents the rise of the loss at the unfreeze epoch from counting: each phase has a curve of its own."""
    frozen = rows_of(np.linspace(8, 3, 12), phase="frozen")
    rows = frozen + rows_of(np.linspace(6, 3, 12), first=13)
    assert hints(rows) == {}


def test_a_loss_that_hardly_moves():
    """Prevents a rate that is too low, a frozen network and wrong boxes from looking alike; a network that is good
    already has nothing left to learn."""
    still = np.linspace(8, 7.8, 15)
    start = "The loss hardly moves (7.99 in the first epochs, now 7.81)"
    assert hints(rows_of(still, lr=5e-4), Init_lr=0.001) == {
        "low rate": f"{start}: the learning rate is too low, so raise Init_lr from 0.001 to 0.04 (the highest rate is "
        "then 5.0e-03 instead of 5.0e-04)."
    }
    assert hints(rows_of(still, lr=0.01))["nothing learned"].startswith(f"{start}, and the learning rate is not low: ")
    frozen_rows, frozen = rows_of(still, phase="frozen", maps={5: 0.0}), {"Freeze_Train": True, "model_path": "a.pth"}
    assert hints(rows_of(still), train_only=["head"], freeze_blocks=0) == {
        "frozen": f"{start}, and much is frozen by train_only: let more of the network train."
    }
    assert "frozen by Freeze_Train: let more" in hints(frozen_rows, **frozen)["frozen"]
    assert hints(rows_of(still, maps={10: 0.4})) == {}
    assert hints(rows_of(still[:14], lr=1e-4)) == {}
    assert set(hints(rows_of(still[:14], lr=1e-4), is_last=True)) == {"low rate"}
    assert hints(rows_of(np.linspace(8, 6.5, 15), lr=1e-4)) == {}
    assert set(hints(rows_of(still), lr_scale={"neck": 0.1})) == {"nothing learned"}
    assert set(hints(rows_of(still), lr_scale={"neck": 0})) == {"frozen"}


def test_a_rate_that_init_lr_does_not_hold_down():
    """Prevents the advice to raise Init_lr where the highest rate is at its limit, and the schedule keeps to less."""
    sentence = hints(rows_of([8.0] * 15, lr=1e-4), Init_lr=1.0)["low rate"]
    assert sentence.endswith("the learning rate is too low, so look at lr_decay_type and lr_scale.")


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({"Init_lr": 0.08}, "draws them), and lower Init_lr from 0.08 to 0.02 (the highest rate is then 2.5e-03 "),
        ({"Init_lr": 1e-4}, "draws them)."),
    ],
)
def test_nothing_learned_at_a_rate_that_is_not_low(changes, ending):
    """Prevents the advice to lower Init_lr where that changes nothing."""
    assert ending in hints(rows_of([8.0] * 15, lr=0.01), **changes)["nothing learned"]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "raise mosaic_prob (now 0.5), raise weight_decay (now 0.0005), or lower UnFreeze_Epoch."),
        ({"mosaic_prob": 1.0}, "raise weight_decay (now 0.0005), or lower UnFreeze_Epoch."),
        ({"optimizer_type": "adam", "mosaic": False}, "set mosaic = True, or lower UnFreeze_Epoch."),
        (
            {"optimizer_type": "adam", "mosaic_prob": 1.0, "model_name": "yolox_s"},
            "take a smaller model_name, or lower UnFreeze_Epoch.",
        ),
        ({"optimizer_type": "adam", "mosaic_prob": 1.0}, "lower UnFreeze_Epoch."),
    ],
)
def test_what_helps_against_overfitting(changes, advice):
    """Prevents the advice to raise mosaic_prob where it is 1 or without effect, to raise a decay that acts wrongly, and
    to take a smaller network than the smallest."""
    val = [*np.linspace(8, 4, 10), *np.linspace(4.1, 5, 10)]
    assert hints(rows_of(FALLING, val), **changes)["overfitting"].endswith(f"More images help most; else {advice}")


@pytest.mark.parametrize("settings", [{"Init_Epoch": 20}, {"model_path": "logs/last_epoch_weights.pth"}])
def test_what_goes_on_from_good_weights_has_little_to_learn(settings):
    """Prevents the hint to raise a rate tenfold, which ruins a good model, where no score tells that it is good."""
    assert hints(rows_of(np.linspace(3.1, 2.9, 20), lr=1e-4), **settings) == {}


def test_a_run_that_patience_ended():
    """Prevents the hint to raise UnFreeze_Epoch where the training ended long before it."""
    falling = np.geomspace(8, 2, 20).tolist()
    sentence = hints(rows_of(falling), is_last=True, UnFreeze_Epoch=100, patience=5)["underfitting"]
    assert sentence.endswith("raise patience from 5, which ended the training.")


@pytest.mark.parametrize("val", [[math.nan] * 20, [None] * 20])
def test_without_a_validation_loss(val):
    """Prevents a crash, or overfitting, where the validation set holds nothing to compare with."""
    assert hints(rows_of(FALLING, val, {5: 0.0, 10: math.nan}), is_last=True) == {}
