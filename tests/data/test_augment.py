import pickle
from dataclasses import replace

import numpy as np
import pytest

from utils.data.annotations import Annotations
from utils.data.augment import (
    AugmentOptions,
    AugmentParameters,
    PlacedImage,
    SampleKey,
    augmented_targets,
    largest_scales,
    painted_yxyx,
    sample_parameters,
)
from utils.data.draw import apply_parameters
from utils.image.codec import reduce
from utils.image.letterbox import letterbox, placement

SIZES_HW = [(480, 640), (300, 200), (50, 50), (1, 900), (1000, 700)]
SHAPE = (256, 320)
OPTIONS = AugmentOptions(augment_epochs=3)
DRAWN_SIZES_HW = [(480, 640), (300, 200), (60, 50), (1000, 700)]
WITHOUT_MIXUP = AugmentOptions(augment_epochs=1, mixup=False)


def make_annotations(boxes_per_image=3):
    rng = np.random.default_rng(0)
    boxes = []
    for height, width in SIZES_HW:
        corners = np.sort(rng.random((boxes_per_image, 2, 2)), axis=1) * [width, height]
        boxes.append(corners.reshape(-1, 4))
    count = len(SIZES_HW)
    classes = np.arange(count * boxes_per_image) % 3
    return Annotations(
        [f"{i}.jpg" for i in range(count)], SIZES_HW, [boxes_per_image] * count, np.concatenate(boxes), classes
    )


ANNOTATIONS = make_annotations()


def parameters_of(index, epoch=0, seed=0, options=OPTIONS, annotations=ANNOTATIONS):
    """The parameters of a sample whose partners are drawn by its index."""
    partners = np.random.default_rng(index).integers(len(annotations), size=7).tolist()
    return sample_parameters(annotations, SampleKey(epoch, index, SHAPE, tuple(partners)), seed, options)


def test_parameters_are_a_pure_function_of_seed_and_key():
    """Prevents samples that depend on the order of calls, the worker, or a global random state."""
    first = parameters_of(2, 1, 7)
    np.random.seed(0)
    parameters_of(4, 1, 7)
    assert parameters_of(2, 1, 7) == first


def test_no_two_samples_share_a_stream():
    """Prevents workers, epochs, repeats or seeds from drawing the same augmentation again."""
    keys = [(index, epoch, seed) for index in range(10) for epoch in range(3) for seed in range(3)]
    gains = {parameters_of(*key).gains for key in keys}
    assert len(gains) == len(keys)


def test_index_beyond_the_annotations_is_the_same_image_again():
    """Prevents a filled-up batch from holding one augmented image twice."""
    plain = replace(OPTIONS, augment_epochs=0)
    first, again = (parameters_of(index, options=plain) for index in (1, 6))
    assert first.images == again.images
    assert parameters_of(1).gains != parameters_of(6).gains


