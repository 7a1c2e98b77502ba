"""Writing weight files: tensors, and the contract that says how they must be used.

A file is {"model": state dict, "contract": ...}, plain types and tensors only, so that torch.load(weights_only=True)
reads it. Reading is utils/weights/.
"""

import contextlib
import errno
import os
import re
import shutil
import time
from pathlib import Path

import torch

from utils.weights.contract import FORMAT


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
    save_content(path, {"model": {key: value.detach().cpu() for key, value in state.items()}, "contract": contract})


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


def replace_file(path, write):
    """Write a file anew so that, whenever the machine stops, the old or the new one is there and whole.

    write(temporary): makes the new file, at a Path beside the old one. An OSError names the file; the old one stays.
    """
    # With the process in its name, as two trainings may write into one folder at the same time.
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        write(temporary)
        # Before the new name: a power cut could otherwise leave the new name on an empty file.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # What cannot be removed either must not hide why the writing failed.
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and _is_of(temporary, error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _keep_names(Path(path).parent)


def remove_temporaries(folder, older_than=0):
    """Remove what replace_file left unfinished in a folder when its process was killed.

    older_than: seconds since the last write; 0 for a folder into which no other process writes.
    """
    for path in Path(folder).glob("*.tmp"):
        # Another process may have finished or removed it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if re.fullmatch(r".+\.\d+\.tmp", path.name) and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def _is_of(path, error):
    """Whether an OSError is about a file, or does not say what it is about."""
    return error.filename is None or str(path) in (str(error.filename), str(error.filename2))


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


def _keep_names(folder):
    """Have a folder's new names on disk. Windows and some network drives know no such thing."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
