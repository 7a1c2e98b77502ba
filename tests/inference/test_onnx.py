import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")
pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")

from tests.tiny_detector import NAMES, exported, random_pictures  # noqa: E402
from utils.image.codec import write_image  # noqa: E402
from utils.inference.onnx import OnnxDetector, onnx_path_of, packages  # noqa: E402

PROJECT = Path(__file__).resolve().parents[2]
# A file of somebody else: it doubles numbers.
FOREIGN = '<ir_version: 8, opset_import: ["" : 18]> foreign (float[2] x) => (float[2] y) { y = Add (x, x) }'


@pytest.mark.slow
def test_it_detects_as_pytorch_does():
    """Prevents an exported detector that places boxes otherwise, in one picture or in several, or forgets tiles."""
    detector, path = exported()
    deployed, pictures = OnnxDetector(path, cpu_threads=1), random_pictures(5)
    assert deployed.class_names == NAMES and deployed.input_shape == (96, 128)
    assert deployed.confidences == [0.2, 0.3, 0.25] and deployed.metadata == detector.metadata
    assert deployed.tiles == detector.tiles == (128, 0.25)
    for options in ({}, {"confidence": 0.1, "nms_iou": 0.9, "max_boxes": 3}, {"batch_size": 2}):
        for expected, got in zip(detector(pictures, **options), deployed(pictures, **options), strict=True):
            assert len(got.scores) > 0 and got.names.tolist() == expected.names.tolist()
            assert got.boxes_xyxy == pytest.approx(expected.boxes_xyxy, abs=1e-2)
            assert got.scores == pytest.approx(expected.scores, abs=1e-5)
    assert len(deployed(pictures[0], confidence=1.0).scores) == 0
    with pytest.raises(ValueError, match=r"input_shape is \[64, 64\], and .+ takes \[96, 128\] alone: leave"):
        OnnxDetector(path, input_shape=[64, 64])
    assert deployed([]) == []


@pytest.mark.slow
def test_predict_runs_where_torch_is_missing(tmp_path):
    """Prevents torch, gigabytes of it, from being needed for deployment."""
    write_image(str(tmp_path / "street.png"), random_pictures(1)[0])
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['torchvision'] = None; sys.path.insert(0, '.'); "
        "runpy.run_path('predict.py', run_name='__main__')"
    )
    options = [f"--onnx_path={exported()[1]}", f"--image={tmp_path / 'street.png'}", f"--dir_save_path={tmp_path}/out"]
    command = [sys.executable, "-c", code, "--mode=predict_onnx", *options]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == 0, process.stderr
    assert "Lowest score shown: 0.20 to 0.30, by class" in process.stdout
    assert (tmp_path / "out/street.png").is_file()


def test_other_files(tmp_path):
    """Prevents traces of onnxruntime, and guessed class names, for files that are none of ours."""

    def raises(name, content, message, error=ValueError):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=message):
            OnnxDetector(tmp_path / name)

    raises("none.onnx", None, r"There is no file '.*none.onnx' .+ make it: python predict.py", FileNotFoundError)
    torch.save({"model": {}}, tmp_path / "weights.onnx")
    raises("weights.onnx", None, "weights.onnx is a weight file of PyTorch; make an .onnx of it")
    raises("a.pth", b"", "a.pth is a weight file of PyTorch")
    raises("damaged.onnx", b"\x08\x07" * 50, r"damaged.onnx cannot be opened as ONNX \(.+\); export it anew")
    raises("empty.onnx", b"", "empty.onnx")
    foreign = onnx.parser.parse_model(FOREIGN)
    raises(
        "foreign.onnx",
        foreign.SerializeToString(),
        "foreign.onnx does not say how it is used .contract.",
    )
    for metadata, message in (("{", "does not say how it is used"), ("{}", "its metadata, .+ lack format")):
        onnx.helper.set_model_props(foreign, {"contract": metadata})
        raises("foreign.onnx", foreign.SerializeToString(), message)
    rule = {
        "resize_rule": {"mode": "center", "pad": 0},
        "pixel_rule": {"channels": "RGB", "mean": [0] * 3, "std": [1] * 3},
    }
    metadata = {"format": 1, "model_name": "a", "class_names": ["b"], "input_shape": [32, 32]} | rule
    onnx.helper.set_model_props(foreign, {"contract": json.dumps(metadata)})
    raises("cells.onnx", foreign.SerializeToString(), "cells.onnx was exported without suppression.+export_nms = True")


def test_a_missing_package_is_one_sentence(monkeypatch):
    """Prevents a trace of imports where onnxruntime is not installed."""
    with pytest.raises(ValueError, match=r"No module named 'no_such_thing'.+pip install -r requirements-export\.txt"):
        packages("json", "no_such_thing")
    assert packages("json") == [json]
    assert packages() == []


def test_where_the_file_is():
    """Prevents export and prediction from meaning different files."""

    def path(onnx_path, model_path):
        return str(onnx_path_of(type("Settings", (), {"onnx_path": onnx_path, "model_path": model_path})))

    assert path("", "logs/best.pth") == "logs/best.onnx"
    assert path("", "yolox_nano") == "yolox_nano.onnx"
    assert path("a/b.onnx", "logs/best.pth") == "a/b.onnx"
