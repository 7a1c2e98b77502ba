"""The one way to infer: letterbox, network, decode, sigmoid, suppress, map back. Prediction and evaluation share it."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import batched_nms

from nets import build_model
from utils.config import INPUT_SHAPE, PROJECT
from utils.data.class_names import read_class_names
from utils.data.letterbox import boxes_to_image, letterbox, read_image
from utils.device import choose_device
from utils.weights.contract import confidence_of
from utils.weights.download import RELEASES, fetch, is_release
from utils.weights.load import load_matching
from utils.weights.read import COCO_CLASSES, read_weights

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

    decoded: (B, N, 5 + C) from model.decode. confidence: lowest objectness * class probability, 0..1, one for all or
    one for each class. nms_iou: boxes of one class that overlap more than this are one. Each cell names its most
    probable class. Returns for each image (boxes_xyxy (n, 4) input pixels, scores (n,), class_ids (n,)), best first, at
    most max_boxes.
    """
    lowest = torch.as_tensor(confidence, dtype=torch.float32, device=decoded.device).expand(decoded.shape[-1] - 5)
    class_probability, class_ids = decoded[..., 5:].max(-1)
    scores = decoded[..., 4].sigmoid() * class_probability.sigmoid()
    results = []
    for boxes_xyxy, score, classes in zip(decoded[..., :4], scores, class_ids, strict=True):
        keep = (score >= lowest[classes]).nonzero().squeeze(1)
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


def open_network(weights, model_name="", class_names=None, backbone=""):
    """The network that a weight file holds, whole, on the CPU, and its contract with nothing missing.

    weights: a WeightFile. model_name, class_names, backbone: what the file cannot say itself; where it does they must
    agree. Returns (model in eval mode, contract). Raises ValueError for constants that contradict the file, and for a
    file that does not hold a whole network.
    """
    contract, is_ours = dict(weights.contract), "format" in weights.contract
    given = {"model_name": model_name, "class_names": list(class_names or ()), "backbone": backbone}
    for key, value in given.items():
        # Of a foreign file with 80 classes the names are a guess, which the constant may correct.
        if value and contract.get(key, value) != value and (is_ours or key != "class_names"):
            constant = "classes_path" if key == "class_names" else key
            raise ValueError(
                f"{constant} is {value!r}, but {weights.path} was trained with {contract[key]!r}: leave it empty."
            )
        contract[key] = value or contract.get(key, value)
    names = contract["class_names"]
    count = contract.get("num_classes", len(names))
    if not count or not contract["model_name"]:
        raise ValueError(
            f"{weights.path} ({weights.source}) holds a part of a network, which detects nothing by itself: train with "
            "it first."
        )
    if count != len(names):
        raise ValueError(
            f"{weights.path} has {count} classes, whose names it does not say, and classes_path names {len(names)}: "
            f"set classes_path to a text file with the {count} names, in the order of its training."
        )
    model = build_model(
        contract["model_name"], count, contract["pixel_rule"], contract.get("decode_rule"), contract["backbone"]
    )
    fit = load_matching(model, weights._replace(contract=contract), names)
    fresh = [*fit.missing, *fit.by_class]
    if fresh:
        raise ValueError(
            f"{weights.path} does not hold a whole {model.name} with {count} classes: {len(fresh)} tensors are missing "
            f"or of another shape (first: {fresh[0]}). Take a file of the whole network, and its own class names."
        )
    return model.eval(), contract


def check_release(name, path):
    """Raise ValueError where a downloaded file is not what its name promised: each tensor in its place and finite."""
    weights = read_weights(path)
    network = name.partition(".")[0].replace("-", "_")
    if weights.contract.get("model_name") != network:
        raise ValueError(f"it holds {weights.contract.get('model_name') or 'a backbone'}, expected {network}")
    if weights.contract.get("num_classes"):
        open_network(weights)
    else:
        load_matching(build_model(weights.contract["model_name"], COCO_CLASSES), weights, ())


def find_weights(model_path):
    """The file of model_path, fetched into model_data/ first where it is the name of a known release and no file."""
    if not is_release(model_path):
        return model_path
    folder = PROJECT / "model_data"
    if not (folder / RELEASES[model_path].rpartition("/")[2]).is_file():
        print(f"{model_path} is fetched once from {RELEASES[model_path]} into {folder}")
    return fetch(model_path, folder, partial(check_release, model_path))


def open_detector(settings):
    """The Detector that a script's constants name; the lines on device and file are printed.

    settings: with Cuda, model_path, model_name, classes_path, input_shape and weights_format. Raises as Detector and
    read_class_names do.
    """
    device, sentence = choose_device(settings.Cuda)
    if sentence:
        print(f"note: {sentence}")
    class_names = read_class_names(settings.classes_path) if settings.classes_path else None
    detector = Detector(
        settings.model_path, device, settings.model_name, class_names, settings.input_shape, settings.weights_format
    )
    print(f"{settings.model_path}: {detector.source}")
    return detector


class Detector:
    """A trained detector, opened from a weight file that says itself how it must be used.

    weights_path: any file that utils/weights/read.py reads and that holds a whole network, or the name of a release.
    device: 'cpu', 'cuda', ... model_name, class_names, weights_format: only where the file cannot say them.
    input_shape: (height, width), None for the file's. source: what kind of file it was, in words. confidences: of each
    class the one that gave the best F1 on the training's validation set, where the file knows it. Raises ValueError for
    a file that cannot be used, or constants that contradict it.
    """

    def __init__(
        self, weights_path, device="cpu", model_name="", class_names=None, input_shape=None, weights_format=""
    ):
        weights = read_weights(find_weights(weights_path), weights_format)
        self.model, self.contract = open_network(weights, model_name, class_names)
        self.source = weights.source
        self.device = torch.device(device)
        self.model_name, self.class_names = self.contract["model_name"], self.contract["class_names"]
        self.confidences = confidence_of(self.contract, self.class_names)
        self.input_shape = tuple(input_shape or self.contract["input_shape"])
        is_valid, expected = INPUT_SHAPE
        if not is_valid(self.input_shape):
            raise ValueError(f"input_shape is {list(self.input_shape)}; expected {expected}")
        self.resize_rule = self.contract["resize_rule"]
        self.model.to(self.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, image, confidence=None, nms_iou=0.5, max_boxes=300):
        """Detect on one image: a path, or RGB uint8 (H, W, 3). Returns ImageDetections in the image's pixels.

        confidence: lowest score of a box, one for all classes or one for each; None takes `confidences`.
        """
        confidence = self.confidences if confidence is None else confidence
        image = read_image(str(image)) if isinstance(image, (str, Path)) else image
        canvas, placement = letterbox(image, self.input_shape, self.resize_rule)
        batch = torch.from_numpy(canvas).permute(2, 0, 1).unsqueeze(0).to(self.device)
        result = suppress(self.model.decode(self.model(batch)), confidence, nms_iou, max_boxes)[0]
        return to_image(result, placement, image.shape[:2])
