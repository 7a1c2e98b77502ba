"""Batches for training and validation. Workers keep no state: a sample is addressed by (epoch, index) alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.data.annotations import Records
from utils.data.augment import AugmentSettings, SampleKey, images_of, largest_scales, plan_sample, plan_targets, render
from utils.data.image_cache import RecentImages, UnreadableImageError
from utils.data.sampling import EpochBatchSampler, TrainShapes
from utils.data.worker_monitor import NotedImages, UnusableDataError, WatchedLoader, reuse_memory, start_worker
from utils.image.letterbox import Placement, boxes_to_input, letterbox, placement
from utils.image.opencv import cv2

# Targets are padded to a power of two, so that few different shapes reach the device.
MIN_PADDED_BOXES = 16

PREFETCHED_BATCHES = 3

# How many neighbours are tried where an image cannot be read.
MAX_REPLACEMENTS = 64


class Sample(NamedTuple):
    image_rgb: np.ndarray  # (H, W, 3) uint8
    boxes_xyxy: np.ndarray  # (n, 4) float32, input pixels
    labels: np.ndarray  # (n,) int64
    index: int  # of the image in the records
    placed: Placement | None  # validation only: the way back to image pixels
    unreadable: list[str]  # paths that had to be replaced
    cut_off: Sequence[str] = ()  # paths that are used although they lack their last bytes


class Batch(NamedTuple):
    images: torch.Tensor  # (B, 3, H, W) uint8 RGB, channels_last in memory
    targets: torch.Tensor  # (B, G, 5) float32 x1, y1, x2, y2 in input pixels, class; padded with 0, 0, 0, 0, -1
    indices: list[int]
    placements: list[Placement | None]
    unreadable: list[str]
    cut_off: Sequence[str] = ()


class TrainSamples(Dataset):
    """Training samples by their SampleKey.

    load_image: image index -> (h, w, 3) uint8 RGB of the size in the records or smaller, see draw_tile. Where an image
    cannot be read, the next index of the epoch takes its place and the sample names the path. Its attribute cut_off
    is the set of indices whose files lack their last bytes, see RecentImages.
    """

    def __init__(self, records: Records, settings: AugmentSettings, seed: int, load_image: Callable):
        self.records, self.settings, self.seed, self.load_image = records, settings, seed, load_image

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> Sample:
        unreadable, first = [], key.index
        for step in range(min(len(self.records), MAX_REPLACEMENTS)):
            if step:
                # A pass further on, the neighbour has another plan than in its own sample, so none is drawn twice.
                # Its partners are itself: those of the key may be what cannot be read.
                index = first + step + 2 * len(self.records)
                key = key._replace(index=index, partners=(index % len(self.records),) * len(key.partners))
            plan = plan_sample(self.records, key, self.seed, self.settings)
            try:
                image_rgb = render(plan, self.load_image, self.records, self.settings.pad)
            except UnreadableImageError as error:
                unreadable.append(error.path)
                continue
            boxes_xyxy, labels = plan_targets(self.records, plan)
            cut_off = [self.records.path(index) for index in images_of(plan) & self.load_image.cut_off]
            return Sample(image_rgb, boxes_xyxy, labels, key.index % len(self.records), None, unreadable, cut_off)
        raise UnusableDataError(
            f"{len(unreadable)} samples in a row need images that cannot be read, {unreadable[-1]} among them: check "
            "that the disk is there, and see tools/check_data.py."
        )


class ValSamples(Dataset):
    """Validation samples: images under the resize rule, all their boxes. An unreadable image is grey and named.

    load_image: as in TrainSamples.
    """

    def __init__(self, records: Records, input_shape: tuple[int, int], rule: dict, load_image: Callable):
        self.records, self.input_shape, self.rule = records, tuple(input_shape), rule
        self.load_image = load_image

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        unreadable = []
        try:
            image_rgb, placed = letterbox(self.load_image(index), self.input_shape, self.rule)
        except UnreadableImageError as error:
            # Its boxes stay, so that it counts as missed and the score does not rise by a damaged disk.
            unreadable.append(error.path)
            image_rgb = np.full((*self.input_shape, 3), self.rule["pad"], np.uint8)
            placed = placement(self.records.sizes_hw[index], self.input_shape, self.rule["mode"])
        boxes_xyxy = boxes_to_input(self.records.boxes(index), placed)
        cut_off = [self.records.path(index)] if index in self.load_image.cut_off else []
        return Sample(image_rgb, boxes_xyxy, self.records.labels(index), index, placed, unreadable, cut_off)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one input shape to a batch; see Batch for shapes."""
    images = torch.from_numpy(np.stack([sample.image_rgb for sample in samples])).permute(0, 3, 1, 2)
    most = max(len(sample.labels) for sample in samples)
    padded = max(MIN_PADDED_BOXES, 1 << (most - 1).bit_length() if most else 0)
    targets = np.zeros((len(samples), padded, 5), np.float32)
    targets[..., 4] = -1
    for row, sample in zip(targets, samples, strict=True):
        row[: len(sample.labels), :4] = sample.boxes_xyxy
        row[: len(sample.labels), 4] = sample.labels
    return Batch(
        images,
        torch.from_numpy(targets),
        [sample.index for sample in samples],
        [sample.placed for sample in samples],
        [path for sample in samples for path in sample.unreadable],
        [path for sample in samples for path in sample.cut_off],
    )


