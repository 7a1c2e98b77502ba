"""A detector small enough to be exported in a second: one convolution on cells of 32 x 32 pixels."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nets.base import Decoded, DetectorBase, cell_grid
from utils.inference.base import NMSOptions
from utils.inference.detector import Detector
from utils.weights.metadata import make_metadata, tiles_of

NAMES = ["猫", "dog", "bird"]
OPTIONS = NMSOptions([0.2, 0.3, 0.25], 0.5, 5)
FOLDER = tempfile.TemporaryDirectory()
PIXEL_RULE = {"channels": "BGR", "mean": [100.0, 110.0, 120.0], "std": [50.0, 55.0, 60.0]}


class TinyNetwork(DetectorBase):
    """Boxes of 20 to 60 pixels around the cells' centres."""

    strides, name = (32,), "tiny"

    def __init__(self):
        super().__init__(len(NAMES), PIXEL_RULE)
        self.conv = nn.Conv2d(3, 5 + len(NAMES), 32, 32)

    @property
    def feature_extractor(self):
        return nn.Identity()

    def predict(self, features):
        return [self.conv(features)]

    def decode(self, raw):
        cells = raw[0].flatten(2).transpose(1, 2)
        centre = (cell_grid(raw[0]) + 0.5) * 32 + cells[..., :2].tanh() * 16
        half_size = 20 + 10 * cells[..., 2:4].tanh()
        boxes_xyxy = torch.cat((centre - half_size, centre + half_size), -1)
        return Decoded(boxes_xyxy, 4 * cells[..., 5:], 4 * cells[..., 4])


def tiny_detector(input_shape=(96, 128), **about):
    """A Detector around a TinyNetwork with random weights; about: further metadata."""
    detector = Detector.__new__(Detector)
    detector.model, detector.device = TinyNetwork().eval(), torch.device("cpu")
    rule = {"mode": "center", "pad": 114}
    detector.metadata = make_metadata(detector.model, NAMES, input_shape, rule, **about)
    detector.class_names, detector.input_shape, detector.resize_rule = NAMES, input_shape, rule
    detector.confidences, detector.tiles = [0.2, 0.3, 0.25], tiles_of(detector.metadata)
    return detector


def random_pictures(count, seed=0):
    """(height, width, 3) uint8 pictures of several sizes."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(50, 200, (count, 2))
    return [generator.integers(0, 256, (*size_hw, 3), np.uint8) for size_hw in sizes]


@cache
def exported():
    """(a detector, the path of its export with NMS inside), made once for all tests, which change neither."""
    from utils.export.onnx import write_onnx

    torch.manual_seed(0)
    about = {"confidence": {"dog": 0.3}, "tiles": {"tile": 128, "overlap": 0.25}}
    detector, path = tiny_detector(**about), Path(FOLDER.name) / "tiny.onnx"
    write_onnx(path, detector, OPTIONS)
    return detector, path