def test_augmentation_stops_by_epoch():
    """Prevents mosaic from going on in workers that live through all epochs."""
    always = replace(OPTIONS, mixup_prob=1.0)
    samples = [parameters_of(0, epoch, options=always) for epoch in range(5)]
    assert [len(params.images) for params in samples] == [4, 4, 4, 1, 1]
    assert [params.partner is not None for params in samples] == [True, True, True, False, False]
    assert [params.gains == (0.0, 1.0, 1.0) and not params.flip for params in samples] == [
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("mode", ["topleft", "center", "stretch"])
def test_plain_sample_lies_where_letterbox_puts_it(mode):
    """Prevents the last epochs from training on another geometry than inference uses."""
    plain = replace(OPTIONS, augment_epochs=0, resize_mode=mode)
    for index, size_hw in enumerate(SIZES_HW):
        (placed,) = parameters_of(index, options=plain).images
        expected = placement(size_hw, (256, 320), mode)
        assert (placed.index, placed[1:5]) == (index, expected[:4])
        assert placed.clip_yxyx[2] - placed.clip_yxyx[0] == expected.new_hw[0]


def test_probabilities_and_switches():
    """Prevents mosaic_prob and mixup_prob from being ignored, swapped or taken as their complement."""
    options = replace(OPTIONS, mosaic_prob=0.3, mixup_prob=0.8, flip_prob=0.1)
    samples = [parameters_of(index, options=options) for index in range(1000)]
    assert 0.25 < np.mean([len(params.images) == 4 for params in samples]) < 0.35
    assert 0.75 < np.mean([params.partner is not None for params in samples]) < 0.85
    assert 0.07 < np.mean([params.flip for params in samples]) < 0.13
    off = replace(OPTIONS, mosaic=False, mixup=False)
    samples = [parameters_of(index, options=off) for index in range(50)]
    assert {(len(params.images), params.partner) for params in samples} == {(1, None)}


def test_images_of_a_mosaic_stay_in_their_quadrants_and_inside_themselves():
    """Prevents images over each other, outside the canvas, or cropped beyond their edge, down to one pixel."""
    for index in range(300):
        params = parameters_of(index)
        assert index % len(ANNOTATIONS) in [placed.index for placed in params.images]
        covered = np.zeros((256, 320), int)
        for placed in params.images:
            y1, x1, y2, x2 = placed.clip_yxyx
            assert 0 <= y1 < y2 <= 256 and 0 <= x1 < x2 <= 320
            covered[y1:y2, x1:x2] += 1
            crop = [
                (y1 - placed.offset_y) / placed.scale_y,
                (x1 - placed.offset_x) / placed.scale_x,
            ]
            crop += [
                (y2 - placed.offset_y) / placed.scale_y,
                (x2 - placed.offset_x) / placed.scale_x,
            ]
            np.testing.assert_allclose(crop, np.round(crop), atol=1e-6)
            height, width = SIZES_HW[placed.index]
            assert (np.round(crop) >= 0).all() and (np.round(crop) <= [height, width, height, width]).all()
        assert covered.max() == 1


def test_partners_are_those_of_the_key():
    """Prevents a mosaic of images that the worker has not decoded, or a partner that is left out."""
    key = SampleKey(0, 0, SHAPE, (1, 2, 3, 4, 1, 3, 2))
    params = sample_parameters(ANNOTATIONS, key, 0, replace(OPTIONS, mixup_prob=1.0))
    assert sorted(placed.index for placed in params.images) == [0, 1, 2, 3]
    assert sorted(placed.index for placed in params.partner.images) == [1, 2, 3, 4]
    single = sample_parameters(ANNOTATIONS, key, 0, replace(OPTIONS, mosaic=False, mixup_prob=1.0))
    assert [placed.index for placed in single.images + single.partner.images] == [0, 4]


def test_largest_scales():
    """Prevents images that are decoded smaller than a sample draws them, or larger than any does."""
    plain = replace(OPTIONS, augment_epochs=0)
    # 320 / 640; 256 / 300; 256 / 50; 320 / 900; 256 / 1000: the smaller of height and width.
    fit = [0.5, 0.853333, 5.12, 0.355556, 0.256]
    np.testing.assert_allclose(largest_scales(ANNOTATIONS, [SHAPE], plain), fit, rtol=1e-5)
    np.testing.assert_allclose(largest_scales(ANNOTATIONS, [(64, 64), SHAPE], plain), fit, rtol=1e-5)
    stretched = largest_scales(ANNOTATIONS, [SHAPE], replace(plain, resize_mode="stretch"))
    np.testing.assert_allclose(stretched, [0.533333, 1.6, 6.4, 256, 0.457143], rtol=1e-5)
    largest = largest_scales(ANNOTATIONS, [SHAPE], OPTIONS)
    np.testing.assert_allclose(largest, np.array(fit) * 1.5 * 1.25**0.5, rtol=1e-5)
    for index in range(200):
        for placed in parameters_of(index).images:
            # Scales are nudged to whole pixels, the more the smaller the image.
            if min(SIZES_HW[placed.index]) > 10:
                assert max(placed.scale_y, placed.scale_x) <= largest[placed.index] * 1.05


def one_box(boxes_xyxy, size_hw=(100, 100)):
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    return Annotations(["a.jpg"], [size_hw], [len(boxes_xyxy)], boxes_xyxy, np.arange(len(boxes_xyxy)))


def test_targets_literal_values():
    """Prevents boxes that are scaled after the offset, not clipped to what is seen, or flipped about the wrong axis."""
    annotations = one_box([[10, 20, 50, 60], [0, 0, 20, 10], [30, 0, 80, 100]])
    placed = PlacedImage(0, 2.0, 1.0, 30.0, 100.0, (40, 110, 200, 160))
    boxes_xyxy, labels = augmented_targets(annotations, AugmentParameters(SHAPE, (placed,)))
    # In the canvas: [110, 70, 150, 150]; [100, 30, 120, 50], of which a quarter is visible; [130, 30, 180, 230], 0.48.
    assert boxes_xyxy.tolist() == [[110, 70, 150, 150], [130, 40, 160, 200]]
    assert (boxes_xyxy.dtype, labels.tolist()) == (np.float32, [0, 2])
    boxes_xyxy, _ = augmented_targets(annotations, AugmentParameters(SHAPE, (placed,), flip=True))
    assert boxes_xyxy.tolist() == [[120, 70, 160, 150], [110, 40, 140, 200]]


def test_targets_too_small_are_dropped():
    """Prevents targets of under two pixels, which no feature map can hold."""
    annotations = one_box([[0, 0, 3, 80], [0, 0, 4, 80]])
    _, labels = augmented_targets(
        annotations, AugmentParameters(SHAPE, (PlacedImage(0, 0.5, 0.5, 0.0, 0.0, (0, 0, 50, 50)),))
    )
    assert labels.tolist() == [1]


def test_targets_of_the_partner_are_appended_and_flipped_with_the_rest():
    """Prevents mixup partners whose boxes are missing or stay where they were before the flip."""
    annotations = one_box([[10, 10, 30, 30]])
    placed, other = (
        PlacedImage(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 100, 100)),
        PlacedImage(0, 1.0, 1.0, 0.0, 100.0, (0, 100, 100, 200)),
    )
    params = AugmentParameters(SHAPE, (placed,), AugmentParameters(SHAPE, (other,)), 0.5, flip=True)
    assert painted_yxyx(params) == (0, 0, 100, 200)
    assert augmented_targets(annotations, params)[0].tolist() == [[170, 10, 190, 30], [70, 10, 90, 30]]


