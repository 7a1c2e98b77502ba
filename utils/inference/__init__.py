"""Detectors: `from utils.inference import Detector` with torch, `OnnxDetector` without it."""

from importlib import import_module

_MODULES = {"Detector": "detector", "OnnxDetector": "onnx"}


def __getattr__(name):
    # Only when asked for: a machine that runs exported files has no torch.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
