import numpy as np
import pytest
from PIL import Image

from utils.image.codec import read_image, reduction_for, write_image
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


def test_read_image_name_colour_and_rotation(tmp_path):
    """Prevents BGR order, ignored EXIF rotation, and failures on names outside ASCII or with several dots."""
    path = str(tmp_path / "图 片.v1.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 20), (250, 100, 5)).save(path, exif=exif)
    image = read_image(path)
    assert image.shape == (40, 20, 3)
    assert image[0, 0].tolist() == [250, 100, 5]


@pytest.mark.parametrize(("mode", "colour"), [("L", 77), ("RGBA", (77, 77, 77, 0)), ("I;16", 77 * 257), ("P", 0)])
def test_read_image_turns_every_kind_into_rgb(tmp_path, mode, colour):
    """Prevents grey, 16-bit, palette or transparent images from reaching the network in another shape or type."""
    path = str(tmp_path / "image.png")
    image = Image.new(mode, (4, 3), colour)
    if mode == "P":
        image.putpalette([77, 77, 77] * 256)
    image.save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((3, 4, 3), np.uint8)
    assert (image == 77).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 broken"])
def test_read_image_names_the_bad_file(tmp_path, content):
    """Prevents a None, or an OpenCV trace without a file name, from surfacing far away."""
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        read_image(str(path))


def test_read_image_missing_file(tmp_path):
    """Prevents a missing file from being reported as a damaged one."""
    with pytest.raises(FileNotFoundError):
        read_image(str(tmp_path / "none.jpg"))


def test_write_image(tmp_path):
    """Prevents pictures with red and blue swapped, names that Windows cannot open, and silent failures to write."""
    path = str(tmp_path / "结 果.v1.PNG")
    image = np.zeros((2, 3, 3), np.uint8)
    image[:] = (250, 100, 5)
    write_image(path, image)
    np.testing.assert_array_equal(read_image(path), image)
    for name in ("picture.xyz", "picture"):
        with pytest.raises(ValueError, match=r"Use \.jpg or \.png"):
            write_image(str(tmp_path / name), image)


def test_much_too_large_images_are_averaged_first():
    """Prevents a resize that skips pixels: stripes one pixel wide must become grey, not black or white."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 200
    for side, reduction in ((64, 4), (63, 4), (100, 2), (200, 1)):
        assert reduction_for(side / 256) == reduction
        canvas, _ = letterbox(image, (side, side), {"mode": "topleft", "pad": 114})
        if reduction > 1:
            assert (np.abs(canvas[:, 1:-1].astype(int) - 100) <= 1).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("size_wh", [(203, 101), (64, 64), (1, 7)])
def test_reduced_images(tmp_path, suffix, orientation, size_wh):
    """Prevents reduced images of another size, turned otherwise, or with red and blue swapped."""
    path, exif = str(tmp_path / f"image.{suffix}"), Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size_wh, (250, 100, 5)).save(path, exif=exif)
    height, width = read_image(path).shape[:2]
    for reduction in (2, 4, 8):
        image = read_image(path, reduction)
        assert image.shape[:2] == (-(-height // reduction), -(-width // reduction))
        assert np.abs(image[0, 0].astype(int) - (250, 100, 5)).max() <= 6
