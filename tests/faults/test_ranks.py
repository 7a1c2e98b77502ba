"""Several processes and machines: real trainings under torchrun, and what happens when one of them fails."""

import csv
import time

import pytest
from launched import PROJECT, TORCHRUN, free_port, started

from tests.scripts.programs import QUICK

pytestmark = pytest.mark.faults
SHORT = (*QUICK, "--Cuda=False", "--num_workers=0")
TRAIN = "train.py"
ON_TWO = (*TORCHRUN, "--nproc_per_node=2")


def rows_of_only_run(save_dir):
    """The rows of results.csv of the one run under save_dir."""
    (folder,) = (path for path in save_dir.iterdir() if path.is_dir())
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_machines_train_one_network(tmp_path):
    """Prevents a second machine that trains for itself, writes files too, or hangs at the end. The machines are two
    torchrun agents on this one."""
    meeting = ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=meadow")
    command = (*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", *meeting, TRAIN, *SHORT, f"--save_dir={tmp_path}")
    with started(*command) as first, started(*command) as second:
        outputs = [agent.communicate(timeout=240) for agent in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert sorted(
        out.count("processes      1 on this machine, 2 on 2 machines, started by torchrun; gloo between CPUs\n")
        for out, _ in outputs
    ) == [0, 1]
    assert sorted(out == "" for out, _ in outputs) == [False, True]
    assert [row["epoch"] for row in rows_of_only_run(tmp_path)] == ["1", "2"]


def test_the_older_launcher_trains(tmp_path):
    """Prevents `python -m torch.distributed.launch`, which adds --local-rank=N, from ending in an unknown parameter."""
    launch = ("torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}")
    with started(TORCHRUN[0], "-m", *launch, TRAIN, *SHORT, "--sync_bn=True", f"--save_dir={tmp_path}") as process:
        out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    # Once each: the other rank is silent.
    assert out.count("processes      2 on this machine, started by torchrun; gloo between CPUs\n") == 1
    assert out.count("note: sync_bn is True, but it takes GPUs and a launcher: ordinary BatchNorm is used.\n") == 1
    assert out.count("optimiser steps") == 1
    assert "bucket view" not in errors  # torch's warning of gradients that are copied
    assert [row["epoch"] for row in rows_of_only_run(tmp_path)] == ["1", "2"]


def test_a_network_of_queries_trains_on_two_ranks(tmp_path):
    """Prevents parameters without a gradient, which DistributedDataParallel refuses, where one rank's share of a batch
    has no boxes, and so no denoising queries."""
    command = (*ON_TWO, TRAIN, *SHORT, "--model_name=dfine_n", "--model_path=", f"--save_dir={tmp_path}")
    with started(*command, "--Freeze_Train=True", "--Freeze_batch_size=2", "--Unfreeze_batch_size=2") as process:
        _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    rows = rows_of_only_run(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])


# Runs train.py, but rank 1 fails in its third step, and leaves a file that says when.
FAILS = """
import os
import runpy
from pathlib import Path
from utils.training import engine
from utils.io.class_names import read_class_names

step, done = engine.OptimWrapper.step, []

def step_or_fail(self):
    done.append(1)
    if os.environ["RANK"] == "1" and len(done) == 3:
        Path(__file__).with_suffix(".failed").touch()
        {}
    return step(self)

engine.OptimWrapper.step = step_or_fail
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("raise KeyError('meadow')", ["rank 1:\nTraceback", "\nKeyError: 'meadow'\n"]),
        # What is a mistake of the user elsewhere, and what this rank alone meets.
        ("read_class_names('nowhere.txt')", ["Error: rank 1: ", "nowhere.txt"]),
    ],
)
def test_a_failure_of_one_rank_ends_all_and_is_shown(tmp_path, failure, words):
    """Prevents ranks that wait for ever for one that has failed, and a cause that nobody can read."""
    script = tmp_path / "fails.py"
    script.write_text(FAILS.format(failure), encoding="utf-8")
    command = (*ON_TWO, f"--master_port={free_port()}", str(script), *SHORT, f"--save_dir={tmp_path / 'logs'}")
    with started(*command, environment={"PYTHONPATH": str(PROJECT)}) as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert time.time() - script.with_suffix(".failed").stat().st_mtime < 60
    assert all(word in errors for word in words), errors


def test_a_mistake_that_all_ranks_meet_is_said_once(tmp_path):
    """Prevents the sentence from coming once per GPU."""
    wrong = ("--Unfreeze_batch_size=7", f"--save_dir={tmp_path / 'logs'}")
    with started(*ON_TWO, f"--master_port={free_port()}", TRAIN, *SHORT, *wrong) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("Error: Unfreeze_batch_size is 7, which 2 processes cannot share evenly") == 1
    assert "rank 1: " not in errors
