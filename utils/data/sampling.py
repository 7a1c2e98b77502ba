"""The order of an epoch, the sizes of its batches, and its batches."""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from utils.data.augment import SampleKey
from utils.io.errors import UserError

# Mosaic and mixup take their partners from so many images that follow each other in the epoch's order, so an image is
# decoded once and used by its neighbours. More would mix images more freely, and wants more memory in each worker.
WINDOW = 32
# Three for the mosaic of a sample, one for mixup, three for that one's mosaic.
PARTNERS = 7


def epoch_order(
    image_count: int, seed: int, epoch: int, repeats: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Order and partners of an epoch: (n,) indices as in SampleKey and (n, PARTNERS) image indices, in that order.

    A pure function of (seed, epoch). The order is cut into windows of WINDOW images (the last one up to twice as long);
    each column of partners is a permutation of every window, so partners are used as often as the images themselves:
    all once, or as `repeats` says (see draw_repeated).
    """
    # The fourth number keeps this stream apart from those of the samples, (seed, epoch, index).
    random = np.random.default_rng((seed, epoch, 0, 1))
    order = random.permutation(image_count)
    if repeats is not None:
        order = draw_repeated(order, repeats, random)
    count = len(order)
    windows = np.minimum(np.arange(count) // WINDOW, max(count // WINDOW - 1, 0))
    columns = [order[np.lexsort((random.random(count), windows))] for _ in range(PARTNERS)]
    return order, np.stack(columns, axis=1) % max(image_count, 1)


def order_key(image_count: int, seed: int, repeats: np.ndarray | None = None) -> list[int]:
    """What the order of every epoch depends on: seed, number of images, and a checksum of the repeats, 0 for none.

    The checksum is of float32, so that another machine, whose last digit may differ, finds the same.
    """
    return [seed, image_count, 0 if repeats is None else zlib.crc32(repeats.astype("<f4").tobytes())]


def draw_repeated(order: np.ndarray, repeats: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw each image as often as the repeats say: (n,) indices, in random order; n as from epoch_length.

    order: (N,) a permutation of the images. repeats: (N,) from 0 on, by image. By systematic sampling an image is drawn
    the whole part of its expected number of times, and the rest at random, to n in total: with repeats 2.5 and 0.5 the
    first image two or three times, and the second once or not at all. The k-th repetition of image i is index
    i + k * N.
    """
    count = epoch_length(len(order), repeats)
    ends = np.cumsum(repeats[order] / repeats.sum() * count)
    ends[-1:] = count  # without what rounding left of it
    times = np.diff(np.floor(ends + random.random()).astype(np.int64), prepend=0)
    passes = np.arange(count) - np.repeat(np.cumsum(times) - times, times)
    return random.permutation(np.repeat(order, times) + passes * len(order))


def epoch_length(image_count: int, repeats: np.ndarray | None) -> int:
    """How many samples an epoch has: the images, or the sum of their repeats, at least 1."""
    return image_count if repeats is None else max(round(float(repeats.sum())), 1)


# Sides of the input are multiples of the coarsest stride.
GRID = 32


class MultiScale(NamedTuple):
    """Input shapes (height, width) of training batches: one of `shapes`, drawn anew every `period` batches.

    From epoch last_epoch on it is the first of them, so that the last epochs see what inference sees. The draw is a
    pure function of (seed, epoch, number of the batch), the same on all ranks.
    """

    shapes: list[tuple[int, int]]
    period: int = 1
    last_epoch: int = 0

    def at(self, epoch: int, batch: int, seed: int) -> tuple[int, int]:
        """The shape of a batch, counted from 0 in its epoch."""
        if epoch >= self.last_epoch or len(self.shapes) == 1:
            return tuple(self.shapes[0])
        draw = np.random.default_rng((seed, epoch, batch // self.period, 2)).integers(len(self.shapes))
        return tuple(self.shapes[draw])


def multi_scale_of(input_shape: tuple[int, int], factors: tuple[float, float], period: int, last_epoch: int):
    """MultiScale from input_shape times the smallest to the largest factor, in steps of 32 pixels of the longer side.

    The first is input_shape itself; where no other multiple of 32 lies in the range, it is the only one.
    """
    longer = max(input_shape)
    # Rounded first: 800 * 1.16 / 32 is 29, and a little less in floating point.
    lower, upper = (round(longer * factor / GRID, 6) for factor in factors)
    shapes = [tuple(input_shape)]
    for steps in range(math.ceil(lower), math.floor(upper) + 1):
        shape = tuple(max(round(side * steps * GRID / longer / GRID), 1) * GRID for side in input_shape)
        if shape not in shapes:
            shapes.append(shape)
    return MultiScale(shapes, period, last_epoch)


# BatchNorm needs two images per device to have a variance.
MIN_IMAGES_PER_RANK = 2


class EpochBatchSampler(Sampler):
    """Batches of SampleKeys in an order that is a pure function of (seed, epoch).

    batch_size counts the images of all ranks together; rank r takes every world_size-th image of a batch from the r-th
    on, so the ranks' batches k together are the single process's batch k. No image is dropped: the last batch may be
    short, and where a rank would get fewer than MIN_IMAGES_PER_RANK it is filled up from the start of the order, with
    new parameters.
    multi_scale: says how large the batches are. repeats: (N,) how often each image is drawn in an epoch, on average;
    None draws each once.
    Raises ValueError where batch_size is not a positive multiple of world_size or there are no images.
    """

    def __init__(
        self,
        image_count: int,
        batch_size: int,
        seed: int,
        multi_scale: MultiScale,
        rank: int = 0,
        world_size: int = 1,
        repeats: np.ndarray | None = None,
    ):
        if image_count < 1:
            raise UserError("There are no images to train on.")
        self.image_count, self.seed, self.multi_scale = image_count, seed, multi_scale
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.length = epoch_length(image_count, repeats)
        self.set_epoch(0, batch_size)

    def set_epoch(self, epoch: int, batch_size: int | None = None, start: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and its batch size (None: as before).

        start: so many images of the epoch's order, of all ranks, are done; the batches are the rest.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1 or batch_size % self.world_size:
            raise UserError(
                f"The batch size {batch_size} must be a positive multiple of the {self.world_size} processes."
            )
        self.epoch, self.batch_size, self.start = epoch, batch_size, start

    def __len__(self) -> int:
        return math.ceil(max(self.length - self.start, 0) / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order, partners = epoch_order(self.image_count, self.seed, self.epoch, self.repeats)
        passes = int(order.max()) // self.image_count + 1
        smallest = min(self.batch_size, MIN_IMAGES_PER_RANK * self.world_size)
        for start in range(self.start, self.length, self.batch_size):
            positions = list(range(start, min(start + self.batch_size, self.length)))
            # Beyond the end the order begins again, with new parameters.
            positions += range(self.length, self.length + smallest - len(positions))
            shape = self.multi_scale.at(self.epoch, start // self.batch_size, self.seed)
            keys = []
            for position in positions[self.rank :: self.world_size]:
                repeat, row = divmod(position, self.length)
                index = int(order[row]) + repeat * passes * self.image_count
                keys.append(SampleKey(self.epoch, index, shape, tuple(partners[row].tolist())))
            yield keys
