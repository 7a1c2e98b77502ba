"""Darknet's weight files (AlexeyAB/darknet, `load_convolutional_weights` in src/parser.c).

A header of three 32-bit numbers and a count of images seen, then float32 numbers: for each convolution in the order of
the cfg its bias or BatchNorm's shift, scale, mean and variance, then its kernel. Nothing in the file says where a
convolution begins: the numbers are handed to the convolutions of a network of ours, which stand in the same order.
"""

import math
import os
import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from utils.io.errors import UserError

# model_name: numbers in a file for 0 classes, and for each class.
SIZES = {"yolov4": (63998605, 5385), "yolov4_tiny": (5878014, 2310)}
# Of both cfgs, whatever the network that is started from them has.
ANCHORS_PER_MAP = 3
# Files that end early, at the layer in their public name: (network, public name) by their numbers.
PREFIXES = {42509664: ("yolov4", "yolov4.conv.137"), 4947424: ("yolov4_tiny", "yolov4-tiny.conv.29")}


class DarknetWeights(NamedTuple):
    """numbers: float32; model_name; num_classes: None where the file ends before the first head."""

    numbers: np.ndarray
    model_name: str
    num_classes: int | None


def looks_like_darknet(start):
    """Whether the first bytes of a file are the header of a Darknet file."""
    if len(start) < 16:
        return False
    major, minor, revision = struct.unpack("<iii", start[:12])
    return 0 <= major < 10 and 0 <= minor < 100 and 0 <= revision < 1000


def read_darknet(path):
    """Read a Darknet file. Raises ValueError, with the numbers expected and got, where its length fits no network."""
    with open(path, "rb") as file:
        major, minor, _ = struct.unpack("<iii", file.read(12))
    header = 12 + (8 if major * 10 + minor >= 2 else 4)
    # The length alone says what the file is: nothing else is read into memory.
    count, rest = divmod(os.path.getsize(path) - header, 4)
    if rest == 0:
        fitting = [(name, classes) for name, classes in _networks_of(count) if classes is None or classes >= 1]
        if fitting:
            return DarknetWeights(np.fromfile(path, "<f4", offset=header), *fitting[0])
    expected = [f"{size + 80 * per_class:,} for {name} with 80 classes" for name, (size, per_class) in SIZES.items()]
    expected += [f"{count:,} for {public}" for count, (_, public) in PREFIXES.items()]
    raise UserError(
        f"{path} looks like a Darknet file and holds {count + rest / 4:,.2f} numbers".replace(".00 ", " ")
        + f", which fits no network known here; expected {', '.join(expected)}. It is incomplete, too long, or of "
        "another network: fetch it again."
    )


def _networks_of(count):
    """(model_name, classes or None) of the networks that a file with so many numbers can belong to."""
    if count in PREFIXES:
        yield PREFIXES[count][0], None
    for model_name, (size, per_class) in SIZES.items():
        classes, rest = divmod(count - size, per_class)
        if rest == 0:
            yield model_name, classes


def darknet_state(model, numbers, num_classes):
    """The numbers of a Darknet file as a state dict of a network of ours, for the convolutions that they reach.

    num_classes: of the file; its last layers have rows for these, whatever the network has. Raises ValueError where
    the numbers end within a convolution or go beyond the last one.
    """
    state, position = {}, 0
    for key, shape in _order(model, num_classes):
        if position == len(numbers) and key.endswith("bias"):  # where the next convolution would begin
            break
        size = math.prod(shape)
        if position + size > len(numbers):
            raise UserError(
                f"the file ends within {key} of {model.name}: it holds {len(numbers):,} numbers, and "
                f"{position + size:,} are needed up to there."
            )
        state[key] = torch.from_numpy(numbers[position : position + size].astype(np.float32, copy=False)).view(shape)
        position += size
    if position != len(numbers):
        raise UserError(f"the file holds {len(numbers):,} numbers, and {model.name} takes {position:,}.")
    return state


def _order(model, num_classes):
    """(key, shape) of every tensor in the order of a Darknet file."""
    rows = model.class_rows()
    layers = list(model.named_modules())
    for (name, layer), (next_name, following) in zip(layers, [*layers[1:], ("", None)], strict=True):
        if not isinstance(layer, nn.Conv2d):
            continue
        shape = list(layer.weight.shape)
        if isinstance(following, nn.BatchNorm2d):
            for key in ("bias", "weight", "running_mean", "running_var"):
                yield f"{next_name}.{key}", shape[:1]
        else:
            _, offset = rows[f"{name}.bias"]
            shape[0] = ANCHORS_PER_MAP * (offset + (num_classes or model.num_classes))
            yield f"{name}.bias", shape[:1]
        yield f"{name}.weight", shape
