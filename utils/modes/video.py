"""Detecting on a video file or a camera, frame by frame, into a video of the same rate."""

import math
import os
import time
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from utils.image.draw import draw_boxes, text_width, write_text
from utils.image.opencv import cv2
from utils.io.errors import MissingFileError, UserError
from utils.io.logger import logger
from utils.io.text import counted
from utils.modes.window import Window

# FFmpeg prints what it finds wrong with a file; here that is one sentence of ours. Read when OpenCV opens a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

USUAL_RATE, HIGHEST_RATE = 25.0, 480.0
_SMOOTHING = 0.9


def predict_video(detector, settings, constant="video_path"):
    """Draw boxes and the frames per second on every frame of settings.video_path; Ctrl-C ends it as the end does.

    detector: a BaseDetector. settings: predict.py's constants. constant: the one that named the video, for messages.
    Returns the path of the video. Raises FileNotFoundError and ValueError for what is no video or camera, and where
    none can be written.
    """
    camera, target = settings.video_path.isdecimal(), target_of(settings)
    with opened(settings.video_path, constant) as (capture, rate, count), Window(settings.show) as window:
        writer, frames_done, started, speed = None, 0, time.perf_counter(), Speed()
        try:
            for frame_rgb in tqdm(frames(capture), total=count or None, desc="frames", disable=None):
                found = detector(frame_rgb, settings.confidence, settings.nms_iou, settings.max_boxes)
                drawn = draw_boxes(frame_rgb, found.boxes_xyxy, found.class_ids, found.scores, detector.class_names)
                write_speed(drawn, speed.next())
                writer = writer or FrameWriter(target, rate, drawn.shape[:2])
                # A camera does not wait for the network: each frame fills the time until the next.
                writer.write(drawn, until=(time.perf_counter() - started) if camera else None)
                frames_done += 1
                if not window.show(drawn):
                    break
        except KeyboardInterrupt:
            if not writer:
                raise
            logger.info("\nStopped by Ctrl-C.")
        finally:
            if writer:
                writer.close()
    if not frames_done:
        raise UserError(f"{constant} is {settings.video_path!r}, which gave no frame; expected a video that plays.")
    if frames_done < count:
        logger.warning(f"{settings.video_path} says that it has {count} frames; {frames_done} were used")
    rate = frames_done / (time.perf_counter() - started)
    logger.info(f"{counted(frames_done, 'frame')}, {rate:.1f} each second; saved {target}")
    return target


def target_of(settings):
    """Where the video goes. Raises ValueError for another ending than .mp4, and for the place of the original."""
    path = Path(f"camera_{settings.video_path}" if settings.video_path.isdecimal() else settings.video_path)
    # clip.mov becomes clip.mov.mp4, so that it does not take the place of clip.mp4.
    name = path.stem if path.suffix.lower() in ("", ".mp4") else path.name
    target = Path(settings.video_save_path or Path(settings.dir_save_path) / f"{name}.mp4")
    if target.suffix.lower() != ".mp4":
        raise UserError(f"video_save_path is {str(target)!r}; expected a name that ends in .mp4.")
    if target.resolve() == Path(settings.video_path).resolve():
        raise UserError(f"video_save_path is {str(target)!r}, the video itself, which would be overwritten.")
    return target


@contextmanager
def opened(video_path, constant="video_path"):
    """(cv2.VideoCapture, frames per second, number of frames or 0 where it is not known) of a file or a camera."""
    camera = video_path.isdecimal()
    if not camera and not Path(video_path).is_file():
        raise MissingFileError(f"{constant} is {video_path!r}, and there is no such file; correct the path.")
    with _silent():
        # The whole path: FFmpeg takes what stands before a colon, as in 10:30.mp4, for a protocol.
        capture = cv2.VideoCapture(int(video_path) if camera else os.path.abspath(video_path))
    try:
        if not capture.isOpened():
            expected = "a video that OpenCV can open"
            if camera:
                expected = f"the number of a camera that is connected and free, or name a video file by --{constant}="
            raise UserError(f"{constant} is {video_path!r}; expected {expected}.")
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not 0 < rate <= HIGHEST_RATE:
            logger.warning(f"{video_path} does not say its frames per second; {USUAL_RATE:g} are taken")
            rate = USUAL_RATE
        yield capture, rate, int(count) if math.isfinite(count) and 0 < count < 2**31 and not camera else 0
    finally:
        capture.release()


@contextmanager
def _silent():
    """Without OpenCV's own messages, which sentences of ours replace."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def frames(capture):
    """The frames of a cv2.VideoCapture, (H, W, 3) uint8 RGB."""
    while True:
        is_there, frame_bgr = capture.read()
        if not is_there:
            return
        yield cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)


class FrameWriter:
    """Writes (H, W, 3) uint8 RGB frames as an .mp4, of a rate within 0.01. Raises ValueError where OpenCV cannot."""

    def __init__(self, path, rate, size_hw):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size_wh, self.written = tuple(size_hw[::-1]), 0
        # MPEG-4 counts time in units of which a second has at most 65535: 239.7614 frames a second do not fit in them,
        # but all rates up to HIGHEST_RATE with two digits do.
        for self.rate in (rate, max(round(rate, 2), 0.01)):
            with _silent():
                code = cv2.VideoWriter.fourcc(*"mp4v")
                self.writer = cv2.VideoWriter(os.path.abspath(path), code, self.rate, self.size_wh)
            if self.writer.isOpened():
                return
        raise UserError(f"{path} cannot be written as a video: expected a folder to write to, and OpenCV's FFmpeg.")

    def write(self, frame_rgb, until=None):
        """Write a frame once, or, with `until`, as often as fills the video to this many seconds."""
        if frame_rgb.shape[1::-1] != self.size_wh:  # the writer leaves such frames out without a word
            frame_rgb = cv2.resize(frame_rgb, self.size_wh)
        frame_bgr = cv2.cvtColor(frame_rgb, cv2.COLOR_RGB2BGR)
        for _ in range(1 if until is None else round(until * self.rate) - self.written):
            self.writer.write(frame_bgr)
            self.written += 1

    def close(self):
        self.writer.release()


class Speed:
    """Frames per second of late: next() is called once for each."""

    def __init__(self):
        self.last, self.seconds = time.perf_counter(), None

    def next(self):
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.seconds = took if self.seconds is None else _SMOOTHING * self.seconds + (1 - _SMOOTHING) * took
        return 1 / max(self.seconds, 1e-6)


def write_speed(image_rgb, frames_per_second):
    """Write the speed into the upper right corner of a picture, in place."""
    size = max(10, round(0.022 * math.sqrt(image_rgb.shape[0] * image_rgb.shape[1])))
    text = f"{frames_per_second:.1f} fps"
    left_base = image_rgb.shape[1] - text_width(text, size, 600) - size // 2, round(1.3 * size)
    shadow = left_base[0] + 1, left_base[1] + 1
    write_text(image_rgb, text, shadow, size, (0, 0, 0), 600)
    write_text(image_rgb, text, left_base, size, (255, 255, 255), 600)
