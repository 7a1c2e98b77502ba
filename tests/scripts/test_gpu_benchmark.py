"""benchmarks/gpu.py in its form for a CPU, so that it works where a GPU is at hand for ten minutes."""

import json

import pytest

from tests.scripts.programs import run

QUICK_ITEMS = "versions,graphs,steps,waits,not_finite,overflow,against_cpu,compiled"
TRAININGS = "training,queries,devices,launcher,loading,marked_tests"


def rows_of(folder, items):
    """What it writes for these items; all of its lines are ok."""
    finished = run("benchmarks/gpu.py", "--Cuda=False", f"--items={items}", f"--save_dir={folder}")
    assert finished.status == 0, finished.said
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_check_of_a_step_runs_on_a_cpu(tmp_path):
    """Prevents a check that fails by itself on a GPU, and one that finds nothing to check."""
    rows = rows_of(tmp_path, QUICK_ITEMS)
    assert {row["item"] for row in rows} == set(QUICK_ITEMS.split(","))
    assert len([row for row in rows if row["ok"]]) == 4 + 4 + 4 + 4  # graphs, waits, not_finite, against_cpu
    assert not [row for row in rows if row["ok"] is False]


@pytest.mark.faults
def test_every_check_of_a_training_runs_on_a_cpu(tmp_path):
    """Prevents trainings whose output the script no longer reads."""
    rows = rows_of(tmp_path, TRAININGS)
    assert {row["item"] for row in rows} == set(TRAININGS.split(","))
    assert {row["ok"] for row in rows} == {True, None}
