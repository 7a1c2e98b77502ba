"""Runs a function on several ranks, as processes on this machine, or a script under torchrun."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from utils.runtime import distributed
from utils.runtime.device import init_runtime

PROJECT = Path(__file__).resolve().parent.parent
SETTINGS = {"gpu_ids": "", "Cuda": False, "distributed": False, "fp16": False, "seed": 11}
SETTINGS |= {"cudnn_benchmark": True, "deterministic": False, "cpu_threads": 1}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_ranks(function, world_size, folder, *arguments):
    """What function(runtime, *arguments) returns on each rank, a list. folder: an empty one, for files in between."""
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    ranks = [
        context.Process(target=_be_rank, args=(rank, world_size, port, folder, function, arguments))
        for rank in range(world_size)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _be_rank(rank, world_size, port, folder, function, arguments):
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
    torch.save(function(init_runtime(SimpleNamespace(**SETTINGS)), *arguments), folder / f"{rank}.pt")
    distributed.shut_down()


@contextmanager
def started(*command, environment=None):
    """A program that runs beside the test, its output as text; it is ended with the block."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()  # a launcher ends those it started
        process.wait(60)
