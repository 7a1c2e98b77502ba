"""Writing weight files: tensors, and the metadata that say how they must be used.

A file is {"model": state dict, "contract": ...}, plain types and tensors only, so that torch.load(weights_only=True)
reads it. Reading is utils/weights/.
"""

import errno
import os
import shutil

import torch

from utils.io.files import replace_file


def save_weights(path, model, metadata):
    """Write weights and metadata; the file appears whole or not at all."""
    save_state(path, model.state_dict(), metadata)


def save_state(path, state, metadata):
    """Write tensors, {key: tensor}, and metadata; the file appears whole or not at all."""
    save_content(path, {"model": {key: value.detach().cpu() for key, value in state.items()}, "contract": metadata})


def save_content(path, content):
    """Write any dict of plain types and tensors with torch.save; the file appears whole or not at all."""
    replace_file(path, lambda temporary: _write_content(temporary, content))


def copy_weights(source, target):
    """Copy a weight file; the copy appears whole or not at all."""
    replace_file(target, lambda temporary: shutil.copyfile(source, temporary))


def snapshot(value):
    """Plain types and tensors as they are now, for a file that is written while training goes on.

    Tensors are copied once, to the CPU; dicts, lists and tuples become new ones.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return type(value)(map(snapshot, value)) if isinstance(value, list | tuple) else value


def _write_content(path, content):
    """Write with torch.save. A full disk is an OSError: torch says something else about its own file then."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
