import io

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from utils.image.codec import encode_image, is_writable, read_header, read_image, read_image_with_gaps, write_image
from utils.image.opencv import cv2
from utils.io.files import IMAGE_SUFFIXES

# Four fields of 16 x 16, so that JPEG and its halved colour keep the middle of each.
COLOURS = [[(250, 100, 5), (10, 200, 90)], [(30, 40, 220), (128, 128, 128)]]
MIDDLES = np.ix_((8, 24), (8, 24))
XMP_TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


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
    """Prevents grey, palette, transparent or print images from training with other colours than people see: those of
    Pillow's own conversion."""
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
    whole, is_truncated = read_image_with_gaps(str(path))
    assert not is_truncated
    path.write_bytes(encoded[:kept])
    for reduction in (1, 4):
        image_rgb, is_truncated = read_image_with_gaps(str(path), reduction)
        assert is_truncated
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


@pytest.mark.parametrize(("suffix", "size_hw"), [(".jpg", (2, 66000)), (".webp", (20000, 2)), (".jp2", (3, 5))])
def test_a_picture_that_does_not_fit_its_format(suffix, size_hw):
    """Prevents a sentence that blames the ending, which OpenCV knows, for the size."""
    height, width = size_hw
    sentence = rf"^a\{suffix} cannot be written: \{suffix} takes no picture of {width} x {height} pixels .* as \.png"
    with pytest.raises(ValueError, match=sentence):
        encode_image(f"a{suffix}", np.zeros((height, width, 3), np.uint8))


def test_endings_that_are_no_text():
    """Prevents a segmentation fault: OpenCV cannot take text that is no UTF-8."""
    assert not is_writable("a.\udce9") and not is_writable("a") and is_writable("\udce9.PNG")
    with pytest.raises(ValueError, match="OpenCV knows no image format"):
        encode_image("a.\udce9", np.zeros((2, 3, 3), np.uint8))


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, (20, 40)), (3, (20, 40)), (6, (40, 20)), (8, (40, 20))])
def test_size_follows_exif_as_opencv_does(tmp_path, suffix, orientation, expected):
    """Prevents boxes of rotated photographs from being clipped to the wrong side."""
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / f"image.{suffix}")
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_header(path) == (expected, orientation)
    assert read_image(path).shape[:2] == expected


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
@pytest.mark.parametrize("orientation", range(10))
def test_avif_is_turned_as_viewers_turn_it(tmp_path, orientation):
    """Prevents photographs that OpenCV leaves as they are stored from being left out, or learned lying on their side.
    0 and 9 are no orientations."""
    path, exif, stored = str(tmp_path / "a.avif"), Image.Exif(), np.zeros((32, 64, 3), np.uint8)
    exif[274] = orientation
    stored[:16, :16] = 255
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert (read_header(path).size_hw, read_header(path).orientation) == (found.shape[:2], orientation % 9 or 1)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() < 9


def test_orientation_outside_exif_is_not_followed(tmp_path):
    """Prevents sizes that decoding contradicts: OpenCV turns by EXIF data alone."""
    path = str(tmp_path / "image.jpg")
    Image.new("RGB", (40, 20)).save(path, xmp=XMP_TURNED)
    assert read_header(path) == ((20, 40), 1)
    assert read_image(path).shape[:2] == (20, 40)


@pytest.mark.parametrize(
    ("orientations", "expected"),
    [((None, 6), (40, 20)), (("broken", 6), (40, 20)), ((3, 6), (20, 40)), ((6, 1), (40, 20))],
)
def test_several_segments_of_exif_data(tmp_path, orientations, expected):
    """Prevents photographs with a second segment, which editors add, from counting as unreadable. None: without an
    orientation."""
    segments = b""
    for orientation in orientations:
        exif = Image.Exif()
        exif[274 if isinstance(orientation, int) else 271] = orientation or "a maker"
        data = exif.tobytes().removeprefix(b"Exif\0\0") if orientation != "broken" else b"nonsense"
        data = b"Exif\0\0" + data
        segments += b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    path = tmp_path / "image.jpg"
    Image.new("RGB", (40, 20)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + segments + content[2:])
    assert read_header(str(path)).size_hw == read_image(str(path)).shape[:2] == expected


