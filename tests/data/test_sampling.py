import numpy as np
import pytest

from utils.data.sampling import (
    PARTNERS,
    WINDOW,
    EpochBatchSampler,
    MultiScale,
    draw_repeated,
    epoch_order,
    multi_scale_of,
    order_key,
)

MULTI_SCALE = multi_scale_of((416, 416), (0.75, 1.25), 10, 5)
ONE = MultiScale([(64, 96)])
# Two shapes besides the input's own, drawn anew with every batch of the first two epochs.
THREE = MultiScale([(64, 96), (32, 64), (96, 128)], 1, 2)


@pytest.mark.parametrize("count", [0, 1, 5, WINDOW, 2 * WINDOW - 1, 2 * WINDOW, 1000])
def test_every_image_once_and_as_often_a_partner(count):
    """Prevents images that are seen much more often than others, and a failure on small sets."""
    order, partners = epoch_order(count, 3, 0)
    assert partners.shape == (count, PARTNERS)
    for column in (order, *partners.T):
        assert sorted(column.tolist()) == list(range(count))


def test_partners_come_from_the_window():
    """Prevents decoding an image anew for each of its uses: 100 images are windows of 32, 32 and 36."""
    order, partners = epoch_order(100, 3, 0)
    for start, stop in ((0, 32), (32, 64), (64, 100)):
        assert set(partners[start:stop].ravel().tolist()) == set(order[start:stop].tolist())


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    """Prevents an order that depends on a global random state, and epochs or seeds that repeat another."""
    first = epoch_order(50, 3, 1)
    np.random.seed(0)
    again = epoch_order(50, 3, 1)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for seed, epoch in ((3, 2), (4, 1)):
        for one, other in zip(first, epoch_order(50, seed, epoch), strict=True):
            assert not np.array_equal(one, other)


def test_columns_of_partners_differ():
    """Prevents mosaics of one image four times."""
    order, partners = epoch_order(1000, 0, 0)
    columns = np.column_stack([order, partners])
    for first in range(PARTNERS + 1):
        for second in range(first):
            assert (columns[:, first] == columns[:, second]).mean() < 0.08


# Of 5 images in an epoch the last should be 2.5; the others share the rest.
REPEATS = np.array([0.625] * 4 + [2.5])


def test_repeated_images_are_drawn_as_often_as_they_should():
    """Prevents an epoch of another length, and images that are drawn more or less often than their share."""
    counts = []
    for epoch in range(400):
        order, partners = epoch_order(5, 3, epoch, REPEATS)
        assert len(order) == len(set(order.tolist())) == 5  # a repeated image has choices of its own
        for column in partners.T:
            assert sorted(column.tolist()) == sorted((order % 5).tolist())
        counts.append(np.bincount(order % 5, minlength=5))
    assert {tuple(set(column)) for column in np.transpose(counts)} <= {(0, 1), (2, 3)}
    assert np.mean(counts, axis=0) == pytest.approx([0.625] * 4 + [2.5], abs=0.08)


def test_equal_repeats_draw_each_image_once():
    """Prevents rounding from leaving out an image where there is nothing to balance."""
    for count in (1, 7, 1000):
        order, _ = epoch_order(count, 3, 0, np.full(count, 1.0))
        assert sorted(order.tolist()) == list(range(count))
    assert draw_repeated(np.zeros(0, int), np.zeros(0), np.random.default_rng(0)).tolist() == []


def test_what_the_order_of_epochs_depends_on():
    """Prevents a resume with other source_weights or tile_empty that sees images twice or never; another last digit of
    another machine is no other order."""
    repeats = np.array([0.5, 1.5])
    assert order_key(2, 11) == [11, 2, 0]
    assert order_key(2, 11, repeats) == [11, 2, 1003424333]  # CRC-32 of 0000003f 0000c03f
    assert order_key(2, 11, np.nextafter(repeats, 2)) == order_key(2, 11, repeats)
    assert order_key(2, 11, repeats[::-1]) != order_key(2, 11, repeats)
    assert order_key(0, 11, np.zeros(0)) == [11, 0, 0]


