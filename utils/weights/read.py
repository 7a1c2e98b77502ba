"""Opening a weight file of any kind without running anything in it, and saying what it is."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.config import PROJECT
from utils.data.annotations import read_class_names
from utils.weights.darknet import looks_like_darknet, read_darknet
from utils.weights.formats import FITTING, FORMATS, choose_format, recognise

CONTRACT_KEYS = ("model_name", "class_names", "input_shape", "resize_rule", "pixel_rule")
# Under these keys files keep their state dict, in the order in which they are looked for.
WRAPPERS = ("model", "net", "state_dict", "model_state_dict", "ema", "module")
# What wrapping a network for several devices, or compiling it, puts before its keys.
PREFIXES = ("module.", "_orig_mod.")
COCO_CLASSES = 80
SMALL_INPUT = ("yolox_nano", "yolox_tiny", "yolov4_tiny")


class WeightFile(NamedTuple):
    """A weight file as it was found.

    state: {key: tensor}, empty for a Darknet file, whose numbers then hold all. contract: what the file, or its format,
    says about its use; an entry that cannot be known is missing. is_backbone: the keys lack the backbone's prefix, and
    nothing else is held. source: words for people.
    """

    path: str
    state: dict
    contract: dict
    source: str
    is_backbone: bool = False
    numbers: np.ndarray | None = None


def read_weights(path, weights_format=""):
    """Read a weight file.

    Ours, official YOLOX releases, flat and wrapped state dicts of YOLOX and YOLOv4, backbones alone, those of
    torchvision too, and Darknet files. weights_format: the rules of a foreign file, one of FORMATS, where they are not
    those that its content suggests. Returns a WeightFile with tensors on the CPU. Raises ValueError, naming file and
    cause, for a missing, damaged or unknown file.
    """
    path = str(path)
    if not Path(path).is_file():
        raise ValueError(f"There is no weight file {path!r} (relative to {Path.cwd()}); correct the path.")
    with open(path, "rb") as file:
        start = file.read(512)
    _refuse_other_files(path, start)
    if not start.startswith((b"PK\x03\x04", b"\x80")) and looks_like_darknet(start):
        return _from_darknet(path, weights_format)
    return _from_content(path, _load(path), weights_format)


def _refuse_other_files(path, start):
    """Name what people take for weights by mistake."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = ""
    if not start:
        found = "is empty: the download or copy was broken off"
    elif text.startswith(b"<"):
        found = "is a web page: the address led to a page about the file, or to an error"
    elif text.startswith(b"version https://git-lfs"):
        found = "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download the file from its page"
    if found:
        raise ValueError(f"{path} {found}; expected a file of weights. Fetch it again.")


def _load(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(
            f"{path} cannot be read as a weight file ({type(error).__name__}); expected a file of tensors. Either it "
            "is damaged or incomplete: fetch it again. Or it is a whole pickled model, which is code and is not run "
            "here: where its class lives, save its state_dict() and use that file."
        ) from None  # torch's own message advises to run the code


def _from_content(path, content, weights_format):
    state, wrapper = unwrap(content)
    if not state:
        raise ValueError(f"{path} holds no tensors by name; expected weights, that is, a state dict.")
    contract = content.get("contract")
    if isinstance(contract, dict) and set(CONTRACT_KEYS) <= set(contract):
        _refuse_format(path, contract, weights_format)
        source = f"{contract['model_name']}, {len(contract['class_names'])} classes, written by this project"
        return WeightFile(path, state, contract, source)
    recognised = recognise(state)
    if recognised is None:
        shown = ", ".join(list(state)[:3])
        raise ValueError(
            f"{path} holds {len(state)} tensors of a network that is not known here (the first: {shown}); expected "
            "weights of YOLOX, YOLOv4 or YOLOv4-tiny, or a backbone of torchvision."
        )
    name = choose_format(recognised, wrapper, weights_format, path)
    contract = foreign_contract(name, recognised.model_name, recognised.num_classes)
    source = FORMATS[name].words
    if len(FITTING[recognised.family]) > 1 and not weights_format:
        source += " (if it was trained otherwise, weights_format says how)"
    return WeightFile(path, state, contract, source, recognised.is_backbone)


def _refuse_format(path, contract, weights_format):
    if weights_format:
        raise ValueError(
            f"weights_format is {weights_format!r}, but {path} says itself how it is used ({contract['pixel_rule']}): "
            "set weights_format = ''."
        )


def _from_darknet(path, weights_format):
    if weights_format not in ("", "darknet"):
        raise ValueError(f"weights_format is {weights_format!r}, but {path} is a Darknet file: set it to ''.")
    darknet = read_darknet(path)
    contract = foreign_contract("darknet", darknet.model_name, darknet.num_classes)
    part = f"{darknet.num_classes} classes" if darknet.num_classes else "its first layers"
    source = f"Darknet file of {darknet.model_name}, {part}; {FORMATS['darknet'].words}"
    return WeightFile(path, {}, contract, source, numbers=darknet.numbers)


def unwrap(content):
    """The state dict inside what torch.load gave, and the key it was under ('' for none); ({}, '') where there is none.

    Prefixes that wrapped networks have are taken off the keys. What is no tensor is left out.
    """
    if not isinstance(content, dict):
        return {}, ""
    for wrapper in WRAPPERS:
        state, _ = unwrap(content.get(wrapper))
        if state:
            return state, wrapper
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {_bare(key): value for key, value in tensors.items() if isinstance(key, str)}, ""


def _bare(key):
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def foreign_contract(format_name, model_name, num_classes):
    """What is known about the use of weights that do not say it themselves."""
    rules = FORMATS[format_name]
    contract = {"pixel_rule": rules.pixel_rule, "resize_rule": rules.resize_rule}
    if model_name:
        side = 416 if model_name in SMALL_INPUT else 608 if model_name == "yolov4" else 640
        contract |= {"model_name": model_name, "backbone": "", "input_shape": [side, side]}
    if rules.scale_x_y:
        maps = 2 if model_name == "yolov4_tiny" else 3
        contract["decode_rule"] = {"scale_x_y": [rules.scale_x_y] * maps}
    if num_classes:
        contract["num_classes"] = num_classes
    if num_classes == COCO_CLASSES:
        contract["class_names"] = read_class_names(PROJECT / "model_data" / "coco_classes.txt")
    return contract
