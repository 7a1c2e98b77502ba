import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from utils.data import worker_monitor as workers
from utils.data.annotations import Records
from utils.data.augment import AugmentSettings
from utils.data.image_cache import RamCache
from utils.data.loader import build_train_loader, build_val_loader
from utils.data.sampling import TrainShapes
from utils.data.worker_monitor import NotedImages, UnusableDataError

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
PLAIN = AugmentSettings(augment_epochs=0)
METHODS = multiprocessing.get_all_start_methods()


class Images:
    """Images of 8 x 8. Where the index is `index`, the worker does `what` instead; the main process does not."""

    def __init__(self, what, index=3):
        self.what, self.index, self.main, self.cut_off = what, index, os.getpid(), set()

    def __call__(self, index):
        if index == self.index and os.getpid() != self.main:
            self.what()
        return np.zeros((8, 8, 3), np.uint8)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(100)


def leave():
    os._exit(3)


def complain():
    raise UnusableDataError("The data: are gone.")


def fail():
    raise KeyError("index")


def records_of(count, folder="."):
    return Records(
        [os.path.join(folder, f"{index}.png") for index in range(count)], [(8, 8)] * count, [0] * count, [], []
    )


def loader_of(images, num_workers=2, method="fork", **options):
    loader = build_train_loader(
        records_of(8), PLAIN, 0, TrainShapes([(32, 32)]), 2, num_workers, load_image=images, **options
    )
    loader.multiprocessing_context = method if num_workers else None
    return loader


def error_of(loader):
    """What iterating raises, once it is sure that no worker is left."""
    with pytest.raises(ValueError) as raised:
        list(loader)
    assert not any(worker.is_alive() for worker in loader._iterator._workers)
    return str(raised.value)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            die,
            "A worker process was killed by signal 9 (SIGKILL) while it read ./3.png. Mostly main memory has run out: ",
        ),
        (leave, "A worker process ended with exit status 3 while it read ./3.png. "),
    ],
)
@pytest.mark.parametrize("timeout", [0, 60])
def test_a_worker_that_dies_is_named_with_its_image(what, expected, timeout):
    """Prevents a trace of torch that names a process number, and minutes until worker_timeout before it comes."""
    start = time.monotonic()
    assert error_of(loader_of(Images(what), worker_timeout=timeout)).startswith(expected)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name != "fork")) for name in METHODS]
)
def test_a_worker_that_hangs_is_named_with_its_image(method):
    """Prevents a training that waits for a dead network share for ever, and a program that never ends."""
    # Spawned workers need seconds to import torch.
    seconds = 1 if method == "fork" else 20
    assert error_of(loader_of(Images(hang), 2, method, worker_timeout=seconds)) == (
        f"No batch came within worker_timeout = {seconds} seconds: a worker process hangs while it reads ./3.png. "
        "Check that its disk or network share answers; if it is only slow, raise worker_timeout."
    )


def test_a_worker_that_dies_between_images_and_epochs():
    """Prevents torch's own words where no image is to blame, and an error in the middle of whatever the main process
    does when the worker dies."""
    loader = loader_of(Images(fail, index=None))
    assert len(list(loader)) == 4
    worker = loader._iterator._workers[1]
    worker.kill()
    worker.join()
    time.sleep(0.1)  # where torch's handler of SIGCHLD would raise
    assert "(SIGKILL) while it read no image. Mostly " in error_of(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_the_data_come_without_a_trace(num_workers):
    """Prevents a sentence for people that is buried in the trace of another process."""
    loader = loader_of(Images(complain), num_workers)
    loader.dataset.load_image.load_image.main = None
    with pytest.raises(ValueError) as raised:
        list(loader)
    assert str(raised.value) == "The data: are gone."
    assert not num_workers or not any(worker.is_alive() for worker in loader._iterator._workers)


def test_other_errors_keep_their_trace():
    """Prevents mistakes of the program from being hidden as mistakes of the data."""
    loader = loader_of(Images(fail))
    with pytest.raises(KeyError, match="in fail"):
        list(loader)
    loader._iterator.end_workers()


def test_validation_is_watched_too(tmp_path):
    """Prevents an evaluation that hangs or dies without a cause."""
    records = records_of(4, tmp_path)
    for index in range(4):
        cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tofile(records.path(index))
    loader = build_val_loader(records, (32, 32), {"mode": "topleft", "pad": 114}, 2, 1, worker_timeout=30)
    loader.multiprocessing_context = "fork"
    loader.dataset.load_image.load_image = Images(die)
    assert f"while it read {records.path(3)}. " in error_of(loader)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_workers_are_deaf_to_signals_for_the_main_process():
    """Prevents Ctrl-C, a closed terminal or a stopped job from taking the batches up to the next checkpoint away."""
    loader = loader_of(Images(fail, index=None))
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        for worker in loader._iterator._workers:
            os.kill(worker.pid, number)
    assert len(list(batches)) == 3
    assert len(list(loader)) == 4


def test_signals_wait_while_workers_start():
    """Prevents Ctrl-C from ending a worker that is just being started, and from being lost to the main process."""
    with pytest.raises(KeyboardInterrupt), workers._signals_wait():
        # To this thread: one that has no mask might take what is for the process.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        reached = True
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_finished_loader_ends_its_workers_quickly():
    """Prevents a program that waits seconds, or for ever, for workers that ignore SIGTERM."""
    loader = loader_of(Images(fail, index=None))
    assert len(list(loader)) == 4
    found, start = list(loader._iterator._workers), time.monotonic()
    del loader
    assert time.monotonic() - start < 2
    assert [worker.exitcode for worker in found] == [0, 0]


END = """
import os, signal, sys, time
sys.path.insert(0, "tests")
from tests.data.test_worker_monitor import Images, hang, loader_of
loader = loader_of(Images(hang))
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in loader._iterator._workers), flush=True)
"""


@pytest.mark.parametrize("end", ["raise OSError('of ours')", "sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_the_program(end):
    """Prevents programs that never end, as multiprocessing waits for daemons that ignore SIGTERM, and orphans that hold
    memory after the main process was killed."""
    index = "3" if "KILL" not in end else "None"
    code = END.replace("Images(hang)", f"Images(hang, {index})") + end
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == (-9 if "KILL" in end else 1)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.wait_procs(left, timeout=15)[1] == []


def test_which_image_is_noted():
    """Prevents an image from being blamed that was read long before."""
    noted = NotedImages(Images(fail, index=None), 2)
    assert noted(3).shape == (8, 8, 3)
    assert list(noted.indices) == [-1, -1]
    loader = loader_of(Images(fail, index=None))
    list(loader)
    assert list(loader.dataset.load_image.indices) == [-1, -1]


def test_a_cache_is_watched_like_files():
    """Prevents a cache whose files that were cut off are not named."""
    cache = RamCache(Records([], [], [], [], []), np.zeros(0), shared=False)
    cache.cut_off.add(5)
    assert NotedImages(cache, 0).cut_off == {5}
