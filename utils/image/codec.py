"""Image files: decoded to RGB, encoded, and measured by their headers."""

import contextlib
import os
import warnings

import numpy as np
from PIL import Image

from utils.image.opencv import cv2
from utils.io.errors import MissingFileError, UserError

EXIF_ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS = 274, 256, 257, 258


def image_size_hw(path: str) -> tuple[tuple[int, int], bool]:
    """((height, width) an image will have when OpenCV decodes it, whether EXIF data exchanged these two).

    Raises ValueError, with the reason but without the path, when the header cannot be read or claims a size that only
    an attack or a mistake has, or pixels that OpenCV cannot read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            size_hw, is_turned, bits = _read_header(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; make it smaller") from error
    except Exception as error:  # a damaged header raises nearly anything in Pillow
        raise UserError("its header cannot be read as an image") from error
    if bits > 16:
        raise UserError(f"a TIFF with {bits} bits for each colour; save it anew with 8 or 16, or as JPEG or PNG")
    return size_hw, is_turned


def _read_header(path: str) -> tuple[tuple[int, int], bool, int]:
    """The result of image_size_hw, and how many bits a TIFF has for each colour; 8 for other formats."""
    bits = 8
    with Image.open(path) as image:
        width, height = image.size
        if image.format == "TIFF":
            # Newer Pillow versions turn the size of a TIFF by themselves, older ones do not.
            width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
            bits = max(image.tag_v2.get(TIFF_BITS, (1,)))
        turned = _orientation(image) in (5, 6, 7, 8)
    return (int(width), int(height)) if turned else (int(height), int(width)), turned, bits


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return image.tag_v2.get(EXIF_ORIENTATION, 1)
    # Not image.getexif(): it decodes PNG files, and follows XMP data, which OpenCV does not.
    tags = Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF data does not stop OpenCV either
        tags.load(image.info.get("exif"))
        return tags.get(EXIF_ORIENTATION, 1)
    return 1


# OpenCV's decoder of JPEG gives these fractions of an image in a fraction of the time. "Grayscale" is no bit of its
# own: with the bit for RGB these flags mean reduced RGB.
REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# What the decoder paints where a JPEG is cut off, and the least share of an image that must be left of it.
MISSING_GREY, LEAST_SHARE = 128, 0.5


def reduction_for(scale: float) -> int:
    """The largest of 1, 2, 4, 8 by which an image may be divided before it is drawn at `scale` times its size."""
    return next((number for number in REDUCED_FLAGS if number * scale <= 1), 1)


def reduce(image_rgb: np.ndarray, reduction: int) -> np.ndarray:
    """A (h, w, 3) uint8 image at a whole fraction of its size, rounded up, each pixel the mean of those it covers."""
    height, width = image_rgb.shape[:2]
    return cv2.resize(image_rgb, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)


def read_image(path: str, reduction: int = 1) -> np.ndarray:
    """Decode an image file of any kind OpenCV knows to (h, w, 3) uint8 RGB, EXIF rotation applied.

    reduction: 1, or 2, 4 or 8 for that fraction of the size, rounded up. A JPEG that lacks its last bytes is grey where
    they belong; where more than half of it is missing it counts as damaged. Raises FileNotFoundError when the file is
    missing, ValueError naming the file when it cannot be decoded.
    """
    return read_image_with_gaps(path, reduction)[0]


def read_image_with_gaps(path: str, reduction: int = 1) -> tuple[np.ndarray, bool]:
    """read_image, and whether the file is a JPEG that lacks its last bytes."""
    if not os.path.isfile(path):
        raise MissingFileError(f"There is no picture {path!r} (relative to {os.getcwd()}); correct the path.")
    # Not cv2.imread: on Windows it cannot open paths outside the system's code page.
    encoded = np.fromfile(path, np.uint8)
    is_jpeg = encoded[:2].tobytes() == JPEG_START
    flag = REDUCED_FLAGS[reduction] | cv2.IMREAD_COLOR_RGB if reduction > 1 and is_jpeg else cv2.IMREAD_COLOR_RGB
    image_rgb = _decode(encoded, flag)
    is_truncated = image_rgb is None and is_jpeg
    if is_truncated:
        # OpenCV refuses a JPEG that stops before its end. With the mark of an end it decodes what is there.
        image_rgb = _decode(np.append(encoded, np.frombuffer(JPEG_END, np.uint8)), flag)
        if image_rgb is not None and (image_rgb != MISSING_GREY).any(axis=2).mean() < LEAST_SHARE:
            image_rgb = None
    if image_rgb is None:
        raise UserError(f"{path} cannot be decoded as an image: save it anew as JPEG or PNG, or remove it.")
    return image_rgb if reduction == 1 or is_jpeg else reduce(image_rgb, reduction), is_truncated


def _decode(encoded: np.ndarray, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(encoded, flag)
    except cv2.error:
        return None


def write_image(path: str, image_rgb: np.ndarray) -> None:
    """Write (h, w, 3) uint8 RGB in the format that the path's ending names. Raises ValueError where OpenCV has none."""
    suffix = os.path.splitext(path)[1]
    try:
        written, encoded = cv2.imencode(suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise UserError(f"{path} cannot be written: OpenCV knows no image format {suffix!r}. Use .jpg or .png.")
    encoded.tofile(path)
