"""A label that is probably wrong, as a picture."""

import numpy as np

from utils.image.codec import read_image
from utils.visualize.images import boxes_tile

# Pixels of a tile, and how many times the longer side of the boxes it shows.
TILE, _CONTEXT = 300, 2.5


def suspect_tile(row):
    """The part of an image around a suspect, with both boxes and their names: (h, w, 3) uint8 RGB, up to TILE pixels.

    row: of utils.evaluation.label_suspects.row_of. Raises ValueError where the image cannot be read.
    """
    image_rgb = read_image(row["image"])
    names = {"label": f"label {row['label']}", "found": f"found {row['found']} {row['confidence'] or 0:.2f}"}
    shown = [name for name in names if row[name]]
    boxes_xyxy = np.array([[row[f"{name}_{corner}"] for corner in ("x1", "y1", "x2", "y2")] for name in shown])
    top_left, bottom_right = boxes_xyxy[:, :2].min(0), boxes_xyxy[:, 2:].max(0)
    reach = _CONTEXT / 2 * max(*(bottom_right - top_left), 1)
    size = np.array(image_rgb.shape[1::-1])
    x1, y1 = ((top_left + bottom_right) / 2 - reach).clip(0, size - 1).astype(int)
    x2, y2 = np.ceil((top_left + bottom_right) / 2 + reach).clip((x1 + 1, y1 + 1), size).astype(int)
    ids = [list(names).index(name) for name in shown]  # a colour for what is labelled, another for what was found
    return boxes_tile(image_rgb[y1:y2, x1:x2], (TILE, TILE), boxes_xyxy - [x1, y1] * 2, ids, None, [*names.values()])
