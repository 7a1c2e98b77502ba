import numpy as np
import pytest
from PIL import Image

from utils.image.codec import image_size_hw, read_image
from utils.image.opencv import cv2

XMP_TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, (20, 40)), (3, (20, 40)), (6, (40, 20)), (8, (40, 20))])
def test_size_follows_exif_as_opencv_does(tmp_path, suffix, orientation, expected):
    """Prevents boxes of rotated photographs from being clipped to the wrong side."""
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / f"image.{suffix}")
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert image_size_hw(path) == (expected, orientation in (6, 8))
    assert read_image(path).shape[:2] == expected


def test_orientation_outside_exif_is_not_followed(tmp_path):
    """Prevents sizes that decoding contradicts: OpenCV turns by EXIF data alone."""
    path = str(tmp_path / "image.jpg")
    Image.new("RGB", (40, 20)).save(path, xmp=XMP_TURNED)
    assert image_size_hw(path) == ((20, 40), False)
    assert read_image(path).shape[:2] == (20, 40)


def test_damaged_exif_data(tmp_path):
    """Prevents images that OpenCV reads from being left out."""
    path = str(tmp_path / "image.jpg")
    Image.new("RGB", (40, 20)).save(path, exif=b"Exif\x00\x00nonsense")
    assert image_size_hw(path) == ((20, 40), False)
    assert read_image(path).shape[:2] == (20, 40)


def test_huge_image_is_refused_by_its_header(tmp_path):
    """Prevents a header that claims 30,000 x 30,000 pixels from filling the memory of every worker."""
    path = tmp_path / "huge.bmp"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (30000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^more than 89 megapixels; make it smaller$"):
        image_size_hw(str(path))


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff\xd8\xff\xe0 broken"])
def test_what_is_no_image(tmp_path, content):
    """Prevents one of the many errors that damaged headers raise from ending a training."""
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^its header cannot be read as an image$"):
        image_size_hw(str(path))


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32), (np.int32, 32)])
def test_bits_of_a_tiff(tmp_path, dtype, bits):
    """Prevents a file that Pillow opens and OpenCV does not from ending a training in its middle."""
    path = str(tmp_path / "image.tif")
    assert cv2.imwrite(path, np.ones((20, 40), dtype))
    if bits <= 16:
        assert image_size_hw(path) == ((20, 40), False)
        assert read_image(path).shape[:2] == (20, 40)
    else:
        with pytest.raises(ValueError, match=r"^a TIFF with 32 bits for each colour; save it anew with 8 or 16, or as"):
            image_size_hw(path)
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_image(path)
