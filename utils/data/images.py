"""Decoded images for training: no larger than any sample can use, and decoded once for a window of the epoch."""

from collections import OrderedDict

import numpy as np

from utils.data.letterbox import read_image_with_gaps, reduction_for
from utils.data.order import WINDOW
from utils.data.records import Records

# A window of the epoch's order and not much more: images of older windows are not asked for again. Photographs may be
# large, and each worker has its own.
RECENT_IMAGES, RECENT_BYTES = 2 * WINDOW, 352 * 2**20


class UnreadableImageError(ValueError):
    """An image that could be opened when the records were made and cannot be decoded now."""

    def __init__(self, path: str, reason: object):
        super().__init__(f"{path}: {reason}")
        self.path = path


def decode(records: Records, index: int, largest_scale: float = 1.0, cut_off: set[int] | None = None) -> np.ndarray:
    """One image of the records, (h, w, 3) uint8 RGB, at 1/1, 1/2, 1/4 or 1/8 of its size.

    largest_scale: the largest factor by which it will be drawn; the image is not reduced below that. cut_off: receives
    the index where the file lacks its last bytes and is used all the same, see read_image.
    Raises UnreadableImageError when the file is gone, damaged, or no longer of the size that the records state.
    """
    path, (height, width) = records.path(index), records.sizes_hw[index].tolist()
    reduction = reduction_for(largest_scale)
    try:
        image_rgb, is_cut_off = read_image_with_gaps(path, reduction)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(path, error) from error
    if image_rgb.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        raise UnreadableImageError(path, f"its size is {image_rgb.shape[:2]}, the header said {(height, width)}")
    if is_cut_off and cut_off is not None:
        cut_off.add(index)
    return image_rgb


class RecentImages:
    """Decodes images of the records, and keeps those that were asked for last.

    largest_scales: (N,) the largest factor by which each image is drawn. cut_off: the indices met so far whose files
    lack their last bytes.
    """

    def __init__(self, records: Records, largest_scales: np.ndarray, most_bytes: int = RECENT_BYTES):
        self.records, self.largest_scales, self.most_bytes = records, largest_scales, most_bytes
        self.kept, self.kept_bytes, self.cut_off = OrderedDict(), 0, set()

    def __call__(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB; raises as decode does."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        image_rgb = decode(self.records, index, self.largest_scales[index], self.cut_off)
        self.kept[index] = image_rgb
        self.kept_bytes += image_rgb.nbytes
        while len(self.kept) > RECENT_IMAGES or (self.kept_bytes > self.most_bytes and len(self.kept) > 1):
            self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
        return image_rgb

    def __getstate__(self) -> dict:
        # What the main process has decoded is not worth sending to a worker.
        return self.__dict__ | {"kept": OrderedDict(), "kept_bytes": 0}
