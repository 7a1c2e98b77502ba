"""Two processes that train together: stopped, killed, and continued by as many or another number."""

import shutil
import signal

import pytest
from launched import TORCHRUN
from runs import STEP, checkpoint_of, differences, fault, outcome, train_with

pytestmark = pytest.mark.faults
TWO = (*TORCHRUN, "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def reference_of_two(settings, tmp_path_factory):
    """The save_dir of the training on two ranks that nothing disturbs."""
    save_dir = tmp_path_factory.mktemp("reference_of_two")
    finished = train_with(settings | {"save_dir": str(save_dir)}, launcher=TWO)
    assert finished.status == 0, finished.error
    return save_dir


@pytest.fixture(scope="module")
def stopped_two(settings, tmp_path_factory):
    """(save_dir, Finished) of a training on two ranks of which the second one got a signal at its sixth step."""
    save_dir = tmp_path_factory.mktemp("stopped_two")
    own = settings | {"save_dir": str(save_dir)}
    return save_dir, train_with(own, fault(STEP, 6, "send", "SIGTERM", rank=1), launcher=TWO)


def losses(save_dir):
    return [row["loss"] for row in checkpoint_of(save_dir)["log"]["rows"]]


def test_a_signal_on_one_rank_stops_both_at_one_step(stopped_two):
    """Prevents a rank that waits for ever for one that has left, and two ranks that stop at different steps."""
    save_dir, finished = stopped_two
    assert finished.status != 0
    assert "Stopped by another process, which was asked to in epoch 2. Nothing is lost" in finished.error
    run = checkpoint_of(save_dir)["run"]
    # What a rank wants is known to all one step later.
    assert (run["epoch"], run["images"]) == (1, 24)


def test_two_ranks_go_on_exactly(stopped_two, reference_of_two, settings, tmp_path):
    """Prevents ranks that go on with each other's images, sums or random states."""
    shutil.copytree(stopped_two[0], tmp_path, dirs_exist_ok=True)
    finished = train_with(settings | {"save_dir": str(tmp_path), "resume": True}, launcher=TWO)
    assert finished.status == 0, finished.error
    assert differences(outcome(tmp_path), outcome(reference_of_two)) == []


def test_one_rank_goes_on_with_the_run_of_two(stopped_two, reference_of_two, settings, tmp_path):
    """Prevents a run that is bound to the machine it began on: one process takes up the epoch at the same image."""
    shutil.copytree(stopped_two[0], tmp_path, dirs_exist_ok=True)
    finished = train_with(settings | {"save_dir": str(tmp_path), "resume": True})
    assert finished.status == 0, finished.error
    assert "1 of 5 epochs and 24 images are done" in finished.said
    assert losses(tmp_path) == pytest.approx(losses(reference_of_two), rel=0.05)


def test_two_ranks_go_on_with_the_run_of_one(reference, settings, tmp_path):
    """Prevents a run that cannot move to more GPUs: its second process has no state of its own to go on with."""
    own = settings | {"save_dir": str(tmp_path)}
    finished = train_with(own, fault(STEP, 6, "send", "SIGTERM"))
    assert finished.status == 128 + signal.SIGTERM, finished.error
    finished = train_with(own | {"resume": True}, launcher=TWO)
    assert finished.status == 0, finished.error
    assert "1 of 5 epochs and 16 images are done" in finished.said
    assert losses(tmp_path) == pytest.approx(losses(reference), rel=0.05)


def test_torchrun_starts_again_and_the_run_goes_on_by_itself(reference_of_two, settings, tmp_path):
    """Prevents a restart that begins a second run, or the first one anew: a rank is killed in epoch 2."""
    own = settings | {"save_dir": str(tmp_path), "save_minutes": 0.001}
    killed = fault(STEP, 6, "send", "SIGKILL", rank=1)
    finished = train_with(own, killed, launcher=(*TWO, "--max_restarts=1"))
    assert finished.status == 0, finished.error
    assert f"resumes {tmp_path}" in finished.said
    assert differences(outcome(tmp_path), outcome(reference_of_two)) == []


def test_a_bad_step_on_one_rank_is_left_out_on_both(settings, tmp_path):
    """Prevents ranks whose weights part because only one of them met a NaN."""
    spoiled = fault("utils.training.engine:OptimWrapper.compute_loss", 12, "spoil_loss", rank=1)
    finished = train_with(settings | {"save_dir": str(tmp_path), "UnFreeze_Epoch": 3}, spoiled, launcher=TWO)
    assert finished.status == 0, finished.error
    assert "note: 1 step was left out of epoch 2" in finished.said
    assert all(0 < loss < 100 for loss in losses(tmp_path))