def test_few_of_many_images_make_a_short_epoch():
    """Prevents an epoch as long as all images where most of them are to be left out; those at 1 are never left out."""
    repeats = np.array([1, 1, 1, 0.25, 0.25, 0.25, 0.25, 0])
    drawn = set()
    for epoch in range(50):
        order, partners = epoch_order(8, 3, epoch, repeats)
        assert len(order) == len(partners) == 4 and {0, 1, 2} <= set(order.tolist())
        drawn |= set(order.tolist())
    assert drawn == set(range(7))
    assert len(EpochBatchSampler(8, 3, 0, ONE, repeats=repeats)) == 2


def test_repeats_are_a_pure_function_of_seed_and_epoch():
    """Prevents epochs that draw the same images, and a resumed run that draws others."""
    first = epoch_order(50, 3, 1, np.arange(1, 51) / 25.5)[0].tolist()
    assert epoch_order(50, 3, 1, np.arange(1, 51) / 25.5)[0].tolist() == first
    assert sorted(epoch_order(50, 3, 2, np.arange(1, 51) / 25.5)[0].tolist()) != sorted(first)


def test_ranks_and_a_resume_share_a_balanced_epoch():
    """Prevents ranks that draw images of their own, and a continued epoch that differs from an unbroken one."""
    single = keys(EpochBatchSampler(5, 4, 0, ONE, repeats=REPEATS), 1)
    ranks = [keys(EpochBatchSampler(5, 4, 0, ONE, rank, 2, REPEATS), 1) for rank in range(2)]
    assert [len(batch) for batch in single] == [4, 2]  # the last is filled up, with new parameters
    assert len({sample.index for batch in single for sample in batch}) == 6
    for parts, whole in zip(zip(*ranks, strict=True), single, strict=True):
        assert set(whole) <= {sample for part in parts for sample in part}
    rest = EpochBatchSampler(5, 4, 0, ONE, repeats=REPEATS)
    rest.set_epoch(1, 4, 4)
    assert list(rest) == single[1:]


@pytest.mark.parametrize(
    ("input_shape", "factors", "expected"),
    [
        ((416, 416), (0.75, 1.25), [(416, 416), *((side, side) for side in (320, 352, 384, 448, 480, 512))]),
        ((128, 128), (0.5, 1.5), [(128, 128), (64, 64), (96, 96), (160, 160), (192, 192)]),
        # The longer side goes in steps of 32; the shorter one follows to the nearest multiple of 32.
        ((128, 256), (0.75, 1.25), [(128, 256), (96, 192), (128, 224), (128, 288), (160, 320)]),
        ((256, 128), (0.75, 1.25), [(256, 128), (192, 96), (224, 128), (288, 128), (320, 160)]),
        ((320, 32), (0.8, 1.2), [(320, 32), (256, 32), (288, 32), (352, 32), (384, 32)]),
        ((128, 128), (1.25, 1.5), [(128, 128), (160, 160), (192, 192)]),
        # Between 291 and 541, though 288 and 544 are nearer to these ends; between 38 and 90 lies 64 alone.
        ((416, 416), (0.7, 1.3), [(416, 416), *((side, side) for side in (320, 352, 384, 448, 480, 512))]),
        ((64, 64), (0.6, 1.4), [(64, 64)]),
        # 1.16 * 800 is 928, which floating point takes for a little less, and 0.28 * 800 is 224, for a little more.
        ((800, 800), (1.16, 1.16), [(800, 800), (928, 928)]),
        ((800, 800), (0.28, 0.28), [(800, 800), (224, 224)]),
        ((64, 64), (1.0, 1.0), [(64, 64)]),
        ((32, 32), (0.1, 0.4), [(32, 32)]),
    ],
)
def test_the_shapes_of_a_range(input_shape, factors, expected):
    """Prevents sides that the network cannot divide by its strides, shapes beyond the range, which overflow the memory,
    and images that are stretched where the input is not square."""
    multi_scale = multi_scale_of(input_shape, factors, 10, 5)
    assert multi_scale == (expected, 10, 5)
    assert all(side % 32 == 0 and side > 0 for shape in multi_scale.shapes for side in shape)


