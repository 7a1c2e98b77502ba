import os
import subprocess
from contextlib import contextmanager

import pytest
from runs import SETTINGS, make_data, train_with

from nets import build_model
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Settings of a small training from weights, but for save_dir, on images that no test changes."""
    folder = tmp_path_factory.mktemp("start")
    model = build_model("yolox_nano", 3)
    names = ["fish", "leaf", "mushroom"]
    save_weights(folder / "start.pth", model, make_metadata(model, names, (64, 64), {"mode": "topleft", "pad": 114}))
    return SETTINGS | make_data(folder / "data") | {"model_path": str(folder / "start.pth")}


@pytest.fixture(scope="session")
def reference(settings, tmp_path_factory):
    """The save_dir of the training that nothing disturbs."""
    save_dir = tmp_path_factory.mktemp("reference")
    finished = train_with(settings | {"save_dir": str(save_dir)})
    assert finished.status == 0, finished.error
    return save_dir


@pytest.fixture
def disk(tmp_path):
    """disk("size=40m"): a context with the folder of a small file system of its own."""

    @contextmanager
    def mounted(options):
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    return mounted
