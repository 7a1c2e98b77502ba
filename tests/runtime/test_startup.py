import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_threads_wait_briefly_unless_the_user_says_otherwise(given, expected):
    """Prevents threads that spin on a busy machine, and a setting of the user's that is overruled."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if given:
        environment["GOMP_SPINCOUNT"] = given
    code = "import os, utils.runtime.startup; print(os.environ['GOMP_SPINCOUNT'])"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.strip() == expected


def test_ctrl_c_during_an_import_is_a_sentence():
    """Prevents a page of trace where a script is stopped in its first seconds; other errors keep theirs."""
    code = "import utils.runtime.startup; raise {}"
    for error, said in (("KeyboardInterrupt", "\nStopped by Ctrl-C.\n"), ("KeyError(3)", "KeyError: 3\n")):
        command = [sys.executable, "-c", code.format(error)]
        process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
        assert process.returncode != 0 and process.stderr.endswith(said)
        assert ("Traceback" in process.stderr) == (error != "KeyboardInterrupt")


TOOLS = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("tools/[a-z]*.py"))


@pytest.mark.parametrize("script", ["train.py", "predict.py", "benchmarks/step.py", *TOOLS])
def test_it_comes_before_torch(script):
    """Prevents an import sorter from moving it behind torch, where it has no effect."""
    lines = (PROJECT / script).read_text(encoding="utf-8").splitlines()
    position = next(number for number, line in enumerate(lines) if line.startswith("import utils.runtime.startup"))
    packages = ("import torch", "from nets", "from utils")
    assert position < next(number for number, line in enumerate(lines) if line.startswith(packages))
