"""What tiles are worth on large pictures: labelled ones are pasted into large canvases, and a detector is scored there.

python benchmarks/tiles.py --annotation_path=DATA/pcb/ImageSets/Main/test.txt --model_path=logs/best_epoch_weights.pth

The canvases are grey noise. They show what tiles give a detector that was trained on the small pictures; for training
with tiles see docs/training.md.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np
import psutil

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data.annotations import Annotations, read_annotations
from utils.evaluation.evaluate import evaluate_detector
from utils.image.codec import read_image, write_image
from utils.inference.detector import Detector
from utils.io.errors import UserError
from utils.io.text import format_table

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_path   The pictures, in any format that train.py reads.
#   model_path        Weights that were trained on such pictures.
#   canvas            [height, width] of the large pictures.
#   pasted            Pictures on each; one at least, each is used once.
#   tiles             Sides of tiles to try, in pixels; 0 is the whole picture alone.
# ----------------------------------------------------------------------------------------------------------------------
annotation_path = ""
model_path = "logs/best_epoch_weights.pth"
canvas = [3000, 4000]
pasted = 4
tiles = [0, 480, 640]


def place(size_hw, canvas_hw, taken, random):
    """(y, x) where a picture covers no other one: of a hundred random places. None where there is none."""
    for _ in range(100):
        y, x = (int(random.integers(0, room + 1)) for room in np.array(canvas_hw) - size_hw)
        box = np.array([y, x, y + size_hw[0], x + size_hw[1]])
        if all((box[2:] <= other[:2]).any() or (other[2:] <= box[:2]).any() for other in taken):
            taken.append(box)
            return y, x
    return None


def paste(annotations, settings, folder):
    """Draw the canvases into a folder. Returns their Annotations."""
    random, height_width = np.random.default_rng(0), tuple(settings.canvas)
    paths, counts, boxes_xyxy, classes = [], [], [], []
    for first in range(0, len(annotations), settings.pasted):
        grey = random.integers(90, 140, (-(-height_width[0] // 8), -(-height_width[1] // 8), 1), np.uint8)
        grey = grey.repeat(8, axis=0).repeat(8, axis=1)[: height_width[0], : height_width[1]]
        canvas_rgb = np.ascontiguousarray(np.broadcast_to(grey, (*height_width, 3)))
        taken, count = [], 0
        for index in range(first, min(first + settings.pasted, len(annotations))):
            size_hw = annotations.sizes_hw[index]
            found = place(size_hw, height_width, taken, random) if (size_hw <= height_width).all() else None
            if found is None:
                raise UserError(f"canvas is {settings.canvas} and pasted {settings.pasted}; expected room for these.")
            y, x = found
            canvas_rgb[y : y + size_hw[0], x : x + size_hw[1]] = read_image(annotations.path(index))
            boxes_xyxy.append(annotations.boxes(index) + np.float32([x, y, x, y]))
            classes.append(annotations.labels(index))
            count += len(classes[-1])
        paths.append(str(folder / f"{first:06d}.png"))
        write_image(paths[-1], canvas_rgb)
        counts.append(count)
    return Annotations(paths, [height_width] * len(paths), counts, np.concatenate(boxes_xyxy), np.concatenate(classes))


def main(settings):
    """Print the table."""
    detectors = {tile: Detector(settings.model_path, tile=tile) for tile in settings.tiles}
    names, rows = next(iter(detectors.values())).class_names, [("tile", "AP", "AP50", "AP small", "s a picture", "GB")]
    small, _ = read_annotations(settings.annotation_path, names, "val")
    with tempfile.TemporaryDirectory() as folder:
        large = paste(small, settings, Path(folder))
        print(f"{len(small)} pictures on {len(large)} canvases of {settings.canvas[1]}x{settings.canvas[0]} pixels")
        for tile, detector in detectors.items():
            start = time.perf_counter()
            scores = evaluate_detector(detector, large, 8, 0).scores
            seconds = (time.perf_counter() - start) / len(large)
            memory = psutil.Process().memory_info().rss / 1e9
            values = [f"{scores[name]:.3f}" for name in ("AP", "AP50", "AP_small")]
            rows.append((str(tile), *values, f"{seconds:.2f}", f"{memory:.2f}"))
    print(format_table(rows, right=range(6)))


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
