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
import torch

from utils.data import worker_monitor
from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.image_cache import RamCache
from utils.data.loader import LoaderOptions, build_train_loader, build_val_loader
from utils.data.sampling import MultiScale
from utils.data.worker_monitor import TrackedReader, UnusableDataError

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
PLAIN = AugmentOptions(augment_epochs=0)
METHODS = multiprocessing.get_all_start_methods()


class Images:
    """Images of 8 x 8. Where the index is `index`, the worker does `what` instead; the main process does not."""

    def __init__(self, what, index=3):
        self.what, self.index, self.main, self.truncated = what, index, os.getpid(), set()

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


def annotations_of(count, folder="."):
    return Annotations(
        [os.path.join(folder, f"{index}.png") for index in range(count)], [(8, 8)] * count, [0] * count, [], []
    )


def loader_of(images, num_workers=2, method="fork", timeout=0):
    options = LoaderOptions(num_workers, timeout=timeout)
    loader = build_train_loader(annotations_of(8), PLAIN, 0, MultiScale([(32, 32)]), 2, options, images)
    loader.multiprocessing_context = method if num_workers else None
    return loader


def error_of(loader):
    """What iterating raises, once it is sure that no worker is left."""
    with pytest.raises(ValueError) as raised:
        list(loader)
    assert loader.workers and not any(worker.is_alive() for worker in loader.workers)
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
    assert error_of(loader_of(Images(what), timeout=timeout)).startswith(expected)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name != "fork")) for name in METHODS]
)
def test_a_worker_that_hangs_is_named_with_its_image(method):
    """Prevents a training that waits for a dead network share for ever, and a program that never ends."""
    # Spawned workers need seconds to import torch.
    seconds = 1 if method == "fork" else 20
    assert error_of(loader_of(Images(hang), 2, method, seconds)) == (
        f"No batch came within worker_timeout = {seconds} seconds: a worker process hangs while it reads ./3.png. "
        "Check that its disk or network share answers; if it is only slow, raise worker_timeout."
    )


def kill(worker):
    """End a worker while the main process waits for no batch. Returns what torch raises then."""
    with pytest.raises(RuntimeError) as raised:
        worker.kill()
        time.sleep(10)  # torch's handler of SIGCHLD interrupts it
    return raised.value


def test_a_worker_that_dies_while_no_batch_is_waited_for():
    """Prevents torch's own words, and a trace from whatever the main process does, where a worker dies between images
    and epochs, or one of another loader does."""
    loader, other = loader_of(Images(fail, index=None)), loader_of(Images(fail, index=None))
    assert (len(list(loader)), len(list(other))) == (4, 4)
    error = kill(loader.workers[1])
    sentence = "A worker process was killed by signal 9 (SIGKILL) while it read no image. Mostly main memory has run"
    assert other.worker_error(error).startswith(sentence)
    assert not any(worker.is_alive() for worker in loader.workers)
    assert all(worker.is_alive() for worker in other.workers)
    # Those that were ended on purpose explain no further error.
    assert other.worker_error(error) == ""
    assert loader.worker_error(kill(other.workers[0])).startswith(sentence)


def test_a_worker_that_died_between_epochs():
    """Prevents an epoch that waits for the batches of a worker that is gone, where torch's error was caught."""
    loader = loader_of(Images(fail, index=None), timeout=60)
    assert len(list(loader)) == 4
    kill(loader.workers[1])
    start = time.monotonic()
    assert "(SIGKILL) while it read no image. Mostly " in error_of(loader)
    assert time.monotonic() - start < 10


def test_a_worker_that_dies_where_python_hears_no_signals():
    """Prevents a training in a thread of its own from waiting for ever, or from ending in torch's words."""
    errors = []

    def train():
        errors.append(error_of(loader_of(Images(die))))

    thread = threading.Thread(target=train)
    with contextlib.suppress(RuntimeError):  # torch's handler raises in the main thread, if another loader has set it
        thread.start()
        thread.join(60)
    thread.join(60)
    assert errors[0].startswith("A worker process was killed by signal 9 (SIGKILL) while it read ./3.png. ")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError("No space left"), KeyError("boxes")])
