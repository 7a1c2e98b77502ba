import numpy as np
import pytest

from utils.visualize.charts import MOST_POINTS, line_chart, ticks


def test_numbers_are_placed_between_the_edges():
    """Prevents a curve that is upside down, or drawn by other numbers than its axis: 0 to 1 is 206 to 8, 1 to 3 is 40
    to 392. A number above the axis stays at its upper edge."""
    chart = line_chart([("a", "0.5", [1, 2, 3], [0, 0.5, 7])], (0, 1))
    assert chart.lines[0].points == chart.lines[0].dots == [[40, 206], [216, 107], [392, 8]]
    assert (chart.x_ticks[0], chart.x_ticks[-1]) == ((40, "1"), (392, "3"))
    assert [text for _, text in chart.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_what_is_no_number_is_left_out():
    """Prevents NaN among the coordinates, which a browser refuses, and an empty line in the legend."""
    chart = line_chart([("a", "", [1, 2, 3], [np.nan, 1, np.inf]), ("b", "", [1, 2], [np.nan, np.nan])])
    assert [(line.name, len(line.points)) for line in chart.lines] == [("a", 1)]
    assert np.isfinite(chart.lines[0].points).all()
    assert line_chart([("a", "", [1], [np.nan])]) is None and line_chart([]) is None


def test_long_runs_stay_small():
    """Prevents a page of megabytes after thousands of epochs; the ends are kept."""
    line = line_chart([("a", "", np.arange(9000), np.arange(9000))]).lines[0]
    assert len(line.points) == MOST_POINTS and (line.points[0], line.points[-1]) == ([40, 206], [392, 8])
    assert line.dots == []


@pytest.mark.parametrize(
    ("low", "high", "is_whole", "texts"),
    [
        (0, 1, False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (1, 2, True, ["1", "2"]),
        (0, 2e-3, False, ["0", "5e-4", "0.001", "1.5e-3", "0.002"]),
        (0, 123456, False, ["0", "5e4", "1e5"]),
    ],
)
def test_ticks_are_round_and_short(low, high, is_whole, texts):
    """Prevents epoch 1.2, and numbers that the edge of the drawing cuts off."""
    assert [text for _, text in ticks(low, high, is_whole)] == texts
