import numpy as np
import pytest
import torch

from nets import build_model
from utils.inference.detector import Detector
from utils.modes.heatmap import overlay, score_maps
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights


@pytest.mark.parametrize("mode", ["topleft", "center"])
def test_a_cell_that_sees_an_object_is_bright_where_it_lies(tmp_path, mode):
    """Prevents maps with rows and columns swapped, of another stride, moved by the padding, or of objectness alone."""
    model = build_model("yolox_nano", 2)
    path = tmp_path / "best.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog"], (64, 96), {"mode": mode, "pad": 114}))
    detector = Detector(path)
    raw = [torch.full((1, 7, 64 // stride, 96 // stride), -20.0) for stride in (8, 16, 32)]
    raw[1][0, 4:, 1, 4] = torch.tensor([0.0, -5.0, 20.0])  # rows 16 to 32, columns 64 to 80 of the input
    detector.forward = lambda batch: raw
    maps = score_maps(detector, np.zeros((96, 192, 3), np.uint8))  # at half its size, 48 rows
    assert list(maps) == ["stride8", "stride16", "stride32", "joined"]
    assert all(scores.shape == (48, 96) for scores in maps.values())
    top = {"topleft": 0, "center": 8}[mode]
    peak = np.unravel_index(maps["stride16"].argmax(), (48, 96))
    assert abs(peak[0] - (23.5 - top)) <= 1 and abs(peak[1] - 71.5) <= 1
    assert maps["stride16"].max() == pytest.approx(0.5, abs=0.04)
    assert maps["stride8"].max() < 1e-6 and (maps["joined"] == maps["stride16"]).all()


def test_anchors_share_a_cell(tmp_path):
    """Prevents maps of networks with anchors in which the boxes of a cell are taken for cells."""
    model = build_model("yolov4_tiny", 2)
    path = tmp_path / "best.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog"], (64, 64), {"mode": "topleft", "pad": 114}))
    detector = Detector(path)
    raw = [torch.full((1, 3, 7, 64 // stride, 64 // stride), -20.0) for stride in (16, 32)]
    raw[0][0, 2, 4:, 3, 0] = 20.0
    detector.forward = lambda batch: [level.flatten(1, 2) for level in raw]
    maps = score_maps(detector, np.zeros((64, 64, 3), np.uint8))
    assert list(maps) == ["stride16", "stride32", "joined"]
    assert maps["stride16"][56, 8] > 0.9 and maps["stride16"][8, 56] < 1e-6


def test_colours():
    """Prevents red and blue from being swapped, and a picture under them that cannot be seen."""
    heat = np.zeros((4, 4), np.float32)
    heat[:, 2:] = 1
    drawn = overlay(np.full((40, 80, 3), 100, np.uint8), heat)
    assert drawn.shape == (40, 80, 3) and drawn.dtype == np.uint8
    assert drawn[20, 2, 2] > drawn[20, 2, 0] + 40 and drawn[20, 77, 0] > drawn[20, 77, 2] + 40
    assert (drawn >= 40).all()
