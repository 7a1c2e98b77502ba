from dataclasses import replace

import numpy as np
import pytest

from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions, SampleKey, augmented_targets, images_of, sample_parameters
from utils.data.copy_paste import Pasted, choose_pasted, find_donors, shown_share
from utils.data.draw import apply_parameters, paste

SHAPE = (100, 120)
# Class 0 has nine boxes, class 1 one, class 2 four; the first box of class 2 is half covered by another.
BOXES = [
    *[[(10 * x, 0, 10 * x + 8, 10, 0) for x in range(9)]],
    *[[(40, 40, 60, 70, 1)]],
    *[[(10, 10, 30, 30, 2), (20, 10, 40, 30, 2), (50, 50, 70, 70, 2), (75, 75, 95, 95, 2)]],
    [],
]


def annotations_of(images):
    """100 x 100 pixels each; images: lists of (x1, y1, x2, y2, class)."""
    boxes = np.array([box for image in images for box in image], float).reshape(-1, 5)
    names, counts = [f"{number}.jpg" for number in range(len(images))], list(map(len, images))
    return Annotations(names, [(100, 100)] * len(images), counts, boxes[:, :4], boxes[:, 4])


UNEVEN = annotations_of(BOXES)
OPTIONS = AugmentOptions(
    augment_epochs=2, mixup=False, scale_range=(0.7, 1.4), copy_paste=1.0, donors=find_donors(UNEVEN)
)


def parameters_of(index, epoch=0, **changes):
    return sample_parameters(
        UNEVEN, SampleKey(epoch, index, SHAPE, (0, 1, 2, 3, 0, 1, 2)), 3, replace(OPTIONS, **changes)
    )


def test_donors_are_the_whole_boxes_of_rare_classes():
    """Prevents boxes of the commonest class, and halves of other objects, from being pasted; sqrt(9 / 1) - 1 = 2 of the
    chances are class 1's, and sqrt(9 / 4) - 1 = 0.5 are shared by the two whole boxes of class 2."""
    donors = find_donors(UNEVEN)
    assert (donors.rows.tolist(), donors.images.tolist()) == ([9, 12, 13], [1, 2, 2])
    assert donors.chances.tolist() == pytest.approx([0.8, 0.9, 1.0])


@pytest.mark.parametrize("images", [[], [[]], [[(0, 0, 9, 9, 0)], [(0, 0, 9, 9, 1)]]])
def test_equal_classes_have_no_donors(images):
    """Prevents a failure where nothing is rarer than another."""
    assert find_donors(annotations_of(images)) is None


def test_a_crowd_has_no_donors():
    """Prevents an image with a hundred thousand boxes from filling the memory before the first epoch."""
    assert find_donors(annotations_of([[(0, 0, 9, 9, 0)] * 1001 + [(20, 20, 29, 29, 1)]])) is None


def test_places_keep_the_rules():
    """Prevents pasted boxes outside the images, too small to see, or over what is there."""
    there, clips = np.array([[10.0, 10, 60, 60]]), [(0, 0, 50, 120), (50, 20, 100, 100)]
    seen = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        pasted = choose_pasted(UNEVEN, OPTIONS.donors, clips, there, SHAPE, (0.3, 1.4), random)
        seen += len(pasted)
        boxes = np.vstack([there, *([part.box_xyxy] for part in pasted)])
        for number, part in enumerate(pasted, 1):
            y1, x1, y2, x2 = part.clip_yxyx
            assert any(top <= y1 < y2 <= bottom and left <= x1 < x2 <= right for top, left, bottom, right in clips)
            box = np.array(part.box_xyxy)
            assert x1 <= box[0] < box[2] <= x2 and y1 <= box[1] < box[3] <= y2
            assert (box[2:] - box[:2]).min() >= 7
            others = boxes[:number]
            inner = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None)
            assert (inner.prod(axis=1) / (others[:, 2:] - others[:, :2]).prod(axis=1)).max() <= 0.3
    assert 200 < seen < 500


