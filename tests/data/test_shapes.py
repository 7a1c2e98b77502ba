import pytest

from utils.data.sampling import TrainShapes, multi_scale_shapes


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
    shapes = multi_scale_shapes(input_shape, factors, 10, 5)
    assert shapes == (expected, 10, 5)
    assert all(side % 32 == 0 and side > 0 for shape in shapes.shapes for side in shape)


SHAPES = multi_scale_shapes((416, 416), (0.75, 1.25), 10, 5)


def test_a_shape_stays_for_a_period():
    """Prevents a new size with every batch, which costs time on a GPU, or a size that never changes."""
    drawn = [SHAPES.at(0, batch, seed=11) for batch in range(400)]
    for start in range(0, 400, 10):
        assert len(set(drawn[start : start + 10])) == 1
    assert set(drawn[::10]) == set(SHAPES.shapes)
    counts = [drawn[::10].count(shape) for shape in SHAPES.shapes]
    assert max(counts) < 20  # of 40 draws among 7


def test_the_draw_depends_on_seed_epoch_and_period_alone():
    """Prevents ranks whose batches differ in size, and a continued run that differs from an unbroken one."""

    def drawn(epoch, seed, shapes=SHAPES):
        return [shapes.at(epoch, batch, seed) for batch in range(0, 400, 10)]

    again = TrainShapes(list(SHAPES.shapes), 10, 5)
    assert drawn(2, 11) == drawn(2, 11, again)
    assert drawn(2, 11) != drawn(3, 11)
    assert drawn(2, 11) != drawn(2, 12)


def test_the_last_epochs_see_the_input_shape():
    """Prevents weights that were trained last on other sizes than those they are used with."""
    assert {SHAPES.at(epoch, batch, 11) for epoch in (5, 6, 99) for batch in range(0, 200, 10)} == {(416, 416)}
    assert len({SHAPES.at(4, batch, 11) for batch in range(0, 200, 10)}) > 3


def test_one_shape_needs_no_draw():
    """Prevents a training without multi_scale from changing size; lists, as in settings, become tuples."""
    assert {TrainShapes([[64, 96]]).at(epoch, batch, 3) for epoch in range(3) for batch in range(3)} == {(64, 96)}
    assert TrainShapes([(64, 96)], 1, 10).at(0, 0, 0) == (64, 96)