def test_the_size_with_damaged_exif_data(tmp_path):
    """Prevents images that OpenCV reads from being left out."""
    path = str(tmp_path / "image.jpg")
    Image.new("RGB", (40, 20)).save(path, exif=b"Exif\x00\x00nonsense")
    assert read_header(path) == ((20, 40), 1)
    assert read_image(path).shape[:2] == (20, 40)


def test_a_huge_image_is_an_error_by_its_header(tmp_path):
    """Prevents a header that claims 30,000 x 30,000 pixels from filling the memory of every worker."""
    path = tmp_path / "huge.bmp"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (30000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^900 megapixels, more than the 200 of max_megapixels; make it smaller, or, "
    ):
        read_header(str(path))
    assert read_header(str(path), max_megapixels=900).size_hw == (30000, 30000)


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"), [(0, 4095, (0, 255)), (7000, 8500, (0, 255)), (0, 65535, (0, 255))]
)
def test_more_than_8_bits_are_stretched_by_what_they_use(tmp_path, lowest, highest, expected):
    """Prevents 12-bit and thermal images from reaching the network black, or as one grey."""
    path = str(tmp_path / "image.png")
    values = np.linspace(lowest, highest, 100 * 100).round().astype(np.uint16).reshape(100, 100)
    values[0, 0] = 65535  # a hot pixel
    assert cv2.imwrite(path, values)
    image = read_image(path)
    assert (image[10].min(), image[-1, -1, 0]) == (pytest.approx(25, abs=1), expected[1])
    assert np.median(image) == pytest.approx(127, abs=1)


def test_a_mostly_dark_image_keeps_its_few_bright_pixels(tmp_path):
    """Prevents stars, or a lamp at night, from vanishing because a thousandth of the pixels is left out."""
    path = str(tmp_path / "image.png")
    values = np.zeros((100, 100), np.uint16)
    values[5, 5] = 900
    assert cv2.imwrite(path, values)
    assert (read_image(path)[5, 5].tolist(), read_image(path).sum()) == ([255] * 3, 3 * 255)


@pytest.mark.parametrize("suffix", [".jfif", ".mpo", ".jp2", ".avif", ".gif"])
def test_endings_that_phones_and_browsers_write(tmp_path, suffix):
    """Prevents labelled images from being left out for their ending: each is decoded, at the size its header says."""
    path = str(tmp_path / f"image{suffix}")
    kind = {".jfif": "JPEG", ".jp2": "JPEG2000"}.get(suffix, suffix[1:].upper())
    Image.new("RGB", (40, 20), (10, 200, 30)).save(path, kind)
    assert suffix in IMAGE_SUFFIXES and read_header(path) == ((20, 40), 1)
    assert np.abs(read_image(path).astype(int) - (10, 200, 30)).max() < 20


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff\xd8\xff\xe0 broken"])
def test_the_size_of_what_is_no_image(tmp_path, content):
    """Prevents one of the many errors that damaged headers raise from ending a training."""
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^its header cannot be read as an image$"):
        read_header(str(path))


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32), (np.int32, 32)])
def test_bits_of_a_tiff(tmp_path, dtype, bits):
    """Prevents a file that Pillow opens and OpenCV does not from ending a training in its middle."""
    path = str(tmp_path / "image.tif")
    assert cv2.imwrite(path, np.ones((20, 40), dtype))
    if bits <= 16:
        assert read_header(path) == ((20, 40), 1)
        assert read_image(path).shape[:2] == (20, 40)
    else:
        with pytest.raises(ValueError, match=r"^a TIFF with 32 bits for each colour; save it anew with 8 or 16, or as"):
            read_header(path)
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_16_bit_colour_keeps_its_channels(tmp_path, suffix):
    """Prevents red and blue from being exchanged, and memory that nobody wrote from being taken for an image."""
    path, values = str(tmp_path / f"image{suffix}"), np.zeros((64, 64, 3), np.uint16)
    values[:, :32], values[:, 32:] = (0, 10000, 40000), (40000, 10000, 0)  # BGR
    assert cv2.imwrite(path, values)
    for _ in range(3):
        image = read_image(path)
        assert (image[5, 5].tolist(), image[5, 60].tolist()) == ([255, 64, 0], [0, 64, 255])
