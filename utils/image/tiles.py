"""Large images in tiles: where these lie, and how what was found in them becomes the boxes of the image."""

import math
from typing import NamedTuple

import numpy as np

# Tiles begin at multiples of this, so that an image decoded at a half, a quarter or an eighth is cut between pixels.
GRID = 8
# A box that ends within this share of the tile's side from an inner edge is taken as cut.
EDGE_SHARE = 0.01
# A cut box goes where a surer one covers this share of it, and counts as so much less sure: the whole one is wanted.
COVERED, CUT_FACTOR = 0.5, 0.5
# More boxes of an image than this are cut to the best before suppression, whose cost is quadratic.
MOST_BOXES = 3000


class TileOptions(NamedTuple):
    """tile: side in pixels of the image, 0 for whole images. overlap: share of it that neighbours have in common, so
    that an object of this size is whole in one of them."""

    tile: int = 0
    overlap: float = 0.2


def tile_grid(size_hw: tuple[int, int], options: TileOptions) -> np.ndarray:
    """(T, 4) int64 x1, y1, x2, y2 of the parts of an image that are looked at: the whole of it, then its tiles.

    An image that is no larger than a tile has none. Tiles are spread evenly, so that neighbours may share more. The
    last ones of a row or column end with the image, up to 7 pixels narrower.
    """
    tile, overlap = options
    height, width = int(size_hw[0]), int(size_hw[1])
    whole = [(0, 0, width, height)]
    if max(height, width) <= tile:
        return np.array(whole)
    rows, columns = (_starts(length, tile, overlap) for length in (height, width))
    tiles = [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]
    return np.array(whole + tiles)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    step = max(int(tile * (1 - overlap)) // GRID, 1) * GRID
    last = -(-max(length - tile, 0) // GRID) * GRID
    gaps = max(math.ceil(last / step), 1)
    return sorted({number * last // gaps // GRID * GRID for number in range(gaps + 1)})


def join_tiles(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    tiles_xyxy: np.ndarray,
    size_hw: tuple[int, int],
    options: TileOptions,
    nms_iou: float,
) -> np.ndarray:
    """Which of the boxes that were found in parts of an image stay: indices, best first.

    boxes_xyxy: (n, 4) in pixels of the image, whose size is size_hw. tiles_xyxy: (n, 4) the part of tile_grid in which
    each was found. nms_iou: of two boxes of one class that overlap more, the surer one stays. Of the whole image only
    boxes stay that no tile is sure to show whole. A box that an inner edge of its tile cuts goes where another one
    covers most of it.
    """
    size_wh = np.array(size_hw[::-1])
    is_whole = (tiles_xyxy[:, 2:] - tiles_xyxy[:, :2] == size_wh).all(axis=1) & (size_wh.max() > options.tile)
    longest = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, initial=0)
    kept = np.flatnonzero(~is_whole | (longest > options.overlap * options.tile))
    is_cut = _are_cut(boxes_xyxy, tiles_xyxy, size_wh)
    rank = scores * np.where(is_cut, CUT_FACTOR, 1)
    kept = kept[np.argsort(-rank[kept], kind="stable")[:MOST_BOXES]]
    by_class = (kept[class_ids[kept] == number] for number in np.unique(class_ids[kept]))
    stay = [rows[_suppress(boxes_xyxy[rows], is_cut[rows], nms_iou)] for rows in by_class]
    found = np.concatenate([np.zeros(0, np.int64), *stay])
    return found[np.argsort(-scores[found], kind="stable")]


def _are_cut(boxes_xyxy: np.ndarray, tiles_xyxy: np.ndarray, size_wh: np.ndarray) -> np.ndarray:
    """(n,) bool: whether an edge of its tile that is none of the image ends a box."""
    margin = EDGE_SHARE * (tiles_xyxy[:, 2:] - tiles_xyxy[:, :2])
    before = (boxes_xyxy[:, :2] - tiles_xyxy[:, :2] < margin) & (tiles_xyxy[:, :2] > 0)
    behind = (tiles_xyxy[:, 2:] - boxes_xyxy[:, 2:] < margin) & (tiles_xyxy[:, 2:] < size_wh)
    return (before | behind).any(axis=1)


def _suppress(boxes_xyxy: np.ndarray, is_cut: np.ndarray, nms_iou: float) -> np.ndarray:
    """The indices that stay of boxes of one class, best first."""
    boxes_xyxy = boxes_xyxy.astype(np.float64)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    left, stay = np.arange(len(boxes_xyxy)), []
    while len(left):
        best, left = left[0], left[1:]
        stay.append(best)
        sides = np.minimum(boxes_xyxy[left, 2:], boxes_xyxy[best, 2:])
        sides = (sides - np.maximum(boxes_xyxy[left, :2], boxes_xyxy[best, :2])).clip(min=0)
        shared = sides.prod(axis=1)
        is_same = shared > nms_iou * (areas[left] + areas[best] - shared)
        is_piece = is_cut[left] & (shared > COVERED * areas[left])
        left = left[~(is_same | is_piece)]
    return np.array(stay, np.int64)
