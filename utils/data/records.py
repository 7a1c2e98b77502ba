"""A data set in memory: paths, image sizes and boxes in a few flat arrays, which workers share without copies."""

import os
from collections.abc import Sequence

import numpy as np


class Records:
    """One entry per image; the boxes of image i are rows first[i] to first[i + 1] of the box arrays.

    paths:      file paths, one per image.
    sizes_hw:   (N, 2) height and width of the image as OpenCV decodes it (EXIF rotation applied).
    box_counts: (N,) number of boxes of each image, in the order of the box arrays.
    boxes_xyxy: (M, 4) float32 x1, y1, x2, y2 in pixels of that image.
    classes:    (M,) int64 index into the class names.
    difficult:  (M,) bool, the flag of the VOC format; all False when not given.
    """

    def __init__(self, paths: Sequence[str], sizes_hw, box_counts, boxes_xyxy, classes, difficult=None):
        encoded = [os.fsencode(path) for path in paths]
        self.path_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self.path_first = _offsets([len(path) for path in encoded])
        self.sizes_hw = np.asarray(sizes_hw, np.int32).reshape(-1, 2)
        self.first = _offsets(box_counts)
        self.boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
        self.classes = np.asarray(classes, np.int64).reshape(-1)
        self.difficult = np.zeros(len(self.classes), bool) if difficult is None else np.asarray(difficult, bool)
        assert len(self.sizes_hw) == len(paths) == len(self.first) - 1
        assert len(self.boxes_xyxy) == len(self.classes) == len(self.difficult) == self.first[-1]

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def path(self, index: int) -> str:
        return os.fsdecode(self.path_bytes[self.path_first[index] : self.path_first[index + 1]].tobytes())

    def boxes(self, index: int) -> np.ndarray:
        """(n, 4) float32 boxes of one image, x1, y1, x2, y2 in its pixels."""
        return self.boxes_xyxy[self.first[index] : self.first[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """(n,) int64 classes of the boxes of one image."""
        return self.classes[self.first[index] : self.first[index + 1]]

    def without_difficult(self) -> "Records":
        """The same images without the boxes that are marked difficult."""
        keep = ~self.difficult
        kept_before = np.concatenate([[0], np.cumsum(keep)])[self.first]
        paths = [self.path(index) for index in range(len(self))]
        return Records(paths, self.sizes_hw, np.diff(kept_before), self.boxes_xyxy[keep], self.classes[keep])


def _offsets(counts) -> np.ndarray:
    """(N + 1,) int64 running sum of counts, starting at 0."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
