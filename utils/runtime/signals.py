"""Signals that ask a training to stop. It is heard at the next step, so that nothing is lost."""

import signal
import threading
import time

# Where a system has them: a closed terminal, Ctrl-C, and what cluster schedulers and `kill` send.
NAMES = ("SIGHUP", "SIGINT", "SIGTERM")
# A launcher passes Ctrl-C on to processes that got it from the terminal already: that is no second one.
SECONDS_BETWEEN = 1.0


class Stopped(Exception):
    """A training that was asked to stop and has saved all. exit_status: 128 + the signal's number, as shells count."""

    def __init__(self, message, name=""):
        super().__init__(message)
        self.exit_status = 128 + getattr(signal, name or "SIGTERM")


class StopSignals:
    """Inside `with`, the first signal is kept in `name`, '' until it comes; a second Ctrl-C leaves at once.

    What is ignored already stays so.
    """

    def __init__(self):
        self.name, self._heard_at, self._before = "", 0.0, {}

    def __enter__(self):
        # Python hands signals to its main thread alone; a training in another one is stopped by whoever started it.
        is_main = threading.current_thread() is threading.main_thread()
        for number in (getattr(signal, name) for name in NAMES if is_main and hasattr(signal, name)):
            # Under nohup a closed terminal stops nothing.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number, _frame):
        now = time.monotonic()
        if not self.name:
            self.name, self._heard_at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._heard_at > SECONDS_BETWEEN:
            raise KeyboardInterrupt
