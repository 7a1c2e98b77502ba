"""Boxes of rare classes, cut out of training images to be pasted into others: which, from where, and to where.

After Ghiasi et al. 2021 (Simple Copy-Paste), with boxes in the place of outlines: a margin that fades out softens the
edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.data.annotations import Annotations

MAX_PASTED = 3
# A box is no donor where others overlap more than this share of it: they would be pasted without their labels.
MAX_SHARED = 0.1
# In an image with more boxes than this none is a donor: comparing each with each would fill the memory.
MAX_COMPARED = 1000
# How much of another box a pasted one may cover.
MAX_COVERED = 0.3
# The shorter side of what is pasted, in input pixels: smaller boxes show nothing but the blur of their edge.
MIN_SIDE = 8.0
# Around a pasted box so many input pixels fade out.
FEATHER = 4
PLACES_TRIED = 10


class Pasted(NamedTuple):
    """A box that is pasted: the fields of a PlacedImage (utils/data/augment.py), whose clip rectangle shows the box and
    its margin, then the box in the canvas and its class."""

    index: int
    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float
    clip_yxyx: tuple[int, int, int, int]
    box_xyxy: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, eq=False)
class Donors:
    """Boxes that may be pasted: rows (K,) of the annotations' boxes, their images (K,), and the running sum (K,) of
    their chances, which ends at 1."""

    rows: np.ndarray
    images: np.ndarray
    chances: np.ndarray


def find_donors(annotations: Annotations) -> Donors | None:
    """The boxes of classes with fewer boxes than the largest one; None where there is none.

    A class's chance is sqrt(boxes of the largest class / its boxes) - 1, shared by its boxes.
    """
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    counts = np.bincount(annotations.classes)
    chances = np.sqrt(counts.max(initial=1) / np.maximum(counts, 1)) - 1
    rows = np.flatnonzero((chances[annotations.classes] > 0) & ~_is_shared(annotations))
    if not len(rows):
        return None
    classes = annotations.classes[rows]
    shares = (chances / np.maximum(np.bincount(classes, minlength=len(counts)), 1))[classes]
    return Donors(rows, images[rows], np.cumsum(shares / shares.sum()))


def _is_shared(annotations: Annotations) -> np.ndarray:
    """(M,) whether other boxes of the image overlap more than MAX_SHARED of a box, or are too many to know."""
    shared = [np.zeros(0, bool)]
    for index in range(len(annotations)):
        boxes_xyxy = annotations.boxes(index)
        if len(boxes_xyxy) > MAX_COMPARED:
            shared.append(np.ones(len(boxes_xyxy), bool))
            continue
        covered = _covered(boxes_xyxy[:, None], boxes_xyxy[None])
        np.fill_diagonal(covered, 0)
        shared.append(covered.max(axis=1, initial=0) > MAX_SHARED)
    return np.concatenate(shared)


def _covered(boxes_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """The share of each box's area, (..., 4), that another, (..., 4), covers."""
    corner = np.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    inner = (corner - np.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])).clip(min=0).prod(axis=-1)
    return inner / np.maximum((boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(axis=-1), 1e-6)


def choose_pasted(
    annotations: Annotations,
    donors: Donors,
    clips_yxyx: Sequence[tuple[int, int, int, int]],
    boxes_xyxy: np.ndarray,
    input_shape: tuple[int, int],
    scale_range: tuple[float, float],
    random: np.random.Generator,
) -> tuple[Pasted, ...]:
    """Up to MAX_PASTED boxes and their places in a canvas, each within one of the images that lie there.

    clips_yxyx: where these images lie. boxes_xyxy: (n, 4) the boxes that are there. scale_range: times the scale at
    which the donor's image just fits the input. A box that finds no place in PLACES_TRIED is left out.
    """
    pasted = []
    for _ in range(random.integers(1, MAX_PASTED + 1)):
        donor = min(int(np.searchsorted(donors.chances, random.random(), side="right")), len(donors.rows) - 1)
        row, index = donors.rows[donor], int(donors.images[donor])
        size_hw = annotations.sizes_hw[index]
        scale = float((np.array(input_shape) / size_hw).min() * random.uniform(*scale_range))
        for _ in range(PLACES_TRIED):
            clip_yxyx = clips_yxyx[random.integers(len(clips_yxyx))]
            place = _place(annotations.boxes_xyxy[row], size_hw, scale, clip_yxyx, random.random(2))
            if place and not (_covered(boxes_xyxy, np.array(place[-1])) > MAX_COVERED).any():
                pasted.append(Pasted(index, *place, int(annotations.classes[row])))
                boxes_xyxy = np.vstack([boxes_xyxy, place[-1]])
                break
    return tuple(pasted)


def _place(box_xyxy, size_hw, scale: float, clip_yxyx, draw):
    """The fields of Pasted from scale_y to box_xyxy, of a box in an image of size_hw, within a clip rectangle.

    draw: two numbers in [0, 1), which choose the place. None where it does not fit or would be too small.
    """
    low, high = box_xyxy[1::-1].astype(float), box_xyxy[:1:-1].astype(float)  # y, x
    first = np.floor(np.maximum(low - FEATHER / scale, 0)).astype(int)
    stop = np.minimum(np.ceil(high + FEATHER / scale).astype(int), size_hw)
    sides = np.maximum(np.round((stop - first) * scale), 1).astype(int)
    room = np.subtract(clip_yxyx[2:], clip_yxyx[:2]) - sides
    if (room < 0).any() or ((high - low) * scale).min() < MIN_SIDE:
        return None
    start = np.array(clip_yxyx[:2]) + (draw * (room + 1)).astype(int)
    exact = sides / (stop - first)
    offset = start - first * exact
    (y1, x1), (y2, x2) = ((corner * exact + offset).tolist() for corner in (low, high))
    return *exact.tolist(), *offset.tolist(), (*start.tolist(), *(start + sides).tolist()), (x1, y1, x2, y2)


def shown_share(position, start, stop):
    """How much of what is pasted shows at a pixel of one axis: 1, less in the FEATHER pixels at each end of
    [start, stop), 0 outside. Arrays or tensors that broadcast."""
    inside = (stop - start) / 2 - abs(position + 0.5 - (start + stop) / 2)
    return (inside / FEATHER).clip(0, 1)