def build_train_loader(
    records: Records,
    settings: AugmentSettings,
    seed: int,
    shapes: TrainShapes,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    load_image: Callable | None = None,
    worker_timeout: int = 0,
) -> DataLoader:
    """Training batches. Before each epoch call loader.batch_sampler.set_epoch(epoch, batch_size).

    shapes: of the batches. batch_size counts all ranks together. load_image: as in TrainSamples; None decodes files.
    worker_timeout: seconds after which a worker counts as hung; 0 waits for ever. Iterating raises ValueError where a
    worker died or hangs. The batches are the same for any num_workers; persistent workers follow the epochs.
    """
    load_image = load_image or RecentImages(records, largest_scales(records, shapes.shapes, settings))
    samples = TrainSamples(records, settings, seed, NotedImages(load_image, num_workers))
    sampler = EpochBatchSampler(len(records), batch_size, seed, shapes, rank, world_size)
    return WatchedLoader(samples, batch_sampler=sampler, **_loader_options(num_workers, pin_memory, worker_timeout))


def build_val_loader(
    records: Records,
    input_shape: tuple[int, int],
    rule: dict,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    worker_timeout: int = 0,
) -> DataLoader:
    """Validation batches in the order of the records, the last one possibly short; every world_size-th image from the
    rank-th on, so that each image has one rank. worker_timeout: as in build_train_loader."""
    # Each image is asked for once: nothing is worth keeping.
    load_image = RecentImages(records, np.ones(len(records)), most_bytes=0)
    samples = ValSamples(records, input_shape, rule, NotedImages(load_image, num_workers))
    share = range(rank, len(samples), world_size)
    options = _loader_options(num_workers, pin_memory, worker_timeout)
    return WatchedLoader(samples, batch_size=batch_size, sampler=share, **options)


def _loader_options(num_workers: int, pin_memory: bool, worker_timeout: int) -> dict:
    if num_workers == 0:
        reuse_memory()
    else:
        # A forked worker in which OpenCV still counts on threads from before the fork hangs or crashes.
        cv2.setNumThreads(1)
    return {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "timeout": worker_timeout if num_workers else 0,
        "collate_fn": collate,
        "worker_init_fn": start_worker,
        "persistent_workers": num_workers > 0,
        "prefetch_factor": PREFETCHED_BATCHES if num_workers else None,
        # A generator of its own: else every epoch draws from, and so changes, the global random state.
        "generator": torch.Generator(),
    }
