"""Lines over an axis as coordinates of a drawing of SIZE, for pages that draw them by themselves (SVG)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Width and height of the drawing, and its edges: left, top, right, bottom.
SIZE, _EDGES = (400, 230), (40, 8, 392, 206)
MOST_POINTS, _MOST_DOTS, _TICKS = 400, 12, 5


class Line(NamedTuple):
    """name, and a number in words that stands behind it; points: [(x, y)] of the drawing; dots: some of them, where
    these are few."""

    name: str
    number: str
    points: list
    dots: list


class Chart(NamedTuple):
    """lines: [Line]. x_ticks, y_ticks: [(coordinate, text)]."""

    lines: list
    x_ticks: list
    y_ticks: list


def line_chart(series: Sequence[tuple], y_range=(None, None), x_range=(None, None), whole_x=False) -> Chart | None:
    """A Chart of [(name, number in words, xs (N,), ys (N,))].

    What is NaN or infinite is left out, and a series without numbers is, too; None where nothing is left. y_range,
    x_range: (lowest, highest), None for what the numbers need; a larger y is drawn at the upper edge. whole_x: the
    numbers of the x axis have no fractions.
    """
    lines = []
    for name, number, xs, ys in series:
        points = np.stack([np.asarray(xs, np.float64), np.asarray(ys, np.float64)], 1)
        points = points[np.isfinite(points).all(1)]
        if len(points):
            lines.append((name, number, points[_thinned(len(points))]))
    if not lines:
        return None
    everything = np.concatenate([points for _, _, points in lines])
    x_low, x_high = _ends(everything[:, 0], x_range)
    y_low, y_high = _ends(everything[:, 1], y_range)
    left, top, right, bottom = _EDGES

    def placed(points):
        x = left + (points[:, 0] - x_low) / (x_high - x_low) * (right - left)
        y = bottom - (points[:, 1].clip(y_low, y_high) - y_low) / (y_high - y_low) * (bottom - top)
        return np.stack([x, y], 1).round(1).tolist()

    drawn = []
    for name, number, points in lines:
        path = placed(points)
        drawn.append(Line(name, number, path, path if len(path) <= _MOST_DOTS else []))
    x_ticks = [(placed(np.array([[value, y_low]]))[0][0], text) for value, text in ticks(x_low, x_high, whole_x)]
    y_ticks = [(placed(np.array([[x_low, value]]))[0][1], text) for value, text in ticks(y_low, y_high)]
    return Chart(drawn, x_ticks, y_ticks)


def ticks(low: float, high: float, is_whole: bool = False) -> list[tuple[float, str]]:
    """[(value, text)] of round numbers from low to high, up to a handful. is_whole: no fractions."""
    raw = max((high - low) / _TICKS, 1 if is_whole else 0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    numbers = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(float(number * step), _tick_text(number * step)) for number in numbers]


def _tick_text(value):
    """Six characters at most have room beside the axis: 0.25, 5000, 2e-4."""
    text = f"{value:.4g}"
    is_short = len(text) <= 5 and "e" not in text
    return text if is_short else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")


def _ends(values, given):
    """The two ends of an axis, never the same."""
    low, high = (
        float(end) if wanted is None else wanted
        for wanted, end in zip(given, (values.min(), values.max()), strict=True)
    )
    return (low, high) if high > low else (low, low + (abs(low) or 1))


def _thinned(count):
    """Which of so many points are drawn: the last, and others at even distances."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
