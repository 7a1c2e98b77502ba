"""Image files: decoded to RGB, encoded, and measured by their headers."""

import contextlib
import io
import math
import os
import warnings
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from utils.image.opencv import cv2
from utils.io.errors import MissingFileError, UserError

EXIF_ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS = 274, 256, 257, 258


# A picture of so many takes 0.6 GB to decode.
MAX_MEGAPIXELS = 200
# Pillow refuses large pictures before their size is known here.
Image.MAX_IMAGE_PIXELS = None
# Values of EXIF that exchange height and width.
TURNING = (5, 6, 7, 8)


class ImageHeader(NamedTuple):
    """size_hw: (height, width) that the image will have when OpenCV decodes it, which follows EXIF data. orientation:
    of EXIF data, 1 (as stored) to 8."""

    size_hw: tuple[int, int]
    orientation: int


def read_header(path: str | BinaryIO, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """What an image's header says; of a path, or of a file opened for reading bytes.

    Raises ValueError, with the reason but without the path, when it cannot be read or claims a size that only an attack
    or a mistake has, or pixels that OpenCV cannot read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header, bits = _read_header(path)
    except Exception as error:  # a damaged header raises nearly anything in Pillow
        raise UserError("its header cannot be read as an image") from error
    megapixels = header.size_hw[0] * header.size_hw[1] / 1e6
    if megapixels > max_megapixels:
        raise UserError(
            f"{megapixels:.0f} megapixels, more than the {max_megapixels:g} of max_megapixels; make it smaller, or, in "
            f"predict.py, set max_megapixels = {math.ceil(megapixels)}"
        )
    if bits > 16:
        raise UserError(f"a TIFF with {bits} bits for each colour; save it anew with 8 or 16, or as JPEG or PNG")
    return header


def _read_header(path: str | BinaryIO) -> tuple[ImageHeader, int]:
    """The header, and how many bits a TIFF has for each colour; 8 for other formats."""
    bits = 8
    with Image.open(path) as image:
        width, height = image.size
        if image.format == "TIFF":
            # Newer Pillow versions turn the size of a TIFF by themselves, older ones do not.
            width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
            bits = max(image.tag_v2.get(TIFF_BITS, (1,)))
        orientation = _orientation(image)
    width, height = (int(height), int(width)) if orientation in TURNING else (int(width), int(height))
    return ImageHeader((height, width), orientation), bits


def _orientation(image: Image.Image) -> int:
    orientation = 1
    if image.format == "TIFF":
        orientation = image.tag_v2.get(EXIF_ORIENTATION, 1)
    else:
        # Not image.getexif(): it decodes PNG files, and follows XMP data, which OpenCV does not. Of a JPEG's segments,
        # which Pillow joins, the first with an orientation counts.
        segments = [data for _, data in getattr(image, "applist", ()) if data.startswith(b"Exif\0\0")]
        for segment in reversed(segments or [image.info.get("exif")]):
            tags = Image.Exif()
            with contextlib.suppress(Exception):  # damaged EXIF data does not stop OpenCV either
                tags.load(segment)
                orientation = tags.get(EXIF_ORIENTATION, orientation)
    return orientation if orientation in range(1, 9) else 1


# OpenCV's decoder of JPEG gives these fractions of an image in a fraction of the time. "Grayscale" is no bit of its
# own: with the bit for RGB these flags mean reduced RGB.
REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
AVIF_STARTS = (b"ftypavif", b"ftypavis")  # behind the length of the first part
# What the decoder paints where a JPEG is cut off, and the least share of an image that must be left of it.
MISSING_GREY, LEAST_SHARE = 128, 0.5
# Percent of the pixels below what becomes black, and below what becomes white; so many pixels suffice to tell.
STRETCHED, MOST_SAMPLES = (0.1, 99.9), 500_000


def reduction_for(scale: float) -> int:
    """The largest of 1, 2, 4, 8 by which an image may be divided before it is drawn at `scale` times its size."""
    return next((number for number in REDUCED_FLAGS if number * scale <= 1), 1)


def reduce(image_rgb: np.ndarray, reduction: int) -> np.ndarray:
    """A (h, w, 3) uint8 image at a whole fraction of its size, rounded up, each pixel the mean of those it covers."""
    height, width = image_rgb.shape[:2]
    return cv2.resize(image_rgb, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)


def read_image(path: str, reduction: int = 1) -> np.ndarray:
    """Decode an image file of any kind OpenCV knows to (h, w, 3) uint8 RGB, EXIF rotation applied, more than 8 bits
    stretched (see stretch).

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
    return decode_with_gaps(np.fromfile(path, np.uint8), path, reduction)


def decode_with_gaps(encoded: np.ndarray, name: str, reduction: int = 1) -> tuple[np.ndarray, bool]:
    """read_image_with_gaps of a file's content, (n,) uint8; name: of the file, for messages."""
    is_jpeg = encoded[:2].tobytes() == JPEG_START
    flag = cv2.IMREAD_COLOR_RGB | (REDUCED_FLAGS[reduction] if reduction > 1 and is_jpeg else cv2.IMREAD_ANYDEPTH)
    image_rgb = _decode(encoded, flag)
    is_truncated = image_rgb is None and is_jpeg
    if is_truncated:
        # OpenCV refuses a JPEG that stops before its end. With the mark of an end it decodes what is there.
        image_rgb = _decode(np.append(encoded, np.frombuffer(JPEG_END, np.uint8)), flag)
        if image_rgb is not None and (image_rgb != MISSING_GREY).any(axis=2).mean() < LEAST_SHARE:
            image_rgb = None
    if image_rgb is None:
        raise UserError(f"{name} cannot be decoded as an image: save it anew as JPEG or PNG, or remove it.")
    if encoded[4:12].tobytes() in AVIF_STARTS:
        image_rgb = _turned_avif(encoded, image_rgb)
    return image_rgb if reduction == 1 or is_jpeg else reduce(image_rgb, reduction), is_truncated


def _turned_avif(encoded: np.ndarray, image_rgb: np.ndarray) -> np.ndarray:
    """An image as its EXIF data turn it, which OpenCV 5.0 does for all formats but this one."""
    with Image.open(io.BytesIO(encoded)) as image:
        orientation = _orientation(image)
        is_turned = image_rgb.shape[1::-1] != image.size
    if is_turned:
        return image_rgb
    image_rgb = image_rgb.swapaxes(0, 1) if orientation in TURNING else image_rgb
    image_rgb = image_rgb[:, ::-1] if orientation in (2, 3, 6, 7) else image_rgb
    return np.ascontiguousarray(image_rgb[::-1] if orientation in (3, 4, 7, 8) else image_rgb)


def _decode(encoded: np.ndarray, flag: int) -> np.ndarray | None:
    try:
        image_rgb = cv2.imdecode(encoded, flag)
        if image_rgb is not None and image_rgb.dtype != np.uint8:
            # With the flag for RGB, OpenCV 5.0 leaves the memory of a 16-bit colour TIFF as it was.
            image_bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR_BGR | cv2.IMREAD_ANYDEPTH)
            image_rgb = np.ascontiguousarray(image_bgr[..., ::-1])
    except cv2.error:
        return None
    if image_rgb is None or image_rgb.dtype == np.uint8:
        return image_rgb
    return stretch(image_rgb) if image_rgb.dtype == np.uint16 else None


