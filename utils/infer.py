"""The one way to infer: letterbox, network, decode, sigmoid, suppress, map back. Prediction and evaluation share it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import batched_nms

from nets import build_model
from utils.checkpoint import YOLOX_RESIZE, load_matching, read_weights
from utils.config import INPUT_SHAPE
from utils.data.letterbox import boxes_to_image, letterbox, read_image

# More candidates than this per image are cut to the best before suppression, whose cost is quadratic.
MAX_CANDIDATES = 3000


class ImageDetections(NamedTuple):
    """Boxes of one image, best first: boxes_xyxy (n, 4) float32, scores (n,) 0..1, class_ids (n,) int64; numpy."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


@torch.no_grad()
def suppress(decoded, confidence, nms_iou, max_boxes=100):
    """Turn decoded predictions into the boxes that stay.

    decoded: (B, N, 5 + C) from model.decode. confidence: lowest objectness * class probability, 0..1. nms_iou: boxes of
    one class that overlap more than this are one. Each cell names its most probable class. Returns for each image
    (boxes_xyxy (n, 4) input pixels, scores (n,), class_ids (n,)), best first, at most max_boxes.
    """
    class_probability, class_ids = decoded[..., 5:].max(-1)
    scores = decoded[..., 4].sigmoid() * class_probability.sigmoid()
    results = []
    for boxes_xyxy, score, classes in zip(decoded[..., :4], scores, class_ids, strict=True):
        keep = (score >= confidence).nonzero().squeeze(1)
        if len(keep) > MAX_CANDIDATES:
            keep = keep[score[keep].topk(MAX_CANDIDATES).indices]
        boxes_xyxy, score, classes = boxes_xyxy[keep], score[keep], classes[keep]
        keep = batched_nms(boxes_xyxy, score, classes, nms_iou)[:max_boxes]
        results.append((boxes_xyxy[keep], score[keep], classes[keep]))
    return results


def to_image(result, placement, size_hw):
    """One entry of suppress -> ImageDetections in pixels of the original image, clipped to it."""
    boxes_xyxy, scores, class_ids = (part.float().cpu().numpy() for part in result)
    return ImageDetections(boxes_to_image(boxes_xyxy, placement, size_hw), scores, class_ids.astype(np.int64))


class Detector:
    """A trained detector, opened from a weight file that says itself how it must be used.

    weights_path: a file of this project, or an official YOLOX release, for which model_name and class_names must be
    given. input_shape: (height, width), None for the file's. device: 'cpu', 'cuda', ... Raises ValueError for a file
    that cannot be used, or constants that contradict it.
    """

    def __init__(self, weights_path, device="cpu", model_name="", class_names=None, input_shape=None):
        weights = read_weights(weights_path)
        contract = weights.contract
        for name, key, given in (
            ("model_name", "model_name", model_name),
            ("classes_path", "class_names", list(class_names or ())),
        ):
            if contract and given and given != contract[key]:
                raise ValueError(
                    f"{name} is {given!r}, but {weights_path} was trained with {contract[key]!r}: leave it empty."
                )
            if not contract and not given:
                raise ValueError(
                    f"{weights_path} is an official release and does not say its {key}: set {name} to "
                    + ("'model_data/coco_classes.txt'." if name == "classes_path" else "'yolox_nano' or the like.")
                )
        self.device = torch.device(device)
        self.model_name = contract.get("model_name", model_name)
        self.class_names = contract.get("class_names", class_names)
        official_shape = (416, 416) if self.model_name in ("yolox_nano", "yolox_tiny") else (640, 640)
        self.input_shape = tuple(input_shape or contract.get("input_shape", official_shape))
        is_valid, expected = INPUT_SHAPE
        if not is_valid(self.input_shape):
            raise ValueError(f"input_shape is {list(self.input_shape)}; expected {expected}")
        self.resize_rule = contract.get("resize_rule", YOLOX_RESIZE)
        self.model = build_model(
            self.model_name, len(self.class_names), contract.get("pixel_rule"), contract.get("decode_rule")
        )
        fit = load_matching(self.model, weights)
        if fit.missing:
            raise ValueError(
                f"{weights_path} does not fit {self.model_name} with {len(self.class_names)} classes: "
                f"{len(fit.missing)} tensors are missing or of another shape (first: {fit.missing[0]}). Give the class "
                "names and the model that the file was trained with."
            )
        self.model.to(self.device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def __call__(self, image, confidence=0.5, nms_iou=0.5, max_boxes=300):
        """Detect on one image: a path, or RGB uint8 (H, W, 3). Returns ImageDetections in the image's pixels."""
        image = read_image(str(image)) if isinstance(image, (str, Path)) else image
        canvas, placement = letterbox(image, self.input_shape, self.resize_rule)
        batch = torch.from_numpy(canvas).permute(2, 0, 1).unsqueeze(0).to(self.device)
        result = suppress(self.model.decode(self.model(batch)), confidence, nms_iou, max_boxes)[0]
        return to_image(result, placement, image.shape[:2])
