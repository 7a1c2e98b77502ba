"""What the course of losses and scores says about the learning rate, the number of epochs, and overfitting."""

import math

import numpy as np

from utils.config.commands import data_command
from utils.config.optimizers import SUITABLE
from utils.io.text import either
from utils.training.advice import LARGER, SMALLER, change_init_lr, shorten_steps
from utils.training.lr_schedule import lr_limits
from utils.training.phases import build_phases, is_pretrained

# Fewer epochs of a phase have no course.
LEAST_EPOCHS = 10
# On the way that many must have hardly brought anything before it is said.
ENOUGH_EPOCHS = 15
# The warm-up, with its own ups and downs.
WARM_UP = 3
# The mean loss of an epoch scatters by 2 to 4 % from one to the next, also on a hundred images.
JUMP, JUMPS = 1.25, 2
# On the drawn sample the loss falls by 35 % in 14 epochs, by 6 % at a rate that is far too low. A detector that finds
# much already has less to learn.
LEAST_FALL, GOOD_MAP = 0.1, 0.3
# As the rate falls so do the losses of any training. On the drawn sample the validation loss falls by 7 to 11 % in the
# second half where that was enough epochs, by 18 % and more where it was a quarter of them. In the last fifth it must
# not have come to rest.
TRAIN_FALL, VAL_FALL, LATE_FALL = 0.05, 0.12, 0.005
# From scratch the first validation losses can be hundreds, until the statistics of BatchNorm have settled. A loss that
# exceeds that of training so many times says nothing about overfitting.
MEANINGLESS = 5
# A validation loss scatters by a few percent, the mAP of forty images by 0.02.
VAL_RISE, MAP_FALL = 1.1, 0.05
# The network with the fewest parameters.
SMALLEST = "yolox_nano"


def curve_hints(rows, settings, is_last):
    """Yield (topic, sentence) on the epochs so far; arguments as collect_hints. Sooner said what helps more."""
    phase = [row for row in rows if row["phase"] == rows[-1]["phase"]]
    if len(phase) < LEAST_EPOCHS:
        return
    train, val = losses_of(phase)
    maps = [(row["epoch"], row["map50"]) for row in rows if row["map50"] is not None and row["map50"] >= 0]  # no NaN
    best_map = max((value for _, value in maps), default=0)
    yield from _jumps(train, phase, settings)
    # What goes on from good weights has little to learn, and nobody knows how little without a score.
    is_new = settings.Init_Epoch == 0 and (maps or not is_pretrained(settings))
    if best_map < GOOD_MAP and is_new and (is_last or len(phase) >= ENOUGH_EPOCHS):
        yield from _hardly_falls(train, phase, settings)
    if is_last:
        yield from _still_falls(train, val, phase, settings)
    yield from _overfits(train, val, phase, maps, settings)


def losses_of(rows):
    """Training and validation losses (N,), NaN where there is none. loss_l1 is left out: it only sets in on the way."""
    train = [row["loss"] - (row.get("loss_l1") or 0) for row in rows]
    val = [math.nan if row["val_loss"] is None else row["val_loss"] for row in rows]
    return np.array(train, np.float64), np.array(val, np.float64)


def _jumps(train, rows, settings):
    places = [n for n in range(WARM_UP + 1, len(train)) if train[n] > JUMP * np.median(train[max(0, n - 5) : n])]
    if len(places) >= JUMPS:
        phase = _phase_of(rows, settings)
        sentence = (
            f"The loss jumps by more than {JUMP - 1:.0%}, {len(places)} times, last in epoch "
            f"{rows[places[-1]]['epoch']}: the steps are too large, so {either(shorten_steps(settings, phase))}."
        )
        yield "jumps", sentence


