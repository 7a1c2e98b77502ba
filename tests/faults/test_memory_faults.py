"""Memory that runs out, and memory that must not grow."""

import re

import pytest
from runs import fault, make_data, train_with

pytestmark = pytest.mark.faults
# The largest growth of main memory between epochs 20 and 30 that is no leak, in bytes.
LARGEST_GROWTH = 8 * 2**20


@pytest.mark.parametrize(
    ("call", "constant"),
    [(1, "Freeze_batch_size"), (3, "Unfreeze_batch_size"), (6, "Freeze_batch_size"), (22, "Unfreeze_batch_size")],
    ids=["preflight, frozen", "preflight, unfrozen", "epoch 1", "epoch 3"],
)
def test_out_of_memory_names_what_to_lower(settings, tmp_path, call, constant):
    """Prevents a trace of CUDA's allocator, and batches that are quietly made smaller: the message names batch size,
    image size and the constant of the phase in question."""
    finished = train_with(
        settings | {"save_dir": str(tmp_path)},
        fault("utils.training.engine:OptimWrapper.compute_loss", call, "run_out_of_memory"),
    )
    assert finished.status == 1
    expected = (f"with {constant} = 4 and input_shape = [64, 64]: lower {constant}", "Nothing was changed")
    assert all(part in finished.error for part in expected), finished.error
    assert "Traceback" not in finished.error
    assert ("epoch   1/5" in finished.said) == (call == 22)


def test_main_memory_stays_flat_over_thirty_epochs(settings, tmp_path):
    """Prevents images, losses, pictures or checkpoints that pile up until a long training is killed for its memory."""
    own = settings | make_data(tmp_path / "data", train=8, val=4) | {"save_dir": str(tmp_path), "UnFreeze_Epoch": 30}
    finished = train_with(own, fault("utils.reporting.run_logger:RunLogger.end_epoch", 1, "say_memory", lasts=True))
    assert finished.status == 0, finished.error
    sizes = [int(size) for size in re.findall(r"^main memory (\d+)$", finished.said, re.MULTILINE)]
    assert len(sizes) == 30
    # The curves of more than fifteen epochs take some megabytes more, once.
    assert sizes[29] - sizes[19] < LARGEST_GROWTH, [size >> 20 for size in sizes]