def test_a_box_that_fits_nowhere_is_left_out():
    """Prevents an endless search on a canvas that is full."""
    random = np.random.default_rng(0)
    assert choose_pasted(UNEVEN, OPTIONS.donors, [(0, 0, 5, 5)], np.zeros((0, 4)), SHAPE, (1, 1), random) == ()


def test_what_is_pasted_is_a_pure_function_of_the_key():
    """Prevents samples that differ between workers or after a resume, and pasting where augmentation is over."""
    assert parameters_of(3).pasted == parameters_of(3).pasted != parameters_of(7).pasted
    assert sum(len(parameters_of(index).pasted) for index in range(20)) > 20
    assert parameters_of(3, epoch=2).pasted == ()


def test_without_copy_paste_the_other_choices_are_as_ever():
    """Prevents runs of before from drawing other samples, and donors that are pasted though copy_paste is 0."""
    off = parameters_of(3, copy_paste=0.0)
    assert off == parameters_of(3, copy_paste=0.0, donors=None) and off.pasted == ()
    assert parameters_of(3, donors=None) == off
    share = np.mean([bool(parameters_of(index, copy_paste=0.3, mosaic=False).pasted) for index in range(400)])
    assert 0.2 < share < 0.35


def test_pasted_boxes_are_targets():
    """Prevents objects in the picture that the network is taught not to find; a flip takes them along."""
    params = parameters_of(3, flip_prob=0.0)
    boxes, labels = augmented_targets(UNEVEN, params)
    count = len(params.pasted)
    assert count and images_of(params) >= {part.index for part in params.pasted}
    assert np.allclose(boxes[-count:], [part.box_xyxy for part in params.pasted])
    assert labels[-count:].tolist() == [part.label for part in params.pasted]
    flipped, _ = augmented_targets(UNEVEN, params._replace(flip=True))
    assert np.allclose((flipped + boxes)[-1, [0, 2]], flipped[-1, [0, 2]] + boxes[-1, [0, 2]])
    assert not np.allclose(flipped[-1], boxes[-1])


def test_pixels_of_a_pasted_box():
    """Prevents a hard edge, or pixels of another place: four pixels lead from 100 to 200."""
    canvas, image = np.full((40, 40, 3), 100, np.uint8), np.full((100, 100, 3), 50, np.uint8)
    image[20:40, 20:44] = 200
    pasted = Pasted(0, 1.0, 1.0, -10.0, -15.0, (10, 5, 30, 29), (9, 14, 25, 26), 1)
    paste(canvas, pasted, image, (100, 100))
    assert canvas[20, :10, 0].tolist() == [100, 100, 100, 100, 100, 112, 138, 162, 188, 200]
    assert (canvas[14:26, 9:25] == 200).all() and (canvas[:10] == 100).all() and (canvas[30:] == 100).all()
    smaller = np.full((40, 40, 3), 100, np.uint8)
    paste(smaller, pasted, image[::2, ::2], (100, 100))
    assert (smaller == canvas).all()


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (2, 2, [0, 0, 0, 0, 0, 0]),
        (2, 3, [0, 0, 0.125, 0, 0, 0]),
        (2, 5, [0, 0, 0.125, 0.375, 0.125, 0]),
        (1, 11, [0, 0.125, 0.375, 0.625, 0.875, 1]),
    ],
)
def test_the_share_that_shows(start, stop, expected):
    """Prevents pasted boxes that are seen at their rim, or beyond it."""
    assert shown_share(np.arange(6), start, stop).tolist() == expected


def test_a_sample_shows_what_was_pasted():
    """Prevents targets without pixels: the donors are white, all else is black."""
    images = [np.zeros((100, 100, 3), np.uint8) for _ in range(4)]
    images[1][:], images[2][:] = 255, 255
    params = parameters_of(3, mosaic=False, hue_gain=0, saturation_gain=0, value_gain=0)
    canvas = apply_parameters(params, images.__getitem__, UNEVEN, 0)
    boxes, _ = augmented_targets(UNEVEN, params)
    assert len(boxes) == len(params.pasted) > 0
    for x1, y1, x2, y2 in boxes.round().astype(int):
        assert canvas[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean() > 200
