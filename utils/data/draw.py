"""The pixels of a training sample, from its AugmentParameters."""

from collections.abc import Callable

import numpy as np

from utils.data.annotations import Annotations
from utils.data.augment import NEUTRAL_GAINS, AugmentParameters, PlacedImage, painted_yxyx
from utils.data.copy_paste import Pasted, shown_share
from utils.image.letterbox import resize_into
from utils.image.opencv import cv2

# Of the NTSC standard.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


def apply_parameters(
    params: AugmentParameters, load_image: Callable[[int], np.ndarray], annotations: Annotations, pad: int
) -> np.ndarray:
    """Draw a sample: (H, W, 3) uint8 RGB, with pad where no image is.

    load_image: image index -> (h, w, 3) uint8 RGB array, of the size in the annotations or smaller; it is not written
    to.
    """
    canvas = np.full((*params.input_shape, 3), pad, np.uint8)
    for placed in params.images:
        draw_image(canvas, placed, load_image(placed.index), annotations.sizes_hw[placed.index].tolist())
    for pasted in params.pasted:
        paste(canvas, pasted, load_image(pasted.index), annotations.sizes_hw[pasted.index].tolist())
    if params.partner is not None:
        blend(canvas, apply_parameters(params.partner, load_image, annotations, pad), params.weight)
    y1, x1, y2, x2 = painted_yxyx(params)
    painted = canvas[y1:y2, x1:x2]
    if params.gains != NEUTRAL_GAINS:
        change_colour(painted, *params.gains)
    if params.flip:
        flip(painted)
    return canvas


def draw_image(
    canvas: np.ndarray, placed: PlacedImage | Pasted, image_rgb: np.ndarray, size_hw: tuple[int, int]
) -> None:
    """Draw the visible part of an image into its clip rectangle of the canvas.

    image_rgb may be smaller than the image of the annotations, size_hw: then the crop meets its place within half a
    pixel.
    """
    y1, x1, y2, x2 = placed.clip_yxyx
    top, bottom, left, right = crop_of(placed, image_rgb.shape[:2], size_hw)
    resize_into(canvas[y1:y2, x1:x2], image_rgb[top:bottom, left:right])


def paste(canvas: np.ndarray, pasted: Pasted, image_rgb: np.ndarray, size_hw: tuple[int, int]) -> None:
    """Draw a pasted box with its fading margin; image_rgb and size_hw as in draw_image."""
    y1, x1, y2, x2 = pasted.clip_yxyx
    below = canvas[y1:y2, x1:x2].astype(np.float32)
    draw_image(canvas, pasted, image_rgb, size_hw)
    share = shown_share(np.arange(y1, y2)[:, None], y1, y2) * shown_share(np.arange(x1, x2), x1, x2)
    canvas[y1:y2, x1:x2] = np.rint(below + (canvas[y1:y2, x1:x2] - below) * share[..., None])


def crop_of(
    placed: PlacedImage | Pasted, shape: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[int, int, int, int]:
    """top, bottom, left, right of what is seen of an image: of one of a shape (h, w), size_hw in the annotations."""
    y1, x1, y2, x2 = placed.clip_yxyx
    return (
        *_crop(y1, y2, placed.offset_y, placed.scale_y, shape[0] / size_hw[0], shape[0]),
        *_crop(x1, x2, placed.offset_x, placed.scale_x, shape[1] / size_hw[1], shape[1]),
    )


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


def colour_matrix(hue_shift: float) -> np.ndarray:
    """(3, 3), which turns the hue of an RGB pixel by a share of the colour circle."""
    angle = -2 * np.pi * hue_shift
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return YIQ_TO_RGB @ turn @ RGB_TO_YIQ


def change_colour(image_rgb: np.ndarray, hue_shift: float, saturation_factor: float, value_factor: float) -> None:
    """Turn the hue by a share of the colour circle, red to yellow, and scale saturation and brightness, in place.

    As in HSV, brightness is the largest channel of a pixel and saturation how far the others lie below it; a third of
    the cost of going there and back. The hue is turned in the I-Q plane of YIQ, where it is an angle.
    """
    cv2.transform(image_rgb, colour_matrix(hue_shift), dst=image_rgb)
    red, green, blue = cv2.split(image_rgb)
    brightness = cv2.cvtColor(cv2.max(cv2.max(red, green), blue), cv2.COLOR_GRAY2RGB)
    share = value_factor * saturation_factor
    cv2.addWeighted(image_rgb, share, brightness, value_factor - share, 0, dst=image_rgb)
