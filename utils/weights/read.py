"""Opening a weight file of any kind without running anything in it, and saying what it is."""

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.files import PROJECT
from utils.io.text import counted
from utils.weights.darknet import looks_like_darknet, read_darknet
from utils.weights.formats import FITTING, FORMATS, choose_format, recognise
from utils.weights.metadata import check_metadata

# Numbers of numpy, which trainers keep beside their tensors; torch does not know them by itself. The second name is the
# one of numpy before 2.
PLAIN_NUMBERS = [
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType),
    *(np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")),
]
# Under these keys files keep their state dict, in the order in which they are looked for.
WRAPPERS = ("model", "net", "state_dict", "model_state_dict", "ema", "module")
# What wrapping a network for several devices, or compiling it, puts before its keys.
PREFIXES = ("module.", "_orig_mod.")
COCO_CLASSES = 80
SMALL_INPUT = ("yolox_nano", "yolox_tiny", "yolov4_tiny")


class WeightFile(NamedTuple):
    """A weight file as it was found.

    state: {key: tensor}, empty for a Darknet file, whose numbers then hold all. metadata: what the file, or its format,
    says about its use; an entry that cannot be known is missing. is_backbone: the keys lack the backbone's prefix, and
    nothing else is held. source: words for people.
    """

    path: str
    state: dict
    metadata: dict
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
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(f"The weight file {path!r} {what} (relative to {Path.cwd()}); correct the path.")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check its permissions.") from error
    _refuse_other_files(path, start)
    if not start.startswith((b"PK\x03\x04", b"\x80")) and looks_like_darknet(start):
        return _from_darknet(path, weights_format)
    return _from_content(path, load_content(path), weights_format)


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
        raise UserError(f"{path} {found}; expected a file of weights. Fetch it again.")


def load_content(path, mmap=False):
    """What torch.load finds in a file, without running anything. mmap: tensors are read when they are looked at."""
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off: the download or copy was broken off. Fetch it again.")
    try:
        with torch.serialization.safe_globals(PLAIN_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file raises nearly anything
        # torch's own message is left out: it advises to run the code.
        is_code = isinstance(error, pickle.UnpicklingError) and any(
            word in str(error) for word in ("GLOBAL", "allowlist")
        )
        reason = (
            "it holds more than tensors, such as a whole pickled model, which is code and is not run here: where its "
            "class lives, save its state_dict() and use that file"
            if is_code
            else f"it is damaged, incomplete, or no file that torch.save wrote ({type(error).__name__}): fetch it again"
        )
        raise UserError(f"{path} cannot be read as weights: {reason}.") from None


def _from_content(path, content, weights_format):
    state, wrapper = unwrap(content)
    if not state:
        raise UserError(f"{path} holds no tensors by name; expected weights, that is, a state dict.")
    if isinstance(content, dict) and "contract" in content:
        metadata = content["contract"]
        check_metadata(path, metadata)
        _refuse_format(path, metadata, weights_format)
        part = f"{counted(len(metadata['class_names']), 'class')}" if metadata["class_names"] else "a part of it"
        return WeightFile(path, state, metadata, f"{metadata['model_name']}, {part}, written by this project")
    recognised = recognise(state)
    if recognised is None:
        shown = ", ".join(list(state)[:3])
        raise UserError(
            f"{path} holds {len(state)} tensors of a network that is not known here (the first: {shown}); expected "
            "weights of YOLOX, YOLOv4, YOLOv4-tiny or D-FINE, or a backbone of torchvision."
        )
    name = choose_format(recognised, wrapper, weights_format, path, state)
    metadata = foreign_metadata(name, recognised.model_name, recognised.num_classes)
    source, others = FORMATS[name].words, [other for other in FITTING[recognised.family] if other != name]
    if others and not weights_format:
        source += f" (if it was trained otherwise, set weights_format to {' or '.join(map(repr, others))})"
    return WeightFile(path, state, metadata, source, recognised.is_backbone)


def _refuse_format(path, metadata, weights_format):
    if weights_format:
        raise UserError(
            f"weights_format is {weights_format!r}, but {path} says itself how it is used ({metadata['pixel_rule']}): "
            "set weights_format = ''."
        )


def _from_darknet(path, weights_format):
    if weights_format not in ("", "darknet"):
        raise UserError(f"weights_format is {weights_format!r}, but {path} is a Darknet file: set it to ''.")
    darknet = read_darknet(path)
    metadata = foreign_metadata("darknet", darknet.model_name, darknet.num_classes)
    part = f"{counted(darknet.num_classes, 'class')}" if darknet.num_classes else "its first layers"
    source = f"Darknet file of {darknet.model_name}, {part}; {FORMATS['darknet'].words}"
    return WeightFile(path, {}, metadata, source, numbers=darknet.numbers)


def unwrap(content, depth=3):
    """The state dict inside what torch.load gave, and the key it was under ('' for none); ({}, '') where there is none.

    depth: how many dicts deep it may lie. Prefixes that wrapped networks have are taken off the keys. What is no tensor
    is left out.
    """
    if not isinstance(content, dict) or not depth:
        return {}, ""
    # Checkpoints of D-FINE have the average of the weights, which is what is evaluated, beside the last ones.
    averaged = content.get("ema")
    if isinstance(averaged, dict) and "module" in averaged and "model" in content:
        content = averaged
    for wrapper in WRAPPERS:
        state, _ = unwrap(content.get(wrapper), depth - 1)
        if state:
            return state, wrapper
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {_bare(key): value for key, value in tensors.items() if isinstance(key, str)}, ""


def _bare(key):
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def foreign_metadata(format_name, model_name, num_classes):
    """What is known about the use of weights that do not say it themselves."""
    rules = FORMATS[format_name]
    metadata = {"pixel_rule": rules.pixel_rule, "resize_rule": rules.resize_rule}
    if model_name:
        side = 416 if model_name in SMALL_INPUT else 608 if model_name == "yolov4" else 640
        metadata |= {"model_name": model_name, "backbone": "", "input_shape": [side, side]}
    if rules.scale_x_y:
        maps = 2 if model_name == "yolov4_tiny" else 3
        metadata["decode_rule"] = {"scale_x_y": [rules.scale_x_y] * maps}
    if rules.decode_rule and num_classes:
        metadata["decode_rule"] = dict(rules.decode_rule)
    if num_classes:
        metadata["num_classes"] = num_classes
    if num_classes == COCO_CLASSES:
        metadata["class_names"] = read_class_names(PROJECT / "model_data" / "coco_classes.txt")
    return metadata
