import pickle
from dataclasses import replace

import numpy as np
import pytest

from utils.data.annotations import Records
from utils.data.augment import (
    AugmentSettings,
    SampleKey,
    SamplePlan,
    Tile,
    largest_scales,
    painted_yxyx,
    plan_sample,
    plan_targets,
)
from utils.image.letterbox import placement

SIZES_HW = [(480, 640), (300, 200), (50, 50), (1, 900), (1000, 700)]
SHAPE = (256, 320)
SETTINGS = AugmentSettings(augment_epochs=3)


def make_records(boxes_per_image=3):
    rng = np.random.default_rng(0)
    boxes = []
    for height, width in SIZES_HW:
        corners = np.sort(rng.random((boxes_per_image, 2, 2)), axis=1) * [width, height]
        boxes.append(corners.reshape(-1, 4))
    count = len(SIZES_HW)
    classes = np.arange(count * boxes_per_image) % 3
    return Records(
        [f"{i}.jpg" for i in range(count)], SIZES_HW, [boxes_per_image] * count, np.concatenate(boxes), classes
    )


RECORDS = make_records()


def plan_of(index, epoch=0, seed=0, settings=SETTINGS, records=RECORDS):
    """The plan of a sample whose partners are drawn by its index."""
    partners = np.random.default_rng(index).integers(len(records), size=7).tolist()
    return plan_sample(records, SampleKey(epoch, index, SHAPE, tuple(partners)), seed, settings)


def test_plan_is_a_pure_function_of_seed_and_key():
    """Prevents samples that depend on the order of calls, the worker, or a global random state."""
    first = plan_of(2, 1, 7)
    np.random.seed(0)
    plan_of(4, 1, 7)
    assert plan_of(2, 1, 7) == first


def test_no_two_plans_share_a_stream():
    """Prevents workers, epochs, repeats or seeds from drawing the same augmentation again."""
    keys = [(index, epoch, seed) for index in range(10) for epoch in range(3) for seed in range(3)]
    gains = {plan_of(*key).gains for key in keys}
    assert len(gains) == len(keys)


def test_index_beyond_the_records_is_the_same_image_again():
    """Prevents a filled-up batch from holding one augmented image twice."""
    plain = replace(SETTINGS, augment_epochs=0)
    first, again = (plan_of(index, settings=plain) for index in (1, 6))
    assert first.tiles == again.tiles
    assert plan_of(1).gains != plan_of(6).gains


def test_augmentation_stops_by_epoch():
    """Prevents mosaic from going on in workers that live through all epochs."""
    always = replace(SETTINGS, mixup_prob=1.0)
    plans = [plan_of(0, epoch, settings=always) for epoch in range(5)]
    assert [len(plan.tiles) for plan in plans] == [4, 4, 4, 1, 1]
    assert [plan.partner is not None for plan in plans] == [True, True, True, False, False]
    assert [plan.gains == (0.0, 1.0, 1.0) and not plan.flip for plan in plans] == [False, False, False, True, True]


@pytest.mark.parametrize("mode", ["topleft", "center", "stretch"])
def test_plain_sample_lies_where_letterbox_puts_it(mode):
    """Prevents the last epochs from training on another geometry than inference uses."""
    plain = replace(SETTINGS, augment_epochs=0, resize_mode=mode)
    for index, size_hw in enumerate(SIZES_HW):
        (tile,) = plan_of(index, settings=plain).tiles
        placed = placement(size_hw, (256, 320), mode)
        assert (tile.index, tile[1:5]) == (index, placed[:4])
        assert tile.clip_yxyx[2] - tile.clip_yxyx[0] == placed.new_hw[0]


def test_probabilities_and_switches():
    """Prevents mosaic_prob and mixup_prob from being ignored, swapped or taken as their complement."""
    settings = replace(SETTINGS, mosaic_prob=0.3, mixup_prob=0.8, flip_prob=0.1)
    plans = [plan_of(index, settings=settings) for index in range(1000)]
    assert 0.25 < np.mean([len(plan.tiles) == 4 for plan in plans]) < 0.35
    assert 0.75 < np.mean([plan.partner is not None for plan in plans]) < 0.85
    assert 0.07 < np.mean([plan.flip for plan in plans]) < 0.13
    off = replace(SETTINGS, mosaic=False, mixup=False)
    plans = [plan_of(index, settings=off) for index in range(50)]
    assert {(len(plan.tiles), plan.partner) for plan in plans} == {(1, None)}


def test_mosaic_tiles_stay_in_their_quadrants_and_inside_their_images():
    """Prevents tiles over each other, outside the canvas, or cropped beyond the image, down to one pixel of height."""
    for index in range(300):
        plan = plan_of(index)
        assert index % len(RECORDS) in [tile.index for tile in plan.tiles]
        covered = np.zeros((256, 320), int)
        for tile in plan.tiles:
            y1, x1, y2, x2 = tile.clip_yxyx
            assert 0 <= y1 < y2 <= 256 and 0 <= x1 < x2 <= 320
            covered[y1:y2, x1:x2] += 1
            crop = [(y1 - tile.offset_y) / tile.scale_y, (x1 - tile.offset_x) / tile.scale_x]
            crop += [(y2 - tile.offset_y) / tile.scale_y, (x2 - tile.offset_x) / tile.scale_x]
            np.testing.assert_allclose(crop, np.round(crop), atol=1e-6)
            height, width = SIZES_HW[tile.index]
            assert (np.round(crop) >= 0).all() and (np.round(crop) <= [height, width, height, width]).all()
        assert covered.max() == 1


