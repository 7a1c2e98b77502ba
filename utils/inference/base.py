"""What every detector does around its network: images in, batches, boxes out. It needs no torch, for deployment."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from utils.config.rules import check_values
from utils.image.codec import MAX_MEGAPIXELS, decode_with_gaps, read_header, read_image_with_gaps, stretch
from utils.image.letterbox import letterbox
from utils.image.tiles import TileOptions, join_tiles, tile_grid
from utils.io.errors import UserError
from utils.io.files import VIDEO_SUFFIXES
from utils.io.logger import logger

CHANNELS = ("RGB", "BGR")
NMS_IOU, MAX_BOXES = 0.5, 300
# Tiles of an image that the network sees at a time.
TILES_AT_ONCE = 8


class Boxes(NamedTuple):
    """Boxes of one image, best first: boxes_xyxy (n, 4) float32, scores (n,) 0..1, class_ids (n,) int64; numpy."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


class Detections(NamedTuple):
    """Boxes and the name of each box's class, names (n,) of text."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: np.ndarray


class NMSOptions(NamedTuple):
    """confidence: lowest score of a box, one for all classes or one for each; nms_iou: boxes of one class that overlap
    more than this are one; max_boxes: of an image.
    """

    confidence: float | list[float]
    nms_iou: float = NMS_IOU
    max_boxes: int = MAX_BOXES


class BaseDetector:
    """Detects on images, whatever computes the network.

    A subclass has class_names, input_shape (height, width), resize_rule, confidences (of each class the usual lowest
    score), tiles (TileOptions), and two stages: forward(batch), which takes (B, H, W, 3) uint8 RGB from `preprocess`,
    and postprocess(output, placements, sizes_hw, options), which makes of what forward returns a list of Boxes.
    """

    tiles = TileOptions()

    def __call__(self, images, confidence=None, nms_iou=NMS_IOU, max_boxes=MAX_BOXES, channels="RGB", batch_size=8):
        """Detect on one image or on several.

        images: a path, a PIL image, an array, see open_image, or a list of these. confidence: lowest score of a box,
        one for all classes or one for each; None takes `confidences`. nms_iou: boxes of one class that overlap more
        than this are one. max_boxes: of an image. channels: of arrays, 'RGB' or 'BGR' as OpenCV reads; files need none.
        batch_size: images that the network sees at a time. Several threads may call at once.
        Returns Detections in pixels of the image; for a list, a list of them in its order. Raises
        FileNotFoundError and ValueError for what is no such image.
        """
        options, found = self.options_of(confidence, nms_iou, max_boxes), []
        check_values({"batch_size": batch_size})
        several = images if isinstance(images, (list, tuple)) else [images]
        for start in range(0, len(several), batch_size):
            part = enumerate(several[start : start + batch_size], start)
            found += self.detect([open_image(image, channels, f"images[{place}]") for place, image in part], options)
        names = np.array(self.class_names)
        found = [Detections(*item, names[item.class_ids]) for item in found]
        return found if several is images else found[0]

    def options_of(self, confidence=None, nms_iou=NMS_IOU, max_boxes=MAX_BOXES):
        """NMSOptions with a confidence for each class, of the arguments of a call. Raises ValueError for other ones."""
        confidence = self.confidences if confidence is None else np.asarray(confidence).tolist()
        scores = confidence if isinstance(confidence, list) else [confidence] * len(self.class_names)
        if len(scores) != len(self.class_names):
            raise UserError(
                f"confidence has {len(scores)} numbers; expected one, or one for each of the "
                f"{len(self.class_names)} classes."
            )
        for score in scores:
            check_values({"confidence": score, "nms_iou": np.asarray(nms_iou).tolist()})
        return NMSOptions(scores, nms_iou, max_boxes)

    def detect(self, images_rgb, options):
        """A list of (height, width, 3) uint8 RGB -> a list of Boxes, of whole images or in tiles."""
        if not self.tiles.tile:
            return self.detect_batch(images_rgb, options)
        return [self.detect_tiles(image_rgb, options) for image_rgb in images_rgb]

    def detect_tiles(self, image_rgb, options):
        """The Boxes of an image that is looked at as a whole and in tiles."""
        size_hw = image_rgb.shape[:2]
        grid, found = tile_grid(size_hw, self.tiles), []
        for start in range(0, len(grid), TILES_AT_ONCE):
            part = grid[start : start + TILES_AT_ONCE].tolist()
            found += self.detect_batch([image_rgb[y1:y2, x1:x2] for x1, y1, x2, y2 in part], options)
        tiles_xyxy = np.repeat(grid, [len(boxes.scores) for boxes in found], axis=0)
        boxes_xyxy, scores, class_ids = map(np.concatenate, zip(*found, strict=True))
        boxes_xyxy = boxes_xyxy + tiles_xyxy[:, [0, 1, 0, 1]].astype(np.float32)
        kept = join_tiles(boxes_xyxy, scores, class_ids, tiles_xyxy, size_hw, self.tiles, options.nms_iou)
        kept = kept[: options.max_boxes]
        return Boxes(boxes_xyxy[kept], scores[kept], class_ids[kept])

    def detect_batch(self, images_rgb, options):
        """One batch of whole images: a list of (height, width, 3) uint8 RGB -> a list of Boxes."""
        batch, placements = self.preprocess(images_rgb)
        sizes_hw = [image.shape[:2] for image in images_rgb]
        return self.postprocess(self.forward(batch), placements, sizes_hw, options)

    def preprocess(self, images_rgb):
        """Images as the network's input: (B, H, W, 3) uint8, and the Placement of each."""
        canvases, placements = zip(
            *(letterbox(image, self.input_shape, self.resize_rule) for image in images_rgb), strict=True
        )
        return np.stack(canvases), placements


