"""What a weight file of ours says about its use, checked before anything relies on it: files come from anywhere."""

import math

from utils.checkpoint import FORMAT
from utils.data.letterbox import MODES

_KEYS = ("format", "model_name", "class_names", "input_shape", "resize_rule", "pixel_rule")


def check_contract(path, contract):
    """Raise ValueError, naming the file and the entry, for a contract that is incomplete, newer, or makes no sense."""
    if not isinstance(contract, dict) or (missing := [key for key in _KEYS if key not in contract]):
        shown = ", ".join(missing) if isinstance(contract, dict) else "all of it"
        raise ValueError(
            f"{path}: its contract, which says how the weights are used, lacks {shown}; take another copy."
        )
    if contract["format"] != FORMAT:
        raise ValueError(
            f"{path} is written in format {contract['format']!r}, and this project reads {FORMAT}: use the project's "
            "newest state."
        )
    for key, holds in _RULES.items():
        if key in contract and not holds(contract[key]):
            raise ValueError(
                f"{path}: its contract says {key} = {contract[key]!r}, which makes no sense; take another copy."
            )


def _is_text(value):
    return isinstance(value, str)


def _is_names(value):
    return isinstance(value, list) and all(map(_is_text, value))


def _are_numbers(value, count, lowest=-math.inf):
    is_list = isinstance(value, list) and len(value) == count
    return is_list and all(isinstance(item, (int, float)) and lowest < item < math.inf for item in value)


def _is_resize_rule(value):
    is_rule = isinstance(value, dict) and value.get("mode") in MODES
    return is_rule and isinstance(value.get("pad"), int) and 0 <= value["pad"] <= 255


def _is_pixel_rule(value):
    is_rule = isinstance(value, dict) and value.get("channels") in ("RGB", "BGR")
    return is_rule and _are_numbers(value.get("mean"), 3) and _are_numbers(value.get("std"), 3, lowest=0)


_RULES = {
    "model_name": _is_text,
    "backbone": _is_text,
    "class_names": _is_names,
    "input_shape": lambda value: _are_numbers(value, 2, lowest=0),
    "resize_rule": _is_resize_rule,
    "pixel_rule": _is_pixel_rule,
    "decode_rule": lambda value: isinstance(value, dict),
}
