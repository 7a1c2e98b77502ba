"""Batches for training and validation. Workers keep no state: a sample is addressed by (epoch, index) alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.data.annotations import Annotations
from utils.data.augment import (
    AugmentOptions,
    AugmentParameters,
    SampleKey,
    augmented_targets,
    images_of,
    largest_scales,
    sample_parameters,
)
from utils.data.device_cache import DeviceCache
from utils.data.draw import apply_parameters
from utils.data.image_cache import ImageCache, UnreadableImageError
from utils.data.sampling import EpochBatchSampler, MultiScale
from utils.data.worker_monitor import MonitoredLoader, TrackedReader, UnusableDataError, reuse_memory, start_worker
from utils.image.letterbox import Placement, boxes_to_input, letterbox, placement
from utils.image.opencv import cv2

# Targets are padded to a power of two, so that few different shapes reach the device.
MIN_PADDED_BOXES = 16
PREFETCHED_BATCHES = 3
# How many neighbours are tried where an image cannot be read.
MAX_REPLACEMENTS = 64
# More passes over the images than an epoch has.
REPLACING_PASS = 1000


class Sample(NamedTuple):
    image_rgb: np.ndarray  # (H, W, 3) uint8
    boxes_xyxy: np.ndarray  # (n, 4) float32, input pixels
    labels: np.ndarray  # (n,) int64
    index: int  # of the image in the annotations
    placed: Placement | None  # validation only: the way back to image pixels
    unreadable: list[str]  # paths that had to be replaced
    truncated: Sequence[str] = ()  # paths that are used although they lack their last bytes


class Batch(NamedTuple):
    images: torch.Tensor  # (B, 3, H, W) uint8 RGB, channels_last in memory; before DrawingLoader: AugmentParameters
    targets: torch.Tensor  # (B, G, 5) float32 x1, y1, x2, y2 in input pixels, class; padded with 0, 0, 0, 0, -1
    indices: list[int]
    placements: list[Placement | None]
    unreadable: list[str]
    truncated: Sequence[str] = ()


class TrainDataset(Dataset):
    """Training samples by their SampleKey.

    load_image: image index -> (h, w, 3) uint8 RGB of the size in the annotations or smaller, see draw_image. Where an
    image cannot be read, the next index of the epoch takes its place and the sample names the path. Its attribute
    truncated is the set of indices whose files lack their last bytes, see ImageCache.
    """

    def __init__(self, annotations: Annotations, options: AugmentOptions, seed: int, load_image: Callable):
        self.annotations, self.options, self.seed, self.load_image = annotations, options, seed, load_image

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: SampleKey) -> Sample:
        unreadable, first = [], key.index
        for step in range(min(len(self.annotations), MAX_REPLACEMENTS)):
            if step:
                # So many passes further on, the neighbour has other parameters than in its own samples, and none is
                # drawn twice. Its partners are itself: those of the key may be what cannot be read.
                index = first + step + REPLACING_PASS * len(self.annotations)
                key = key._replace(index=index, partners=(index % len(self.annotations),) * len(key.partners))
            params = sample_parameters(self.annotations, key, self.seed, self.options)
            try:
                image_rgb = self.draw(params)
            except UnreadableImageError as error:
                unreadable.append(error.path)
                continue
            boxes_xyxy, labels = augmented_targets(self.annotations, params)
            truncated = [self.annotations.path(index) for index in images_of(params) & self.load_image.truncated]
            return Sample(image_rgb, boxes_xyxy, labels, key.index % len(self.annotations), None, unreadable, truncated)
        raise UnusableDataError(
            f"{len(unreadable)} samples in a row need images that cannot be read, {unreadable[-1]} among them: check "
            "that the disk is there, and see tools/check_data.py."
        )

    def draw(self, params: AugmentParameters) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises UnreadableImageError."""
        return apply_parameters(params, self.load_image, self.annotations, self.options.pad)


class ParametersDataset(TrainDataset):
    """Training samples whose pixels are drawn later: image_rgb holds their AugmentParameters."""

    def draw(self, params: AugmentParameters) -> AugmentParameters:
        for index in sorted(images_of(params)):
            self.load_image(index)
        return params


