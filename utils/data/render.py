"""From a plan to pixels, with OpenCV: each tile is cropped first and resized straight into the canvas."""

from collections.abc import Callable

import numpy as np

from utils.data.letterbox import resize_into
from utils.data.plan import NEUTRAL_GAINS, AugmentSettings, SamplePlan, Tile, painted_yxyx
from utils.opencv import cv2

LEVELS = np.arange(256)


def render(plan: SamplePlan, load_image: Callable[[int], np.ndarray], settings: AugmentSettings) -> np.ndarray:
    """Draw a planned sample: (H, W, 3) uint8 RGB.

    load_image: image index -> (h, w, 3) uint8 RGB array of the size the records state; it is not written to.
    """
    canvas = np.full((*settings.input_shape, 3), settings.pad, np.uint8)
    for tile in plan.tiles:
        draw_tile(canvas, tile, load_image(tile.index))
    if plan.partner is not None:
        blend(canvas, render(plan.partner, load_image, settings), plan.weight)
    y1, x1, y2, x2 = painted_yxyx(plan)
    painted = canvas[y1:y2, x1:x2]
    if plan.gains != NEUTRAL_GAINS:
        change_colour(painted, *plan.gains)
    if plan.flip:
        flip(painted)
    return canvas


def draw_tile(canvas: np.ndarray, tile: Tile, image_rgb: np.ndarray) -> None:
    """Draw the visible part of a tile's image into its clip rectangle of the canvas."""
    y1, x1, y2, x2 = tile.clip_yxyx
    top, bottom = round((y1 - tile.offset_y) / tile.scale_y), round((y2 - tile.offset_y) / tile.scale_y)
    left, right = round((x1 - tile.offset_x) / tile.scale_x), round((x2 - tile.offset_x) / tile.scale_x)
    resize_into(canvas[y1:y2, x1:x2], image_rgb[top:bottom, left:right])


def blend(canvas: np.ndarray, partner: np.ndarray, weight: float) -> None:
    """Mix a partner of the same shape into the canvas, in place; weight is the share of what is there."""
    cv2.addWeighted(canvas, weight, partner, 1 - weight, 0, dst=canvas)


def flip(image_rgb: np.ndarray) -> None:
    """Turn left and right round, in place."""
    cv2.flip(image_rgb, 1, dst=image_rgb)


def change_colour(image_rgb: np.ndarray, hue_shift: float, saturation_factor: float, value_factor: float) -> None:
    """Shift the hue by a share of the colour circle and scale saturation and value, in place."""
    hue = (LEVELS + round(hue_shift * 256)) % 256
    saturation, value = (np.clip(LEVELS * factor, 0, 255) for factor in (saturation_factor, value_factor))
    table = np.stack([hue, saturation, value], axis=-1).astype(np.uint8)
    hsv = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2HSV_FULL)
    cv2.LUT(hsv, table[None], dst=hsv)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=image_rgb)
