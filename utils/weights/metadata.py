"""What a weight file of ours says about its use, checked before anything relies on it: files come from anywhere."""

import math

from utils.config.rules import check_values
from utils.image.letterbox import MODES
from utils.image.tiles import TileOptions
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import shorten_list

# The version of the metadata that this project writes and reads.
FORMAT = 1
# For classes whose best confidence is not known.
USUAL_CONFIDENCE = 0.5
# The best score of fewer boxes is an accident. Below the least nearly everything is background, whatever is best.
MIN_BOXES, LEAST_CONFIDENCE = 10, 0.05
_KEYS = ("format", "model_name", "class_names", "input_shape", "resize_rule", "pixel_rule")


def check_metadata(path, metadata):
    """Raise ValueError, naming the file and the entry, for metadata that is incomplete, newer, or makes no sense."""
    if not isinstance(metadata, dict) or (missing := [key for key in _KEYS if key not in metadata]):
        shown = ", ".join(missing) if isinstance(metadata, dict) else "all of it"
        raise UserError(f"{path}: its metadata, which say how the weights are used, lack {shown}; take another copy.")
    if metadata["format"] != FORMAT:
        raise UserError(
            f"{path} is written in format {metadata['format']!r}, and this project reads {FORMAT}: use the project's "
            "newest state."
        )
    for key, holds in _RULES.items():
        if key in metadata and not holds(metadata[key]):
            raise UserError(
                f"{path}: its metadata say {key} = {metadata[key]!r}, which makes no sense; take another copy."
            )


def best_confidences(scores):
    """What the metadata keep of an evaluation: {class name: the confidence of its best F1}.

    scores: of score_detections, None where nothing was scored. Classes without one, or with fewer
    than MIN_BOXES boxes, are left out.
    """
    rows = [row for row in (scores["classes"] if scores else []) if row["boxes"] >= MIN_BOXES]
    return {row["name"]: row["confidence"] for row in rows if math.isfinite(row["confidence"])}


def confidence_of(metadata, class_names):
    """The lowest score at which a box of each class is shown: a list, with USUAL_CONFIDENCE where none is known."""
    known = metadata.get("confidence", {})
    return [max(known.get(name, USUAL_CONFIDENCE), LEAST_CONFIDENCE) for name in class_names]


def tiles_of(metadata, tile=None, tile_overlap=None):
    """The TileOptions in which a network detects: those of its training, unless the constants say others."""
    given = {"tile": tile, "tile_overlap": tile_overlap}
    check_values({name: value for name, value in given.items() if value is not None})
    usual = TileOptions(**metadata.get("tiles", {}))
    return TileOptions(usual.tile if tile is None else tile, usual.overlap if tile_overlap is None else tile_overlap)


def tiles_words(tiles):
    """What a line on a detector adds about its TileOptions."""
    return f"; pictures are looked at in tiles of {tiles.tile} pixels too" if tiles.tile else ""


def confidence_words(metadata, class_names, confidence=None):
    """A sentence on the scores from which on boxes are shown. confidence: the constant; None takes those of the
    metadata."""
    known = metadata.get("confidence", {})
    shown = zip(class_names, confidence_of(metadata, class_names), strict=True)
    named = [f"{name} {value:.2f}" for name, value in shown if name in known]
    if confidence is None and named:
        others = f"; {USUAL_CONFIDENCE:g} for the other classes" if len(named) < len(class_names) else ""
        shown = shorten_list(named) + others
        return f"Lowest score shown, the best of each class in training: {shown}."
    reason = "" if confidence is not None else "; the file does not say which score is best"
    return f"Lowest score shown: {USUAL_CONFIDENCE if confidence is None else confidence:g}{reason}."


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


def _is_tiles(value):
    is_tiles = isinstance(value, dict) and value.keys() == {"tile", "overlap"} and type(value["tile"]) is int
    return is_tiles and value["tile"] > 0 and _are_numbers([value["overlap"]], 1) and 0 <= value["overlap"] < 1


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
    "tiles": _is_tiles,
}


def make_metadata(model, class_names, input_shape, resize_rule, **about):
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


def warn_weights_differ(metadata, init_epoch, model):
    """Log what a weight file says about itself and the constants do not follow.

    init_epoch: the constant Init_Epoch. model: the network that is trained, with decode_rule, and decode_defaults of
    its kind, which files that do not say theirs follow.
    """
    usual = model.decode_defaults or {}
    if metadata.get("model_name") and usual | metadata.get("decode_rule", {}) != model.decode_rule:
        logger.warning(
            "the weights were trained with other anchors than anchors_path and anchors_mask say; box sizes have to be "
            "learned anew. Leave both empty to keep those of the weights."
        )
    if metadata.get("epoch") and not init_epoch:
        logger.warning(
            f"these weights have seen {metadata['epoch']} epochs; this is a new training from them. To go on with that "
            "one instead, exactly as if it had never stopped, set resume to the folder of its run."
        )
    elif metadata.get("epoch"):
        logger.warning(
            f"this goes on from the weights alone, at epoch {init_epoch}: the optimiser and the average of the weights "
            "begin anew. resume = True (or the folder of the run) would continue exactly."
        )
