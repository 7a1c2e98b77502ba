"""Writing files beside the training: one thread, one file after the other."""

from collections import deque
from concurrent import futures

from utils.io.errors import UserError
from utils.io.files import DISK_IS_FULL
from utils.io.logger import logger


class BackgroundWriter:
    """Runs jobs that write files, in order, in one background thread, which starts with the first job.

    A disk that is full ends no training: it is said, and the next job of the same name is the next try.
    Any other failure of a job is raised by the next call. A program that ends without close() first finishes its jobs.
    """

    def __init__(self):
        self._thread, self._jobs, self._failed = None, deque(), {}

    def submit(self, name, write):
        """Have write() called. Where two jobs are unfinished, one of them waiting, it first waits for the older one.

        name: of what is written; the same for each try to write it. write: must hold a snapshot of all it writes.
        """
        self._finish(all_but=1)
        if self._thread is None:
            self._thread = futures.ThreadPoolExecutor(1, "writer")
        self._jobs.append(self._thread.submit(self._run, name, write))

    @property
    def failed(self):
        """Names of what could not be written at the last try."""
        return list(self._failed)

    def wait(self):
        """Wait until all that was submitted is on disk, or has failed."""
        self._finish(all_but=0)

    def close(self):
        """Wait and end the thread. Raises ValueError where the last try to write something failed."""
        try:
            self.wait()
        finally:
            if self._thread:
                self._thread.shutdown()
            self._thread, failed, self._failed = None, self._failed, {}
        if failed:
            raise UserError(
                f"{', '.join(dict.fromkeys(failed.values()))} could not be written to the end; files of an earlier "
                "save are kept. Free space on the disk, or make the folder writable, and resume the run."
            )

    def _finish(self, all_but):
        """Wait for the oldest jobs until `all_but` are left, and raise what went wrong in those that are done."""
        while self._jobs and (len(self._jobs) > all_but or self._jobs[0].done()):
            # First waiting, then removing: a Ctrl-C meanwhile must lose no job.
            futures.wait([self._jobs[0]])
            self._jobs.popleft().result()

    def _run(self, name, write):
        try:
            write()
        except OSError as error:
            path = self._failed[name] = str(error.filename or name)
            advice = "see that its folder is there and can be written to"
            if error.errno in DISK_IS_FULL:
                advice = "free space on that disk by removing old runs, or keep fewer files with keep_checkpoints"
            logger.warning(
                f"{path} could not be written: {error.strerror or error}. What was saved before is kept, and the "
                f"next save tries again; {advice}."
            )
        else:
            self._failed.pop(name, None)