def test_a_shape_stays_for_a_period():
    """Prevents a new size with every batch, which costs time on a GPU, or a size that never changes."""
    drawn = [MULTI_SCALE.at(0, batch, seed=11) for batch in range(400)]
    for start in range(0, 400, 10):
        assert len(set(drawn[start : start + 10])) == 1
    assert set(drawn[::10]) == set(MULTI_SCALE.shapes)
    counts = [drawn[::10].count(shape) for shape in MULTI_SCALE.shapes]
    assert max(counts) < 20  # of 40 draws among 7


def test_the_draw_depends_on_seed_epoch_and_period_alone():
    """Prevents ranks whose batches differ in size, and a continued run that differs from an unbroken one."""

    def drawn(epoch, seed, multi_scale=MULTI_SCALE):
        return [multi_scale.at(epoch, batch, seed) for batch in range(0, 400, 10)]

    again = MultiScale(list(MULTI_SCALE.shapes), 10, 5)
    assert drawn(2, 11) == drawn(2, 11, again)
    assert drawn(2, 11) != drawn(3, 11)
    assert drawn(2, 11) != drawn(2, 12)


def test_the_last_epochs_see_the_input_shape():
    """Prevents weights that were trained last on other sizes than those they are used with."""
    assert {MULTI_SCALE.at(epoch, batch, 11) for epoch in (5, 6, 99) for batch in range(0, 200, 10)} == {(416, 416)}
    assert len({MULTI_SCALE.at(4, batch, 11) for batch in range(0, 200, 10)}) > 3


def test_one_shape_needs_no_draw():
    """Prevents a training without multi_scale from changing size; lists, as in settings, become tuples."""
    assert {MultiScale([[64, 96]]).at(epoch, batch, 3) for epoch in range(3) for batch in range(3)} == {(64, 96)}
    assert MultiScale([(64, 96)], 1, 10).at(0, 0, 0) == (64, 96)


def keys(sampler, epoch, batch_size=None):
    sampler.set_epoch(epoch, batch_size)
    return list(sampler)


def test_sampler_covers_every_image_once():
    """Prevents dropped or doubled images, and an order that does not change."""
    sampler = EpochBatchSampler(11, 4, 3, ONE)
    first, second = keys(sampler, 0), keys(sampler, 1)
    assert [len(batch) for batch in first] == [4, 4, 3]
    assert len(sampler) == 3
    assert sorted(index for batch in first for _, index, _, _ in batch) == list(range(11))
    assert {sample.epoch for batch in second for sample in batch} == {1}
    assert [sample.index for sample in first[0]] != [sample.index for sample in second[0]]
    assert keys(sampler, 0) == first
    assert len(keys(sampler, 0, 6)) == len(sampler) == 2


@pytest.mark.parametrize(
    ("count", "batch_size", "lengths"), [(1, 8, [2]), (1, 1, [1]), (2, 8, [2]), (5, 8, [5]), (9, 4, [4, 4, 2])]
)
def test_small_sets_and_short_last_batches(count, batch_size, lengths):
    """Prevents sets smaller than a batch from training nothing, and BatchNorm from seeing a single image."""
    sampler = EpochBatchSampler(count, batch_size, 0, ONE)
    batches = keys(sampler, 0)
    assert [len(batch) for batch in batches] == lengths
    drawn = [sample.index for batch in batches for sample in batch]
    assert len(set(drawn)) == len(drawn)
    assert {index % count for index in drawn} == set(range(count))


