import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from utils.image.opencv import cv2
from utils.inference.base import Detections
from utils.modes import video
from utils.modes.video import FrameWriter, frames, opened, predict_video, write_speed


def fake_detector(ends_after=None):
    """Finds a cat in the left half of every frame; Ctrl-C comes with the frame after `ends_after`."""
    seen = []

    def detect(frame_rgb, confidence, nms_iou, max_boxes):
        if len(seen) == ends_after:
            raise KeyboardInterrupt
        seen.append(frame_rgb)
        height, width = frame_rgb.shape[:2]
        boxes_xyxy = np.float32([[0, 0, width / 2, height]])
        return Detections(boxes_xyxy, np.float32([0.9]), np.array([0]), np.array(["cat"]))

    detect.class_names, detect.seen = ["cat"], seen
    return detect


def settings(tmp_path, **changes):
    values = {"video_path": str(tmp_path / "in.mp4"), "video_save_path": "", "dir_save_path": str(tmp_path / "out")}
    return SimpleNamespace(**(values | {"show": False, "confidence": 0.3, "nms_iou": 0.4, "max_boxes": 300} | changes))


def write_video(path, count, rate=12.5, size_hw=(96, 128)):
    writer = FrameWriter(path, rate, size_hw)
    for number in range(count):
        writer.write(np.full((*size_hw, 3), (20 * number, 128, 10), np.uint8))
    writer.close()


def read_video(path):
    with opened(str(path)) as (capture, rate, count):
        return list(frames(capture)), rate, count


def test_a_video_keeps_its_rate_size_and_frames(tmp_path, capsys):
    """Prevents a video that plays too fast, frames that are left out, and red and blue swapped."""
    write_video(tmp_path / "in.mp4", 7)
    detector = fake_detector()
    target = predict_video(detector, settings(tmp_path))
    assert target == tmp_path / "out/in.mp4"
    written, rate, count = read_video(target)
    assert (len(written), rate, count, written[0].shape) == (7, 12.5, 7, (96, 128, 3))
    assert len(detector.seen) == 7
    assert np.abs(np.median(detector.seen[6], (0, 1)) - (120, 128, 10)).max() < 12
    assert (np.abs(written[3][40:, 80:].astype(int) - (60, 128, 10)) < 40).all()  # no box there
    assert "7 frames, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rate", "expected"), [(239.7614, 239.76), (100.123456, 100.12), (29.97003, 29.97), (0.001, 0.01)]
)
def test_rates_that_the_format_does_not_know(tmp_path, capfd, rate, expected):
    """Prevents slow-motion videos from being refused, with a sentence that blames the folder."""
    write_video(tmp_path / "in.mp4", 2, rate)
    written, found, _ = read_video(tmp_path / "in.mp4")
    assert (len(written), found) == (2, pytest.approx(expected, abs=0.0005))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no name holds a colon there")
def test_a_colon_in_a_name(tmp_path, monkeypatch):
    """Prevents a time in a name from being taken for a protocol such as http."""
    monkeypatch.chdir(tmp_path)
    write_video(Path("10:30.mp4"), 2)
    assert len(read_video("10:30.mp4")[0]) == 2


@pytest.mark.parametrize("size_hw", [(97, 129), (33, 16)])
def test_odd_sizes(tmp_path, size_hw):
    """Prevents an empty file where a codec wants even sides."""
    write_video(tmp_path / "in.mp4", 3, size_hw=size_hw)
    written, _, _ = read_video(tmp_path / "in.mp4")
    assert len(written) == 3 and np.abs(np.array(written[0].shape[:2]) - size_hw).max() <= 1


def test_ctrl_c_leaves_a_video_that_plays(tmp_path, capsys):
    """Prevents the loss of all frames: an .mp4 whose end was not written does not open."""
    write_video(tmp_path / "in.mp4", 9)
    target = predict_video(fake_detector(ends_after=4), settings(tmp_path))
    assert len(read_video(target)[0]) == 4
    out = capsys.readouterr().out
    assert "Stopped by Ctrl-C" in out and "says that it has 9 frames; 4 were used" in out