def open_image(image, channels="RGB", name="image"):
    """(height, width, 3) uint8 RGB of a path, an array or a PIL image; name: of what is no path, for messages.

    Arrays: uint8, or uint16, which is stretched as 16-bit files are; colour, with or without transparency, or grey. PIL
    images: of any mode, turned as their EXIF data say. Transparency is left out. Raises FileNotFoundError for a missing
    file, ValueError for a file that is no image or too large to decode, and for what is of another kind.
    """
    if isinstance(image, (str, Path)):
        return open_picture(str(image))
    if channels not in CHANNELS:
        raise UserError(f"channels is {channels!r}; expected 'RGB', or 'BGR' as cv2.imread gives.")
    if isinstance(image, Image.Image):
        image, channels = _array_of(ImageOps.exif_transpose(image)), "RGB"
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"{name} is of type {type(image).__name__}; expected a path, a PIL image, an array of uint8 with the shape "
            "(height, width, 3), or a list of these."
        )
    is_grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if (not is_grey and (image.ndim != 3 or image.shape[2] not in (3, 4))) or 0 in image.shape:
        hint = ": make a list of a batch" if image.ndim == 4 else ", or (height, width) of a grey one"
        raise UserError(f"{name} has the shape {image.shape}; expected (height, width, 3){hint}.")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{name} is of {image.dtype}; expected uint8, 0 to 255, or uint16: of numbers from 0 to 1 make it by "
            "(image * 255).astype(np.uint8)."
        )
    image = np.dstack([image] * 3) if is_grey else image[..., :3]
    image = stretch(image) if image.dtype == np.uint16 else image
    return np.ascontiguousarray(image[..., ::-1] if channels == "BGR" else image)


def _array_of(image):
    """A PIL image in RGB; one of 16 bits or more as its numbers, of which mode RGB would keep the lowest 8 bits."""
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    is_16_bit = image.mode != "F" and values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max
    return values.astype(np.uint16) if is_16_bit else values


def open_picture(path, max_megapixels=MAX_MEGAPIXELS):
    """read_image after a look at the header, which keeps a picture of gigabytes from filling the memory."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; expected a picture. Mode 'dir_predict' looks at a whole folder.")
    if Path(path).is_file():
        _check_header(path, path, max_megapixels)
    return _warned(path, *read_image_with_gaps(path))


def decode_picture(content, name, max_megapixels=MAX_MEGAPIXELS):
    """open_picture of a file's content, bytes; name: of the file, for messages."""
    _check_header(io.BytesIO(content), name, max_megapixels)
    return _warned(name, *decode_with_gaps(np.frombuffer(content, np.uint8), name))


def _check_header(file, name, max_megapixels):
    try:
        read_header(file, max_megapixels)
    except ValueError as error:
        kind = "" if "megapixels" in str(error) else ". Expected a JPEG, a PNG or the like"
        kind += "; mode 'video' takes videos" if str(name).lower().endswith(VIDEO_SUFFIXES) else ""
        raise UserError(f"{name} cannot be decoded as an image: {error}{kind}.") from error


def _warned(name, image_rgb, is_truncated):
    if is_truncated:
        logger.warning(f"{name} lacks its last bytes; what is there is looked at. Save or copy it anew.")
    return image_rgb
