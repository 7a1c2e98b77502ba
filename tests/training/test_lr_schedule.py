import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.training.lr_schedule import (
    LR_LIMITS,
    LRSchedule,
    cosine,
    lr_limits,
    lr_range,
    preview_lr,
    scale_lr,
    warmup_epochs,
)
from utils.training.optim import build_optimizer
from utils.training.phases import Phase


def settings_of(kind="cos", epochs=100, **changes):
    values = {"lr_decay_type": kind, "UnFreeze_Epoch": epochs, "Init_Epoch": 0, "Init_lr": 1e-2, "Min_lr": None}
    values |= {"model_name": "yolox_nano", "backbone": "", "lr_step_size": None, "lr_milestones": [], "lr_gamma": None}
    values |= {"lr_factor": 0.5, "lr_patience": 5, "lr_cooldown": 0, "optimizer_type": "sgd", "accumulate": 1}
    return SimpleNamespace(**values | changes)


def rates_of(settings, epochs, lowest=0.0, val_losses=()):
    """The rate at the start of each epoch, for a highest rate of 1."""
    schedule, rates = LRSchedule(settings), []
    for epoch in range(epochs):
        rates.append(schedule.rate(epoch, 1.0, lowest))
        schedule.end_epoch(val_losses[epoch] if epoch < len(val_losses) else None)
    return rates


@pytest.mark.parametrize(
    ("initial", "minimum", "optimizer_type", "batch_size", "highest", "lowest"),
    [
        (1e-2, None, "sgd", 64, 1e-2, 1e-4),
        (1e-2, None, "sgd", 8, 1.25e-3, 1.25e-5),
        (1e-2, None, "sgd", 1, 5e-4, 5e-6),
        (1e-2, None, "sgd", 1024, 5e-2, 5e-4),
        (1e-3, None, "adamw", 64, 1e-3, 1e-5),
        (1e-3, None, "adamw", 32, 5e-4, 5e-6),
        (1e-3, None, "adamw", 4, 1e-4, 1e-6),
        (1e-3, None, "adam", 4, 1e-4, 1e-6),
        (8e-3, None, "adam", 8, 1e-3, 1e-5),
        (8e-3, None, "adamw", 64, 2e-3, 2e-5),
        (4e-4, None, "rmsprop", 32, 2e-4, 2e-6),
        (1e-2, None, "rmsprop", 64, 5e-4, 5e-6),
        (1e-4, None, "rmsprop", 8, 1e-4, 1e-6),
        (1e-2, None, "adagrad", 32, 5e-3, 5e-5),
        (8e-2, None, "adagrad", 64, 2e-2, 2e-4),
        (1e-3, None, "adagrad", 8, 1e-3, 1e-5),
        (1e-2, 2e-4, "sgd", 32, 5e-3, 1e-4),
        (1e-2, 0.0, "sgd", 64, 1e-2, 5e-6),
        (1e-2, 1e-2, "sgd", 64, 1e-2, 5e-4),
    ],
)
def test_rates_follow_the_batch_within_limits(initial, minimum, optimizer_type, batch_size, highest, lowest):
    """Prevents small batches from diverging, and tiny or huge ones from leaving the range in which training works."""
    rates = scale_lr(initial, minimum, LR_LIMITS[optimizer_type], batch_size)
    assert rates == (pytest.approx(highest, rel=1e-9), pytest.approx(lowest, rel=1e-9))


@pytest.mark.parametrize(
    ("optimizer_type", "model_name", "backbone", "limits"),
    [
        ("adamw", "yolox_nano", "", (1e-4, 2e-3)),
        ("adamw", "yolox_s", "", (5e-5, 1e-3)),
        ("adam", "yolox_x", "", (2e-5, 4e-4)),
        ("adamw", "yolov4_tiny", "resnet50", (2.5e-5, 5e-4)),
        ("adamw", "dfine_l", "", (1.25e-5, 2.5e-4)),
        ("sgd", "yolox_x", "", (5e-4, 5e-2)),
    ],
)
def test_wide_networks_take_smaller_steps_of_adam(optimizer_type, model_name, backbone, limits):
    """Prevents the rate of a small network from destroying what the weights of a large one know, and a bound that
    keeps a large one from the tenth of its rate."""
    settings = settings_of(optimizer_type=optimizer_type, model_name=model_name, backbone=backbone)
    assert lr_limits(settings) == pytest.approx(limits)


