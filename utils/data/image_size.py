"""The size of an image from its header alone, before anything is decoded."""

import contextlib
import warnings

from PIL import Image

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
        raise ValueError(f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; make it smaller") from error
    except Exception as error:  # a damaged header raises nearly anything in Pillow
        raise ValueError("its header cannot be read as an image") from error
    if bits > 16:
        raise ValueError(f"a TIFF with {bits} bits for each colour; save it anew with 8 or 16, or as JPEG or PNG")
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
