"""Every kind of image that people have becomes the RGB that Pillow's own conversion gives."""

import io

import numpy as np
import pytest
from PIL import Image

from utils.image.codec import read_image, read_image_with_gaps

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


def jpeg(progressive=False, **options):
    """A JPEG of noise, 64 x 64: its bytes are spread evenly over its rows."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", progressive=progressive, **options)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [-1, -2, -3, -300])
def test_a_jpeg_that_lacks_its_last_bytes(tmp_path, progressive, kept):
    """Prevents an image from being lost for a few bytes, and from being used without a word."""
    path, encoded = tmp_path / "a.jpg", jpeg(progressive)
    path.write_bytes(encoded)
    whole, is_cut_off = read_image_with_gaps(str(path))
    assert not is_cut_off
    path.write_bytes(encoded[:kept])
    for reduction in (1, 4):
        image_rgb, is_cut_off = read_image_with_gaps(str(path), reduction)
        assert is_cut_off
        assert image_rgb.shape == (64 // reduction, 64 // reduction, 3)
    image_rgb = read_image(str(path))
    if progressive:
        # The last bytes of all only refine what is there.
        assert np.abs(image_rgb.astype(int) - whole).mean() < 10
    else:
        assert (image_rgb[:32] == whole[:32]).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_a_jpeg_of_which_little_is_left(tmp_path, share):
    """Prevents boxes on grey from being trained."""
    path, encoded = tmp_path / "a.jpg", jpeg()
    header = encoded.index(b"\xff\xda") + 14
    path.write_bytes(encoded[: header + int(share * (len(encoded) - header))])
    with pytest.raises(ValueError, match=r"a\.jpg cannot be decoded"):
        read_image(str(path))


def test_whole_files_with_more_behind_their_end(tmp_path):
    """Prevents false alarms: cameras append padding, notes and further pictures (MPO)."""
    path = tmp_path / "a.jpg"
    for rest in (b"", b"\0", b"\0" * 5000, b"notes", jpeg(), jpeg()[:-700]):
        path.write_bytes(jpeg() + rest)
        assert not read_image_with_gaps(str(path))[1]
    picture().save(path, "MPO", save_all=True, append_images=[picture()])
    assert not read_image_with_gaps(str(path))[1]


def test_other_formats_are_whole_or_unreadable(tmp_path):
    """Prevents a PNG that lost its end from being taken for a JPEG, or an empty file from being repaired."""
    path = tmp_path / "a.png"
    picture().save(path)
    assert not read_image_with_gaps(str(path))[1]
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_image(str(path))