def _hardly_falls(train, rows, settings):
    first, last = train[:WARM_UP].mean(), train[-WARM_UP:].mean()
    if last < (1 - LEAST_FALL) * first:
        return
    start = f"The loss hardly moves ({first:.2f} in the first epochs, now {last:.2f})"
    names = ["Freeze_Train"] if rows[-1]["phase"] == "frozen" else []
    names += [name for name in ("freeze_layers", "freeze_blocks", "train_only") if getattr(settings, name)]
    names += ["lr_scale"] if 0 in settings.lr_scale.values() else []
    middle_rate = math.sqrt(math.prod(lr_limits(settings)))
    if names:
        yield "frozen", f"{start}, and much is frozen by {', '.join(names)}: let more of the network train."
    elif max(row["lr"] for row in rows) < middle_rate:
        # A schedule, or factors of layers, can hold a rate down that Init_lr cannot raise.
        change = change_init_lr(settings, _phase_of(rows, settings), LARGER) or "look at lr_decay_type and lr_scale"
        yield "low rate", f"{start}: the learning rate is too low, so {change}."
    else:
        change = change_init_lr(settings, _phase_of(rows, settings), SMALLER)
        draws = data_command("tools/check_data.py", settings)
        look = f"look whether the boxes fit the images (`{draws}` draws them)"
        sentence = f"{start}, and the learning rate is not low: {look}{f', and {change}' if change else ''}."
        yield "nothing learned", sentence


def _phase_of(rows, settings):
    return next(phase for phase in build_phases(settings) if phase.name == rows[-1]["phase"])


def _still_falls(train, val, rows, settings):
    half, late = len(train) // 2, max(len(train) // 5, 4)
    falls = [1 - losses[-2:].mean() / losses[half - 1 : half + 1].mean() for losses in (train, val)]
    if falls[0] > TRAIN_FALL and falls[1] > VAL_FALL and val[-2:].mean() < (1 - LATE_FALL) * val[-late:][:2].mean():
        epochs = settings.UnFreeze_Epoch
        change = f"UnFreeze_Epoch from {epochs} to {math.ceil(1.5 * epochs)} or more"
        if rows[-1]["epoch"] < epochs:
            change = f"patience from {settings.patience}, which ended the training"
        sentence = (
            f"Both losses were still falling at the end, in the second half by {falls[0]:.0%} in training and by "
            f"{falls[1]:.0%} in validation: raise {change}."
        )
        yield "underfitting", sentence


def _overfits(train, val, rows, maps, settings):
    if not np.isfinite(val).all() or val[-1] > MEANINGLESS * train[-1]:
        return
    signs, turn, last = [], int(val.argmin()), val[-3:].mean()
    if len(val) - turn > 5 and last > VAL_RISE * val[turn] and last >= val[-6:-3].mean():
        signs.append(f"the validation loss rose from {val[turn]:.2f} in epoch {rows[turn]['epoch']} to {last:.2f}")
    top_epoch, top = max(maps, key=lambda item: item[1], default=(0, 0))
    later = [value for epoch, value in maps if epoch > top_epoch]
    if len(later) >= 3 and max(later[-3:]) < top - MAP_FALL:
        signs.append(f"the mAP@0.5 fell from {top:.3f} in epoch {top_epoch} to {later[-1]:.3f}")
        turn = min(turn, max(0, len(rows) - 1 - (rows[-1]["epoch"] - top_epoch)))
    if signs and train[-3:].mean() < train[max(0, turn - 1) : turn + 2].mean():
        sentence = (
            f"Overfitting: the training loss falls on, but {' and '.join(signs)}. best_epoch_weights.pth keeps the "
            f"best epoch. More images help most; else {either([*_against_overfitting(settings)])}."
        )
        yield "overfitting", sentence


def _against_overfitting(settings):
    if not settings.mosaic:
        yield "set mosaic = True"
    elif settings.mosaic_prob < 1:
        yield f"raise mosaic_prob (now {settings.mosaic_prob:g})"
    if SUITABLE[settings.optimizer_type].weight_decay:
        yield f"raise weight_decay (now {settings.weight_decay:g})"
    if settings.model_name != SMALLEST:
        yield "take a smaller model_name"
    yield "lower UnFreeze_Epoch"
