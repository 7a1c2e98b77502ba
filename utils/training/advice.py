"""What to change where steps are too large or too small, in words that hold for the rates that are really used."""

from utils.config.optimizers import fill_in
from utils.training.lr_schedule import NOMINAL_BATCH, lr_limits, lr_range

# By so much Init_lr is changed; where the limits of the rate leave less room than LEAST_CHANGE it is not worth trying.
SMALLER, LARGER, LEAST_CHANGE = 1 / 4, 10, 1.5


def change_init_lr(settings, phase, factor):
    """How Init_lr changes the highest rate of a phase by a factor, in words, as far as the rate's limits allow.

    Begins with "raise" or "lower"; '' where the limits leave no room, so that another Init_lr would change nothing.
    """
    low, high = lr_limits(settings)
    used, _ = lr_range(settings, phase)
    wanted = min(max(factor * used, low), high)
    if max(wanted / used, used / wanted) < LEAST_CHANGE:
        return ""
    initial = f"{wanted * NOMINAL_BATCH / (phase.batch_size * settings.accumulate):.3g}"
    is_below_floor = settings.Min_lr is not None and settings.Min_lr > float(initial)
    floor = " and set Min_lr = None" if is_below_floor else ""
    return (
        f"{'raise' if factor > 1 else 'lower'} Init_lr from {settings.Init_lr:g} to {initial}{floor} (the highest rate "
        f"is then {wanted:.1e} instead of {used:.1e})"
    )


def shorten_steps(settings, phase):
    """What makes the steps of a phase smaller: a list of phrases, one at least, to be joined by "or"."""
    clip = settings.clip_grad_norm
    suitable = fill_in(vars(settings) | {"clip_grad_norm": None})["clip_grad_norm"]
    of_clip = f"lower clip_grad_norm (now {clip:g})" if clip else f"set clip_grad_norm = {suitable:g}"
    return [*filter(None, [change_init_lr(settings, phase, SMALLER)]), of_clip]
