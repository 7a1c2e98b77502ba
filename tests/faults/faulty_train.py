"""train.py with faults at exact places: `FAULTS='[...]' python tests/faults/faulty_train.py --UnFreeze_Epoch=5`.

FAULTS is a JSON list of what runs.fault makes: after call `call` of the function `target` (and, where it `lasts`, after
each later call) the action of that name here is done, on rank `rank` and in the first attempt of a launcher alone.
"""

import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import train
from utils.checkpoint.resume import resolve_resume
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_training
from utils.data import image_cache as images

FILLER = "filler"


def send(name, _result):
    """Send this process a signal."""
    os.kill(os.getpid(), getattr(signal, name))


def send_to_all(name, _result):
    """Send a signal to this process and its workers, as a terminal does."""
    os.killpg(os.getpgid(0), getattr(signal, name))


def press_ctrl_c_twice(_result):
    send_to_all("SIGINT", None)
    time.sleep(1.5)
    send_to_all("SIGINT", None)


def kill_a_worker(_result):
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def fill_disk(folder, _result):
    """Leave no byte on the disk of a folder."""
    with open(Path(folder) / FILLER, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))


def free_disk(folder, _result):
    (Path(folder) / FILLER).unlink()


def run_out_of_memory(_result):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def spoil_loss(losses):
    return losses | {"loss": losses["loss"] * float("nan")}


def spoil_layer(name, good_calls, result):
    """Have a layer of the network that build_detector returned give NaN in training, from a later call on."""
    calls = 0

    def hook(layer, _inputs, output):
        nonlocal calls
        calls += layer.training
        return output * float("nan") if layer.training and calls > good_calls else output

    result.get_submodule(name).register_forward_hook(hook)


def hang_once_there_is(flag, _result):
    """Have images be read for ever as soon as a file exists."""
    decode = images.decode

    def decode_or_hang(*arguments):
        if os.path.exists(flag):
            time.sleep(3600)
        return decode(*arguments)

    images.decode = decode_or_hang


def touch(path, _result):
    Path(path).touch()


def delete(path, _result):
    os.unlink(path)


def garble(path, _result):
    Path(path).write_bytes(b"no picture")


def keep_one_image(_result):
    """Have images read from the disk each time, as in a data set that is larger than what is kept in memory."""
    images.MAX_IMAGES = 1


def say_memory(_result):
    """Say how many bytes of main memory the process holds."""
    print("main memory", int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def inject(target, call, action, arguments, lasts):
    """Wrap a function, named as in 'utils.training.engine:OptimWrapper.step', so that the action follows its call."""
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def with_fault(*values, **named):
        nonlocal calls
        calls += 1
        is_due = calls == call or (lasts and calls > call)
        result = function(*values, **named)
        changed = globals()[action](*arguments, result) if is_due else None
        return result if changed is None else changed

    setattr(owner, name, with_fault)


if __name__ == "__main__":
    sys.argv[0] = "train.py"
    for fault in json.loads(os.environ["FAULTS"]):
        rank = fault.pop("rank")
        if rank == int(os.environ.get("RANK", "0")) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            inject(**fault)
    run_script(train.main, read_constants(vars(train)), check_training, complete=resolve_resume)
