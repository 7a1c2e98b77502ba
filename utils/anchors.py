"""Anchors as users give them: a text file of numbers."""

from pathlib import Path

import numpy as np


def read_anchors(path):
    """Read a file of anchors: `width,height` pairs in input pixels, separated by commas, blanks or line breaks.

    Returns [[width, height], ...]. Raises ValueError, naming the file, for anything but an even count of numbers above
    0.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").replace(",", " ")
        numbers = [float(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected numbers such as 12,16, 19,36, 40,28.") from error
    if not numbers or len(numbers) % 2 or not all(0 < number < np.inf for number in numbers):
        raise ValueError(
            f"{path} holds {len(numbers)} numbers; expected pairs of width and height, all above 0, such as "
            "12,16, 19,36, 40,28."
        )
    return [numbers[start : start + 2] for start in range(0, len(numbers), 2)]


def unused_anchors(decode_rule):
    """Positions of the anchors that no map has, counted from 0."""
    used = {number for mask in decode_rule.get("anchors_mask", ()) for number in mask}
    return [number for number in range(len(decode_rule.get("anchors", ()))) if number not in used]


def choose_decode_rule(settings, contract):
    """What decode needs beyond the weights: the constants' anchors, else the weight file's, else {} (the network's).

    settings: with model_name, anchors_path, anchors_mask. contract: of the weights, {} for none.
    """
    rule = dict(contract.get("decode_rule", {})) if contract.get("model_name") == settings.model_name else {}
    if settings.anchors_path:
        rule["anchors"] = read_anchors(settings.anchors_path)
    if settings.anchors_mask:
        rule["anchors_mask"] = [list(mask) for mask in settings.anchors_mask]
    return rule
