"""The lines of YOLO's label files: boxes, outlines, and boxes with more numbers behind them.

`class cx cy w h` is a box and `class x1 y1 x2 y2 x3 y3 ...` an outline; all but the class are shares of the image's
width and height, as https://docs.ultralytics.com/datasets/detect describes. Programs for key points and tracking write
a box first and then points (x y, or x y v with v 0, 1 or 2), an outline, or a confidence and a track. A line does not
say which it is, so the lines of the whole data set decide.
"""

import math
import reprlib
from typing import NamedTuple

import numpy as np

from utils.data.formats.base import RawAnnotationsBuilder
from utils.data.formats.class_files import ClassNames

# Boxes may reach a little beyond their image; numbers far outside 0 to 1 are pixels by mistake.
LOWEST_SHARE, HIGHEST_SHARE = -0.5, 1.5
EXPECTED = "expected `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`"
_SIXTH = "; leave out the sixth number, such as a confidence or a track"
# A box ends inside its image, and holds its points, up to so much of the image or of the box.
BORDER, SLACK = 0.02, 0.1
# A reading that holds for so many of the lines is theirs; one that holds for fewer than the second is not.
SURE, UNSURE = 0.9, 0.6
# Numbers of triangles and turned boxes. From so many lines on, other outlines have not all one length.
COMMON_OUTLINES, LEAST_ROWS = {6, 8}, 4
_AMBIGUOUS = (
    "is it an outline, or a box `cx cy w h` with more numbers behind it? Name kpt_shape in the data.yaml, or export "
    "the data set for detection (boxes)"
)


class LongRow(NamedTuple):
    """A line of more than five numbers: the box that it means as an outline, the box that its first numbers are, and
    what speaks for each."""

    place: str
    image: str
    line: str
    outline_xyxy: tuple
    box_xyxy: tuple
    has_box_first: bool  # the first four numbers are a box inside the image that holds the rest
    is_inside: bool  # that box ends inside the image
    is_around: bool  # that box is just what the outline of the rest takes
    is_track: bool  # a confidence and the number of a track follow
    is_outline: bool  # all numbers are places, the first two near the others
    is_parallelogram: bool  # four corners of a turned box
    is_wide: bool  # the rest takes half of that box in both directions
    can_be_outline: bool
    count: int


class RowReader:
    """Adds lines of label files to a builder. known: names of the classes, if any. keypoints: numbers of key points
    behind each box, where the data.yaml says so."""

    def __init__(self, builder: RawAnnotationsBuilder, known: ClassNames | None, keypoints: int | None = None):
        self.builder, self.known, self.keypoints = builder, known, keypoints
        self.long_rows, self.plain_rows = [], 0  # (place in the builder's boxes, LongRow)

    def add(self, line: str, place: str) -> None:
        """Add the box of a line to the image that was added last, or report what is wrong with it."""
        try:
            values = [float(value) for value in line.split()]
        except ValueError:
            values = [math.nan]
        if not values:
            return
        class_index, shares = values[0], values[1:]
        count = 4 if len(shares) - 4 == self.keypoints else len(shares)
        is_outline = count >= 6 and count % 2 == 0
        if not all(map(math.isfinite, values)) or not (count == 4 or is_outline or _has_keypoints(shares)):
            expected = EXPECTED + (_SIXTH if len(shares) == 5 else "")
        elif not class_index.is_integer() or not 0 <= class_index < 2**31:
            expected = "expected a class of 0 or more, a whole number"
        elif not _are_shares(shares[:4]):
            expected = f"expected shares of the image, from 0 to 1{_unit_of(max(shares[:4]))}"
        elif self.known and class_index >= len(self.known.names):
            expected = f"expected a class from 0 to {len(self.known.names) - 1}, as {self.known}"
            self.report(place, line, expected, "class_beyond_names")
            return
        else:
            if count == 4:
                self.plain_rows += 1
            else:
                self.long_rows.append((len(self.builder.classes), self.long_row(shares, place, line)))
            self.builder.add_box(_as_box(shares), int(class_index))
            return
        self.report(place, line, expected)

    def long_row(self, shares: list[float], place: str, line: str) -> LongRow:
        box_xyxy, rest = _as_box(shares), shares[4:]
        points = list(zip(rest[0::3], rest[1::3], strict=True)) if _has_keypoints(shares) else _pairs(rest)
        corners, rest_xyxy = _pairs(shares), _around(points)
        can_be_outline = len(shares) % 2 == 0 and _are_shares(shares)
        is_inside, is_track = _is_inside_image(box_xyxy), _is_track(rest)
        return LongRow(
            place,
            self.builder.paths[-1],
            f"{reprlib.repr(line.strip())} ({len(shares) + 1} numbers)",
            _around(corners),
            box_xyxy,
            is_inside and (is_track or _holds(box_xyxy, points)),
            is_inside,
            max(abs(first - second) for first, second in zip(box_xyxy, rest_xyxy, strict=True)) <= BORDER,
            is_track,
            can_be_outline and _is_near(corners),
            len(corners) == 4 and _is_parallelogram(corners),
            _is_wide(rest_xyxy, box_xyxy),
            can_be_outline,
            len(shares),
        )

    def finish(self) -> None:
        """Decide what the long lines are, all alike, and set their boxes; where that stays open, report them."""
        rows = [row for _, row in self.long_rows]
        reading = _reading(rows, self.plain_rows > 0)
        for at, row in self.long_rows:
            box_xyxy = row.outline_xyxy if reading == "outline" else row.box_xyxy
            self.builder.boxes_xyxy[4 * at : 4 * at + 4] = type(self.builder.boxes_xyxy)("d", box_xyxy)
            if reading is None:
                self.builder.report("broken_annotation", row.image, f"{row.place}: {row.line}; {_AMBIGUOUS}")
            elif reading == "outline" and not row.can_be_outline:
                self.builder.report("broken_annotation", row.image, f"{row.place}: {row.line}; {EXPECTED}")
        if reading == "box":
            self.builder.report("extra_numbers", rows[0].image, f"{len(rows)} lines, such as {rows[0].line}")

    def report(self, place: str, line: str, expected: str, kind: str = "broken_annotation") -> None:
        self.builder.report(kind, self.builder.paths[-1], f"{place}: {reprlib.repr(line.strip())}; {expected}")


