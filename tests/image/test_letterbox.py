import numpy as np
import pytest

from utils.image.codec import reduction_for
from utils.image.letterbox import boxes_to_image, boxes_to_input, letterbox, placement


def test_placement_literal_values():
    """Prevents another ratio or rounding than official YOLOX weights were trained with."""
    assert placement((480, 640), (416, 416), "topleft") == (0.65, 0.65, 0, 0, (312, 416))
    assert placement((333, 500), (416, 416), "topleft").new_hw == (277, 416)  # 333 * 0.832 = 277.056, rounded down
    assert placement((480, 640), (416, 416), "center") == (0.65, 0.65, 52, 0, (312, 416))
    assert placement((100, 200), (416, 608), "stretch") == (4.16, 3.04, 0, 0, (416, 608))


def test_placement_rejects_unknown_mode():
    """Prevents a misspelt mode from being taken silently for another."""
    with pytest.raises(ValueError, match="'centre'"):
        placement((10, 10), (32, 32), "centre")


def test_one_pixel_wide_image_keeps_a_column():
    """Prevents a resize to width 0, which OpenCV refuses."""
    image = np.full((1000, 1, 3), 7, np.uint8)
    canvas, placed = letterbox(image, (64, 64), {"mode": "topleft", "pad": 114})
    assert placed.new_hw == (64, 1)
    assert canvas[:, 0].tolist() == [[7, 7, 7]] * 64
    assert (canvas[:, 1:] == 114).all()


@pytest.mark.parametrize(
    ("mode", "first_row", "last_row"), [("topleft", 0, 31), ("center", 16, 47), ("stretch", 0, 63)]
)
def test_letterbox_puts_image_and_padding_where_the_rule_says(mode, first_row, last_row):
    """Prevents an image in the middle while boxes are mapped from the corner, and the reverse."""
    canvas, _ = letterbox(np.full((50, 100, 3), 200, np.uint8), (64, 64), {"mode": mode, "pad": 9})
    rows = np.flatnonzero((canvas == 200).all(axis=(1, 2)))
    assert (rows[0], rows[-1], len(rows)) == (first_row, last_row, last_row - first_row + 1)
    assert set(np.unique(canvas)) <= {9, 200}


def test_boxes_literal_and_clipped():
    """Prevents x and y scales from being swapped, and boxes outside the image."""
    placed = placement((100, 200), (416, 608), "stretch")
    np.testing.assert_allclose(boxes_to_input([[10, 20, 100, 50]], placed), [[30.4, 83.2, 304, 208]], rtol=1e-6)
    back = boxes_to_image([[-30.4, 41.6, 1216, 4160]], placed, (100, 200))
    np.testing.assert_allclose(back, [[0, 10, 200, 100]], atol=1e-4)


@pytest.mark.parametrize("mode", ["topleft", "center", "stretch"])
def test_round_trip_is_exact(mode):
    """Prevents an inverse that forgets the offset or uses another scale."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 3000, 2)
        corners = np.sort(rng.random((20, 2, 2)), axis=1) * [width, height]
        boxes_xyxy = corners.reshape(20, 4)
        placed = placement((height, width), (416, 640), mode)
        back = boxes_to_image(boxes_to_input(boxes_xyxy, placed), placed, (height, width))
        assert np.abs(back - boxes_xyxy).max() < 0.5


@pytest.mark.parametrize("mode", ["topleft", "center", "stretch"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 30000), (30000, 1), (2, 3001), (3001, 2), (29999, 30000), (7, 7)])
def test_round_trip_of_extreme_shapes(mode, size_hw):
    """Prevents boxes that land beside their objects where one side of the input is a single pixel."""
    height, width = size_hw
    boxes_xyxy = np.array([[0, 0, width, height], [0, 0, 1, 1], [width - 1, height - 1, width, height]], np.float64)
    placed = placement(size_hw, (416, 640), mode)
    assert min(placed.new_hw) >= 1
    assert np.abs(boxes_to_image(boxes_to_input(boxes_xyxy, placed), placed, size_hw) - boxes_xyxy).max() < 0.5


def test_no_boxes():
    """Prevents a failure on images without boxes."""
    placed = placement((10, 10), (32, 32), "center")
    assert boxes_to_input(np.zeros((0, 4)), placed).shape == (0, 4)
    assert boxes_to_image([], placed, (10, 10)).shape == (0, 4)


def test_much_too_large_images_are_averaged_first():
    """Prevents a resize that skips pixels: stripes one pixel wide must become grey, not black or white."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 200
    for side, reduction in ((64, 4), (63, 4), (100, 2), (200, 1)):
        assert reduction_for(side / 256) == reduction
        canvas, _ = letterbox(image, (side, side), {"mode": "topleft", "pad": 114})
        if reduction > 1:
            assert (np.abs(canvas[:, 1:-1].astype(int) - 100) <= 1).all()
