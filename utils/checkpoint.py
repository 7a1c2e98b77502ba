"""Weight files: what is written, what is read, and how much of it fits a model.

A file that we write is {"model": state dict, "contract": what is needed to use it}, plain types and tensors only, so
that torch.load(weights_only=True) reads it. Official YOLOX releases are {"model": state dict}.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

FORMAT = 1
CONTRACT_KEYS = ("model_name", "class_names", "input_shape", "resize_rule", "pixel_rule")
# What the official YOLOX release expects of its images; pixel values 0..255.
YOLOX_RESIZE = {"mode": "topleft", "pad": 114}


class WeightFile(NamedTuple):
    """state: {key: tensor}; contract: dict, {} where the file is an official release; source: words for people."""

    path: str
    state: dict
    contract: dict
    source: str


class Fit(NamedTuple):
    """How a file's tensors fit a model: keys loaded, keys of the model left as they were, keys of the file unused."""

    loaded: list
    missing: list
    unused: list


def make_contract(model, class_names, input_shape, resize_rule, **about):
    """What a weight file says about its own use: model, classes, input size, resize and pixel rules, and `about`."""
    return {
        "format": FORMAT,
        "model_name": model.name,
        "class_names": list(class_names),
        "input_shape": list(input_shape),
        "resize_rule": dict(resize_rule),
        "pixel_rule": model.normalize.rule,
        "decode_rule": model.decode_rule,
        "strides": list(model.strides),
        **about,
    }


def save_weights(path, model, contract):
    """Write weights and contract; the file appears whole or not at all."""
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    _replace(path, lambda temporary: torch.save({"model": state, "contract": contract}, temporary))


def copy_weights(source, target):
    """Copy a weight file; the copy appears whole or not at all."""
    _replace(target, lambda temporary: shutil.copyfile(source, temporary))


def _replace(path, write):
    temporary = f"{path}.tmp"
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_weights(path):
    """Read a weight file without running anything in it.

    Returns a WeightFile with tensors on the CPU. Raises ValueError, naming file and cause, for a missing, damaged or
    unknown file.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no weight file {path!r} (relative to {Path.cwd()}); correct the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(
            f"{path} cannot be read as a weight file ({type(error).__name__}); expected a file of tensors written by "
            "torch.save. It may be damaged, incomplete, or a whole pickled model: fetch it again, or save its "
            "state_dict()."
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    contract = (content.get("contract") or {}) if isinstance(content, dict) else None
    if not _is_state_dict(state) or not _is_contract(contract):
        raise ValueError(
            f"{path} holds no weights that are known here; expected a file written by this project or an official "
            "YOLOX release, that is, {'model': state dict}."
        )
    if contract:
        source = f"{contract['model_name']}, {len(contract['class_names'])} classes, written by this project"
    else:
        source = "weights without a contract, pixels as the network's official release expects them"
    return WeightFile(str(path), state, contract, source)


def _is_state_dict(value):
    return isinstance(value, dict) and value and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _is_contract(value):
    return isinstance(value, dict) and (not value or set(CONTRACT_KEYS) <= set(value))


def load_matching(model, weights):
    """Load every tensor of a file that has its place and shape in the model.

    Returns a Fit. Raises ValueError, with the counts, where the feature extractor is not whole: then the file belongs
    to another network, and training would silently start from noise.
    """
    own = model.state_dict()
    loaded = [key for key, value in weights.state.items() if key in own and own[key].shape == value.shape]
    missing = [key for key in own if key not in set(loaded)]
    prefix = model.extractor_prefix()
    extractor = [key for key in own if key.startswith(prefix)]
    lost = [key for key in missing if key.startswith(prefix)]
    if lost:
        raise ValueError(
            f"{weights.path} ({weights.source}) does not fit {model.name}: {len(loaded)} of {len(own)} tensors match, "
            f"and {len(lost)} of the backbone's {len(extractor)} do not (first: {lost[0]}). Set model_name to the "
            "network that the file was trained with, or model_path to a file of this network."
        )
    model.load_state_dict({key: weights.state[key] for key in loaded}, strict=False)
    return Fit(loaded, missing, [key for key in weights.state if key not in own])


def describe_fit(fit, total):
    """A sentence on how a file's tensors fit a model with `total` tensors."""
    sentence = f"{len(fit.loaded)} of {total} tensors loaded"
    if fit.missing:
        shown = ", ".join(fit.missing[:6]) + (", ..." if len(fit.missing) > 6 else "")
        sentence += f"; fresh, because missing or of another shape: {shown}"
    return sentence + (f"; {len(fit.unused)} tensors of the file have no place" if fit.unused else "")
