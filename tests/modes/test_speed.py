import time

import numpy as np
import pytest

from utils.inference.base import NMSOptions
from utils.modes.speed import stage_times, times_table


class Slow:
    """A detector whose stages take 1, 8 and 3 ms; the first call takes a second."""

    calls = 0

    def preprocess(self, images_rgb):
        time.sleep(0.001)
        return len(images_rgb), None

    def forward(self, batch):
        assert batch == 2
        self.calls += 1
        time.sleep(0.008 if self.calls > 1 else 0.3)

    def postprocess(self, output, placements, sizes_hw, options):
        assert sizes_hw == [(2, 3)] * 2
        time.sleep(0.003)

    def synchronize(self):
        pass


def test_stages_are_timed_apart_and_without_the_first_calls():
    """Prevents times of the wrong stage, and the slow first call in the result."""
    detector = Slow()
    seconds = stage_times(detector, [np.zeros((2, 3, 3), np.uint8)] * 2, 5, NMSOptions(0.5, 0.5, 300))
    assert (seconds.shape, detector.calls) == ((5, 3), 8)
    low = np.median(seconds, 0)
    assert (low >= [0.001, 0.008, 0.003]).all() and seconds[:, 1].max() < 0.3
    assert stage_times(Slow(), [np.zeros((2, 3, 3), np.uint8)] * 2, 1, None).shape == (1, 3)


def test_the_table():
    """Prevents seconds shown as milliseconds, and means that one slow call shifts."""
    seconds = np.array([[0.001, 0.01, 0.002]] * 9 + [[1.0, 1.0, 1.0]])
    lines = times_table(seconds).splitlines()
    assert lines[1] == "preprocessing         1.00   1.00 to 100.90"
    assert [line.split()[0] for line in lines[2:5]] == ["network", "post-processing", "all"]
    assert float(lines[4].split()[1]) == pytest.approx(13)
    assert lines[5] == "76.9 pictures each second"