def stretch(image: np.ndarray) -> np.ndarray:
    """A uint16 image as uint8: what it uses of its range becomes 0 to 255; of one colour alone, the upper 8 bits stay.

    Cameras of 12 or 14 bits, and thermal ones, use a small part of 16 bits, which would all be black or one grey. A
    thousandth of the pixels at either end is left out, because single ones of such sensors are dead or hot.
    """
    step = max(int((image.size / MOST_SAMPLES) ** 0.5), 1)
    sample = image[::step, ::step]
    low, high = np.percentile(sample, STRETCHED)
    if low == high:
        low, high = float(image.min()), float(image.max())
    if low == high:
        return np.right_shift(image, 8).astype(np.uint8)
    return np.rint((image.astype(np.float32) - low).clip(0, high - low) * (255 / (high - low))).astype(np.uint8)


def is_writable(path: str) -> bool:
    """Whether OpenCV writes the image format that a path's ending names."""
    suffix = os.path.splitext(path)[1]
    # A name that is no UTF-8 would end the process in OpenCV.
    return suffix.isascii() and cv2.haveImageWriter(f"a{suffix}")


def write_image(path: str, image_rgb: np.ndarray) -> None:
    """Write (h, w, 3) uint8 RGB in the format that the path's ending names.

    Raises ValueError where OpenCV has none, and where the format takes no image of this size; OSError, with its number,
    which numpy's own writing leaves out, where the disk does not take it.
    """
    encoded = encode_image(path, image_rgb)
    with open(path, "wb") as file:
        file.write(encoded)


def encode_image(path: str, image_rgb: np.ndarray) -> np.ndarray:
    """What write_image writes to a path, as (n,) uint8."""
    suffix = os.path.splitext(path)[1]
    if not is_writable(path):
        raise UserError(f"{path} cannot be written: OpenCV knows no image format {suffix!r}. Use .jpg or .png.")
    try:
        written, encoded = cv2.imencode(suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        height, width = image_rgb.shape[:2]
        raise UserError(
            f"{path} cannot be written: {suffix} takes no picture of {width} x {height} pixels (width x height). Save "
            "the picture as .png, or with other sides."
        )
    return encoded
