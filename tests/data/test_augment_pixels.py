from dataclasses import replace

import numpy as np
import pytest

from utils.data.annotations import Records
from utils.data.augment import AugmentSettings, SampleKey, SamplePlan, Tile, plan_sample, plan_targets, render
from utils.image.codec import reduce
from utils.image.letterbox import letterbox

SIZES_HW = [(480, 640), (300, 200), (60, 50), (1000, 700)]
SHAPE = (256, 320)
SETTINGS = AugmentSettings(augment_epochs=1, mixup=False)


def drawn_data(seed=0):
    """Black images with one white rectangle each, and records with its box."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for height, width in SIZES_HW:
        x1, y1 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        x2, y2 = x1 + int(rng.integers(width // 4, width // 2)), y1 + int(rng.integers(height // 4, height // 2))
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        images.append(image)
        boxes.append((x1, y1, x2, y2))
    count = len(SIZES_HW)
    return images, Records([f"{i}.jpg" for i in range(count)], SIZES_HW, [1] * count, boxes, [0] * count)


def plan_of(records, index, seed=0, settings=SETTINGS):
    """The plan of a sample of epoch 0 whose partners are drawn by its index."""
    partners = np.random.default_rng(index).integers(len(records), size=7).tolist()
    return plan_sample(records, SampleKey(0, index, SHAPE, tuple(partners)), seed, settings)


def same_size(images):
    """Records of images that have the size in the records."""
    return Records(["a.jpg"] * len(images), [image.shape[:2] for image in images], [0] * len(images), [], [])


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("mosaic", [True, False])
def test_boxes_lie_on_what_is_drawn(mosaic, reduction):
    """Prevents boxes that are shifted against the pixels by cropping, rounding, flipping, or images decoded smaller."""
    settings = replace(SETTINGS, mosaic=mosaic, pad=0, hue_gain=0, saturation_gain=0, value_gain=0)
    errors = []
    for seed in range(60):
        images, records = drawn_data(seed)
        images = [reduce(image, reduction) for image in images]
        plan = plan_of(records, seed, seed, settings)
        white = (render(plan, images.__getitem__, records, 0) > 127).all(axis=2)
        for x1, y1, x2, y2 in plan_targets(records, plan)[0].tolist():
            y, x = (int(y1) + int(y2)) // 2, (int(x1) + int(x2)) // 2
            if reduction > 1 and not white[y, x]:
                continue  # a few pixels of a small image, which a quarter of it does not show
            columns, rows = run_around(white[y], x), run_around(white[:, x], y)
            errors.append(np.abs(np.subtract((columns[0], rows[0], columns[1], rows[1]), (x1, y1, x2, y2))))
    # A rectangle cut by a tile's border may touch another one there, so a few sides do not end where its box does.
    errors = np.concatenate(errors)
    assert len(errors) > 150
    assert np.quantile(errors, 0.9) <= (1.01 if reduction == 1 else reduction)
    assert np.median(errors) <= (0.5 if reduction == 1 else reduction / 2)


def run_around(values, position):
    """Start and end of the run of True values that holds a position."""
    assert values[position]
    off = np.flatnonzero(~values)
    start = off[off < position].max(initial=-1) + 1
    return start, off[off > position].min(initial=len(values))


@pytest.mark.parametrize("mode", ["topleft", "center", "stretch"])
def test_plain_sample_equals_letterbox(mode):
    """Prevents another interpolation or padding in training than in inference."""
    plain = AugmentSettings(resize_mode=mode)
    rng = np.random.default_rng(0)
    _, records = drawn_data()
    for index, size_hw in enumerate(SIZES_HW):
        image = rng.integers(0, 256, (*size_hw, 3), np.uint8)
        canvas = render(plan_of(records, index, settings=plain), {index: image}.get, records, plain.pad)
        np.testing.assert_array_equal(canvas, letterbox(image, (256, 320), plain.rule)[0])


def test_colour_and_flip_leave_the_padding_alone():
    """Prevents training on padding of other colours and on other sides than inference shows."""
    image = np.zeros((40, 10, 3), np.uint8)
    image[:, :5] = 100
    tile = Tile(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 40, 10))
    plan = SamplePlan((40, 20), (tile,), gains=(0.0, 1.0, 2.0), flip=True)
    canvas = render(plan, lambda index: image, same_size([image]), 114)
    assert canvas[0, :, 0].tolist() == [0] * 5 + [200] * 5 + [114] * 10


def test_colour_literal_values():
    """Prevents a hue that turns the wrong way, and gains that act on the wrong part of a colour."""
    image = np.array([[[200, 50, 50], [50, 50, 200], [90, 90, 90]]], np.uint8)
    tile = Tile(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 1, 3))

    def changed(*gains):
        plan = SamplePlan((1, 3), (tile,), gains=gains)
        return render(plan, lambda index: image, same_size([image]), 114)[0].astype(int)

    def near(got, expected):
        np.testing.assert_allclose(got, expected, atol=1)

    near(changed(0.0, 0.0, 1.0), [[200, 200, 200], [200, 200, 200], [90, 90, 90]])
    near(changed(0.0, 0.5, 1.0), [[200, 125, 125], [125, 125, 200], [90, 90, 90]])
    near(changed(0.0, 1.0, 0.5), [[100, 25, 25], [25, 25, 100], [45, 45, 45]])
    near(changed(0.0, 2.0, 1.0), [[200, 0, 0], [0, 0, 200], [90, 90, 90]])
    near(changed(0.0, 1.0, 9.0), [[255, 255, 255], [255, 255, 255], [255, 255, 255]])
    # A twelfth of the circle from red towards yellow and from blue towards violet, and back.
    near(changed(1 / 12, 1.0, 1.0), [[173, 81, 0], [90, 30, 198], [90, 90, 90]])
    near(changed(-1 / 12, 1.0, 1.0), [[198, 31, 149], [15, 74, 167], [90, 90, 90]])


def test_mixup_weights():
    """Prevents the partner from getting the weight of the sample."""
    tile, other = (Tile(index, 1.0, 1.0, 0.0, 0.0, (0, 0, 8, 8)) for index in (0, 1))
    images = [np.full((8, 8, 3), value, np.uint8) for value in (100, 200)]
    plan = SamplePlan((8, 8), (tile,), SamplePlan((8, 8), (other,)), 0.75)
    canvas = render(plan, images.__getitem__, same_size(images), 114)
    assert np.unique(canvas).tolist() == [125]


def test_images_are_not_written_to():
    """Prevents a cached image from changing with every sample that uses it."""
    settings = replace(SETTINGS, mixup=True, mixup_prob=1.0)
    images, records = drawn_data()
    copies = [image.copy() for image in images]
    for image in images:
        image.flags.writeable = False
    for index in range(20):
        canvas = render(plan_of(records, index, settings=settings), images.__getitem__, records, 114)
        assert (canvas.shape, canvas.dtype) == ((256, 320, 3), np.uint8)
    for image, copy in zip(images, copies, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_one_pixel_image():
    """Prevents a crash on an image of one pixel in a mosaic."""
    records = Records(["a.jpg"], [(1, 1)], [0], np.zeros((0, 4)), [])
    image = np.full((1, 1, 3), 50, np.uint8)
    neutral = replace(SETTINGS, hue_gain=0, saturation_gain=0, value_gain=0)
    for index in range(50):
        canvas = render(plan_of(records, index, settings=neutral), lambda index: image, records, 114)
        assert set(np.unique(canvas)) <= {50, 114}
