"""Text and boxes with labels on images. All images are RGB uint8 of shape (H, W, 3)."""

import numpy as np

from utils.image.opencv import cv2
from utils.io.text import printable

BLACK = (20, 20, 20)
_FONT = cv2.FontFace("sans")  # comes inside OpenCV 5


def text_width(text, size, weight=450):
    """Pixels that a line of text takes at a size in pixels. weight: 400 is regular, 600 bold."""
    # What is no text crashes OpenCV, hence printable. The rectangle that getTextSize returns is (x, y, width, height).
    return cv2.getTextSize((0, 0), printable(text), (0, 0), _FONT, size, weight)[2]


def write_text(image_rgb, text, left_base, size, colour=BLACK, weight=450):
    """Write a line of text on an image, in place. left_base: (x, y) of the left end of its base line."""
    # Without the wide wrap, text would break at the border.
    cv2.putText(image_rgb, printable(text), left_base, colour, _FONT, size, weight, wrap=(0, 1 << 15))


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


# Ten colours that stay apart on a photograph, for most colour-blind people too.
_PALETTE = (
    (230, 57, 70),  # red
    (0, 114, 206),  # blue
    (255, 200, 20),  # yellow
    (27, 158, 70),  # green
    (157, 78, 221),  # violet
    (255, 128, 14),  # orange
    (23, 200, 215),  # cyan
    (240, 98, 180),  # pink
    (131, 82, 40),  # brown
    (170, 220, 60),  # lime
)
_WEIGHT = 600  # of the letters: bold
_MOST_HIDDEN = 20  # pixels, of the margin around letters


def class_colour(class_id):
    """Colour (r, g, b), each 0..255, of a class: the same in every picture, and again for the class ten further on."""
    return _PALETTE[int(class_id) % len(_PALETTE)]


def draw_boxes(image_rgb, boxes_xyxy, class_ids, scores, class_names, every_name=True):
    """Draw boxes and their labels ("name 0.87") on a copy of an image.

    image_rgb: (H, W, 3) uint8; boxes_xyxy: (N, 4) pixels; class_ids: (N,); scores: (N,) or None for names alone
    class_names: list of str, any script. Line and text grow with the image. Each label stands on a tab in the
    class's colour, inside the picture, where it hides the other labels least; the surest boxes choose first.
    every_name: False leaves out labels that would hide others, for small pictures with many boxes.
    Returns a new (H, W, 3) uint8 array.
    """
    image = np.array(image_rgb, np.uint8, order="C")
    height, width = image.shape[:2]
    text_size = max(12, round(0.022 * (height * width) ** 0.5))
    line_width = max(1, round(text_size / 8))
    corners = np.clip(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4), 0, (width, height) * 2).round().astype(int)
    order = range(len(corners)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    # All boxes before all labels: no line of a neighbour crosses a text. The surest box ends on top.
    for i in reversed(order):
        x1, y1, x2, y2 = corners[i].tolist()
        bottom_right = (min(x2, width - 1), min(y2, height - 1))
        cv2.rectangle(image, (x1, y1), bottom_right, class_colour(class_ids[i]), line_width, cv2.LINE_AA)
    taken_xyxy = np.zeros((0, 4), int)
    for i in order:
        text = class_names[class_ids[i]] + ("" if scores is None else f" {scores[i]:.2f}")
        text, size, tab_hw = _fit(text, text_size, width)
        tab_xyxy, hidden = _place(corners[i], tab_hw, taken_xyxy, (height, width), line_width)
        if hidden > _MOST_HIDDEN and not every_name:
            continue
        _draw_tab(image, tab_xyxy, text, size, class_colour(class_ids[i]))
        taken_xyxy = np.concatenate([taken_xyxy, tab_xyxy[None]])
    return image


def _fit(text, size, image_width):
    """Shorten and shrink a text until its tab fits the picture: text, text size, (height, width) of the tab."""
    while True:
        tab_width = text_width(text, size, _WEIGHT) + size // 2
        if tab_width <= image_width or (size <= 6 and len(text) < 3):
            return text, size, (round(size * 1.4), min(tab_width, image_width))
        if size > 9:
            size -= 1
        elif len(text) >= 3:
            text = text.rstrip("…")[:-1] + "…"
        else:
            size -= 1


def _place(box_xyxy, tab_hw, taken_xyxy, size_hw, line_width):
    """The tab (4,) x1, y1, x2, y2 at the box and inside the picture that overlaps the taken tabs (N, 4) least, and how
    many of its pixels do.
    """
    x1, y1, x2, y2 = box_xyxy
    height, width = tab_hw
    edge = line_width // 2
    x1, y1, x2, y2 = x1 - edge, y1 - edge, x2 + edge, y2 + edge
    # Above or below the box, beside it, and last inside it, where the tab hides the object.
    outside = [(left, top) for left in (x1, x2 - width) for top in (y1 - height, y2)]
    beside = [(left, y1) for left in (x2, x1 - width) if 0 <= left <= size_hw[1] - width]
    places = (
        [place for place in outside if 0 <= place[1] <= size_hw[0] - height] + beside + [(x1, y1), (x1, y2 - height)]
    )
    limit = np.maximum((size_hw[1] - width, size_hw[0] - height), 0)
    top_left = np.clip(np.array(places), 0, limit)
    tabs_xyxy = np.concatenate([top_left, top_left + np.array((width, height))], 1)
    shared = np.minimum(tabs_xyxy[:, None, 2:], taken_xyxy[:, 2:]) - np.maximum(
        tabs_xyxy[:, None, :2], taken_xyxy[:, :2]
    )
    hidden = shared.clip(0).prod(2).sum(1)
    return tabs_xyxy[np.argmin(hidden)], hidden.min()


def _draw_tab(image, tab_xyxy, text, size, colour):
    x1, y1, x2, y2 = tab_xyxy.tolist()
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour, cv2.FILLED)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)
    # The room below the baseline holds the tails of g, j and y.
    write_text(image, text, (x1 + size // 4, y2 - round(size * 0.4)), size, ink, _WEIGHT)
