import subprocess
import sys
from pathlib import Path

import pytest

from utils import inference
from utils.inference import Detector, OnnxDetector, detector, onnx

PROJECT = Path(__file__).resolve().parents[2]


def test_the_detectors_come_from_the_package():
    """Prevents README's import from failing, and a name that leads to another class than its module's."""
    assert Detector is detector.Detector
    assert OnnxDetector is onnx.OnnxDetector


def test_an_unknown_name_is_an_attribute_error():
    """Prevents None, or the KeyError of a table, for a misspelt name; hasattr and import want an AttributeError."""
    with pytest.raises(AttributeError, match=r"^module 'utils\.inference' has no attribute 'detect_all'$"):
        inference.detect_all  # noqa: B018
    assert not hasattr(inference, "NMSOptions")
    with pytest.raises(ImportError, match=r"cannot import name 'Detectr' from 'utils\.inference'"):
        from utils.inference import Detectr  # noqa: F401


def test_the_package_imports_no_torch():
    """Prevents seconds of loading, and a failure where torch is missing, for those who run exported files."""
    code = "import sys; sys.modules['torch'] = None; import utils.inference; from utils.inference import OnnxDetector"
    loaded = "import sys, utils.inference; print(*sorted({'torch', 'torchvision', 'onnxruntime'} & set(sys.modules)))"
    for text in (code, loaded):
        process = subprocess.run(
            [sys.executable, "-c", text], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (process.returncode, process.stdout.strip()) == (0, ""), process.stderr
