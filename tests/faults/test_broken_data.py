"""Images and workers that fail while a training runs."""

import re
from pathlib import Path

import pytest
from runs import STEP, fault, make_data, train_images, train_with

pytestmark = pytest.mark.faults
READING = "utils.training.dataset:load_dataset"
READ_EACH_TIME = fault(READING, 1, "keep_one_image")


@pytest.fixture
def data(tmp_path):
    """Images of the test's own, which it may break: settings that name them."""
    return make_data(tmp_path / "data")


def test_a_worker_that_is_killed_ends_the_run_with_its_cause(settings, tmp_path):
    """Prevents a training that waits for ever for the batch of a worker which the system killed for its memory."""
    own = settings | {"save_dir": str(tmp_path), "num_workers": 2}
    finished = train_with(own, fault(STEP, 6, "kill_a_worker"), timeout=120)
    assert finished.status == 1
    assert "A worker process was killed by signal 9 (SIGKILL) while it read " in finished.error
    assert "lower num_workers" in finished.error and "Traceback" not in finished.error


def test_a_worker_that_hangs_ends_the_run_with_its_image(settings, tmp_path):
    """Prevents a training that stands still over night for one file of a network share that does not answer."""
    own = settings | {"save_dir": str(tmp_path), "num_workers": 2, "worker_timeout": 5}
    hang = fault(READING, 1, "hang_once_there_is", tmp_path / "now")
    finished = train_with(own, READ_EACH_TIME, hang, fault(STEP, 6, "touch", tmp_path / "now"), timeout=120)
    assert finished.status == 1
    assert "No batch came within worker_timeout = 5 seconds" in finished.error
    assert "Traceback" not in finished.error
    named = re.search(r"hangs while it reads (.+?\.jpg)\.", finished.error).group(1)
    assert Path(named).parent == train_images(settings)[0].parent


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_break_while_training_are_replaced_and_named(settings, data, tmp_path, workers):
    """Prevents one lost file from ending a run of days, and a data set that shrinks without a word: what is gone or no
    picture any more is replaced and named once, what only lacks its end is used and named once."""
    gone, garbled, truncated = train_images(data)[3:6]
    truncated.write_bytes(truncated.read_bytes()[:-200])
    own = settings | data | {"save_dir": str(tmp_path), "num_workers": workers}
    damage = fault(STEP, 6, "delete", gone), fault(STEP, 6, "garble", garbled)
    finished = train_with(own, READ_EACH_TIME, *damage)
    assert finished.status == 0, finished.error
    for path in (gone, garbled):
        assert finished.said.count(f"note: {path} cannot be decoded any more and is left out") == 1
    assert finished.said.count(f"note: {truncated} lacks its last bytes; what is there is used.") == 1
    assert "times another image of the epoch took the place of one that cannot be decoded" in finished.said
