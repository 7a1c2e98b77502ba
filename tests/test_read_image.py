"""Every kind of image that people have becomes the RGB that Pillow's own conversion gives."""

import numpy as np
import pytest
from PIL import Image

from utils.data.letterbox import read_image

# Four fields of 16 x 16, so that JPEG and its halved colour keep the middle of each.
COLOURS = [[(250, 100, 5), (10, 200, 90)], [(30, 40, 220), (128, 128, 128)]]
MIDDLES = np.ix_((8, 24), (8, 24))


def picture(mode="RGB"):
    image_rgb = np.array(COLOURS, np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return Image.fromarray(image_rgb).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("a.jpg", "RGB", 3),
        ("a.jpg", "L", 2),
        ("a.jpg", "CMYK", 3),
        ("a.png", "RGB", 0),
        ("a.png", "L", 0),
        ("a.png", "LA", 0),
        ("a.png", "1", 0),
        ("a.png", "P", 0),
        ("a.png", "RGBA", 0),
        ("a.bmp", "RGB", 0),
        ("a.bmp", "L", 0),
        ("a.bmp", "P", 0),
        ("a.webp", "RGB", 12),
        ("a.webp", "RGBA", 12),
        ("a.tif", "RGB", 0),
        ("a.tif", "L", 0),
        ("图 片.v1.PNG", "RGB", 0),
        ("A.JPEG", "RGB", 3),
    ],
)
def test_every_kind_becomes_rgb(tmp_path, name, mode, tolerance):
    """Prevents grey, palette, transparent or print images from training with other colours than people see."""
    path = str(tmp_path / name)
    image = picture(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((32, 32)))
    image.save(path, **({"quality": 95} if name.lower().endswith(("jpg", "jpeg", "webp")) else {}))
    with Image.open(path) as stored:
        expected = np.asarray(stored.convert("RGB"))[MIDDLES]
    found = read_image(path)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    assert np.abs(found[MIDDLES].astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_upper_byte(tmp_path, suffix):
    """Prevents X-ray and microscope images from becoming black, white, or cut at 255."""
    path = str(tmp_path / f"a.{suffix}")
    values = np.array([[0, 257, 12800], [30000, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    assert read_image(path)[..., 0].tolist() == (values // 256).tolist()
    assert (np.ptp(read_image(path), axis=2) == 0).all()
