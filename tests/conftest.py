import os
from pathlib import Path

import pytest
import torch

from utils.io.logger import end_log_file, setup_logging

# The tensors here are too small to gain from threads, which only wait for each other when the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def messages_on_the_screen():
    """What scripts say comes to the streams that a test captures, and no log file outlives its test."""
    setup_logging()
    yield
    end_log_file()


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in every run, and in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture
def real_data():
    """The folder of real images and published weights that YOLO_REAL_DATA names; skips the test without it."""
    folder = os.environ.get("YOLO_REAL_DATA")
    if not folder:
        pytest.skip("YOLO_REAL_DATA names no folder with real data")
    if not Path(folder).is_dir():
        pytest.fail(f"YOLO_REAL_DATA is {folder!r}, which is no folder")
    return Path(folder)
