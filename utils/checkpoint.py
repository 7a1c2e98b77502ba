"""Writing weight files: tensors, and the contract that says how they must be used.

A file is {"model": state dict, "contract": ...}, plain types and tensors only, so that torch.load(weights_only=True)
reads it. Reading is utils/weights/.
"""

import os
import shutil
from pathlib import Path

import torch

FORMAT = 1


def make_contract(model, class_names, input_shape, resize_rule, **about):
    """What a weight file says about its own use: model, classes, input size, resize and pixel rules, and `about`."""
    return {
        "format": FORMAT,
        "model_name": model.name,
        "backbone": model.backbone_name,
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
    save_state(path, model.state_dict(), contract)


def save_state(path, state, contract):
    """Write tensors, {key: tensor}, and contract; the file appears whole or not at all."""
    state = {key: value.detach().cpu() for key, value in state.items()}
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
