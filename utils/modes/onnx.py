"""Mode 'predict_onnx': pictures, folders and videos with an exported file, on machines without torch."""

import os
from types import SimpleNamespace

from utils.image.codec import read_header
from utils.inference.onnx import OnnxDetector, onnx_path_of
from utils.io.files import IMAGE_SUFFIXES
from utils.io.logger import logger
from utils.modes.images import predict_folder, predict_image
from utils.modes.video import predict_video
from utils.weights.metadata import tiles_words


def predict_onnx(settings):
    """Do what predict.py's constants say; image is a picture, '' for typed paths, a folder, a video, or a camera's
    number.

    Raises as OnnxDetector, predict and predict_video do.
    """
    given = settings.cpu_threads, settings.input_shape, settings.tile, settings.tile_overlap
    detector = OnnxDetector(onnx_path_of(settings), *given)
    scores = detector.confidences if settings.confidence is None else [settings.confidence]
    least, most = min(scores), max(scores)
    words = f"{least:g}" if least == most else f"{least:.2f} to {most:.2f}, by class"
    words += tiles_words(detector.tiles)
    logger.info(f"{onnx_path_of(settings)}: {detector.model_name}. Lowest score shown: {words}")
    if os.path.isdir(settings.image):
        predict_folder(detector, SimpleNamespace(**vars(settings) | {"dir_origin_path": settings.image}))
    elif settings.image.isdecimal() or _is_video(settings.image):
        predict_video(detector, SimpleNamespace(**vars(settings) | {"video_path": settings.image}), "image")
    else:
        predict_image(detector, settings)


def _is_video(path):
    """Whether this is a file that is no picture by its header."""
    if not os.path.isfile(path) or os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return False
    try:
        read_header(path)
    except ValueError:
        return True
    return False