@pytest.mark.parametrize(("batch_size", "accumulate", "highest"), [(8, 1, 1.25e-3), (8, 4, 5e-3), (2, 16, 5e-3)])
def test_the_rate_follows_batch_times_accumulate(batch_size, accumulate, highest):
    """Prevents accumulated steps, which are those of a large batch, from being as short as those of a small one."""
    rates = lr_range(settings_of(accumulate=accumulate), Phase(False, 0, 5, batch_size))
    assert rates == (pytest.approx(highest), pytest.approx(highest / 100))


@pytest.mark.parametrize(
    ("progress", "epochs", "share"),
    [
        # 80 epochs: 3 of warm-up (5 % would be 4), a cosine over epochs 3 to 76, 4 flat.
        (0.0, 80, 1.0),
        (3.0, 80, 1.0),
        (21.25, 80, 0.8535534),  # a quarter of the cosine: 0.5 * (1 + cos 45 degrees)
        (39.5, 80, 0.5),
        (57.75, 80, 0.1464466),
        (76.0, 80, 0.0),
        (80.0, 80, 0.0),
        # 400 epochs: 3 and 15 at most. 20 epochs: 1 and 1 at least. Tiny runs: a quarter each at most.
        (194.0, 400, 0.5),
        (385.0, 400, 0.0),
        (10.0, 20, 0.5),
        (0.5, 2, 1.0),
        (1.0, 2, 0.5),
        (2.0, 2, 0.0),
        (0.5, 1, 0.5),
    ],
)
def test_shape_of_the_cosine(progress, epochs, share):
    """Prevents a schedule that never reaches its lowest rate, or divides by zero in very short runs."""
    assert cosine(progress, epochs) == pytest.approx(share, abs=1e-6)
    schedule = LRSchedule(settings_of("cos", epochs))
    assert schedule.rate(progress, 1.0, 0.2) == pytest.approx(0.2 + 0.8 * share, abs=1e-6)


def halves(epoch):
    return [1.0, 0.5, 2, 0][epoch]


