"""Detect with an .onnx file that predict.py exported: letterbox, ONNX Runtime, map back. Needs no torch."""

import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np

from utils.config.rules import check_values
from utils.image.letterbox import boxes_to_image
from utils.inference.base import BaseDetector, Boxes
from utils.io.errors import MissingFileError, UserError
from utils.weights.metadata import check_metadata, tiles_of

# Of onnxruntime's messages only errors: it warns of each input that has a default, and these are meant.
ONLY_ERRORS = 3
# The graph's one output where suppression is part of it, and the inputs besides the images.
DETECTIONS, OPTIONS = "detections", ("confidence", "nms_iou", "max_boxes")
ZIP_START = b"PK\x03\x04"


def packages(*names):
    """These modules, imported. Raises ValueError where one is missing or does not load."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise UserError(
            f"ONNX needs the packages {', '.join(names)}, and this fails: {error}. Install them: pip install -r "
            "requirements-export.txt"
        ) from error


def open_session(model, cpu_threads=0):
    """An onnxruntime.InferenceSession on the CPU.

    model: a path, or the file's bytes. cpu_threads: 0 takes one per core. Raises what onnxruntime raises, and
    ValueError where it is missing.
    """
    (onnxruntime,) = packages("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_ERRORS
    options.intra_op_num_threads = cpu_threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_path_of(settings):
    """The .onnx file that predict.py's constants mean: onnx_path, or beside model_path."""
    return Path(settings.onnx_path or Path(settings.model_path).with_suffix(".onnx"))


class OnnxDetector(BaseDetector):
    """A detector from an .onnx file of predict.py's mode export_onnx, with suppression inside.

    cpu_threads: of ONNX Runtime, 0 takes one per core. input_shape: (height, width), which a file of a dynamic size
    leaves open; None for the file's. tile, tile_overlap: see TileOptions; None for the file's. Attributes and calls are
    those of utils.inference.Detector; confidences are what the file was exported with. Raises FileNotFoundError, and
    ValueError for another file.
    """

    def __init__(self, onnx_path, cpu_threads=0, input_shape=None, tile=None, tile_overlap=None):
        check_values({"cpu_threads": cpu_threads} | ({"input_shape": input_shape} if input_shape else {}))
        self.session = _open_ours(str(onnx_path), cpu_threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.metadata = _read_json(onnx_path, metadata, "contract")
        check_metadata(onnx_path, self.metadata)
        if [output.name for output in self.session.get_outputs()] != [DETECTIONS]:
            raise UserError(
                f"{onnx_path} was exported without suppression, so that it gives one box for each cell: export it anew "
                "with export_nms = True."
            )
        self.model_name, self.class_names = self.metadata["model_name"], self.metadata["class_names"]
        self.confidences = _read_json(onnx_path, metadata, "thresholds", "confidence")["confidence"]
        self.input_shape = tuple(input_shape or self.metadata["input_shape"])
        sides = self.session.get_inputs()[0].shape[2:]
        if any(isinstance(side, int) and side != wanted for side, wanted in zip(sides, self.input_shape, strict=True)):
            raise UserError(
                f"input_shape is {list(self.input_shape)}, and {onnx_path} takes {sides} alone: leave input_shape "
                "empty, or export the file anew with export_dynamic_size = True."
            )
        self.resize_rule = self.metadata["resize_rule"]
        self.tiles = tiles_of(self.metadata, tile, tile_overlap)

    def detect_batch(self, images_rgb, options):
        batch, placements = self.preprocess(images_rgb)
        sizes_hw = [image.shape[:2] for image in images_rgb]
        return self.postprocess(self.forward(batch, options), placements, sizes_hw)

    def forward(self, batch, options=None):
        """The network's stage: (B, H, W, 3) uint8 RGB -> (n, 7), see write_onnx. options: None for the file's."""
        images = {"images": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))}
        return self.session.run([DETECTIONS], images | graph_options(options, len(self.class_names)))[0]

    def postprocess(self, detections, placements, sizes_hw, options=None):
        """What forward returns -> Boxes of each image. options have done their work by then."""
        parts = (detections[detections[:, 0] == number] for number in range(len(placements)))
        return [
            Boxes(boxes_to_image(part[:, 1:5], *where), part[:, 5], part[:, 6].astype(np.int64))
            for part, *where in zip(parts, placements, sizes_hw, strict=True)
        ]

    def synchronize(self):
        """Nothing goes on behind forward and postprocess."""


def graph_options(options, num_classes):
    """The inputs of the graph besides the images: {name: array}; options: NMSOptions or None."""
    if options is None:
        return {}
    confidence, nms_iou, max_boxes = options
    lowest = np.ascontiguousarray(np.broadcast_to(np.float32(confidence), num_classes))
    return dict(zip(OPTIONS, (lowest, np.float32([nms_iou]), np.int64([max_boxes])), strict=True))


def _open_ours(path, cpu_threads):
    if not os.path.isfile(path):
        raise MissingFileError(
            f"There is no file {path!r} (relative to {os.getcwd()}); make it: python predict.py --mode=export_onnx"
        )
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    if is_zip or Path(path).suffix in (".pth", ".pt"):
        raise UserError(
            f"{path} is a weight file of PyTorch; make an .onnx of it: python predict.py --mode=export_onnx"
        )
    try:
        return open_session(path, cpu_threads)
    except ValueError:
        raise
    except Exception as error:  # onnxruntime has an exception of its own for each kind of damage
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be opened as ONNX ({reason}); export it anew, or take another copy.") from error


def _read_json(path, metadata, key, *needed):
    """The dict that the metadata hold under a key, as write_onnx stored it, with all keys that are needed."""
    try:
        content = dict(json.loads(metadata[key]))
        return content | {name: content[name] for name in needed}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not say how it is used ({key}), so it was not made here: predict_onnx takes files of "
            "predict.py's mode export_onnx."
        ) from error