def test_partners_are_those_of_the_key():
    """Prevents a mosaic of images that the worker has not decoded, or a partner that is left out."""
    key = SampleKey(0, 0, SHAPE, (1, 2, 3, 4, 1, 3, 2))
    plan = plan_sample(RECORDS, key, 0, replace(SETTINGS, mixup_prob=1.0))
    assert sorted(tile.index for tile in plan.tiles) == [0, 1, 2, 3]
    assert sorted(tile.index for tile in plan.partner.tiles) == [1, 2, 3, 4]
    single = plan_sample(RECORDS, key, 0, replace(SETTINGS, mosaic=False, mixup_prob=1.0))
    assert [tile.index for tile in single.tiles + single.partner.tiles] == [0, 4]


def test_largest_scales():
    """Prevents images that are decoded smaller than a sample draws them, or larger than any does."""
    plain = replace(SETTINGS, augment_epochs=0)
    # 320 / 640; 256 / 300; 256 / 50; 320 / 900; 256 / 1000: the smaller of height and width.
    fit = [0.5, 0.853333, 5.12, 0.355556, 0.256]
    np.testing.assert_allclose(largest_scales(RECORDS, [SHAPE], plain), fit, rtol=1e-5)
    np.testing.assert_allclose(largest_scales(RECORDS, [(64, 64), SHAPE], plain), fit, rtol=1e-5)
    stretched = largest_scales(RECORDS, [SHAPE], replace(plain, resize_mode="stretch"))
    np.testing.assert_allclose(stretched, [0.533333, 1.6, 6.4, 256, 0.457143], rtol=1e-5)
    largest = largest_scales(RECORDS, [SHAPE], SETTINGS)
    np.testing.assert_allclose(largest, np.array(fit) * 1.5 * 1.25**0.5, rtol=1e-5)
    for index in range(200):
        for tile in plan_of(index).tiles:
            # Scales are nudged to whole pixels, the more the smaller the image.
            if min(SIZES_HW[tile.index]) > 10:
                assert max(tile.scale_y, tile.scale_x) <= largest[tile.index] * 1.05


def one_box(boxes_xyxy, size_hw=(100, 100)):
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    return Records(["a.jpg"], [size_hw], [len(boxes_xyxy)], boxes_xyxy, np.arange(len(boxes_xyxy)))


def test_targets_literal_values():
    """Prevents boxes that are scaled after the offset, not clipped to their tile, or flipped about the wrong axis."""
    records = one_box([[10, 20, 50, 60], [0, 0, 20, 10], [30, 0, 80, 100]])
    tile = Tile(0, 2.0, 1.0, 30.0, 100.0, (40, 110, 200, 160))
    boxes_xyxy, labels = plan_targets(records, SamplePlan(SHAPE, (tile,)))
    # In the canvas: [110, 70, 150, 150]; [100, 30, 120, 50], of which a quarter is visible; [130, 30, 180, 230], 0.48.
    assert boxes_xyxy.tolist() == [[110, 70, 150, 150], [130, 40, 160, 200]]
    assert (boxes_xyxy.dtype, labels.tolist()) == (np.float32, [0, 2])
    boxes_xyxy, _ = plan_targets(records, SamplePlan(SHAPE, (tile,), flip=True))
    assert boxes_xyxy.tolist() == [[120, 70, 160, 150], [110, 40, 140, 200]]


def test_targets_too_small_are_dropped():
    """Prevents targets of under two pixels, which no feature map can hold."""
    records = one_box([[0, 0, 3, 80], [0, 0, 4, 80]])
    _, labels = plan_targets(records, SamplePlan(SHAPE, (Tile(0, 0.5, 0.5, 0.0, 0.0, (0, 0, 50, 50)),)))
    assert labels.tolist() == [1]


def test_targets_of_the_partner_are_appended_and_flipped_with_the_rest():
    """Prevents mixup partners whose boxes are missing or stay where they were before the flip."""
    records = one_box([[10, 10, 30, 30]])
    tile, other = Tile(0, 1.0, 1.0, 0.0, 0.0, (0, 0, 100, 100)), Tile(0, 1.0, 1.0, 0.0, 100.0, (0, 100, 100, 200))
    plan = SamplePlan(SHAPE, (tile,), SamplePlan(SHAPE, (other,)), 0.5, flip=True)
    assert painted_yxyx(plan) == (0, 0, 100, 200)
    assert plan_targets(records, plan)[0].tolist() == [[170, 10, 190, 30], [70, 10, 90, 30]]


def test_no_boxes():
    """Prevents a failure where no image of a mosaic has a box."""
    records = make_records(boxes_per_image=0)
    boxes_xyxy, labels = plan_targets(records, plan_of(0, records=records))
    assert (boxes_xyxy.shape, boxes_xyxy.dtype, labels.shape) == ((0, 4), np.float32, (0,))


def test_targets_stay_in_the_canvas():
    """Prevents targets outside the input, for any draw."""
    for index in range(300):
        boxes_xyxy, _ = plan_targets(RECORDS, plan_of(index))
        assert (boxes_xyxy >= 0).all() and (boxes_xyxy <= [320, 256, 320, 256]).all()


def test_settings_and_plans_pickle():
    """Prevents a loader that cannot start its workers where they are spawned."""
    plan = plan_of(0)
    assert pickle.loads(pickle.dumps((SETTINGS, plan))) == (SETTINGS, plan)
