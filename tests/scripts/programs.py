"""Scripts of the project as a user runs them: in a process of their own, or, much faster, in this one."""

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from utils.io.logger import end_log_file

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = PROJECT / "VOCdevkit/Sample"
CLASSES = ["fish", "leaf", "mushroom"]
# Small and quick: two epochs on a few images at the smallest useful size.
QUICK = ("--input_shape=[64,64]", "--UnFreeze_Epoch=2", "--Freeze_Epoch=1", "--eval_period=1", "--fp16=False")


TRAIN_WITHOUT_PICTURES = """
import runpy
from utils.reporting.images import ImageLogger

ImageLogger.draw = lambda *_: None
runpy.run_path("train.py", run_name="__main__")
"""


class Finished(NamedTuple):
    """A program that ended: exit status, and what it wrote to its two streams."""

    status: int
    said: str
    error: str


def run(script, *arguments):
    """Run a script of the project as a process. arguments: as on the command line. Returns Finished."""
    process = subprocess.run(
        [sys.executable, str(PROJECT / script), *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Finished(process.returncode, process.stdout, process.stderr)


def run_here(script, *arguments, folder=PROJECT):
    """Run a script of the project in this process, as the command line does. Returns Finished, as run.

    It saves the seconds in which a process imports torch. What would end a process with a trace is raised.
    """
    said, error, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(said), redirect_stderr(error):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.chdir(folder)
        try:
            runpy.run_path(str(PROJECT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code
        finally:
            end_log_file()
    return Finished(status or 0, said.getvalue(), error.getvalue())


def error_of(finished):
    """The one message of a failed run: no trace, non-zero exit."""
    assert finished.status != 0, finished.said
    assert "Traceback" not in finished.error, finished.error
    return finished.error.strip()


def leave_out_pictures(monkeypatch):
    """Let trainings draw no pictures, which take most of the time of a small one."""
    monkeypatch.setattr("utils.reporting.images.ImageLogger.draw", lambda *_: None)
