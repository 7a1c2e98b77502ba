"""Say whether one detector is better than another: both on the same images, with what chance alone would do.

python tools/compare.py A.pth B.pth --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/test.txt
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data.annotations import read_annotations
from utils.data.quality.findings import findings_table
from utils.evaluation import bootstrap
from utils.evaluation.bootstrap import average_precisions, has_enough_images, interval, resampled
from utils.evaluation.curves import mean_over_classes
from utils.evaluation.evaluate import EvalOptions, evaluate_detector, ground_truth
from utils.inference.detector import Detector
from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime.device import choose_device

# ----------------------------------------------------------------------------------------------------------------------
#   first             A weight file: the first word of the command.
#   second            Another one, the second word. Both must know the same classes; all else may differ.
#   annotation_path   What to measure on, as in get_map.py: pictures that neither has seen in its training.
#   metric            What decides: 'AP' (COCO), 'AP50', 'AP75', or 'map50' (VOC, at MINOVERLAP).
#   MINOVERLAP        For map50: a box is right from this IoU on.
#   resamplings       How often the images are drawn anew.
#   classes_path      Only for files that do not say their classes and have others than COCO's 80.
#   confidence        Boxes below this score are left out. Low, because an AP looks at the whole curve.
#   nms_iou           Two boxes of one class that overlap more than this are one object.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
# ----------------------------------------------------------------------------------------------------------------------
first = ""
second = ""
annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
metric = "AP"
MINOVERLAP = 0.5
resamplings = 1000
classes_path = ""
confidence = 0.001
nms_iou = 0.65
batch_size = 16
num_workers = 0
Cuda = True

_METRICS = ("AP", "AP50", "AP75", "map50")


class Comparison(NamedTuple):
    """mean: (score of A, score of B, low, high) over all classes; classes: {class name: the same}.

    low to high: 95 % interval of B - A, NaN where too few images have boxes.
    """

    mean: tuple
    classes: dict


def main(settings):
    """Evaluate both, print the table and the verdict. Returns the Comparison."""
    if not settings.first or not settings.second:
        raise UserError("Give two weight files: python tools/compare.py A.pth B.pth.")
    if settings.metric not in _METRICS or settings.resamplings < 1:
        raise UserError(
            f"metric is {settings.metric!r} and resamplings is {settings.resamplings}; expected one of "
            f"{', '.join(_METRICS)}, and at least 1."
        )
    device, sentence = choose_device(settings.Cuda)
    names = read_class_names(settings.classes_path) if settings.classes_path else None
    detectors = [Detector(path, device, class_names=names) for path in (settings.first, settings.second)]
    names, others = (detector.class_names for detector in detectors)
    if names != others:
        raise UserError(
            f"{settings.first} knows the classes {names}, {settings.second} {others}: these do not compare."
        )
    annotations, findings = read_annotations(
        settings.annotation_path, names, "val", of_weights=not settings.classes_path
    )
    if findings:
        logger.info(findings_table(findings))
    if sentence:
        logger.warning(sentence)
    eval_options = EvalOptions(settings.confidence, settings.nms_iou)
    options = settings.batch_size, settings.num_workers, eval_options
    evaluations = [evaluate_detector(detector, annotations, *options) for detector in detectors]
    for path in dict.fromkeys(path for evaluation in evaluations for path in evaluation.unreadable):
        logger.warning(f"{path} cannot be decoded; its objects count as missed")
    found = [evaluation.detections for evaluation in evaluations]
    comparison = compare(ground_truth(annotations), found, names, len(annotations), settings)
    words = verdict(comparison, settings, len(annotations))
    logger.info(f"\n{format_rows(comparison, settings.metric)}\n\n{words}")
    return comparison


def compare(truth, found, class_names, num_images, settings):
    """The Comparison of two detectors.

    found: the Detections of A and of B. Both are scored on the same resampled images (paired bootstrap), so that hard
    and easy pictures, which concern both, do not count as noise.
    """
    weights, by_detector = resampled(num_images, settings.resamplings), []
    for detections in found:
        parts = [
            average_precisions(truth, detections, len(class_names), columns, settings.MINOVERLAP)[settings.metric]
            for columns in (np.ones((num_images, 1)), weights)
        ]
        by_class = np.concatenate(parts, 1)
        by_detector.append(np.concatenate([mean_over_classes(by_class)[None], by_class]))
    a, b = by_detector
    ends = np.clip(interval((b - a)[:, 0], (b - a)[:, 1:]), -1, 1)
    ends[~has_enough_images(truth, len(class_names))] = np.nan
    mean, *classes = map(tuple, np.column_stack([a[:, 0], b[:, 0], ends]).tolist())
    return Comparison(mean, dict(zip(class_names, classes, strict=True)))


def format_rows(comparison, metric):
    """The comparison as lines; a star marks a difference that exceeds noise."""
    rows = [("all", comparison.mean), *comparison.classes.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  {metric + ' of A':>10} {metric + ' of B':>10}    B - A   95 % interval"]
    for name, (a, b, low, high) in rows:
        span = f"[{low:+.3f}, {high:+.3f}]{' *' if exceeds(low, high) else ''}"
        if np.isnan(low):
            span = f"in fewer than {bootstrap.MIN_IMAGES} images"
        numbers = "no box" if np.isnan(a) else f"{a:10.3f} {b:10.3f}   {b - a:+.3f}   {span}"
        lines.append(f"{name:{width}}  {numbers}")
    return "\n".join(lines)


def exceeds(low, high):
    """Whether an interval of a difference leaves out 0: such a difference is hardly chance."""
    return low > 1e-6 or high < -1e-6  # less is rounding


def verdict(comparison, settings, num_images):
    """The comparison in words."""
    a, b, low, high = comparison.mean
    if np.isnan(a):
        return "There is no box to find: nothing can be compared."
    if np.isnan(low):
        return f"Fewer than {bootstrap.MIN_IMAGES} images have boxes: that is too few to tell a difference from noise."
    better, worse = (settings.second, settings.first) if b > a else (settings.first, settings.second)
    what, span = f"{settings.metric} on these {num_images} images", f"[{low:+.3f}, {high:+.3f}]"
    if exceeds(low, high):
        lines = [f"{better} is better than {worse}: the difference in {what}, {abs(b - a):.3f}, exceeds noise."]
    else:
        lines = [
            f"No difference that exceeds noise: {what} differs by {b - a:+.3f}, and {span} holds 0.",
            "More images make smaller differences visible.",
        ]
    judged = {name: row for name, row in comparison.classes.items() if not np.isnan(row[2])}
    for path, sign in ((settings.second, 1), (settings.first, -1)):
        names = [name for name, (a, b, *ends) in judged.items() if exceeds(*ends) and sign * (b - a) > 0]
        if names:
            lines.append(f"{path} is better, beyond noise, in: {', '.join(names)}.")
    expected = round(len(judged) / 20, 1)
    if len(judged) >= 10:
        lines.append(f"By chance alone one class in 20 seems to differ: of these {len(judged)} about {expected:g}.")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values, positional=("first", "second"))