def _reading(rows: list[LongRow], has_plain: bool) -> str | None:
    """What lines of more than five numbers are: "box", with more behind it, "outline", or None where both are likely.

    has_plain: lines of five numbers are there, too. The first two points of an outline always lie near the others,
    while the size of a box is no place. Where it looks like one, because all objects are large and in the middle, and
    the box of the first numbers holds the rest, as with small outlines in the middle, more has to speak for a box.
    """
    if not rows:
        return "outline"

    def is_usual(flag):
        return np.mean([getattr(row, flag) for row in rows]) >= SURE

    if is_usual("is_track") or is_usual("is_around"):
        return "box"
    if np.mean([row.is_outline for row in rows]) < UNSURE:
        return "box" if is_usual("is_inside") else None
    if not is_usual("is_outline"):
        return "box" if is_usual("has_box_first") else None
    lengths = {row.count for row in rows}
    # Points of a skeleton are as many for each box, and no box lacks them.
    if not is_usual("has_box_first") or has_plain or len(lengths) > 1 or is_usual("is_parallelogram"):
        return "outline"
    is_skeleton = len(rows) >= LEAST_ROWS and lengths.isdisjoint(COMMON_OUTLINES)
    return "box" if is_skeleton or np.median([row.is_wide for row in rows]) == 1 else None


def _are_shares(values: list[float]) -> bool:
    return min(values) >= LOWEST_SHARE and max(values) <= HIGHEST_SHARE


def _unit_of(largest: float) -> str:
    if largest <= HIGHEST_SHARE:
        return ""
    return ", and these look like percent" if largest <= 100 else ", and these look like pixels"


def _as_box(shares: list[float]) -> tuple[float, float, float, float]:
    centre_x, centre_y, width, height = shares[:4]
    return centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    return list(zip(values[0::2], values[1::2], strict=False))


def _around(points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _has_keypoints(shares: list[float]) -> bool:
    """Whether points x y v follow a box, v saying whether the point is hidden (1), seen (2), or not labelled (0)."""
    return len(shares) >= 7 and (len(shares) - 4) % 3 == 0 and set(shares[6::3]) <= {0, 1, 2}


def _is_track(rest: list[float]) -> bool:
    """Whether two numbers behind a box are a confidence and the number of a track."""
    return len(rest) == 2 and 0 <= rest[0] <= 1 and rest[1].is_integer()


def _is_inside_image(box_xyxy: tuple) -> bool:
    x1, y1, x2, y2 = box_xyxy
    return min(x1, y1) >= -BORDER and max(x2, y2) <= 1 + BORDER and x2 > x1 and y2 > y1


def _holds(box_xyxy: tuple, points: list[tuple[float, float]]) -> bool:
    """Whether points lie in a box; those at (0, 0) are not labelled."""
    x1, y1, x2, y2 = box_xyxy
    aside, above = SLACK * (x2 - x1), SLACK * (y2 - y1)
    seen = [(x, y) for x, y in points if x or y]
    return all(x1 - aside <= x <= x2 + aside and y1 - above <= y <= y2 + above for x, y in seen)


def _is_near(corners: list[tuple[float, float]]) -> bool:
    """Whether the second corner of an outline lies no further from the others than they take.

    Thrice that of a triangle, whose two other corners may be close together.
    """
    (x, y), others = corners[1], [corners[0], *corners[2:]]
    x1, y1, x2, y2 = _around(others)
    side = max(x2 - x1, y2 - y1) * (3 if len(corners) == 3 else 1)
    return x1 - side <= x <= x2 + side and y1 - side <= y <= y2 + side


def _is_parallelogram(corners: list[tuple[float, float]]) -> bool:
    x1, y1, x2, y2 = _around(corners)
    slack = 2 * SLACK * max(x2 - x1, y2 - y1)
    first, second, third, fourth = corners
    return all(abs(first[axis] + third[axis] - second[axis] - fourth[axis]) <= slack for axis in (0, 1))


def _is_wide(rest_xyxy: tuple, box_xyxy: tuple) -> bool:
    """Whether points take half of a box or more in both directions; outlines that are taken for boxes take a fifth."""
    return all(rest_xyxy[axis + 2] - rest_xyxy[axis] >= (box_xyxy[axis + 2] - box_xyxy[axis]) / 2 for axis in (0, 1))
