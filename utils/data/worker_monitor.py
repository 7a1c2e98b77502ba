"""Processes that prepare batches: deaf to signals for the training, and named with their image where one dies or hangs.

torch raises RuntimeError for such a worker: where a batch is waited for, and, on systems with SIGCHLD, wherever the
main thread just is. What it says names neither cause nor image; worker_error puts both into a sentence.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import RawArray

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from utils.image.opencv import cv2
from utils.io.errors import UserError

# Ctrl-C, a closed terminal and a stopped job reach every process. A worker must not end by them: the main process still
# needs its batches up to the next checkpoint. Windows has no SIGHUP.
SIGNALS_FOR_MAIN = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]
# What mostly stands behind a signal that ended a worker, and what to do.
CAUSES = {
    "SIGKILL": "Mostly main memory has run out: lower num_workers, or set cache to '' where it is 'ram'.",
    "SIGBUS": "Mostly shared memory has run out: lower num_workers, or give more of it (Docker: --shm-size=8g).",
}
OTHER_CAUSE = "Take this image out of the list if it happens again; num_workers = 0 shows more of the error."
# How torch's messages of a worker that died, and of one that hangs, begin.
DIED, TIMED_OUT = "DataLoader worker (pid", "DataLoader timed out"
SECONDS_TO_END = 5
# Blocks up to this size are reused by the process; glibc learns no more than 32 MB.
REUSED_BYTES = 31 * 2**20
# Loaders with workers, and all workers that were started here and not ended by end_workers.
_loaders, _started = weakref.WeakSet(), []


class UnusableDataError(UserError):
    """An error of the data that ends the training, in words for people. MonitoredLoader gives it without a trace."""


class TrackedReader:
    """Calls load_image, and notes in shared memory which image each worker is reading.

    load_image: ImageCache or DecodedImages. indices: one per worker, -1 while it reads none; pids: of the workers.
    """

    def __init__(self, load_image: Callable, num_workers: int):
        self.load_image = load_image
        self.indices, self.pids = RawArray("q", [-1] * num_workers), RawArray("q", num_workers)

    def __call__(self, index: int) -> np.ndarray:
        worker = get_worker_info()
        if worker is None:
            return self.load_image(index)
        self.indices[worker.id], self.pids[worker.id] = index, os.getpid()
        try:
            return self.load_image(index)
        finally:
            self.indices[worker.id] = -1

    def index_read_by(self, pid: int) -> int:
        """Which image a worker is reading, or was when it ended; -1 for none."""
        return dict(zip(self.pids, self.indices, strict=True)).get(pid, -1)

    @property
    def truncated(self) -> set[int]:
        return self.load_image.truncated


class MonitoredLoader(DataLoader):
    """A DataLoader whose iteration raises UserError, in one sentence, where a worker died or hangs.

    Its dataset has `annotations`, and TrackedReader as `load_image`. timeout: seconds after which a worker counts as
    hung; 0 waits for ever. When it raises, all its workers have been ended.
    """

    workers = ()

    def __iter__(self) -> Iterator:
        try:
            yield from self._start()
        except UnusableDataError as error:
            end_workers(self.workers)
            # torch puts the worker's trace before the message.
            raise UserError(str(error).rpartition(f"{UnusableDataError.__name__}: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            if sentence := self.worker_error(error):
                raise UserError(sentence) from None
            raise

    def _start(self) -> Iterator:
        """torch's iterator over the batches, whose workers this starts; persistent ones are started once."""
        if any(worker.exitcode is not None for worker in self.workers):
            raise EOFError("A worker has ended.")
        before = set(multiprocessing.active_children())
        try:
            with _signals_blocked():
                return super().__iter__()
        finally:
            started = [child for child in multiprocessing.active_children() if child not in before]
            self.workers = started or self.workers
            _started.extend(started)
            _loaders.add(self)

    def worker_error(self, error: Exception) -> str:
        """What an error means for the workers, of this loader or another one, which are ended; '' where they are not
        its cause.

        error: what torch raised: a RuntimeError, or one of the pipe to a worker that is gone.
        """
        has_died, is_hung = (str(error).startswith(words) for words in (DIED, TIMED_OUT))
        if isinstance(error, RuntimeError) and not (has_died or is_hung):
            return ""
        suspects = [
            (loader, worker)
            for loader in (list(_loaders) if has_died else [self])
            for worker in loader.workers
            if is_hung or _has_ended(worker)
        ]
        if not suspects:
            return ""
        # One that was reading rather than one that had nothing to do.
        loader, worker = max(suspects, key=lambda suspect: suspect[0].index_read_by(suspect[1]) >= 0)
        index = loader.index_read_by(worker)
        image = loader.dataset.annotations.path(index) if index >= 0 else "no image"
        end_workers(loader.workers)
        if is_hung:
            return (
                f"No batch came within worker_timeout = {self.timeout} seconds: a worker process hangs while it reads "
                f"{image}. Check that its disk or network share answers; if it is only slow, raise worker_timeout."
            )
        how, advice = _describe_exit(worker.exitcode)
        return f"A worker process {how} while it read {image}. {advice}"

    def index_read_by(self, worker: multiprocessing.Process) -> int:
        return self.dataset.load_image.index_read_by(worker.pid)


def _has_ended(worker: multiprocessing.Process) -> bool:
    worker.join(0.1)  # its pipes break a moment before its end is known
    return worker.exitcode is not None and worker in _started


@atexit.register
def end_workers(workers: list | None = None) -> None:
    """End workers at once, also one that hangs: they ignore what multiprocessing would send at the program's exit.

    workers: None for all that were started here.
    """
    workers = list(_started if workers is None else workers)
    with _ends_unheard():
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(SECONDS_TO_END)
    _started[:] = [worker for worker in _started if worker not in workers]


@contextlib.contextmanager
def _ends_unheard() -> Iterator[None]:
    """Keep torch's handler, which raises, from hearing of workers that end on purpose."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _describe_exit(exit_code: int) -> tuple[str, str]:
    """How a process ended, in words, and what to do."""
    if exit_code >= 0:
        return f"ended with exit status {exit_code}", OTHER_CAUSE
    with contextlib.suppress(ValueError):  # real-time signals have no name
        name = signal.Signals(-exit_code).name
        return f"was killed by signal {-exit_code} ({name})", CAUSES.get(name, OTHER_CAUSE)
    return f"was killed by signal {-exit_code}", OTHER_CAUSE


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
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
