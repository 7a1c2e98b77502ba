"""A training that is killed again and again, without any warning."""

import random
import signal
import time

import pytest
import torch
from runs import CHECKPOINT, differences, outcome, run_folder, started

pytestmark = pytest.mark.faults
KILLS = 20


def wait_for(text, path, process):
    """Wait until a process has written a text to a file, or has ended."""
    while process.poll() is None and text not in path.read_text():
        time.sleep(0.02)


def test_twenty_kills_at_random_moments_change_nothing(settings, reference, tmp_path):
    """Prevents a checkpoint that is half written when the power fails, files that disagree with each other, and a run
    that goes on from another state than that of the file: every moment may be hit, from the start of the program to
    the last save."""
    moments, kills, trainings, said = random.Random(7), 0, 0, tmp_path / "said"
    while kills < KILLS or trainings == 0:
        save_dir, status = tmp_path / str(trainings), None
        while status != 0:
            checkpoints = list(save_dir.glob(f"*/{CHECKPOINT}"))
            own = settings | {"save_dir": str(save_dir), "save_minutes": 0.001, "resume": bool(checkpoints)}
            with open(said, "w") as output, started(own, stdout=output) as process:
                if kills < KILLS:
                    if moments.random() < 0.8:
                        wait_for("results go to", said, process)
                    time.sleep(moments.uniform(0, 3))
                    process.kill()
                error = process.communicate()[1]
            status = process.returncode
            kills += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL), (error, said.read_text())
            for path in save_dir.glob(f"*/{CHECKPOINT}"):
                assert torch.load(path, weights_only=True)["model"]
        trainings += 1
        assert differences(outcome(save_dir), outcome(reference)) == [], f"training {trainings}, after {kills} kills"
        assert not list(run_folder(save_dir).glob("*.tmp"))
