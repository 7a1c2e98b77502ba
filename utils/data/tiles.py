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
        rows, boxes_xyxy, counts = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.float32)], []
        for index, grid in enumerate(grids):
            seen, cut_xyxy = _visible_boxes(whole.boxes(index), grid)
            rows.append(whole.offsets[index] + seen.nonzero()[1])
            boxes_xyxy.append(cut_xyxy[seen])
            counts += seen.sum(axis=1).tolist()
        rows = np.concatenate(rows)
        super().__init__(
            [path for index, grid in enumerate(grids) for path in [whole.path(index)] * len(grid)],
            self.tiles_xyxy[:, [3, 2]] - self.tiles_xyxy[:, [1, 0]],
            counts,
            np.concatenate(boxes_xyxy),
            whole.classes[rows],
            whole.difficult[rows],
        )

    def source(self, index: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        return tuple(self.whole.sizes_hw[self.images[index]].tolist()), tuple(self.tiles_xyxy[index].tolist())


def _visible_boxes(boxes_xyxy: np.ndarray, tiles_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((T, n) bool whether a tile shows enough of a box, (T, n, 4) float32 what it shows, in pixels of the tile)."""
    tiles_xyxy = tiles_xyxy.astype(np.float32)[:, None]
    shift = tiles_xyxy[..., [0, 1, 0, 1]]
    cut_xyxy = np.clip(boxes_xyxy[None], shift, tiles_xyxy[..., [2, 3, 2, 3]])
    areas, visible = ((boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (boxes_xyxy[None], cut_xyxy))
    return (visible >= MIN_VISIBLE * areas) & (visible > 0), cut_xyxy - shift


def tiled(annotations: Annotations, options: TileOptions) -> Annotations:
    """The annotations in tiles, or as they are where options ask for whole images."""
    return TiledAnnotations(annotations, options) if options.tile else annotations