@pytest.mark.parametrize(
    ("kind", "epochs", "changes", "expected"),
    [
        # A third of 9 epochs each, a tenth per step.
        ("step", 9, {}, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ("step", 6, {"lr_step_size": 2, "lr_gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ("step", 1, {}, [1]),
        # 70 % and 90 % of 10 epochs.
        ("multistep", 10, {}, [1, 1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01]),
        ("multistep", 5, {"lr_milestones": [1, 3], "lr_gamma": 0.5}, [1, 0.5, 0.5, 0.25, 0.25]),
        # The last epoch has Min_lr: a hundredth of Init_lr unless it says more than 0.
        ("exp", 3, {}, [1, 0.1, 0.01]),
        ("exp", 3, {"Min_lr": 0.0}, [1, 0.1, 0.01]),
        ("exp", 4, {"Min_lr": 1.25e-3}, [1, 0.5, 0.25, 0.125]),
        ("exp", 2, {"Min_lr": 2.5e-3}, [1, 0.25]),
        ("exp", 3, {"Min_lr": 1e-2}, [1, 1, 1]),
        ("exp", 1, {}, [1]),
        ("exp", 4, {"lr_gamma": 0.9}, [1, 0.9, 0.81, 0.729]),
        ("constant", 4, {}, [1, 1, 1, 1]),
        (halves, 4, {}, [1, 0.5, 2, 0]),
    ],
)
def test_schedules_that_change_between_epochs(kind, epochs, changes, expected):
    """Prevents steps in the wrong epoch, defaults that do not follow the length of the run, and a clipped function."""
    assert rates_of(settings_of(kind, epochs, **changes), epochs) == pytest.approx(expected, rel=1e-6)


def test_shape_of_the_flat_cosine():
    """Prevents a rate that falls from the start, or that does not reach the lowest one at the end."""
    schedule = LRSchedule(settings_of("flat_cos", 100))
    shares = [schedule.rate(progress, 1.0, 0.0) for progress in (0, 30, 55, 77.5, 100)]
    assert shares == pytest.approx([1, 1, 1, 0.5, 0], abs=1e-9)
    assert schedule.rate(100, 1.0, 0.01) == pytest.approx(0.01)


@pytest.mark.parametrize(("minimum", "lowest"), [(None, 5e-5), (2e-4, 1e-4)])
def test_the_exponential_ends_at_the_lowest_rate(minimum, lowest):
    """Prevents a last epoch above Min_lr, or several of them at it: 20 epochs, a batch of half the nominal size."""
    settings = settings_of("exp", 20, Min_lr=minimum)
    rates = lr_range(settings, Phase(False, 0, 20, 32))
    schedule, used = LRSchedule(settings), []
    for epoch in range(20):
        used.append(schedule.rate(epoch, *rates))
        schedule.end_epoch()
    assert (used[0], used[-1]) == (pytest.approx(5e-3), pytest.approx(lowest))
    assert used[-2] > 1.2 * lowest


@pytest.mark.parametrize("kind", ["step", "multistep", "exp", "constant", halves])
def test_the_rate_stays_within_an_epoch(kind):
    """Prevents schedules that torch steps per epoch from being stepped per batch."""
    schedule = LRSchedule(settings_of(kind, 4))
    for epoch in range(4):
        assert {schedule.rate(epoch + share, 1.0, 0.0) for share in (0.0, 0.5, 1.0)} == {schedule.rate(0, 1.0, 0.0)}
        schedule.end_epoch()


def test_no_schedule_falls_below_the_lowest_rate():
    """Prevents a rate that vanishes after a few steps; a function of the user is taken at its word."""
    assert rates_of(settings_of("step", 9), 9, lowest=0.05) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    assert rates_of(settings_of(halves, 4), 4, lowest=0.05) == [1, 0.5, 2, 0]
    # A lowest rate above the highest, which limits of the optimiser can bring about, lifts nothing.
    assert rates_of(settings_of("constant", 1), 1, lowest=2.0) == [1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("step", [0.01, 0.01, 0.01]),  # a step every 3 epochs
        ("multistep", [1, 0.1, 0.1]),  # at 7 and 9
        ("exp", [0.0464159, 0.0278256, 0.0166810]),  # a hundredth over 9 steps, of which 6 are done
        ("constant", [1, 1, 1]),
    ],
)
def test_a_continued_run_continues_its_schedule(kind, expected):
    """Prevents a run that goes on after epoch 6 of 10 from starting at the full rate again."""
    schedule, rates = LRSchedule(settings_of(kind, 10, Init_Epoch=6)), []
    for epoch in (6, 7, 8):
        rates.append(schedule.rate(epoch, 1.0, 0.0))
        schedule.end_epoch()
    assert rates == pytest.approx(expected, rel=1e-5)


def test_a_function_continues_too():
    """Prevents a function of the user from being asked for the first epochs again."""
    assert LRSchedule(settings_of(halves, 4, Init_Epoch=2)).rate(2, 1.0, 0.0) == 2.0


@pytest.mark.parametrize(
    ("val_losses", "changes", "expected"),
    [
        # The best is 4; two epochs without a better one are borne, the third halves the rate.
        ([5, 4, 4, 4, 4, 4, 4, 4], {}, [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ([5, 4, 4, 4, 3, 3, 3, 3], {}, [1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ([9, 8, 7, 6, 5, 4, 3, 2], {}, [1] * 9),
        # Two epochs after a fall count for nothing.
        ([4, 4, 4, 4, 4, 4, 4, 4], {"lr_cooldown": 2}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ([4, 4, 4, 4, 4, 4, 4, 4], {"lr_cooldown": 1}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]),
        ([4, 4, 4], {"lr_patience": 0, "lr_factor": 0.1}, [1, 1, 0.1, 0.01]),
        # No loss, or none that is a number, says nothing: neither better nor worse.
        ([4, None, math.nan, math.inf, 4, 4, 4, 4], {}, [1, 1, 1, 1, 1, 1, 1, 0.5, 0.5]),
    ],
)
def test_plateau_waits_for_the_validation_loss(val_losses, changes, expected):
    """Prevents a rate that falls too early, falls twice in a row, or falls where a loss could not be measured."""
    settings = settings_of("plateau", 20, **{"lr_patience": 2} | changes)
    assert rates_of(settings, len(expected), val_losses=val_losses) == pytest.approx(expected)


def test_plateau_starts_anew_where_a_run_continues():
    """Prevents the epochs already done, whose losses are unknown, from counting as epochs without a better loss."""
    assert rates_of(settings_of("plateau", 20, Init_Epoch=15, lr_patience=0), 2) == [1, 1]


@pytest.mark.parametrize("value", [None, "fast", True, -0.1, math.nan, math.inf])
def test_a_function_that_gives_no_factor_is_named(value):
    """Prevents a forgotten return, or a rate that is NaN, from being found after hours: all epochs are asked before."""

    def my_schedule(epoch):
        return value if epoch == 2 else 1.0

    with pytest.raises(ValueError) as error:
        LRSchedule(settings_of(my_schedule, 4))
    assert str(error.value) == (
        f"lr_decay_type is your function my_schedule, and my_schedule(2) is {value!r}; expected the factor of Init_lr "
        "in that epoch, a number of 0 or more, for each epoch from 0 to 3."
    )
    assert rates_of(settings_of(my_schedule, 2), 2) == [1, 1]  # what it says beyond the last epoch is nobody's business


def optimizer_of(*groups):
    """An optimiser with one parameter for each (start_epoch, lr_scale)."""
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "start_epoch": start_epoch, "lr_scale": lr_scale}
        for start_epoch, lr_scale in groups
    ]
    return build_optimizer("sgd", groups, 0.9)


@pytest.mark.parametrize("kind", ["cos", "step", "multistep", "exp", "plateau", "constant", lambda epoch: 1.0])
def test_groups_that_start_later_warm_up_on_their_own(kind):
    """Prevents the unfrozen backbone from starting at the full rate, the others from warming up twice, and
    schedules without a warm-up: 3 of 80 epochs, quadratically."""
    optimizer = optimizer_of((0, 1.0), (10, 1.0))
    schedule = LRSchedule(settings_of(kind, 80))
    expected = {0: (0.0, 0.0), 1.5: (0.025, 0.0), 3: (0.1, 0.0), 10: (0.1, 0.0), 11: (0.1, 0.1 / 9), 13: (0.1, 0.1)}
    for progress, rates in expected.items():
        assert schedule.set_lr(optimizer, progress, 0.1, 0.1) == pytest.approx(max(rates))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_the_rates_of_an_epoch():
    """Prevents the rates of another phase, or of another epoch: 80 epochs warm up for 3, the phase has half of 1e-2."""
    schedule, optimizer = LRSchedule(settings_of("constant", 80)), optimizer_of((0, 1.0), (2, 0.1))
    set_lr = schedule.of_epoch(optimizer, Phase(False, 2, 80, 32), 2)
    assert set_lr(0.25) == pytest.approx(5e-3 * 0.75**2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-3 * 0.75**2, 5e-4 / 144])
    assert set_lr(1.0) == pytest.approx(5e-3)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 0.25), (2, 0.5), (4, 1), (20, 1), (40, 2), (60, 3), (400, 3)])
