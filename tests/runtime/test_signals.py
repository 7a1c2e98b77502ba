import signal
import threading

import pytest

from utils.runtime import signals
from utils.runtime.signals import Stopped, StopSignals


@pytest.fixture(autouse=True)
def harmless():
    """Handlers that do nothing, whatever the tests are run under."""
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in signals.NAMES}
    for number in before:
        signal.signal(number, lambda *_: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("", 143)])
def test_the_exit_status_tells_the_signal(name, status):
    """Prevents cluster schedulers from taking a run that was stopped for one that failed or is done."""
    stop = Stopped("Stopped.", name)
    assert (str(stop), stop.exit_status) == ("Stopped.", status)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_is_kept_and_ends_nothing(name):
    """Prevents a run that ends within a step, or while a file is being written; and handlers that stay behind."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignals() as heard:
        assert heard.name == ""
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert heard.name == name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_leaves_at_once(monkeypatch):
    """Prevents a run that cannot be left while it saves; and one Ctrl-C that a launcher passes on from counting twice.

    Other signals than Ctrl-C are no impatience.
    """
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with StopSignals() as heard:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.9
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert heard.name == "SIGINT"


def test_handlers_come_back_after_an_error():
    """Prevents a program from Python that cannot be stopped after a training that failed."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopSignals():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored():
    """Prevents the end of a run under nohup when its terminal is closed, which nohup is there to prevent."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as heard:
        signal.raise_signal(signal.SIGHUP)
        assert heard.name == ""
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_training_in_another_thread_hears_no_signals():
    """Prevents an error where a program with a window trains beside it: Python takes handlers from its main thread."""
    names = []

    def run():
        with StopSignals() as heard:
            names.append(heard.name)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert names == [""]
