"""Decoded images: the most recent ones, or all of them in memory."""

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from multiprocessing import RawArray
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions, largest_scales
from utils.data.sampling import WINDOW
from utils.image.codec import read_image_with_gaps, reduction_for
from utils.image.opencv import cv2
from utils.io.text import amount

# A window of the epoch's order and not much more: images of older windows are not asked for again. Photographs may be
# large, and each worker has its own.
MAX_IMAGES, MAX_BYTES = 2 * WINDOW, 352 * 2**20


class UnreadableImageError(ValueError):
    """An image that could be opened when the annotations were made and cannot be decoded now."""

    def __init__(self, path: str, reason: object):
        super().__init__(f"{path}: {reason}")
        self.path = path


def decode(
    annotations: Annotations, index: int, largest_scale: float = 1.0, truncated: set[int] | None = None
) -> np.ndarray:
    """One image of the annotations, (h, w, 3) uint8 RGB, at 1/1, 1/2, 1/4 or 1/8 of its size.

    largest_scale: the largest factor by which it will be drawn; the image is not reduced below that. truncated:
    receives the index where the file lacks its last bytes and is used all the same, see read_image. Raises
    UnreadableImageError when the file is gone, damaged, or no longer of the size that the annotations state.
    """
    path, ((height, width), part_xyxy) = annotations.path(index), annotations.source(index)
    reduction, is_part = reduction_for(largest_scale), part_xyxy != (0, 0, width, height)
    try:
        image_rgb, is_truncated = (_last.read if is_part else read_image_with_gaps)(path, reduction)
    except (OSError, ValueError) as error:
        raise UnreadableImageError(path, error) from error
    if image_rgb.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        raise UnreadableImageError(path, f"its size is {image_rgb.shape[:2]}, the header said {(height, width)}")
    if is_truncated and truncated is not None:
        truncated.add(index)
    if is_part:
        x1, y1, x2, y2 = (-(-side // reduction) for side in part_xyxy)
        image_rgb = image_rgb[y1:y2, x1:x2].copy()  # a view would keep the whole image in memory
    return image_rgb


class _LastImage(threading.local):
    """The image that a thread decoded last: its tiles are asked for one after another."""

    key, content = None, None

    def read(self, *key) -> tuple[np.ndarray, bool]:
        """As read_image_with_gaps."""
        if key != self.key:
            self.key, self.content = None, None  # before the next one takes as much memory
            self.content = read_image_with_gaps(*key)
            self.key = key
        return self.content


_last = _LastImage()


class ImageCache:
    """Decodes images of the annotations, and keeps those that were asked for last.

    largest_scales: (N,) the largest factor by which each image is drawn. truncated: the indices met so far whose files
    lack their last bytes.
    """

    def __init__(self, annotations: Annotations, largest_scales: np.ndarray, max_bytes: int = MAX_BYTES):
        self.annotations, self.largest_scales, self.max_bytes = annotations, largest_scales, max_bytes
        self.kept, self.kept_bytes, self.truncated = OrderedDict(), 0, set()

    def __call__(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB; raises as decode does."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        image_rgb = decode(self.annotations, index, self.largest_scales[index], self.truncated)
        self.kept[index] = image_rgb
        self.kept_bytes += image_rgb.nbytes
        while len(self.kept) > MAX_IMAGES or (self.kept_bytes > self.max_bytes and len(self.kept) > 1):
            self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
        return image_rgb

    def __getstate__(self) -> dict:
        # What the main process has decoded is not worth sending to a worker.
        return self.__dict__ | {"kept": OrderedDict(), "kept_bytes": 0}


# Left free for the training itself.
RESERVED_BYTES = 2 * 2**30
# Shared memory of Linux is a file system of its own, and small in many containers.
SHARED_FOLDER = Path("/dev/shm")
# What a container may take, in both versions of Linux' control groups: folder, limit, usage, and the key in memory.stat
# of what counts as used and is given back on demand.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class DecodedImages:
    """Every image of the annotations, scaled down, one behind the other in `block`, which a subclass sets.

    scales: (N,) factors of the image sizes; those above 1 count as 1. After decode_all(): unreadable, {index: why};
    truncated, the indices whose files lack their last bytes.
    """

    def __init__(self, annotations: Annotations, scales: np.ndarray):
        self.annotations, self.block = annotations, None
        self.sizes_hw = np.ceil(annotations.sizes_hw * np.minimum(scales, 1)[:, None] - 1e-6).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes_hw.prod(axis=1) * 3)])
        self.unreadable, self.truncated = {}, set()

    def decode_all(self, store: Callable[[int, np.ndarray], None], description: str | None) -> None:
        """Call store(index, image_rgb) with all images, from several threads, with a progress bar (None: without)."""

        def work(index: int) -> None:
            image_rgb = self.decode_or_note(index)
            if image_rgb is not None:
                store(index, image_rgb)

        hidden = None if description else True
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # The tiles of an image by one thread, which decodes it once.
            images = [list(entries) for _, entries in groupby(range(len(self.annotations)), self.annotations.path)]
            done = pool.map(lambda entries: list(map(work, entries)), images)
            for _ in tqdm(done, desc=description, total=len(images), leave=False, disable=hidden):
                pass

    def decode_or_note(self, index: int) -> np.ndarray | None:
        """decode_scaled; where the image cannot be decoded that is noted in unreadable."""
        try:
            return self.decode_scaled(index)
        except UnreadableImageError as error:
            self.unreadable[index] = str(error.__cause__ or error)
            return None

    def decode_scaled(self, index: int) -> np.ndarray:
        """An image from its file, (h, w, 3) uint8 RGB of the size here. Raises as decode does."""
        height, width = self.sizes_hw[index].tolist()
        image_rgb = decode(self.annotations, index, height / int(self.annotations.sizes_hw[index, 0]), self.truncated)
        if image_rgb.shape[:2] != (height, width):
            image_rgb = cv2.resize(image_rgb, (width, height), interpolation=cv2.INTER_AREA)
        return image_rgb

    def __call__(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB, not to be written to. Raises UnreadableImageError where it could not be decoded."""
        if index in self.unreadable:
            raise UnreadableImageError(self.annotations.path(index), self.unreadable[index])
        return self._view(index)

    def _view(self, index: int) -> np.ndarray:
        start, stop = self.offsets[index : index + 2]
        return np.frombuffer(self.block, np.uint8, stop - start, start).reshape(*self.sizes_hw[index], 3)


class RamCache(DecodedImages):
    """DecodedImages in main memory, shared by all workers. Built empty; fill() decodes.

    shared: whether other processes will read it.
    """

    def __init__(self, annotations: Annotations, scales: np.ndarray, shared: bool):
        super().__init__(annotations, scales)
        self.block = RawArray("B", int(self.offsets[-1])) if shared else np.empty(self.offsets[-1], np.uint8)

    def fill(self, description: str | None = "decoding into main memory") -> None:
        """Decode all images, with a progress bar (None: without)."""
        self.decode_all(self._store, description)

    def _store(self, index: int, image_rgb: np.ndarray) -> None:
        self._view(index)[:] = image_rgb


class ReadableImages:
    """Stands for a cache whose pixels lie elsewhere: says of an image only that it can be read."""

    def __init__(self, ram: RamCache):
        self.annotations, self.unreadable, self.truncated = ram.annotations, ram.unreadable, ram.truncated

    def __call__(self, index: int) -> None:
        """Raises UnreadableImageError where the cache could not decode the image."""
        if index in self.unreadable:
            raise UnreadableImageError(self.annotations.path(index), self.unreadable[index])


def train_scales(annotations: Annotations, shapes: Sequence[tuple[int, int]], options: AugmentOptions) -> np.ndarray:
    """(N,) factors at which the images just fit the largest of the input shapes."""
    return largest_scales(annotations, shapes, replace(options, augment_epochs=0))


def cache_fits(annotations: Annotations, scales: np.ndarray, shared: bool, copies: int = 1) -> tuple[bool, str]:
    """Whether memory suffices for a RamCache of these arguments, and a sentence for people.

    copies: how many processes of this machine build one.
    """
    free, where = free_bytes(shared)
    sizes_hw = annotations.sizes_hw * np.minimum(scales, 1)[:, None]
    needed = copies * float((sizes_hw + 1).prod(axis=1).sum()) * 3
    if needed > free:
        return False, (
            f"cache 'ram' would take {amount(needed)}, and {amount(free)} {where}: images are decoded in each "
            "epoch instead. A smaller input_shape needs less."
        )
    return True, f"cache 'ram': {len(annotations)} images take {amount(needed)}; {amount(free)} {where}"


def free_bytes(shared: bool) -> tuple[int, str]:
    """How much memory a cache may take, and words for what limits it."""
    free = psutil.virtual_memory().available
    for folder, limit, usage, reclaimable in CGROUPS:
        if (folder / limit).exists() and (folder / limit).read_text().strip().isdigit():
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(statistics.get(reclaimable, 0))
            free = min(free, int((folder / limit).read_text()) - used)
    free = max(free - RESERVED_BYTES, 0)
    if shared and SHARED_FOLDER.is_dir() and shutil.disk_usage(SHARED_FOLDER).free < free:
        return shutil.disk_usage(SHARED_FOLDER).free, f"are free in {SHARED_FOLDER} (Docker: --shm-size)"
    return free, "are free in main memory"