def test_length_of_the_warm_up(epochs, expected):
    """Prevents a short run that is over before it has warmed up."""
    assert warmup_epochs(epochs) == expected


def test_each_group_gets_its_lr_scale():
    """Prevents lr_scale without effect, or one that counts again with every step."""
    optimizer = optimizer_of((0, 1.0), (0, 0.1), (0, 2.0))
    schedule = LRSchedule(settings_of("constant", 20))
    for _ in range(3):
        assert schedule.set_lr(optimizer, 10, 0.02, 0.0) == pytest.approx(0.04)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002, 0.04])


def test_the_preview_by_hand():
    """Prevents a preview that misses the batch size of a phase, lr_scale, or the second warm-up: 4 epochs, of which
    each group warms up within one."""
    phases, groups = [Phase(True, 0, 2, 64), Phase(False, 2, 4, 32)], {(1.0, 0): [], (0.1, 0): [], (1.0, 2): []}
    progress, rates = preview_lr(settings_of("constant", 4), phases, groups)
    assert progress == pytest.approx([step / 10 for step in range(1, 41)])
    assert list(rates) == list(groups)
    # After 0.1, 0.5, 2, 2.5 and 4 epochs. The first is a hundredth of 1e-2, the second phase has half the rate.
    at = [0, 4, 19, 24, 39]
    assert [rates[1.0, 0][point] for point in at] == pytest.approx([1e-4, 2.5e-3, 1e-2, 5e-3, 5e-3])
    assert [rates[0.1, 0][point] for point in at] == pytest.approx([1e-5, 2.5e-4, 1e-3, 5e-4, 5e-4])
    assert [rates[1.0, 2][point] for point in at] == pytest.approx([0, 0, 0, 1.25e-3, 5e-3])