def test_errors_that_no_worker_caused(error):
    """Prevents the workers from being ended, and blamed, for any error of a training."""
    loader = loader_of(Images(fail, index=None))
    assert len(list(loader)) == 4
    assert loader.worker_error(error) == ""
    assert all(worker.is_alive() for worker in loader.workers)
    assert loader_of(Images(fail), 0).worker_error(RuntimeError("DataLoader timed out after 3 seconds")) == ""


def test_the_worker_that_was_reading_is_blamed():
    """Prevents the image of one worker from being named for the death of another: numbers of processes start anew when
    they are used up, so they are in no order."""
    reader = TrackedReader(Images(fail, index=None), 3)
    reader.pids[:], reader.indices[:] = [32767, 12, 13], [4, -1, 6]
    assert [reader.index_read_by(pid) for pid in (32767, 12, 13, 99)] == [4, -1, 6, -1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_the_data_come_without_a_trace(num_workers):
    """Prevents a sentence for people that is buried in the trace of another process."""
    loader = loader_of(Images(complain), num_workers)
    loader.dataset.load_image.load_image.main = None  # the main process does it, too
    with pytest.raises(ValueError) as raised:
        list(loader)
    assert str(raised.value) == "The data: are gone."
    assert len(loader.workers) == num_workers
    assert not any(worker.is_alive() for worker in loader.workers)


def test_other_errors_keep_their_trace():
    """Prevents mistakes of the program from being hidden as mistakes of the data."""
    loader = loader_of(Images(fail))
    with pytest.raises(KeyError, match="in fail"):
        list(loader)
    worker_monitor.end_workers(loader.workers)


def test_validation_is_monitored_too(tmp_path):
    """Prevents an evaluation that hangs or dies without a cause."""
    annotations = annotations_of(4, tmp_path)
    for index in range(4):
        cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tofile(annotations.path(index))
    loader = build_val_loader(annotations, (32, 32), {"mode": "topleft", "pad": 114}, 2, LoaderOptions(1, timeout=30))
    loader.multiprocessing_context = "fork"
    loader.dataset.load_image.load_image = Images(die)
    assert f"while it read {annotations.path(3)}. " in error_of(loader)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_workers_are_deaf_to_signals_for_the_main_process():
    """Prevents Ctrl-C, a closed terminal or a stopped job from taking the batches up to the next checkpoint away."""
    loader = loader_of(Images(fail, index=None))
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        for worker in loader.workers:
            os.kill(worker.pid, number)
    assert len(list(batches)) == 3
    assert len(list(loader)) == 4


def test_signals_wait_while_workers_start():
    """Prevents Ctrl-C from ending a worker that is just being started, and from being lost to the main process."""
    # A shell starts what runs in its background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), worker_monitor._signals_blocked():
        # To this thread: one that has no mask might take what is for the process.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        reached = True
    signal.signal(signal.SIGINT, before)
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_start_while_signals_are_held_back(monkeypatch):
    """Prevents workers that Ctrl-C ends before they have become deaf to it."""
    masks = []

    def start(_loader):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return iter(())

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", start)
    assert list(loader_of(Images(fail))) == []
    assert {signal.SIGINT, signal.SIGTERM} <= masks[0]


def test_a_finished_loader_ends_its_workers_quickly():
    """Prevents a program that waits seconds, or for ever, for workers that ignore SIGTERM."""
    loader = loader_of(Images(fail, index=None))
    assert len(list(loader)) == 4
    workers, start = loader.workers, time.monotonic()
    del loader
    assert time.monotonic() - start < 2
    assert [worker.exitcode for worker in workers] == [0, 0]


END = """
import os, signal, sys, time
sys.path.insert(0, "tests")
from tests.data.test_worker_monitor import Images, hang, loader_of
loader = loader_of(Images(hang))
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in loader.workers), flush=True)
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
    noted = TrackedReader(Images(fail, index=None), 2)
    assert noted(3).shape == (8, 8, 3)
    assert list(noted.indices) == [-1, -1]
    loader = loader_of(Images(fail, index=None))
    list(loader)
    assert list(loader.dataset.load_image.indices) == [-1, -1]


def test_a_cache_is_monitored_like_files():
    """Prevents a cache whose truncated files are not named."""
    cache = RamCache(Annotations([], [], [], [], []), np.zeros(0), shared=False)
    cache.truncated.add(5)
    assert TrackedReader(cache, 0).truncated == {5}
