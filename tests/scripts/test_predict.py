"""predict.py as a whole: its modes see the same pixels and find the same boxes as everything else here."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import predict
from nets import build_model
from tests.inference.test_detector import with_statistics
from tools import get_map
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_prediction
from utils.image.codec import write_image
from utils.image.opencv import cv2
from utils.inference.detector import Detector
from utils.modes import images as pictures
from utils.modes import onnx as from_onnx
from utils.modes import video
from utils.modes.web import server, upload
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights

ROOT = Path(__file__).resolve().parents[2]
LOWEST = 0.02


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with weights, best.pth, whose boxes differ between images, and five pictures of different shapes."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(3)
    model = with_statistics(build_model("yolox_nano", 2))
    for predictions in (model.head.obj_preds, model.head.cls_preds):
        for level in predictions:
            torch.nn.init.normal_(level.weight)
            torch.nn.init.zeros_(level.bias)
    save_weights(
        folder / "best.pth", model, make_metadata(model, ["cat", "狗"], (64, 96), {"mode": "topleft", "pad": 114})
    )
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for number, size_hw in enumerate([(64, 96), (100, 50), (31, 200), (128, 192), (1, 40)]):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        write_image(str(folder / f"in/{number}.png"), cv2.resize(coarse, size_hw[::-1]))
    return folder


def settings(folder, tmp_path, **changes):
    values = read_constants(vars(predict)) | {"model_path": str(folder / "best.pth"), "show": False, "Cuda": False}
    values |= {"dir_origin_path": str(folder / "in"), "dir_save_path": str(tmp_path / "out"), "confidence": LOWEST}
    return check_prediction(values | changes)


def drawn(monkeypatch, module):
    """A list that takes in (boxes_xyxy, class_ids, scores) of each picture that this module draws from now on."""
    found, draw = [], module.draw_boxes

    def record(image_rgb, *arguments):
        found.append(arguments[:3])
        return draw(image_rgb, *arguments)

    monkeypatch.setattr(module, "draw_boxes", record)
    return found


def same(found, expected):
    """Whether (boxes_xyxy, class_ids, scores) of each picture are those of the detections, exactly."""
    assert len(found) == len(expected) and min(len(item.scores) for item in expected[:4]) > 3
    return all(
        np.array_equal(one, other)
        for item, detections in zip(found, expected, strict=True)
        for one, other in zip(item, (detections.boxes_xyxy, detections.class_ids, detections.scores), strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"tta_flip": True, "tta_scales": [1.0, 1.5]}])
def test_all_ways_find_the_same_boxes(made, tmp_path, monkeypatch, options):
    """Prevents another resize, padding, threshold or suppression in one of the ways than in the others: modes predict,
    dir_predict and video, the detector as a library, and tools/get_map.py, with and without augmentation."""
    paths = sorted((made / "in").iterdir())
    detector = Detector(made / "best.pth", **options)
    by_two, alone = (detector(paths, LOWEST, batch_size=size) for size in (2, 1))

    found = drawn(monkeypatch, pictures)
    for path in paths:
        predict.main(settings(made, tmp_path, image=str(path), **options))
    assert same(found, alone)
    found.clear()
    predict.main(settings(made, tmp_path, mode="dir_predict", batch_size=2, **options))
    assert same(found, by_two)

    size_hw, frames_rgb = (64, 96), []
    writer = video.FrameWriter(tmp_path / "in.mp4", 10, size_hw)
    for path in paths:
        writer.write(cv2.resize(pictures.open_picture(str(path)), size_hw[::-1]))
    writer.close()
    with video.opened(str(tmp_path / "in.mp4")) as (capture, *_):
        frames_rgb += video.frames(capture)
    found = drawn(monkeypatch, video)
    predict.main(settings(made, tmp_path, mode="video", video_path=str(tmp_path / "in.mp4"), **options))
    assert same(found, [detector(frame_rgb, LOWEST) for frame_rgb in frames_rgb])

    lines = [f"{path} 0,0,30,1,0\n" for path in paths]
    (tmp_path / "val.txt").write_text("".join(lines), encoding="utf-8")
    values = read_constants(vars(get_map)) | options | {"annotation_path": str(tmp_path / "val.txt"), "Cuda": False}
    values |= {"model_path": str(made / "best.pth"), "confidence": LOWEST, "nms_iou": 0.5, "batch_size": 2}
    measured = get_map.detect(SimpleNamespace(**values)).detections
    for number, item in enumerate(by_two):
        rows = measured.image_ids == number
        assert np.array_equal(measured.boxes_xyxy[rows], item.boxes_xyxy)
        assert np.array_equal(measured.scores[rows], item.scores)


def test_the_page_finds_the_same_boxes(made, tmp_path, monkeypatch):
    """Prevents another decoding, threshold or suppression on the page of mode 'web' than everywhere else."""
    given, found, paths = [], drawn(monkeypatch, upload), sorted((made / "in").iterdir())
    monkeypatch.setattr(server, "serve", lambda *arguments: given.extend(arguments))
    predict.main(settings(made, tmp_path, mode="web"))
    for path in paths:
        upload.detect_upload(*given, path.read_bytes(), path.name)
    assert same(found, [given[0](path, LOWEST) for path in paths])


def test_the_other_modes(made, tmp_path, capsys):
    """Prevents modes that no constant reaches, and pictures in another folder than the one that was named."""
    image = str(made / "in/1.png")
    predict.main(settings(made, tmp_path, mode="fps", image=image, test_interval=2, fuse=True, cpu_threads=1))
    out = capsys.readouterr().out
    assert f"{image}, 50 x 100 pixels, input 96 x 64\n" in out and "pictures each second" in out
    predict.main(settings(made, tmp_path, mode="heatmap", image=image, tta_flip=True))
    names = ["1_joined.jpg", "1_stride16.jpg", "1_stride32.jpg", "1_stride8.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for mode in ("fps", "heatmap"):
        with pytest.raises(ValueError, match="image is ''; expected the picture"):
            predict.main(settings(made, tmp_path, mode=mode, image=""))


def test_an_unknown_mode(made, tmp_path):
    """Prevents a trace, and a mode that exists and is not named."""
    with pytest.raises(
        ValueError, match="mode is 'train'; expected one of predict, dir_predict, video, web, fps, heatmap, e"
    ):
        predict.main(settings(made, tmp_path, mode="train"))


def test_constants_of_no_use(made, tmp_path, capsys, monkeypatch):
    """Prevents a constant that is passed over in silence, and a trace on machines without torch."""
    monkeypatch.setattr(from_onnx, "predict_onnx", lambda settings: print(settings.fuse, settings.tta_scales))
    changes = {"fuse": True, "tta_scales": [1.0, 2.0], "model_name": "yolox_s"}
    predict.main(settings(made, tmp_path, mode="predict_onnx", **changes))
    assert capsys.readouterr().out == (
        "note: mode 'predict_onnx' does not use tta_scales, fuse, model_name\nFalse [1.0]\n"
    )
    monkeypatch.setitem(sys.modules, "utils.inference.detector", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delattr("utils.inference.detector", raising=False)
    with pytest.raises(ModuleNotFoundError):
        predict.main(settings(made, tmp_path, mode="fps"))
    monkeypatch.delitem(sys.modules, "utils.inference.detector")
    with pytest.raises(ValueError, match="mode 'fps' needs the package torch, which is not installed"):
        predict.main(settings(made, tmp_path, mode="fps"))


def test_no_weights(made, tmp_path):
    """Prevents a trace where nothing was trained yet."""
    with pytest.raises(ValueError, match=r"model_path is 'none\.pth', and there is no such file; train first"):
        predict.main(settings(made, tmp_path, model_path="none.pth"))
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.onnx', which mode 'predict_onnx' takes as onnx_path"):
        predict.main(settings(made, tmp_path, model_path=str(tmp_path / "a.onnx")))


def test_the_file_loads_no_torch():
    """Prevents mode predict_onnx from needing torch, on machines that have none."""
    code = (
        "import sys, predict, utils.modes.video, utils.modes.speed; print({'torch', 'torchvision'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")


def test_a_folder_with_a_failure_ends_with_status_1(made, tmp_path, monkeypatch, capsys):
    """Prevents a script around predict.py from taking a folder with broken pictures for done, and a trace."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes((made / "in" / name).read_bytes())
    (folder / "notes.jpg").write_text("no picture")
    command = [
        *("predict.py", "--mode=dir_predict", f"--dir_origin_path={folder}", "--yolo_txt=True", "--tta_flip=True"),
        *(f"--model_path={made / 'best.pth'}", f"--dir_save_path={tmp_path / 'out'}"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        run_script(predict.main, read_constants(vars(predict)), check_prediction)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.startswith("Error: 1 of 3 pictures failed:\n  ")
    assert "notes.jpg cannot be decoded as an image" in said
    content = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["0.png", "1.png"]
    assert sorted(path.name for path in (tmp_path / "out/labels").iterdir()) == ["0.txt", "1.txt", "classes.txt"]
