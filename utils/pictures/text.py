"""Text of any script on images: matplotlib's font, and the classic fonts of OpenCV, know no Chinese."""

import numpy as np

from utils.opencv import cv2

BLACK = (20, 20, 20)
_FONT = cv2.FontFace("sans")  # comes inside OpenCV 5


def text_width(text, size, weight=450):
    """Pixels that a line of text takes at a size in pixels. weight: 400 is regular, 600 bold."""
    # The rectangle that getTextSize returns is (x, y, width, height).
    return cv2.getTextSize((0, 0), text, (0, 0), _FONT, size, weight)[2]


def write_text(image_rgb, text, left_base, size, colour=BLACK, weight=450):
    """Write a line of text on an image, in place. left_base: (x, y) of the left end of its base line."""
    # Without the wide wrap, text would break at the border.
    cv2.putText(image_rgb, text, left_base, colour, _FONT, size, weight, wrap=(0, 1 << 15))


def shortened(text, width, size, end=""):
    """The text, with … for its middle where it and an end are wider than so many pixels: names differ at both ends."""
    kept, shown = len(text), text
    while kept > 2 and text_width(shown + end, size) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def text_image(text, size, colour=BLACK):
    """A line of text as an image of its own, (H, W, 4) uint8 RGBA, transparent but for the letters."""
    ink = np.zeros((round(1.45 * size), text_width(text, size) + 3), np.uint8)
    write_text(ink, text, (1, round(1.08 * size)), size, 255)
    return np.dstack([np.broadcast_to(np.array(colour, np.uint8), (*ink.shape, 3)), ink])
