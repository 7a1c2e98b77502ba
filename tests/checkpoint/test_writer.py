import errno
import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils.checkpoint.writer import BackgroundWriter

ROOT = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, "No space left on device", "logs/a.pth")
SAID = (
    "note: logs/a.pth could not be written: No space left on device. What was saved before is kept, and the next save "
    "tries again; free space on that disk by removing old runs, or keep fewer files with keep_checkpoints.\n"
)
PATIENCE = 10  # seconds until a test gives up


def failing(error):
    def write():
        raise error

    return write


@pytest.fixture
def writer():
    return BackgroundWriter()


def test_jobs_run_in_order_beside_the_caller(writer):
    """Prevents an older file in the place of a newer one, and training that waits for the disk."""
    done, go_on = [], threading.Event()
    writer.submit("a", lambda: (go_on.wait(PATIENCE), done.append((1, threading.current_thread().name))))
    writer.submit("b", lambda: done.append((2, threading.current_thread().name)))
    assert done == []
    go_on.set()
    writer.wait()
    assert done == [(1, "writer_0"), (2, "writer_0")]
    writer.close()


def test_at_most_one_job_waits(writer):
    """Prevents memory that fills with snapshots where the disk is slower than the training."""
    begun, go_on, third = [], threading.Event(), threading.Event()

    def write():
        begun.append(1)
        go_on.wait(PATIENCE)

    def submit_the_third():
        writer.submit("c", write)
        third.set()

    writer.submit("a", write)
    writer.submit("b", write)
    caller = threading.Thread(target=submit_the_third)
    caller.start()
    assert not third.wait(0.05)
    assert len(begun) == 1
    go_on.set()
    assert third.wait(PATIENCE)
    caller.join()
    writer.close()
    assert len(begun) == 3


def test_a_full_disk_is_said_and_the_next_try_counts(writer, capsys):
    """Prevents hours of training from ending by a disk that was full for a while."""
    writer.submit("a", failing(FULL))
    writer.submit("a", lambda: None)
    writer.close()
    assert capsys.readouterr().out == SAID


def test_what_was_never_written_is_an_error_at_the_end(writer, capsys):
    """Prevents a run that ends as if all were well, with old files in its folder."""
    writer.submit("b", failing(PermissionError(errno.EACCES, "Permission denied")))
    writer.submit("a", lambda: None)
    writer.submit("a", failing(FULL))
    with pytest.raises(ValueError) as error:
        writer.close()
    assert str(error.value).startswith("b, logs/a.pth could not be written to the end; files of an earlier save are")
    first, second = capsys.readouterr().out.splitlines(keepends=True)
    assert first.endswith("the next save tries again; see that its folder is there and can be written to.\n")
    assert second == SAID
    writer.close()


@pytest.mark.parametrize("then", ["submit", "wait", "close"])
def test_other_errors_come_back_to_the_caller(writer, capsys, then):
    """Prevents a bug in a background thread from being seen by nobody."""
    ended = threading.Event()
    writer.submit("a", failing(KeyError("bug")))
    writer._thread.submit(ended.set)
    assert ended.wait(PATIENCE)
    with pytest.raises(KeyError, match="bug"):
        writer.submit("b", lambda: None) if then == "submit" else getattr(writer, then)()
    writer.close()
    assert capsys.readouterr().out == ""


def test_nothing_to_write_needs_no_thread(writer, capsys):
    """Prevents a thread, which a fork would lose, in programs that write nothing."""
    before = threading.active_count()
    writer.wait()
    writer.close()
    assert (threading.active_count(), capsys.readouterr().out) == (before, "")


def test_closing_ends_the_thread(writer):
    """Prevents threads that pile up, and a writer that cannot be used again."""
    before, done = threading.active_count(), []
    for number in (1, 2):
        writer.submit("a", lambda number=number: done.append(number))
        writer.close()
    assert (threading.active_count(), done) == (before, [1, 2])


def test_a_program_that_fails_finishes_its_jobs(tmp_path):
    """Prevents the loss of the last checkpoint where training ends by an error, and a program that never ends."""
    code = (
        "import sys, time; from pathlib import Path; from utils.checkpoint.writer import BackgroundWriter\n"
        "writer = BackgroundWriter()\n"
        "writer.submit('a', lambda: (time.sleep(0.1), Path(sys.argv[1]).touch()))\n"
        "raise SystemExit(5)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, timeout=PATIENCE, check=False)
    assert result.returncode == 5
    assert (tmp_path / "a").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_processes_that_fork_meanwhile_end(writer):
    """Prevents workers that wait for a thread which they do not have."""
    go_on = threading.Event()
    writer.submit("a", lambda: go_on.wait(PATIENCE))
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    go_on.set()
    writer.close()
