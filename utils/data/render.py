"""From a plan to pixels, with OpenCV: each tile is cropped first and resized straight into the canvas."""

from collections.abc import Callable

import numpy as np

from utils.data.letterbox import resize_into
from utils.data.plan import NEUTRAL_GAINS, SamplePlan, Tile, painted_yxyx
from utils.data.records import Records
from utils.opencv import cv2

# Of the NTSC standard.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


def render(plan: SamplePlan, load_image: Callable[[int], np.ndarray], records: Records, pad: int) -> np.ndarray:
    """Draw a planned sample: (H, W, 3) uint8 RGB, with pad where no image is.

    load_image: image index -> (h, w, 3) uint8 RGB array, of the size in the records or smaller; it is not written to.
    """
    canvas = np.full((*plan.input_shape, 3), pad, np.uint8)
    for tile in plan.tiles:
        draw_tile(canvas, tile, load_image(tile.index), records.sizes_hw[tile.index].tolist())
    if plan.partner is not None:
        blend(canvas, render(plan.partner, load_image, records, pad), plan.weight)
    y1, x1, y2, x2 = painted_yxyx(plan)
    painted = canvas[y1:y2, x1:x2]
    if plan.gains != NEUTRAL_GAINS:
        change_colour(painted, *plan.gains)
    if plan.flip:
        flip(painted)
    return canvas


def draw_tile(canvas: np.ndarray, tile: Tile, image_rgb: np.ndarray, size_hw: tuple[int, int]) -> None:
    """Draw the visible part of a tile's image into its clip rectangle of the canvas.

    image_rgb may be smaller than the image of the records, size_hw: then the crop meets its place within half a pixel.
    """
    y1, x1, y2, x2 = tile.clip_yxyx
    share_y, share_x = image_rgb.shape[0] / size_hw[0], image_rgb.shape[1] / size_hw[1]
    top, bottom = _crop(y1, y2, tile.offset_y, tile.scale_y, share_y, image_rgb.shape[0])
    left, right = _crop(x1, x2, tile.offset_x, tile.scale_x, share_x, image_rgb.shape[1])
    resize_into(canvas[y1:y2, x1:x2], image_rgb[top:bottom, left:right])


def _crop(start: int, stop: int, offset: float, scale: float, share: float, length: int) -> tuple[int, int]:
    """The range of an axis of the image, at `share` of its size, that is seen in [start, stop) of the canvas."""
    first = min(round((start - offset) / scale * share), length - 1)
    return first, max(round((stop - offset) / scale * share), first + 1)


def blend(canvas: np.ndarray, partner: np.ndarray, weight: float) -> None:
    """Mix a partner of the same shape into the canvas, in place; weight is the share of what is there."""
    cv2.addWeighted(canvas, weight, partner, 1 - weight, 0, dst=canvas)


def flip(image_rgb: np.ndarray) -> None:
    """Turn left and right round, in place."""
    cv2.flip(image_rgb, 1, dst=image_rgb)


def change_colour(image_rgb: np.ndarray, hue_shift: float, saturation_factor: float, value_factor: float) -> None:
    """Turn the hue by a share of the colour circle, red to yellow, and scale saturation and brightness, in place.

    As in HSV, brightness is the largest channel of a pixel and saturation how far the others lie below it; a third of
    the cost of going there and back. The hue is turned in the I-Q plane of YIQ, where it is an angle.
    """
    angle = -2 * np.pi * hue_shift
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    cv2.transform(image_rgb, YIQ_TO_RGB @ turn @ RGB_TO_YIQ, dst=image_rgb)
    red, green, blue = cv2.split(image_rgb)
    brightness = cv2.cvtColor(cv2.max(cv2.max(red, green), blue), cv2.COLOR_GRAY2RGB)
    share = value_factor * saturation_factor
    cv2.addWeighted(image_rgb, share, brightness, value_factor - share, 0, dst=image_rgb)
