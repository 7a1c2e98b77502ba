"""How long the ways to run a detector take for a picture on this CPU, stage by stage.

python benchmarks/predict.py [--networks="['yolox_nano']" --rounds=20 ...]

PyTorch as it is, with fuse=True and compiled, and ONNX Runtime with suppression inside the file; beside them OpenCV's
own DNN module on the same network, and, where it is installed (pip install ultralytics), the smallest network of
ultralytics, with random weights. All take turns, so that what else the machine does hits all alike. Run it on an idle
machine. Takes requirements-export.txt, and for the compiled network a C++ compiler.
"""

import copy
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np
import torch

import nets
from nets.base import Decoded
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.export import verify as export
from utils.export.onnx import head_outputs, write_onnx
from utils.image.opencv import cv2
from utils.inference.base import BaseDetector, NMSOptions
from utils.inference.detector import Detector
from utils.inference.onnx import OnnxDetector, packages
from utils.inference.postprocess import select, to_image
from utils.modes.speed import STAGES, stage_times
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights

# ----------------------------------------------------------------------------------------------------------------------
#   networks     Names of networks, which get random weights, or weight files.
#   input_shape  [height, width] of the input.
#   pictures     A folder of pictures, or an annotation that train.py reads; at most 16 are used.
#   batch_sizes  Pictures at a time.
#   rounds       How often the ways take turns. Each turn is three unmeasured batches and five measured ones.
#   candidates   Boxes of a picture that suppression looks at, the surest ones: random weights are sure of nothing.
#   cpu_threads  Threads of each way; 0 takes one per core.
# ----------------------------------------------------------------------------------------------------------------------
networks = ["yolox_nano", "yolox_tiny"]
input_shape = [416, 416]
pictures = "VOCdevkit/Sample/JPEGImages"
batch_sizes = [1, 8]
rounds = 5
candidates = 50
cpu_threads = 0

_SMALLEST = "yolo26n.yaml"  # of ultralytics


class OpenCVDetector(BaseDetector):
    """OpenCV's DNN module on a file that write_onnx wrote without suppression."""

    def __init__(self, onnx_path, like):
        self.net = cv2.dnn.readNetFromONNX(str(onnx_path))
        self.class_names, self.input_shape, self.resize_rule = like.class_names, like.input_shape, like.resize_rule
        self.network = like.model

    def forward(self, batch):
        self.net.setInput(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)), "images")
        return self.net.forward(self.net.getUnconnectedOutLayersNames())

    def postprocess(self, output, placements, sizes_hw, options):
        boxes_xyxy, scores = map(torch.from_numpy, output)
        results = select(self.network, Decoded(boxes_xyxy, torch.logit(scores)), options)
        return [to_image(*item) for item in zip(results, placements, sizes_hw, strict=True)]

    def synchronize(self):
        """Nothing goes on behind forward and postprocess."""


def open_ways(name, folder, images_rgb, settings):
    """({way: detector}, NMSOptions) of one network; a line is printed for each way that fails."""
    path = random_weights(name, folder, settings.input_shape) if name in nets.MODELS else name
    given = {"input_shape": settings.input_shape, "cpu_threads": settings.cpu_threads}
    plain = Detector(path, **given)
    options = NMSOptions(nth_score(plain, images_rgb, settings.candidates))
    write_onnx(Path(folder) / "nms.onnx", plain, options._replace(confidence=[options.confidence] * 80))
    write_onnx(Path(folder) / "cells.onnx", plain, options, has_nms=False)
    ways = {"PyTorch": plain, "PyTorch, fuse=True": Detector(path, **given, fuse=True)}
    makers = {
        "PyTorch, compiled": lambda: compiled(plain),
        "ONNX Runtime": lambda: OnnxDetector(Path(folder) / "nms.onnx", settings.cpu_threads),
    }
    if plain.model.has_nms:
        makers["OpenCV DNN"] = lambda: OpenCVDetector(Path(folder) / "cells.onnx", plain)
    else:
        print(f"OpenCV {cv2.__version__} ends in a segmentation fault where it reads {name}, and is left out")
    for way, make in makers.items():
        try:
            detector = make()
            for size in settings.batch_sizes:
                stage_times(detector, images_rgb[:size], 1, options)
            ways[way] = detector
        except Exception as error:  # each library fails in its own ways, and the others are worth measuring
            print(f"{way} fails here: {str(error).strip().splitlines()[0]}")
    return ways, options


def random_weights(name, folder, shape):
    """The path of a weight file of this network with 80 classes, as it is before a training."""
    model = nets.build_model(name, 80)
    path = Path(folder) / f"{name}.pth"
    save_weights(
        path, model, make_metadata(model, [f"class {number}" for number in range(80)], shape, model.resize_rule)
    )
    return path