@pytest.mark.parametrize("count", [1, 3, 16, 17, 23])
def test_ranks_share_the_single_process_batches(count):
    """Prevents ranks that see the same images, or a last batch that only some of the ranks have."""
    ranks = [keys(EpochBatchSampler(count, 8, 0, THREE, rank, 4), 1) for rank in range(4)]
    single = keys(EpochBatchSampler(count, 8, 0, THREE), 1)
    assert {len(batches) for batches in ranks} == {len(single)}
    for parts, whole in zip(zip(*ranks, strict=True), single, strict=True):
        assert min(len(part) for part in parts) >= 2
        together = [sample for part in parts for sample in part]
        assert len(together) == len(set(together))
        assert set(whole) <= set(together)
        assert len(together) == max(8, len(whole))
        assert len({sample.input_shape for sample in together}) == 1


@pytest.mark.parametrize(
    ("start", "batch_size", "expected"),
    [
        (0, 4, [[6, 1, 8, 2], [3, 7, 10, 5], [0, 4, 9]]),
        (4, 4, [[3, 7, 10, 5], [0, 4, 9]]),
        (9, 4, [[4, 9]]),
        (10, 4, [[9, 17]]),  # filled up as ever: 17 is the second visit of the first image, 6
        (7, 2, [[5, 0], [4, 9]]),
        (11, 4, []),
        (12, 4, []),
    ],
)
def test_the_rest_of_an_epoch(start, batch_size, expected):
    """Prevents a resumed run from seeing images twice, or never, and a start that stays for the next epoch."""
    sampler = EpochBatchSampler(11, 4, 3, THREE)
    sampler.set_epoch(1, batch_size, start)
    assert [[sample.index for sample in batch] for batch in sampler] == expected
    assert len(sampler) == len(expected)
    sampler.set_epoch(2)
    assert sum(map(len, sampler)) == {4: 11, 2: 12}[batch_size]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_the_rest_of_an_epoch_is_that_of_an_uninterrupted_one(rank, world_size):
    """Prevents other partners, sizes or fill-up after a resume than without it."""
    sampler = EpochBatchSampler(11, 4, 3, THREE, rank, world_size)
    whole = keys(sampler, 1)
    assert [batch[0].input_shape for batch in whole] == [(96, 128), (64, 96), (32, 64)]
    assert [len(batch) for batch in whole] == ([4, 4, 3] if world_size == 1 else [2, 2, 2])
    for done in range(4):
        sampler.set_epoch(1, 4, 4 * done)
        assert list(sampler) == whole[done:]


def test_batches_change_their_size_and_end_with_the_inputs_own():
    """Prevents multi_scale without effect, samples of one batch that differ in size, and last epochs on other sizes."""
    sampler = EpochBatchSampler(40, 2, 3, THREE)
    for epoch, expected in ((0, set(THREE.shapes)), (1, set(THREE.shapes)), (2, {(64, 96)}), (7, {(64, 96)})):
        shapes = [{sample.input_shape for sample in batch} for batch in keys(sampler, epoch)]
        assert all(len(shape) == 1 for shape in shapes)
        assert set.union(*shapes) == expected
    slow = EpochBatchSampler(40, 2, 3, THREE._replace(period=5))
    shapes = [batch[0].input_shape for batch in keys(slow, 0)]
    assert all(len(set(shapes[start : start + 5])) == 1 for start in range(0, 20, 5))


def test_sampler_errors():
    """Prevents a training on nothing and uneven ranks."""
    with pytest.raises(ValueError, match="no images"):
        EpochBatchSampler(0, 4, 0, ONE)
    for batch_size, world_size in ((0, 1), (6, 4)):
        with pytest.raises(ValueError, match=f"batch size {batch_size} "):
            EpochBatchSampler(9, batch_size, 0, ONE, 0, world_size)
