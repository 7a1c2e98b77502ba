"""The one way to infer: letterbox, network, decode, sigmoid, suppress, map back. Prediction and evaluation share it."""

import os
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nets import MODELS, build_model
from utils.config.rules import check_values
from utils.inference.base import BaseDetector
from utils.inference.postprocess import TestTimeAugmentation, detect, to_image
from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.files import PROJECT
from utils.io.logger import logger
from utils.runtime.device import choose_device, require_float32
from utils.weights.download import RELEASES, fetch, is_release
from utils.weights.load import load_matching
from utils.weights.metadata import confidence_of, tiles_of, tiles_words
from utils.weights.read import COCO_CLASSES, read_weights


def open_network(weights, model_name="", class_names=None, backbone=""):
    """The network that a weight file holds, whole, on the CPU, and its metadata with nothing missing.

    weights: a WeightFile. model_name, class_names, backbone: what the file cannot say itself; where it does they must
    agree. Returns (model in eval mode, metadata). Raises ValueError for constants that contradict the file, and for a
    file that does not hold a whole network.
    """
    metadata, is_ours = dict(weights.metadata), "format" in weights.metadata
    given = {"model_name": model_name, "class_names": list(class_names or ()), "backbone": backbone}
    for key, value in given.items():
        # Of a foreign file with 80 classes the names are a guess, which the constant may correct.
        if value and metadata.get(key, value) != value and (is_ours or key != "class_names"):
            constant = "classes_path" if key == "class_names" else key
            raise UserError(
                f"{constant} is {value!r}, but {weights.path} was trained with {metadata[key]!r}: leave it empty."
            )
        metadata[key] = value or metadata.get(key, value)
    names = metadata["class_names"]
    count = metadata.get("num_classes", len(names))
    if not count or not metadata["model_name"]:
        raise UserError(
            f"{weights.path} ({weights.source}) holds a part of a network, which detects nothing by itself: train with "
            "it first."
        )
    if count != len(names):
        raise UserError(
            f"{weights.path} has {count} classes, whose names it does not say, and classes_path names {len(names)}: "
            f"set classes_path to a text file with the {count} names, in the order of its training."
        )
    model = build_model(
        metadata["model_name"], count, metadata["pixel_rule"], metadata.get("decode_rule"), metadata["backbone"]
    )
    result = load_matching(model, weights._replace(metadata=metadata), names)
    lost = [*result.missing_keys, *result.by_class]
    if lost:
        raise UserError(
            f"{weights.path} does not hold a whole {model.name} with {count} classes: {len(lost)} tensors are missing "
            f"or of another shape (first: {lost[0]}). Take a file of the whole network, and its own class names."
        )
    return model.eval(), metadata


def check_release(name, path):
    """Raise ValueError where a downloaded file is not what its name promised: each tensor in its place and finite."""
    weights = read_weights(path)
    promised = name.partition(".")[0].replace("-", "_")
    network = max((known for known in MODELS if promised.startswith(known)), key=len)
    if weights.metadata.get("model_name") != network:
        raise UserError(f"it holds {weights.metadata.get('model_name') or 'a backbone'}, expected {network}")
    if weights.metadata.get("class_names"):
        open_network(weights)
    else:
        count = weights.metadata.get("num_classes", COCO_CLASSES)
        load_matching(build_model(weights.metadata["model_name"], count), weights, ())


def find_weights(model_path):
    """The file of model_path, fetched into model_data/ first where it is the name of a known release and no file."""
    if not is_release(model_path):
        return model_path
    folder = PROJECT / "model_data"
    if not (folder / RELEASES[model_path].rpartition("/")[2]).is_file():
        logger.info(f"{model_path} is fetched once from {RELEASES[model_path]} into {folder}")
    return fetch(model_path, folder, partial(check_release, model_path))


