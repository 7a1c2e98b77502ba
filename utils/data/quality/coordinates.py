"""Whether the boxes of a data set are written in the coordinates of its format, or in others by mistake."""

import numpy as np

# Another reading is taken for the right one where it fits so many of the boxes, and this one leaves so many misfits.
FITTING, MISFITS = 0.95, 0.3
# So many misfits, if every box fits another reading, are worth a warning.
FEW_MISFITS, LEAST_MISFITS = 0.03, 3
# Fewer boxes leave a doubt.
LEAST_SURE = 5
# What counts as inside an image, in shares of its side; and the largest side of a box written in shares for pixels.
BORDER, LARGEST_SHARE = 0.02, 1.5
# Corners that are exchanged in both directions are sizes where they lie closer to the origin than this.
LEAST_CORNER = 0.1
# Percent for pixels: boxes of that many fill the first 100 pixels of larger images, and nothing else.
PERCENT, LEAST_BOXES, LEAST_SIDE, LEAST_REACH = 100, 8, 200, 60
NUMBERS = {
    "xyxy": "two corners (x1, y1, x2, y2)",
    "xywh": "the upper left corner and the size (x, y, width, height)",
    "cxcywh": "the centre and the size (cx, cy, width, height)",
}


def other_coordinates(boxes_xyxy: np.ndarray, limits: np.ndarray, written: str) -> tuple[str, bool]:
    """(the other coordinates that the boxes of a data set look like, in words, '' for none; whether that is sure).

    boxes_xyxy: (M, 4) corners as this format understands them, in pixels. limits: (M, 4) width, height, width, height
    of each box's image. written: what the format's four numbers are: "xyxy", "xywh" or "cxcywh".
    """
    # A click draws a box without area; it shows nothing.
    has_sides = (boxes_xyxy[:, 2:] != boxes_xyxy[:, :2]).all(axis=1)
    boxes_xyxy, limits, is_enough = boxes_xyxy[has_sides], limits[has_sides], has_sides.sum() >= LEAST_SURE
    if not len(boxes_xyxy):
        return "", False
    shares = boxes_xyxy / limits
    is_one_pixel = (np.abs(boxes_xyxy) <= LARGEST_SHARE).all(axis=1) & (limits.min(axis=1) > 10)
    if np.mean(is_one_pixel) >= FITTING:
        return "shares of the image, from 0 to 1, where pixels are expected", bool(is_enough)
    misfits = ~_fits(shares)
    is_sure = np.mean(misfits) >= MISFITS
    is_likely = misfits.sum() >= LEAST_MISFITS and np.mean(misfits) >= FEW_MISFITS
    if not (is_sure or is_likely) or _are_swapped(shares[misfits]):
        return "", False
    for kind, corners_xyxy in _readings(_numbers(shares, written)).items():
        # A corner for the centre, or the reverse, leaves few misfits: then all boxes must fit the other reading.
        if kind != written and np.mean(_fits(corners_xyxy)) >= (FITTING if is_sure else 1):
            return f"{NUMBERS[kind]}, where the format has {NUMBERS[written]}", bool(is_sure and is_enough)
    return "", False


def look_like_percent(boxes_xyxy: np.ndarray, limits: np.ndarray) -> bool:
    """Whether boxes in pixels are all in the first 100 pixels of larger images, and go to the end of these."""
    if len(boxes_xyxy) < LEAST_BOXES or limits.min() < LEAST_SIDE:
        return False
    reach = boxes_xyxy[:, 2:].max(axis=0)
    return bool(boxes_xyxy.min() >= 0 and (reach <= PERCENT).all() and (reach >= LEAST_REACH).all())


def in_order(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(M, 4) the same boxes with the upper left corner first."""
    return np.concatenate(
        [np.minimum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:]), np.maximum(boxes_xyxy[:, :2], boxes_xyxy[:, 2:])], axis=1
    )


def turned(box_xyxy: np.ndarray, orientation: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) of an image as it is stored, in the image as EXIF data turn it.

    orientation: 5 to 8, which exchange height and width. size_hw: (height, width) of the turned image.
    """
    height, width = size_hw
    x1, y1, x2, y2 = box_xyxy.T
    # Rows become columns; then the image is mirrored as the orientation says.
    left, right = (width - y2, width - y1) if orientation in (6, 7) else (y1, y2)
    top, bottom = (height - x2, height - x1) if orientation in (7, 8) else (x1, x2)
    return np.stack([left, top, right, bottom], axis=1)


def _numbers(shares: np.ndarray, written: str) -> np.ndarray:
    """(M, 4) the numbers as they were written, from the corners that they were understood as."""
    first, second = shares[:, :2], shares[:, 2:]
    start = {"xyxy": first, "xywh": first, "cxcywh": (first + second) / 2}[written]
    return np.concatenate([start, second if written == "xyxy" else second - first], axis=1)


def _readings(numbers: np.ndarray) -> dict[str, np.ndarray]:
    """{kind of coordinates: corners (M, 4) that the numbers mean then}."""
    first, second = numbers[:, :2], numbers[:, 2:]
    return {
        "xyxy": np.concatenate([first, second], axis=1),
        "xywh": np.concatenate([first, first + second], axis=1),
        "cxcywh": np.concatenate([first - second / 2, first + second / 2], axis=1),
    }


def _are_swapped(misfits: np.ndarray) -> bool:
    """Whether boxes that do not fit were drawn from the lower right: their corners are exchanged in both directions."""
    is_swapped = (misfits[:, 2:] < misfits[:, :2]).all(axis=1) & _fits(in_order(misfits))
    return bool(np.mean(is_swapped) >= FITTING and np.median(misfits[:, 2:]) >= LEAST_CORNER)


def _fits(shares: np.ndarray) -> np.ndarray:
    """(M,) whether boxes have an area, and end inside their image."""
    has_area = (shares[:, 2:] > shares[:, :2]).all(axis=1)
    return has_area & (shares >= -BORDER).all(axis=1) & (shares <= 1 + BORDER).all(axis=1)
