"""What a weight file of ours says about its use, checked before anything relies on it: files come from anywhere."""

import math

from utils.image.letterbox import MODES
from utils.io.text import listed

# The version of the contract that this project writes and reads.
FORMAT = 1

# For classes whose best confidence is not known.
USUAL_CONFIDENCE = 0.5

# The best score of fewer boxes is an accident. Below the least nearly everything is background, whatever is best.
MIN_BOXES, LEAST_CONFIDENCE = 10, 0.05

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


def best_confidences(scores):
    """What the contract keeps of an evaluation: {class name: the confidence of its best F1}.

    scores: of utils.eval.scores.score_detections, None where nothing was scored. Classes without one, or with fewer
    than MIN_BOXES boxes, are left out.
    """
    rows = [row for row in (scores["classes"] if scores else []) if row["boxes"] >= MIN_BOXES]
    return {row["name"]: row["confidence"] for row in rows if math.isfinite(row["confidence"])}


def confidence_of(contract, class_names):
    """The lowest score at which a box of each class is shown: a list, with USUAL_CONFIDENCE where none is known."""
    known = contract.get("confidence", {})
    return [max(known.get(name, USUAL_CONFIDENCE), LEAST_CONFIDENCE) for name in class_names]


def confidence_words(contract, class_names, confidence=None):
    """A sentence on the scores from which on boxes are shown. confidence: the constant; None takes the contract's."""
    known = contract.get("confidence", {})
    shown = zip(class_names, confidence_of(contract, class_names), strict=True)
    named = [f"{name} {value:.2f}" for name, value in shown if name in known]
    if confidence is None and named:
        others = f"; {USUAL_CONFIDENCE:g} for the other classes" if len(named) < len(class_names) else ""
        return f"Boxes are shown from the score on that was best for their class in training: {listed(named)}{others}."
    reason = "" if confidence is not None else "; the file does not say which score is best"
    return f"Boxes are shown from the score {USUAL_CONFIDENCE if confidence is None else confidence:g} on{reason}."


def _is_text(value):
    return isinstance(value, str)


def _is_names(value):
    return isinstance(value, list) and all(map(_is_text, value))


def _is_confidence(value):
    is_named = isinstance(value, dict) and all(map(_is_text, value))
    return is_named and all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in value.values())


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
    "confidence": _is_confidence,
}


def make_contract(model, class_names, input_shape, resize_rule, **about):
    """What a weight file says about its own use: model, classes, input size, resize and pixel rules, and `about`."""
    return {
        "format": FORMAT,
        "model_name": model.name,
        "backbone": model.backbone_name,
        "class_names": list(class_names),
        "input_shape": list(input_shape),
        "resize_rule": dict(resize_rule),
        "pixel_rule": model.normalize.rule,
        "decode_rule": model.decode_rule,
        "strides": list(model.strides),
        **about,
    }