def open_detector(settings, **options):
    """The Detector that a script's constants name; lines on device and file are logged.

    settings: with Cuda, model_path, model_name, classes_path, input_shape and weights_format. options: further
    arguments of Detector. Raises as Detector and read_class_names do.
    """
    device, sentence = choose_device(settings.Cuda)
    if sentence:
        logger.warning(sentence)
    class_names = read_class_names(settings.classes_path) if settings.classes_path else None
    given = settings.model_name, class_names, settings.input_shape, settings.weights_format
    detector = Detector(settings.model_path, device, *given, **options)
    logger.info(f"{settings.model_path}: {detector.source}{tiles_words(detector.tiles)}")
    return detector


class Detector(BaseDetector):
    """A trained detector, opened from a weight file that says itself how it must be used.

    weights_path: any file that utils/weights/read.py reads and that holds a whole network, or the name of a release.
    device: 'cpu', 'cuda', ... model_name, class_names, weights_format: only where the file cannot say them.
    input_shape: (height, width), None for the file's. fuse: fold BatchNorm into the convolutions, which is faster and
    changes scores by less than 1e-4. cpu_threads: of torch in this process, 0 for the environment's TORCH_THREAD_NUM,
    or, without that, torch's choice. tta_flip, tta_scales: see TestTimeAugmentation. tile, tile_overlap: see
    TileOptions; None takes what the training had. source: what kind of file it was,
    in words. confidences: of each class the one that gave the best F1 on the training's validation set, where the file
    knows it. Raises ValueError for a file that cannot be used, or constants that contradict it.
    """

    def __init__(
        self,
        weights_path,
        device="cpu",
        model_name="",
        class_names=None,
        input_shape=None,
        weights_format="",
        fuse=False,
        cpu_threads=0,
        tta_flip=False,
        tta_scales=(1.0,),
        tile=None,
        tile_overlap=None,
    ):
        given = {"cpu_threads": cpu_threads, "tta_flip": tta_flip, "tta_scales": tta_scales, "fuse": fuse}
        check_values(given)
        choose_threads(cpu_threads)
        weights = read_weights(find_weights(weights_path), weights_format)
        self.model, self.metadata = open_network(weights, model_name, class_names)
        self.source = weights.source
        self.device = torch.device(device)
        require_float32()
        self.model_name, self.class_names = self.metadata["model_name"], self.metadata["class_names"]
        self.confidences = confidence_of(self.metadata, self.class_names)
        self.input_shape = tuple(input_shape or self.metadata["input_shape"])
        check_values({"input_shape": self.input_shape})
        self.resize_rule = self.metadata["resize_rule"]
        self.tiles = tiles_of(self.metadata, tile, tile_overlap)
        if fuse:
            fold_batchnorm(self.model)
        self.model.to(self.device, memory_format=torch.channels_last)
        if tta_flip or list(tta_scales) != [1.0]:
            self.model = TestTimeAugmentation(self.model, tta_flip, tta_scales)

    @torch.no_grad()
    def forward(self, batch):
        """The network's stage: (B, H, W, 3) uint8 RGB of the input's size -> raw."""
        return self.model(torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device))

    @torch.no_grad()
    def postprocess(self, raw, placements, sizes_hw, options):
        """The stage behind the network: raw -> Boxes of each image, chosen by NMSOptions."""
        results = detect(self.model, raw, options)
        return [to_image(*item) for item in zip(results, placements, sizes_hw, strict=True)]

    def synchronize(self):
        """Return when the device has done what it was asked to, so that a clock sees it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_threads(cpu_threads):
    """Let torch use so many CPU threads; 0 takes TORCH_THREAD_NUM, and leaves them alone where that is not set.

    Raises ValueError where that is no whole number above 0.
    """
    text = str(cpu_threads or os.environ.get("TORCH_THREAD_NUM", ""))
    if text and not (text.isdecimal() and int(text)):
        raise UserError(f"The environment's TORCH_THREAD_NUM is {text!r}; expected a number of threads, such as 2.")
    if text:
        torch.set_num_threads(int(text))


def fold_batchnorm(model):
    """Make of each convolution and the BatchNorm behind it one convolution with the same result, in place.

    A BatchNorm belongs to the convolution that its module names right before it.
    """
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
