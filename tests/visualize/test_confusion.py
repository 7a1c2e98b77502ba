import numpy as np
import pytest

from utils.visualize.confusion import confusion_picture


@pytest.mark.parametrize(("count", "cells"), [(1, 110), (3, 110), (80, 24)])
def test_the_picture_grows_with_the_classes(count, cells):
    """Prevents cells too small for their numbers, and a picture as large as a wall for one class."""
    matrix = np.eye(count + 1, dtype=int) * 7
    matrix[count, count] = 0
    matrix[0] = [3, *[0] * (count - 1), 1]
    image = confusion_picture(matrix, [f"类别 {number}" for number in range(count)])["confusion"]
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert cells * (count + 1) + 80 < image.shape[0] < cells * (count + 1) + 200
    # 75 % of the blue of what is right, and 25 % of the red of what is missed.
    assert ((image == (63, 149, 218)).all(2)).sum() > cells * cells / 2
    assert ((image == (248, 205, 208)).all(2)).sum() > cells * cells / 2


def test_rows_without_boxes_are_grey():
    """Prevents a class that does not occur from looking like one of which all was wrong, or nothing."""
    image = confusion_picture(np.zeros((3, 3), int), ["cat", "dog"], "a note")["confusion"]
    assert (image == 240).all(2).sum() > 0.95 * 9 * 109**2


def test_too_many_classes():
    """Prevents a picture of gigabytes: of 500 classes, 80 are shown."""
    matrix = np.diag(np.arange(501))
    matrix[500, 500] = 0
    assert max(confusion_picture(matrix, ["x"] * 500)["confusion"].shape) < 2300
