"""How an image becomes the network's input, and how boxes go there and back. Used by training and inference alike.

A resize rule is part of a model's metadata: {"mode": "topleft" | "center" | "stretch", "pad": 114}. topleft is what the
official YOLOX weights were trained with (`preproc` in yolox/data/data_augment.py of Megvii-BaseDetection/YOLOX).
"""

from typing import NamedTuple

import numpy as np

from utils.image.codec import reduce, reduction_for
from utils.image.opencv import cv2
from utils.io.errors import UserError

MODES = ("topleft", "center", "stretch")
PAD = 114


class Placement(NamedTuple):
    """Where an image lies in the input: input pixel = scale * image pixel + offset, on the axes y and x."""

    scale_y: float
    scale_x: float
    offset_y: int
    offset_x: int
    new_hw: tuple[int, int]


def placement(size_hw: tuple[int, int], input_shape: tuple[int, int], mode: str) -> Placement:
    """Where an image of size_hw (height, width) lies in an input of input_shape (height, width).

    topleft and center keep the aspect ratio, stretch does not. Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"resize mode is {mode!r}; it must be one of {', '.join(MODES)}.")
    height, width = int(size_hw[0]), int(size_hw[1])
    input_height, input_width = input_shape
    if mode == "stretch":
        new_height, new_width = input_height, input_width
    else:
        ratio = min(input_height / height, input_width / width)
        # Rounded down as the official code does, so that official weights see the pixels they were trained on.
        new_height, new_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    centred = mode == "center"
    return Placement(
        new_height / height,
        new_width / width,
        (input_height - new_height) // 2 if centred else 0,
        (input_width - new_width) // 2 if centred else 0,
        (new_height, new_width),
    )


def letterbox(image_rgb: np.ndarray, input_shape: tuple[int, int], rule: dict) -> tuple[np.ndarray, Placement]:
    """Resize an image into the network's input by a resize rule.

    image_rgb: (h, w, 3) uint8. Returns the input, (H, W, 3) uint8 with rule["pad"] around the image, and the placement.
    """
    placed = placement(image_rgb.shape[:2], input_shape, rule["mode"])
    canvas = np.full((*input_shape, 3), rule["pad"], np.uint8)
    (height, width), top, left = placed.new_hw, placed.offset_y, placed.offset_x
    resize_into(canvas[top : top + height, left : left + width], image_rgb)
    return canvas, placed


def resize_into(target: np.ndarray, image_rgb: np.ndarray) -> None:
    """Fill target, (h, w, 3) uint8 or a slice of a larger array, with the resized image.

    Training and inference both come through here, so that a network never meets another interpolation than it learned.
    What is more than twice too large is averaged first: interpolation alone would skip pixels.
    """
    height, width = target.shape[:2]
    reduction = reduction_for(max(height / image_rgb.shape[0], width / image_rgb.shape[1]))
    if reduction > 1:
        image_rgb = reduce(image_rgb, reduction)
    cv2.resize(image_rgb, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)


def boxes_to_input(boxes_xyxy: np.ndarray, placed: Placement) -> np.ndarray:
    """(n, 4) boxes in image pixels to (n, 4) float32 boxes in input pixels."""
    scale, offset = _scale_offset(placed)
    return np.asarray(boxes_xyxy, np.float32).reshape(-1, 4) * scale + offset


def boxes_to_image(boxes_xyxy: np.ndarray, placed: Placement, size_hw: tuple[int, int]) -> np.ndarray:
    """(n, 4) boxes in input pixels to (n, 4) float32 boxes in pixels of the image of size_hw, clipped to it."""
    scale, offset = _scale_offset(placed)
    boxes_xyxy = (np.asarray(boxes_xyxy, np.float32).reshape(-1, 4) - offset) / scale
    height, width = int(size_hw[0]), int(size_hw[1])
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32))


def _scale_offset(placed: Placement) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([placed.scale_x, placed.scale_y] * 2, np.float32),
        np.array([placed.offset_x, placed.offset_y] * 2, np.float32),
    )
