from types import SimpleNamespace

import numpy as np

from utils.image.codec import write_image
from utils.image.tiles import TileOptions
from utils.modes import onnx as from_onnx


def test_pictures_and_videos_are_told_apart(tmp_path, monkeypatch):
    """Prevents a video of a rare ending from being opened as a picture, and a picture of one as a video."""
    write_image(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "a.png").rename(tmp_path / "a.jfif")
    for name in ("b.jpg", "c.3gp"):
        (tmp_path / name).write_bytes(b"no picture")
    ways = []
    detector = SimpleNamespace(confidences=[0.5], model_name="tiny", tiles=TileOptions())
    monkeypatch.setattr(from_onnx, "OnnxDetector", lambda *_: detector)
    monkeypatch.setattr(from_onnx, "predict_image", lambda detector, settings: ways.append("picture"))
    monkeypatch.setattr(from_onnx, "predict_folder", lambda detector, settings: ways.append(settings.dir_origin_path))
    monkeypatch.setattr(from_onnx, "predict_video", lambda detector, settings, constant: ways.append(constant))
    values = {"onnx_path": "a.onnx", "cpu_threads": 0, "input_shape": [], "confidence": None}
    values |= {"tile": None, "tile_overlap": None}
    for image in ("", "0", *(str(tmp_path / name) for name in ("a.jfif", "b.jpg", "c.3gp", "gone.mp4"))):
        from_onnx.predict_onnx(SimpleNamespace(image=image, **values))
    from_onnx.predict_onnx(SimpleNamespace(image=str(tmp_path), **values))
    assert ways == ["picture", "image", "picture", "picture", "image", "picture", str(tmp_path)]