@torch.no_grad()
def nth_score(detector, images_rgb, count):
    """The score that this many cells of a picture reach, in the mean over pictures."""
    decoded = detector.model.decode(detector.forward(detector.preprocess(images_rgb)[0]))
    scores = head_outputs(decoded, has_nms=True)[1]
    return float(scores.flatten().topk(count * len(images_rgb)).values[-1])


def compiled(plain):
    """A Detector whose network torch.compile translates for each batch size."""
    detector = copy.copy(plain)
    detector.model = torch.compile(plain.model, dynamic=False)
    return detector


def open_ultralytics(settings):
    """A function (images) -> seconds per picture of each stage, as ultralytics times them; None without it."""
    try:
        import ultralytics
    except ImportError:
        print("ultralytics is not installed, and left out")
        return None
    model = ultralytics.YOLO(_SMALLEST)
    print(f"ultralytics {ultralytics.__version__}, {_SMALLEST.removesuffix('.yaml')} with random weights")

    def seconds(images_rgb):
        images_bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images_rgb]
        results = model.predict(images_bgr, imgsz=settings.input_shape, verbose=False, device="cpu", rect=False)
        return [results[0].speed[stage] / 1e3 for stage in ("preprocess", "inference", "postprocess")]

    return seconds


def measure(ways, ultralytics, images_rgb, options, settings):
    """{way: (measurements, 3) seconds per picture of each stage}, taking turns."""
    seconds = {way: [] for way in ways}
    for _ in range(settings.rounds):
        for way, detector in ways.items():
            seconds[way].append(stage_times(detector, images_rgb, 5, options) / len(images_rgb))
        if ultralytics:
            seconds.setdefault("ultralytics", []).append([ultralytics(images_rgb) for _ in range(8)][3:])
    return {way: np.concatenate(parts) for way, parts in seconds.items()}


def print_table(seconds):
    """A row for each way: median ms of each stage, of all, and how much faster than PyTorch that is."""
    print(f"{'ms per picture':20s}" + "".join(f"{stage:>17s}" for stage in STAGES) + f"{'all':>9s}{'ratio':>8s}")
    whole = {way: np.median(times.sum(1)) for way, times in seconds.items()}
    for way, times in seconds.items():
        stages = "".join(f"{value:17.2f}" for value in 1e3 * np.median(times, 0))
        print(f"{way:20s}{stages}{1e3 * whole[way]:9.2f}{whole['PyTorch'] / whole[way]:8.2f}")
    _, network, _ = stages = np.median(seconds["PyTorch"], 0)
    print(f"PyTorch: preprocessing and post-processing take {(stages.sum() - network) / network:.1%} of the network's")


def print_overhead(detector, images_rgb, settings):
    """How much longer the network's stage of an OnnxDetector takes than its session alone."""
    batch, _ = detector.preprocess(images_rgb)
    images = {"images": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))}
    times = []
    for _ in range(10 * settings.rounds):
        start = time.perf_counter()
        detector.session.run(None, images)
        bare = time.perf_counter()
        detector.forward(batch)
        times.append((bare - start, time.perf_counter() - bare))
    bare, ours = np.median(times, 0)
    print(f"ONNX Runtime: the network's stage takes {ours / bare - 1:+.1%} of the bare session.run")


def main(settings):
    """Print all tables."""
    (onnxruntime,) = packages("onnxruntime")
    threads = settings.cpu_threads or os.cpu_count()
    settings.cpu_threads = threads
    cv2.setNumThreads(threads)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {threads} threads; torch "
        f"{torch.__version__}, onnxruntime {onnxruntime.__version__}, OpenCV {cv2.__version__}"
    )
    images_rgb = [export.open_picture(path) for path in export.find_pictures(settings.pictures, "pictures")]
    sizes = sorted({f"{image.shape[1]}x{image.shape[0]}" for image in images_rgb})
    print(f"{len(images_rgb)} pictures of {settings.pictures}: {', '.join(sizes)} pixels")
    ultralytics = open_ultralytics(settings)
    for name in settings.networks:
        with tempfile.TemporaryDirectory() as folder:
            ways, options = open_ways(name, folder, images_rgb, settings)
            for size in settings.batch_sizes:
                height, width = settings.input_shape
                print(f"\n{Path(name).stem}, {width}x{height}, batch {size}")
                print_table(measure(ways, ultralytics, images_rgb[:size], options, settings))
                if "ONNX Runtime" in ways:
                    print_overhead(ways["ONNX Runtime"], images_rgb[:size], settings)


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
