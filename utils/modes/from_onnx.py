"""Mode 'predict_onnx': pictures and videos with an exported file, on machines without torch."""

from pathlib import Path
from types import SimpleNamespace

from utils.modes.pictures import predict
from utils.modes.video import predict_video
from utils.onnx_infer import OnnxDetector, onnx_path_of

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def predict_onnx(settings):
    """Do what predict.py's constants say; image is a picture, '' for typed paths, or a video or a camera's number.

    Raises as OnnxDetector, predict and predict_video do.
    """
    detector = OnnxDetector(onnx_path_of(settings), settings.cpu_threads)
    scores = detector.confidences if settings.confidence is None else [settings.confidence]
    least, most = min(scores), max(scores)
    words = f"the score {least:g}" if least == most else f"scores of {least:.2f} to {most:.2f}, as the class needs,"
    print(f"{onnx_path_of(settings)}: {detector.model_name}; boxes are shown from {words} on")
    if settings.image.isdecimal() or Path(settings.image).suffix.lower() in VIDEO_SUFFIXES:
        predict_video(detector, SimpleNamespace(**vars(settings) | {"video_path": settings.image}))
    else:
        predict(detector, settings)