def test_no_boxes():
    """Prevents a failure where no image of a mosaic has a box."""
    annotations = make_annotations(boxes_per_image=0)
    boxes_xyxy, labels = augmented_targets(annotations, parameters_of(0, annotations=annotations))
    assert (boxes_xyxy.shape, boxes_xyxy.dtype, labels.shape) == ((0, 4), np.float32, (0,))


def test_targets_stay_in_the_canvas():
    """Prevents targets outside the input, for any draw."""
    for index in range(300):
        boxes_xyxy, _ = augmented_targets(ANNOTATIONS, parameters_of(index))
        assert (boxes_xyxy >= 0).all() and (boxes_xyxy <= [320, 256, 320, 256]).all()


def test_options_and_parameters_pickle():
    """Prevents a loader that cannot start its workers where they are spawned."""
    params = parameters_of(0)
    assert pickle.loads(pickle.dumps((OPTIONS, params))) == (OPTIONS, params)


def drawn_data(seed=0):
    """Black images with one white rectangle each, and annotations with its box."""
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for height, width in DRAWN_SIZES_HW:
        x1, y1 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        x2, y2 = x1 + int(rng.integers(width // 4, width // 2)), y1 + int(rng.integers(height // 4, height // 2))
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        images.append(image)
        boxes.append((x1, y1, x2, y2))
    count = len(DRAWN_SIZES_HW)
    return images, Annotations([f"{i}.jpg" for i in range(count)], DRAWN_SIZES_HW, [1] * count, boxes, [0] * count)


def same_size(images):
    """Annotations of images that have the size in the annotations."""
    return Annotations(["a.jpg"] * len(images), [image.shape[:2] for image in images], [0] * len(images), [], [])


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("mosaic", [True, False])
def test_boxes_lie_on_what_is_drawn(mosaic, reduction):
    """Prevents boxes that are shifted against the pixels by cropping, rounding, flipping, or images decoded smaller."""
    options = replace(WITHOUT_MIXUP, mosaic=mosaic, pad=0, hue_gain=0, saturation_gain=0, value_gain=0)
    errors = []
    for seed in range(60):
        images, annotations = drawn_data(seed)
        images = [reduce(image, reduction) for image in images]
        params = parameters_of(seed, 0, seed, options, annotations)
        white = (apply_parameters(params, images.__getitem__, annotations, 0) > 127).all(axis=2)
        for x1, y1, x2, y2 in augmented_targets(annotations, params)[0].tolist():
            y, x = (int(y1) + int(y2)) // 2, (int(x1) + int(x2)) // 2
            if reduction > 1 and not white[y, x]:
                continue  # a few pixels of a small image, which a quarter of it does not show
            columns, rows = run_around(white[y], x), run_around(white[:, x], y)
            errors.append(np.abs(np.subtract((columns[0], rows[0], columns[1], rows[1]), (x1, y1, x2, y2))))
    # A rectangle cut by its image's border may touch another one there, so a few sides do not end where its box does.
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
    plain = AugmentOptions(resize_mode=mode)
    rng = np.random.default_rng(0)
    _, annotations = drawn_data()
    for index, size_hw in enumerate(DRAWN_SIZES_HW):
        image = rng.integers(0, 256, (*size_hw, 3), np.uint8)
        canvas = apply_parameters(
            parameters_of(index, options=plain, annotations=annotations), {index: image}.get, annotations, plain.pad
        )
        np.testing.assert_array_equal(canvas, letterbox(image, (256, 320), plain.rule)[0])


def test_colour_and_flip_leave_the_padding_alone():
    """Prevents training on padding of other colours and on other sides than inference shows."""
    image = np.zeros((40, 10, 3), np.uint8)
    image[:, :5] = 100
    placed = PlacedImage(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 40, 10))
    params = AugmentParameters((40, 20), (placed,), gains=(0.0, 1.0, 2.0), flip=True)
    canvas = apply_parameters(params, lambda index: image, same_size([image]), 114)
    assert canvas[0, :, 0].tolist() == [0] * 5 + [200] * 5 + [114] * 10


def test_colour_literal_values():
    """Prevents a hue that turns the wrong way, and gains that act on the wrong part of a colour."""
    image = np.array([[[200, 50, 50], [50, 50, 200], [90, 90, 90]]], np.uint8)
    placed = PlacedImage(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 1, 3))

    def changed(*gains):
        params = AugmentParameters((1, 3), (placed,), gains=gains)
        return apply_parameters(params, lambda index: image, same_size([image]), 114)[0].astype(int)

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
    placed, other = (PlacedImage(index, 1.0, 1.0, 0.0, 0.0, (0, 0, 8, 8)) for index in (0, 1))
    images = [np.full((8, 8, 3), value, np.uint8) for value in (100, 200)]
    params = AugmentParameters((8, 8), (placed,), AugmentParameters((8, 8), (other,)), 0.75)
    canvas = apply_parameters(params, images.__getitem__, same_size(images), 114)
    assert np.unique(canvas).tolist() == [125]


def test_images_are_not_written_to():
    """Prevents a cached image from changing with every sample that uses it."""
    options = replace(WITHOUT_MIXUP, mixup=True, mixup_prob=1.0)
    images, annotations = drawn_data()
    copies = [image.copy() for image in images]
    for image in images:
        image.flags.writeable = False
    for index in range(20):
        params = parameters_of(index, options=options, annotations=annotations)
        canvas = apply_parameters(params, images.__getitem__, annotations, 114)
        assert (canvas.shape, canvas.dtype) == ((256, 320, 3), np.uint8)
    for image, copy in zip(images, copies, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_one_pixel_image():
    """Prevents a crash on an image of one pixel in a mosaic."""
    annotations = Annotations(["a.jpg"], [(1, 1)], [0], np.zeros((0, 4)), [])
    image = np.full((1, 1, 3), 50, np.uint8)
    neutral = replace(WITHOUT_MIXUP, hue_gain=0, saturation_gain=0, value_gain=0)
    for index in range(50):
        params = parameters_of(index, options=neutral, annotations=annotations)
        canvas = apply_parameters(params, lambda index: image, annotations, 114)
        assert set(np.unique(canvas)) <= {50, 114}
