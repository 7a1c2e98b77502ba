import numpy as np
import pytest

from utils.data.annotations import Annotations
from utils.visualize.labels import label_picture


def annotations_of(classes, images=4):
    """Annotations with so many boxes per class, each at the top of an image of 640 x 480, right of its middle."""
    labels = np.repeat(np.arange(len(classes)), classes)
    counts = np.bincount(np.arange(len(labels)) % images, minlength=images)
    boxes = np.tile([330, 10, 394, 42], (len(labels), 1))
    return Annotations(["a.png"] * images, np.tile([480, 640], (images, 1)), counts, boxes, labels)


def drawn(train, val, names):
    image = label_picture(annotations_of(train), annotations_of(val), names, (224, 224))["labels"]
    assert image.shape == (620, 1750, 3) and image.dtype == np.uint8
    return image


@pytest.mark.parametrize("count", [1, 3, 80])
def test_any_number_of_classes(count):
    """Prevents names on top of each other, and names that run out of the picture on the left."""
    image = drawn([5] * count, [2] * count, ["一个很长很长的中文类别名称用来测试"] * count)
    names = image[90:560, :180].min((1, 2)) < 100
    assert (np.diff(names.astype(int)) == 1).sum() == min(count, 20)
    assert (image[:, :5] == 255).all()


def test_boxes_are_drawn_where_they_are():
    """Prevents x and y from being swapped, and sizes in pixels of the image: 64 x 32 becomes 22 x 11."""
    image = drawn([30], [0], ["cat"]).astype(int)
    heat = image[108:545, 1230:1665]
    darkest = np.argwhere((heat < 30).all(2))
    # The centre (362, 26) of 640 x 480 is in the first of eight rows and in the fifth column.
    assert darkest[:, 0].max() < 60 and 215 < darkest[:, 1].min() < darkest[:, 1].max() < 280
    sizes = image[105:545, 715:1140]
    blue = np.argwhere((abs(sizes - (0, 114, 206)) < 60).all(2))
    assert len(blue) > 10 and np.ptp(blue, axis=0).max() < 10
    # 446 pixels of the axes are the 7.13 doublings from 2 to 280.
    assert abs(blue[:, 1].mean() - 212) < 4 and abs(blue[:, 0].mean() - 291) < 4


def test_without_boxes():
    """Prevents a crash before a training that only wants to run its code."""
    drawn([0, 0], [0, 0], ["cat", "dog"])
    nothing = Annotations([], np.zeros((0, 2)), [], [], [])
    assert label_picture(nothing, nothing, ["cat"], (224, 224))["labels"].shape == (620, 1750, 3)
