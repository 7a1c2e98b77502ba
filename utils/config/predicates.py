"""What a value may be: tests of which the rules of the constants are made."""

import math
import re


def number(lowest, highest=float("inf"), above=False):
    """A rule: a number from lowest (above: not lowest itself) to highest; infinity and NaN are none."""

    def holds(value):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and (lowest < value if above else lowest <= value) and value <= highest

    return holds


def whole(lowest):
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def list_of(length, rule):
    return lambda value: isinstance(value, (list, tuple)) and len(value) == length and all(map(rule, value))


def is_range(value):
    return list_of(2, number(0, above=True))(value) and value[0] <= value[1]


def is_gpu_list(value):
    return isinstance(value, str) and re.fullmatch(r"(\d+(,\d+)*)?", value.replace(" ", "")) is not None


def is_input_side(value):
    return whole(32)(value) and value % 32 == 0


def is_names(value):
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value)


def is_paths(value):
    """A path, or a list of paths."""
    return isinstance(value, str) or (is_names(value) and len(value) > 0)


def is_milestones(value):
    return isinstance(value, (list, tuple)) and all(map(whole(1), value)) and sorted(set(value)) == list(value)


def is_weights(value):
    return isinstance(value, (list, tuple)) and all(map(number(0, above=True), value))


def is_scales(value):
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(number(0.25, 4), value))


def is_masks(value):
    is_mask = isinstance(value, (list, tuple)) and all(isinstance(mask, (list, tuple)) for mask in value)
    return is_mask and all(whole(0)(number) for mask in value for number in mask)


def is_lr_scale(value):
    return (
        isinstance(value, dict) and all(isinstance(name, str) for name in value) and all(map(number(0), value.values()))
    )
