"""Processes that prepare batches: deaf to signals for the training, and watched while it waits for them."""

import atexit
import contextlib
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import RawArray
from typing import NoReturn

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.image.opencv import cv2

# Ctrl-C, a closed terminal and a stopped job reach every process. A worker must not end by them: the main process still
# needs its batches up to the next checkpoint. Windows has no SIGHUP.
SIGNALS_FOR_MAIN = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]

# What mostly stands behind a signal that ended a worker, and what to do.
CAUSES = {
    "SIGKILL": "Mostly main memory has run out: lower num_workers, or set cache to '' where it is 'ram'.",
    "SIGBUS": "Mostly shared memory has run out: lower num_workers, or give more of it (Docker: --shm-size=8g).",
}

OTHER_CAUSE = "Take this image out of the list if it happens again; num_workers = 0 shows more of the error."

# How often the waiting main process looks whether the workers live, and how long it waits for one to end.
SECONDS_BETWEEN_LOOKS, SECONDS_TO_END = 1, 5

# For the end of the program.
_running = weakref.WeakSet()

# Blocks up to this size are reused by the process; glibc learns no more than 32 MB.
REUSED_BYTES = 31 * 2**20


class UnusableDataError(ValueError):
    """An error of the data that ends the training, in words for people. WatchedLoader gives it without a trace."""


class NotedImages:
    """Calls load_image, and notes in shared memory which image each worker is reading.

    load_image: RecentImages or RamCache. indices: one per worker, -1 while it reads none.
    """

    def __init__(self, load_image: Callable, num_workers: int):
        self.load_image, self.indices = load_image, RawArray("q", [-1] * num_workers)

    def __call__(self, index: int) -> np.ndarray:
        worker = get_worker_info()
        if worker is None:
            return self.load_image(index)
        self.indices[worker.id] = index
        try:
            return self.load_image(index)
        finally:
            self.indices[worker.id] = -1

    @property
    def cut_off(self) -> set[int]:
        return self.load_image.cut_off


class WatchedLoader(DataLoader):
    """A DataLoader whose iteration raises ValueError, in one sentence, where a worker died or hangs.

    Its dataset has `records`, and NotedImages as `load_image`. timeout: seconds after which a worker counts as hung;
    0 waits for ever. When it raises, all its workers have been ended.
    """

    def _get_iterator(self) -> Iterator:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _WatchedIterator(self)


class _WatchedIterator(_MultiProcessingDataLoaderIter):
    """torch's iterator over batches from workers. Its words for a worker that died name neither cause nor image."""

    def __init__(self, loader: WatchedLoader):
        with _signals_wait():
            super().__init__(loader)
        self.dataset = loader.dataset
        _running.add(self)
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main process happens to be when a worker dies.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __next__(self):
        try:
            return super().__next__()
        except UnusableDataError as error:
            self.end_workers()
            # torch puts the worker's trace before the message.
            raise ValueError(str(error).rpartition(f"{UnusableDataError.__name__}: ")[2].strip()) from None

    def _try_get_data(self, timeout: float = SECONDS_TO_END) -> tuple:
        """(whether there is data, the data), after `timeout` seconds at most; torch calls it wherever it waits."""
        end = time.monotonic() + timeout
        while True:
            self._look_after_workers()
            try:
                found = super()._try_get_data(min(timeout, SECONDS_BETWEEN_LOOKS))
            except Exception:
                for worker in self._workers:
                    worker.join(0.1)  # its pipes break a moment before its end is known
                self._look_after_workers()
                raise
            if found[0]:
                return found
            if time.monotonic() >= end:
                if self._timeout:
                    self._raise_hung()
                return found

    def _look_after_workers(self) -> None:
        """Raise ValueError where a worker has ended."""
        ended = [number for number, worker in enumerate(self._workers) if worker.exitcode is not None]
        if not ended:
            return
        readers = [number for number in ended if self.dataset.load_image.indices[number] >= 0]
        number = (readers or ended)[0]
        how, advice = _end_of(self._workers[number].exitcode)
        self.end_workers()
        raise ValueError(f"A worker process {how} while it read {self._image_of(number)}. {advice}")

    def _raise_hung(self) -> NoReturn:
        waited_for = self._task_info[self._rcvd_idx][0] if self._rcvd_idx in self._task_info else 0
        image = self._image_of(waited_for)
        self.end_workers()
        raise ValueError(
            f"No batch came within worker_timeout = {self._timeout} seconds: a worker process hangs while it reads "
            f"{image}. Check that its disk or network share answers; if it is only slow, raise worker_timeout."
        )

    def _image_of(self, number: int) -> str:
        index = self.dataset.load_image.indices[number]
        return self.dataset.records.path(index) if index >= 0 else "no image"

    def end_workers(self) -> None:
        """End the workers at once, also one that hangs: they ignore what multiprocessing would send at exit."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join(SECONDS_TO_END)
        for queue in self._index_queues:
            queue.cancel_join_thread()  # what it holds will not be read

    def _shutdown_workers(self) -> None:
        super()._shutdown_workers()
        if any(worker.is_alive() for worker in self._workers):
            self.end_workers()


@atexit.register
def _end_all_workers() -> None:
    """Runs before multiprocessing's own function for the exit, which would wait for the workers for ever."""
    for iterator in list(_running):
        iterator.end_workers()


def _end_of(exit_code: int) -> tuple[str, str]:
    """How a process ended, in words, and what to do."""
    if exit_code >= 0:
        return f"ended with exit status {exit_code}", OTHER_CAUSE
    with contextlib.suppress(ValueError):  # real-time signals have no name
        name = signal.Signals(-exit_code).name
        return f"was killed by signal {-exit_code} ({name})", CAUSES.get(name, OTHER_CAUSE)
    return f"was killed by signal {-exit_code}", OTHER_CAUSE


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back signals for the main process while it starts workers, which inherit this: none reaches them before
    start_worker."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_FOR_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker_id: int) -> None:
    """Prepare a worker process: one thread, as those of several workers would fight for the cores; deaf to signals that
    the main process answers. It ends when the main process tells it to, or is gone."""
    for number in SIGNALS_FOR_MAIN:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reuse_memory()


def reuse_memory() -> None:
    """Make malloc keep freed image buffers instead of returning them to the system and fetching zeroed pages again.

    glibc raises its threshold to the largest block it has seen freed (M_MMAP_THRESHOLD in mallopt(3)). Without this,
    page faults take about as long as decoding. Other allocators do not mind.
    """
    np.empty(REUSED_BYTES, np.uint8)
