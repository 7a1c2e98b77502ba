"""What every detector does around its network: images in, batches, boxes out. It needs no torch, for deployment."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.config.rules import check_values
from utils.image.codec import image_size_hw, read_image_with_gaps
from utils.image.letterbox import letterbox
from utils.io.errors import UserError
from utils.io.logger import logger

CHANNELS = ("RGB", "BGR")
NMS_IOU, MAX_BOXES = 0.5, 300


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
    score), and two stages: forward(batch), which takes (B, H, W, 3) uint8 RGB from `preprocess`, and
    postprocess(output, placements, sizes_hw, options), which makes of what forward returns a list of Boxes.
    """

    def __call__(self, images, confidence=None, nms_iou=NMS_IOU, max_boxes=MAX_BOXES, channels="RGB", batch_size=8):
        """Detect on one image or on several.

        images: a path, or uint8 (height, width, 3), or a list of these. confidence: lowest score of a box, one for all
        classes or one for each; None takes `confidences`. nms_iou: boxes of one class that overlap more than this are
        one. max_boxes: of an image. channels: of arrays, 'RGB' or 'BGR' as OpenCV reads; files need none. batch_size:
        images that the network sees at a time. Several threads may call at once.
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
        """One batch: a list of (height, width, 3) uint8 RGB -> a list of Boxes."""
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
    """(height, width, 3) uint8 RGB of a path or an array; name: of an array, for messages.

    Raises FileNotFoundError for a missing file, ValueError for a file that is no image or too large to decode, and for
    an array of another kind.
    """
    if isinstance(image, (str, Path)):
        return open_picture(str(image))
    if channels not in CHANNELS:
        raise UserError(f"channels is {channels!r}; expected 'RGB', or 'BGR' as cv2.imread gives.")
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"{name} is of type {type(image).__name__}; expected a path, an array of uint8 with the shape (height, "
            "width, 3), or a list of these."
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        hint = {2: ": make three channels of a grey one by np.dstack([image] * 3)", 4: ": make a list of a batch"}
        raise UserError(f"{name} has the shape {image.shape}; expected (height, width, 3){hint.get(image.ndim, '')}.")
    if image.dtype != np.uint8:
        raise UserError(
            f"{name} is of {image.dtype}; expected uint8, 0 to 255: of numbers from 0 to 1 make it by (image * "
            "255).astype(np.uint8)."
        )
    return np.ascontiguousarray(image[..., ::-1]) if channels == "BGR" else image


def open_picture(path):
    """read_image after a look at the header, which keeps a picture of gigabytes from filling the memory."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; expected a picture. Mode 'dir_predict' looks at a whole folder.")
    if Path(path).is_file():
        try:
            image_size_hw(path)
        except ValueError as error:
            raise UserError(
                f"{path} cannot be decoded as an image: {error}. Expected a JPEG, a PNG or the like."
            ) from error
    image_rgb, is_truncated = read_image_with_gaps(path)
    if is_truncated:
        logger.warning(f"{path} lacks its last bytes; what is there is looked at. Save or copy it anew.")
    return image_rgb
