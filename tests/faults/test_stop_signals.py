"""Signals in every phase of a training: it says where it stopped, and goes on as if nothing had happened."""

import os
import re
import signal

import pytest
from runs import STEP, checkpoint_of, differences, fault, outcome, train_with

pytestmark = pytest.mark.faults
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
# Where each process of the training gets its signal, and the epoch it then stops in. It hears at the end of a step or
# of a validation batch, and takes up what the one before left.
MOMENTS = (
    ("preflight", "utils.training.preflight:max_boxes", 1, 1),
    ("a step of the frozen phase", STEP, 2, 1),
    ("saving, before the new file has its name", "utils.weights.save:_write_content", 3, 2),
    ("evaluation", "utils.evaluation.evaluate:detect", 1, 2),
    ("the change to the unfrozen phase", "utils.training.phases:recalibrate_batch_norm", 1, 3),
    ("a step of the unfrozen phase", STEP, 2, 3),
    ("the end of mosaic", "utils.reporting.run_logger:RunLogger.end_epoch", 1, 4),
)


@pytest.mark.parametrize("workers", [0, 2])
def test_signals_in_every_phase_change_nothing(settings, reference, tmp_path, workers):
    """Prevents a stopped run that loses steps, repeats images, restarts its schedule, optimiser, average or random
    states, and workers that die by the Ctrl-C of the terminal before the last step is done and saved."""
    own = settings | {"save_dir": str(tmp_path), "num_workers": workers}
    for number, (phase, target, call, epoch) in enumerate(MOMENTS):
        name = SIGNALS[(number + workers) % 3]
        finished = train_with(own | ({"resume": True} if number else {}), fault(target, call, "send_to_all", name))
        assert finished.status == 128 + getattr(signal, name), (phase, finished)
        line = finished.error.strip().splitlines()[-1]
        cause = "Ctrl-C" if name == "SIGINT" else name
        stopped = rf"Stopped by {cause} in epoch {epoch}\. Nothing is lost, all is in (.+); go on with: .+--resume=.+"
        assert re.fullmatch(stopped, line), (phase, finished.error)
        assert "Traceback" not in finished.error, (phase, finished.error)
        assert checkpoint_of(tmp_path)["run"]["epoch"] == epoch - 1, phase
    finished = train_with(own | {"resume": True})
    assert finished.status == 0, finished.error
    assert differences(outcome(tmp_path), outcome(reference)) == []


def test_a_second_ctrl_c_leaves_at_once(settings, tmp_path):
    """Prevents a person who must wait for a step or a save that hangs, and a last checkpoint that this breaks."""
    finished = train_with(settings | {"save_dir": str(tmp_path)}, fault(STEP, 6, "press_ctrl_c_twice"))
    assert finished.status == 130, finished
    assert "Left at once. What was saved last is in " in finished.said
    assert "Traceback" not in finished.error
    assert checkpoint_of(tmp_path)["run"]["epoch"] == 1


def test_ctrl_c_before_the_training_begins_is_one_line(settings, tmp_path):
    """Prevents a trace of a hundred lines for a person who changed their mind while the data is read."""
    finished = train_with(
        settings | {"save_dir": str(tmp_path)}, fault("utils.training.dataset:load_dataset", 1, "send", "SIGINT")
    )
    assert (finished.status, finished.error.strip()) == (130, "Stopped by Ctrl-C.")
    assert os.listdir(tmp_path) == []