def test_an_error_leaves_a_video_that_plays(tmp_path):
    """Prevents the loss of what was done before a failure."""
    write_video(tmp_path / "in.mp4", 5)
    detector = fake_detector()
    limited = SimpleNamespace(class_names=["cat"])

    def detect(*arguments):
        if len(detector.seen) == 3:
            raise MemoryError
        return detector(*arguments)

    detect.class_names = limited.class_names
    with pytest.raises(MemoryError):
        predict_video(detect, settings(tmp_path))
    assert len(read_video(tmp_path / "out/in.mp4")[0]) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"video_path": "gone.mp4"}, FileNotFoundError, "video_path is 'gone.mp4', and there is no such file"),
        ({"video_path": __file__}, ValueError, "expected a video that OpenCV can open"),
        (
            {"video_path": "977"},
            ValueError,
            "video_path is '977'; expected the number of a camera that is connected and free, or name a video file by "
            "--video_path=.",
        ),
        ({"video_save_path": "out.avi"}, ValueError, r"expected a name that ends in \.mp4"),
        ({"dir_save_path": "{}"}, ValueError, "the video itself, which would be overwritten"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, capfd, changes, error, message):
    """Prevents a trace, a video of nothing, and warnings of OpenCV that hide the sentence."""
    write_video(tmp_path / "in.mp4", 1)
    changes = {name: value.format(tmp_path) for name, value in changes.items()}
    with pytest.raises(error, match=message):
        predict_video(fake_detector(), settings(tmp_path, **changes))
    assert capfd.readouterr().err == ""
    assert len(read_video(tmp_path / "in.mp4")[0]) == 1


class FakeCamera:
    """A camera that says nothing of its rate, and gives three frames, the second of another size."""

    def __init__(self, number):
        assert number == 2
        self.left = [(40, 60), (60, 40), (40, 60)]

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def read(self):
        time.sleep(0.1)
        return (True, np.zeros((*self.left.pop(0), 3), np.uint8)) if self.left else (False, None)

    def release(self):
        self.left = []


def test_a_camera_that_is_faster_than_the_network(tmp_path, monkeypatch, capsys):
    """Prevents a video of a camera that plays several times too fast, and frames of another size that vanish."""
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    target = predict_video(fake_detector(), settings(tmp_path, video_path="2"))
    assert target.name == "camera_2.mp4"
    monkeypatch.undo()
    written, rate, _ = read_video(target)
    assert rate == 25 and 7 <= len(written) <= 20  # 0.3 seconds
    assert "note: 2 does not say its frames per second; 25 are taken" in capsys.readouterr().out


def test_a_window_that_is_closed_ends_the_video(tmp_path, monkeypatch):
    """Prevents a camera that cannot be ended but by Ctrl-C."""
    write_video(tmp_path / "in.mp4", 5)
    monkeypatch.setattr(video.Window, "show", lambda *_: False)
    assert len(read_video(predict_video(fake_detector(), settings(tmp_path)))[0]) == 1


def test_the_speed_is_written_inside_the_picture():
    """Prevents a number that cannot be read on white, or on black, or that leaves the picture."""
    for grey in (0, 255):
        image = np.full((120, 160, 3), grey, np.uint8)
        write_speed(image, 1234.5)
        assert (image != grey).any() and (image[:, -1] == grey).all() and (image[40:] == grey).all()
    write_speed(np.zeros((1, 1, 3), np.uint8), 5)


def test_the_place_of_a_video(tmp_path):
    """Prevents clip.mov from taking the place of clip.mp4, and messages that name a constant that nobody set."""
    for name, target in (("clip.mp4", "clip.mp4"), ("clip.mov", "clip.mov.mp4"), ("0", "camera_0.mp4")):
        path = name if name == "0" else str(tmp_path / name)
        assert video.target_of(settings(tmp_path, video_path=path)) == tmp_path / "out" / target
    with pytest.raises(FileNotFoundError, match=r"^image is 'gone\.avi', and there is no such file"):
        predict_video(fake_detector(), settings(tmp_path, video_path="gone.avi"), "image")
