"""How long a detector takes for a picture, by stage."""

import time

import numpy as np

from utils.inference.base import open_picture
from utils.io.errors import UserError
from utils.io.logger import logger

STAGES = ("preprocessing", "network", "post-processing")


def measure(detector, settings):
    """Print the table of times for the picture of settings.image, from pixels to boxes, without reading the file.

    detector: a BaseDetector with synchronize(). settings: predict.py's constants. Returns the times as stage_times.
    Raises ValueError without a picture.
    """
    if not settings.image:
        raise UserError("image is ''; expected the picture to measure with.")
    options = detector.options_of(settings.confidence, settings.nms_iou, settings.max_boxes)
    image_rgb = open_picture(settings.image, settings.max_megapixels)
    seconds = stage_times(detector, [image_rgb], settings.test_interval, options)
    height, width = image_rgb.shape[:2]
    logger.info(
        f"{settings.image}, {width} x {height} pixels, input {detector.input_shape[1]} x {detector.input_shape[0]}"
    )
    logger.info(times_table(seconds))
    return seconds


def stage_times(detector, images_rgb, repetitions, options):
    """Seconds that the stages take for a batch of images, (repetitions, 3): preprocessing, network, post-processing.

    A tenth of the repetitions, at least 3, run before, unmeasured: the first allocate memory and choose algorithms.
    """
    times, sizes_hw = [], [image.shape[:2] for image in images_rgb]
    for _ in range(max(3, repetitions // 10) + repetitions):
        start = time.perf_counter()
        batch, placements = detector.preprocess(images_rgb)
        prepared = time.perf_counter()
        output = detector.forward(batch)
        detector.synchronize()
        ran = time.perf_counter()
        detector.postprocess(output, placements, sizes_hw, options)
        detector.synchronize()
        times.append((prepared - start, ran - prepared, time.perf_counter() - ran))
    return np.array(times[-repetitions:])


def times_table(seconds):
    """A line for each stage and for all: median, and where the middle 80 % lie. seconds: of stage_times."""
    whole = seconds.sum(1)
    lines = [f"{'stage':<16} median ms   10 % to 90 %"]
    for name, column in (*zip(STAGES, seconds.T, strict=True), ("all", whole)):
        low, median, high = 1000 * np.percentile(column, (10, 50, 90))
        lines.append(f"{name:<16} {median:9.2f}   {low:.2f} to {high:.2f}")
    return "\n".join([*lines, f"{1 / np.median(whole):.1f} pictures each second"])
