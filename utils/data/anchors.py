"""Anchors as users give them: a text file of numbers; and how well they fit boxes."""

from pathlib import Path

import numpy as np

from utils.io.errors import UserError


def read_anchors(path):
    """Read a file of anchors: `width,height` pairs in input pixels, separated by commas, blanks or line breaks.

    Returns [[width, height], ...]. Raises ValueError, naming the file, for anything but an even count of numbers above
    0.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").replace(",", " ")
        numbers = [float(word) for word in text.split()]
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected numbers such as 12,16, 19,36, 40,28.") from error
    if not numbers or len(numbers) % 2 or not all(0 < number < np.inf for number in numbers):
        raise UserError(
            f"{path} holds {len(numbers)} numbers; expected pairs of width and height, all above 0, such as "
            "12,16, 19,36, 40,28."
        )
    return [numbers[start : start + 2] for start in range(0, len(numbers), 2)]


def shape_iou(sizes_wh, anchors_wh):
    """IoU (M, K) of M boxes and K anchors laid corner to corner: width and height count alone.

    sizes_wh, anchors_wh: (M, 2) and (K, 2) in one unit; (0, 2) for none. No anchor is without area; a box without area
    has 0. Source: Redmon & Farhadi 2016, "YOLO9000", section 2, "Dimension Clusters".
    """
    sizes_wh = np.asarray(sizes_wh, np.float64).reshape(-1, 2)
    anchors_wh = np.asarray(anchors_wh, np.float64).reshape(-1, 2)
    overlap = np.minimum.outer(sizes_wh[:, 0], anchors_wh[:, 0]) * np.minimum.outer(sizes_wh[:, 1], anchors_wh[:, 1])
    return overlap / (np.add.outer(sizes_wh.prod(axis=1), anchors_wh.prod(axis=1)) - overlap)


def best_anchor_iou(sizes_wh, anchors_wh):
    """(M,) IoU of each box with the anchor that fits it best. As shape_iou, with one anchor or more."""
    return shape_iou(sizes_wh, anchors_wh).max(axis=1)


def unused_anchors(decode_rule):
    """Positions of the anchors that no map has, counted from 0."""
    used = {number for mask in decode_rule.get("anchors_mask", ()) for number in mask}
    return [number for number in range(len(decode_rule.get("anchors", ()))) if number not in used]


def choose_decode_rule(settings, metadata):
    """What decode needs beyond the weights: the constants' anchors, else the weight file's, else {} (the network's).

    settings: with model_name, anchors_path, anchors_mask. metadata: of the weights, {} for none.
    """
    rule = dict(metadata.get("decode_rule", {})) if metadata.get("model_name") == settings.model_name else {}
    if settings.anchors_path:
        rule["anchors"] = read_anchors(settings.anchors_path)
    if settings.anchors_mask:
        rule["anchors_mask"] = [list(mask) for mask in settings.anchors_mask]
    return rule
