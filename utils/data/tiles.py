"""Training and validation on tiles of large images: each tile is an entry of Annotations."""

import numpy as np

from utils.data.annotations import Annotations
from utils.data.augment import MIN_VISIBLE
from utils.image.tiles import TileOptions, tile_grid


class TiledAnnotations(Annotations):
    """Images as their parts: of each image the whole of it and its tiles, see tile_grid, one entry each.

    A tile has the boxes of which enough is visible in it, cut at its edges, as augmentation decides it.
    whole: the Annotations of the images. images: (T,) which of these an entry is a part of. tiles_xyxy: (T, 4) which
    part.
    """

    def __init__(self, whole: Annotations, options: TileOptions):
        grids = [tile_grid(size_hw, options) for size_hw in whole.sizes_hw.tolist()]
        self.whole, self.options = whole, options
        self.images = np.repeat(np.arange(len(whole)), [len(grid) for grid in grids])
        self.tiles_xyxy = np.concatenate([np.zeros((0, 4), np.int64), *grids])
        rows, boxes_xyxy, counts = [], [], []
        for index, grid in enumerate(grids):
            for place in grid:
                seen, cut_xyxy = _visible_boxes(whole.boxes(index), place)
                rows.append(whole.offsets[index] + seen)
                boxes_xyxy.append(cut_xyxy)
                counts.append(len(seen))
        rows = np.concatenate([np.zeros(0, np.int64), *rows])
        super().__init__(
            [path for index, grid in enumerate(grids) for path in [whole.path(index)] * len(grid)],
            self.tiles_xyxy[:, [3, 2]] - self.tiles_xyxy[:, [1, 0]],
            counts,
            np.concatenate([np.zeros((0, 4), np.float32), *boxes_xyxy]),
            whole.classes[rows],
            whole.difficult[rows],
        )

    def source(self, index: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        return tuple(self.whole.sizes_hw[self.images[index]].tolist()), tuple(self.tiles_xyxy[index].tolist())


def _visible_boxes(boxes_xyxy: np.ndarray, tile_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the boxes that enough is seen of in a tile, their visible parts in pixels of the tile)."""
    x1, y1, x2, y2 = tile_xyxy.tolist()
    cut_xyxy = np.clip(boxes_xyxy, np.float32([x1, y1, x1, y1]), np.float32([x2, y2, x2, y2]))
    areas, visible = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (boxes_xyxy, cut_xyxy))
    seen = np.flatnonzero((visible >= MIN_VISIBLE * areas) & (visible > 0))
    return seen, cut_xyxy[seen] - np.float32([x1, y1, x1, y1])


def tiled(annotations: Annotations, options: TileOptions) -> Annotations:
    """The annotations in tiles, or as they are where options ask for whole images."""
    return TiledAnnotations(annotations, options) if options.tile else annotations
