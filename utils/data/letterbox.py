"""How an image becomes the network's input, and how boxes go there and back. Used by training and inference alike.

A resize rule is part of a model's contract: {"mode": "topleft" | "center" | "stretch", "pad": 114}. topleft is what the
official YOLOX weights were trained with (`preproc` in yolox/data/data_augment.py of Megvii-BaseDetection/YOLOX).
"""

import os
from typing import NamedTuple

import numpy as np

from utils.opencv import cv2

MODES = ("topleft", "center", "stretch")
PAD = 114
# OpenCV's decoder of JPEG gives these fractions of an image in a fraction of the time. "Grayscale" is no bit of its
# own: with the bit for RGB these flags mean reduced RGB.
REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# What the decoder paints where a JPEG is cut off, and the least share of an image that must be left of it.
MISSING_GREY, LEAST_SHARE = 128, 0.5


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
        raise ValueError(f"resize mode is {mode!r}; it must be one of {', '.join(MODES)}.")
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


def reduction_for(scale: float) -> int:
    """The largest of 1, 2, 4, 8 by which an image may be divided before it is drawn at `scale` times its size."""
    return next((number for number in REDUCED_FLAGS if number * scale <= 1), 1)


def reduce(image_rgb: np.ndarray, reduction: int) -> np.ndarray:
    """A (h, w, 3) uint8 image at a whole fraction of its size, rounded up, each pixel the mean of those it covers."""
    height, width = image_rgb.shape[:2]
    return cv2.resize(image_rgb, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)


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


def read_image(path: str, reduction: int = 1) -> np.ndarray:
    """Decode an image file of any kind OpenCV knows to (h, w, 3) uint8 RGB, EXIF rotation applied.

    reduction: 1, or 2, 4 or 8 for that fraction of the size, rounded up. A JPEG that lacks its last bytes is grey where
    they belong; where more than half of it is missing it counts as damaged. Raises FileNotFoundError when the file is
    missing, ValueError naming the file when it cannot be decoded.
    """
    return read_image_with_gaps(path, reduction)[0]


def read_image_with_gaps(path: str, reduction: int = 1) -> tuple[np.ndarray, bool]:
    """read_image, and whether the file is a JPEG that lacks its last bytes."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no picture {path!r} (relative to {os.getcwd()}); correct the path.")
    # Not cv2.imread: on Windows it cannot open paths outside the system's code page.
    encoded = np.fromfile(path, np.uint8)
    is_jpeg = encoded[:2].tobytes() == JPEG_START
    flag = REDUCED_FLAGS[reduction] | cv2.IMREAD_COLOR_RGB if reduction > 1 and is_jpeg else cv2.IMREAD_COLOR_RGB
    image_rgb = _decode(encoded, flag)
    is_cut_off = image_rgb is None and is_jpeg
    if is_cut_off:
        # OpenCV refuses a JPEG that stops before its end. With the mark of an end it decodes what is there.
        image_rgb = _decode(np.append(encoded, np.frombuffer(JPEG_END, np.uint8)), flag)
        if image_rgb is not None and (image_rgb != MISSING_GREY).any(axis=2).mean() < LEAST_SHARE:
            image_rgb = None
    if image_rgb is None:
        raise ValueError(f"{path} cannot be decoded as an image: save it anew as JPEG or PNG, or remove it.")
    return image_rgb if reduction == 1 or is_jpeg else reduce(image_rgb, reduction), is_cut_off


def _decode(encoded: np.ndarray, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(encoded, flag)
    except cv2.error:
        return None


def write_image(path: str, image_rgb: np.ndarray) -> None:
    """Write (h, w, 3) uint8 RGB in the format that the path's ending names. Raises ValueError where OpenCV has none."""
    suffix = os.path.splitext(path)[1]
    try:
        written, encoded = cv2.imencode(suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise ValueError(f"{path} cannot be written: OpenCV knows no image format {suffix!r}. Use .jpg or .png.")
    encoded.tofile(path)
