"""Disks that are too small, become full, or cannot be written to."""

import pytest
from runs import STEP, checkpoint_of, differences, fault, is_finite, outcome, train_with

pytestmark = pytest.mark.faults


def test_a_disk_too_small_is_found_before_the_first_epoch(settings, disk):
    """Prevents a training that ends after hours because its files do not fit: it says how many MB are missing."""
    with disk("size=40m") as folder:
        finished = train_with(settings | {"save_dir": str(folder)})
    assert finished.status == 1
    assert f"save_dir is {str(folder)!r}, whose disk has " in finished.error and " MB free" in finished.error
    assert "Traceback" not in finished.error and "epoch   1/5" not in finished.said


def test_a_folder_that_cannot_be_written_to_is_found_at_the_start(settings, disk):
    """Prevents results of a first epoch that nothing can keep, and a trace for a disk that is read-only."""
    with disk("size=1m,ro") as folder:
        finished = train_with(settings | {"save_dir": str(folder)})
    assert finished.status == 1
    assert f"save_dir is {str(folder)!r}, and no folder can be made in it" in finished.error
    assert "Traceback" not in finished.error and "epoch   1/5" not in finished.said


def test_a_disk_that_is_full_for_a_while_costs_nothing(settings, reference, disk):
    """Prevents a run that a full disk ends, or that never writes again what it could not write: from step 6 to step 14
    there is no byte left."""
    with disk("size=150m") as folder:
        own = settings | {"save_dir": str(folder), "save_minutes": 0.001}
        finished = train_with(own, fault(STEP, 6, "fill_disk", folder), fault(STEP, 14, "free_disk", folder))
        assert finished.status == 0, finished.error
        assert "last_checkpoint.pth could not be written: No space left on device. What was saved" in finished.said
        assert "free space on that disk" in finished.said
        assert differences(outcome(folder), outcome(reference)) == []


def test_a_disk_that_stays_full_keeps_the_last_checkpoint(settings, reference, disk):
    """Prevents exit status 0 where the result is not on disk, and a last good checkpoint that a failed save destroys:
    with space again, the run goes on from it to the same end."""
    with disk("size=150m") as folder:
        own = settings | {"save_dir": str(folder)}
        finished = train_with(own, fault(STEP, 10, "fill_disk", folder))
        assert finished.status == 1, finished
        assert "Traceback" not in finished.error
        assert "could not be written to the end; files of an earlier save are kept. Free space" in finished.error
        kept = checkpoint_of(folder)
        assert kept["run"]["epoch"] == 2 and is_finite(kept)
        (folder / "filler").unlink()
        finished = train_with(own | {"resume": True})
        assert finished.status == 0, finished.error
        assert differences(outcome(folder), outcome(reference)) == []