def test_a_preview_of_nothing():
    """Prevents a failure where no epoch is left, or no group is asked for."""
    settings = settings_of("constant", 4)
    assert preview_lr(settings, [], {}) == ([], {})
    assert preview_lr(settings, [], {(1.0, 0): ["head"]}) == ([], {(1.0, 0): []})
    progress, rates = preview_lr(settings, [Phase(False, 3, 4, 64)], {})
    assert (len(progress), rates) == (10, {})


@pytest.mark.parametrize(
    "kind", ["cos", "step", "multistep", "exp", "plateau", "constant", lambda epoch: 1 / (1 + epoch)]
)
@pytest.mark.parametrize("first", [0, 3])
def test_the_preview_is_what_happens(kind, first):
    """Prevents a picture of rates that the training does not use; 10 steps per epoch, as in the preview."""
    phases, groups = [Phase(True, first, 5, 32), Phase(False, 5, 12, 16)], [(1.0, first), (0.1, first), (1.0, 5)]
    settings = settings_of(kind, 12, Init_Epoch=first, accumulate=2)
    schedule, optimizer = LRSchedule(settings), optimizer_of(*((start, lr_scale) for lr_scale, start in groups))
    steps, used = [], {key: [] for key in groups}
    for phase in phases:
        rates = lr_range(settings, phase)
        for epoch in range(phase.first, phase.last):
            for step in range(10):
                steps.append(epoch + (step + 1) / 10)
                schedule.set_lr(optimizer, steps[-1], *rates)
                for key, group in zip(groups, optimizer.param_groups, strict=True):
                    used[key].append(group["lr"])
            schedule.end_epoch(10.0 - epoch)
    assert preview_lr(settings, phases, dict.fromkeys(groups)) == (steps, used)


LOSSES = [5.0, 4.0, 4.5, float("nan"), 4.2, 4.1, 3.0, 3.5]


@pytest.mark.parametrize("epoch", [0, 1, 4, 8])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("kind", ["cos", "step", "multistep", "exp", "plateau", "constant", lambda epoch: 0.9**epoch])
def test_a_resumed_schedule_is_the_whole_one(tmp_path, kind, start, epoch):
    """Prevents a rate that leaps at a resume: after going to an epoch all rates are those of a run never stopped."""
    settings = settings_of(kind, 12, Init_Epoch=start, lr_patience=1, lr_cooldown=1)
    whole = LRSchedule(settings)
    for done in range(start, max(epoch, start)):
        whole.end_epoch(LOSSES[done])
    torch.save(whole.state_dict(), tmp_path / "state.pth")
    resumed = LRSchedule(settings)
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True), epoch)
    for later in range(max(epoch, start), 12):
        assert resumed.rate(later + 0.5, 1.0, 0.01) == whole.rate(later + 0.5, 1.0, 0.01)
        for schedule in (whole, resumed):
            schedule.end_epoch(LOSSES[later % 8])


def test_an_extended_schedule_is_that_of_the_longer_run():
    """Prevents an extended run that goes on at the lowest rate of the shorter one."""
    extended = LRSchedule(settings_of("cos", 40))
    extended.load_state_dict(LRSchedule(settings_of("cos", 20)).state_dict(), 20)
    assert extended.rate(20, 1.0, 0.0) == LRSchedule(settings_of("cos", 40)).rate(20, 1.0, 0.0) > 0.4