class ValDataset(Dataset):
    """Validation samples: images under the resize rule, all their boxes. An unreadable image is grey and named.

    load_image: as in TrainDataset.
    """

    def __init__(self, annotations: Annotations, input_shape: tuple[int, int], rule: dict, load_image: Callable):
        self.annotations, self.input_shape, self.rule = annotations, tuple(input_shape), rule
        self.load_image = load_image

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Sample:
        unreadable = []
        try:
            image_rgb, placed = letterbox(self.load_image(index), self.input_shape, self.rule)
        except UnreadableImageError as error:
            # Its boxes stay, so that it counts as missed and the score does not rise by a damaged disk.
            unreadable.append(error.path)
            image_rgb = np.full((*self.input_shape, 3), self.rule["pad"], np.uint8)
            placed = placement(self.annotations.sizes_hw[index], self.input_shape, self.rule["mode"])
        boxes_xyxy = boxes_to_input(self.annotations.boxes(index), placed)
        truncated = [self.annotations.path(index)] if index in self.load_image.truncated else []
        return Sample(image_rgb, boxes_xyxy, self.annotations.labels(index), index, placed, unreadable, truncated)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one input shape to a batch; see Batch for shapes."""
    images = [sample.image_rgb for sample in samples]
    if not isinstance(images[0], AugmentParameters):
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
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
        [path for sample in samples for path in sample.truncated],
    )


class LoaderOptions(NamedTuple):
    """How batches are made: worker processes; pinned memory; seconds after which a worker counts as hung, 0 waits for
    ever; this rank among world_size.
    """

    num_workers: int = 0
    pin_memory: bool = False
    timeout: int = 0
    rank: int = 0
    world_size: int = 1


DEFAULT = LoaderOptions()


class DrawingLoader(MonitoredLoader):
    """A MonitoredLoader over a ParametersDataset, whose images are drawn here, by its DeviceCache `cache`."""

    def __iter__(self):
        yield from map(self.draw, super().__iter__())

    def draw(self, batch: Batch) -> Batch:
        return batch._replace(images=self.cache(batch.images))


def build_train_loader(
    annotations: Annotations,
    augment: AugmentOptions,
    seed: int,
    multi_scale: MultiScale,
    batch_size: int,
    options: LoaderOptions = DEFAULT,
    load_image: Callable | None = None,
    device_cache: DeviceCache | None = None,
    repeats: np.ndarray | None = None,
) -> DataLoader:
    """Training batches. Before each epoch call loader.batch_sampler.set_epoch(epoch, batch_size).

    multi_scale: the sizes of the batches. batch_size counts all ranks together. load_image: as in TrainDataset; None
    decodes files. device_cache: draws the images on its device. repeats: as in EpochBatchSampler. Iterating raises
    UserError where a worker died or hangs. The batches are the same for any num_workers; persistent workers follow the
    epochs.
    """
    load_image = load_image or ImageCache(annotations, largest_scales(annotations, multi_scale.shapes, augment))
    ranks = options.rank, options.world_size
    sampler = EpochBatchSampler(len(annotations), batch_size, seed, multi_scale, *ranks, repeats)
    reader = TrackedReader(load_image, options.num_workers)
    if device_cache is None:
        dataset = TrainDataset(annotations, augment, seed, reader)
        return MonitoredLoader(dataset, batch_sampler=sampler, **_dataloader_arguments(options))
    dataset = ParametersDataset(annotations, augment, seed, reader)
    loader = DrawingLoader(dataset, batch_sampler=sampler, **_dataloader_arguments(options))
    loader.cache = device_cache
    return loader


def build_val_loader(
    annotations: Annotations,
    input_shape: tuple[int, int],
    rule: dict,
    batch_size: int,
    options: LoaderOptions = DEFAULT,
) -> DataLoader:
    """Validation batches in the order of the annotations, the last one possibly short; every world_size-th image from
    the rank-th on, so that each image has one rank."""
    # Each image is asked for once: nothing is worth keeping.
    load_image = ImageCache(annotations, np.ones(len(annotations)), max_bytes=0)
    dataset = ValDataset(annotations, input_shape, rule, TrackedReader(load_image, options.num_workers))
    part = range(options.rank, len(dataset), options.world_size)
    return MonitoredLoader(dataset, batch_size=batch_size, sampler=part, **_dataloader_arguments(options))


def _dataloader_arguments(options: LoaderOptions) -> dict:
    if options.num_workers == 0:
        reuse_memory()
    else:
        # A forked worker in which OpenCV still counts on threads from before the fork hangs or crashes.
        cv2.setNumThreads(1)
    return {
        "num_workers": options.num_workers,
        "pin_memory": options.pin_memory,
        "timeout": options.timeout if options.num_workers else 0,
        "collate_fn": collate,
        "worker_init_fn": start_worker,
        "persistent_workers": options.num_workers > 0,
        "prefetch_factor": PREFETCHED_BATCHES if options.num_workers else None,
        # A generator of its own: else every epoch draws from, and so changes, the global random state.
        "generator": torch.Generator(),
    }
