"""Of what size training batches are: one size, or several in turn."""

import math
from typing import NamedTuple

import numpy as np

# Sides of the input are multiples of the coarsest stride.
GRID = 32


class TrainShapes(NamedTuple):
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


def multi_scale_shapes(input_shape: tuple[int, int], factors: tuple[float, float], period: int, last_epoch: int):
    """TrainShapes from input_shape times the smallest to the largest factor, in steps of 32 pixels of the longer side.

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
    return TrainShapes(shapes, period, last_epoch)
