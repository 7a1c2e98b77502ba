"""Pictures of a run as files and in TensorBoard, at a small share of its time and never at the cost of its life."""

import time
from pathlib import Path

from utils.data.letterbox import write_image

# Of a run's time, for each function that draws: on a tiny data set an epoch is over in a second or two.
MOST_SHARE = 0.03


class _Frame:
    """What one function has to draw and has drawn."""

    def __init__(self):
        self.step, self.arguments = 0, ()
        self.times, self.next_time, self.is_drawn, self.is_shown = 0, 0.0, False, False


class Gallery:
    """Draws pictures as PNG files into a folder and, where there is a writer of TensorBoard, as images there.

    A file always shows the newest state. TensorBoard keeps what it gets, so it gets the 1st, 2nd, 4th, 8th, ... and the
    last drawing: the course of the run in a file that stays small.
    """

    def __init__(self, folder, writer=None):
        self.folder, self.writer = Path(folder), writer
        self._frames, self._failed = {}, set()

    def draw(self, step, function, *arguments):
        """Draw function(*arguments), a dict {name: (H, W, 3) uint8 RGB}, into name.png in the place of an older one.

        step: epoch. Where drawing takes more than MOST_SHARE of the time, some steps are left out; close() makes up for
        the last. A function that fails says so once, and the run goes on.
        """
        frame = self._frames.setdefault(function, _Frame())
        frame.step, frame.arguments, frame.is_drawn = step, arguments, False
        if time.monotonic() >= frame.next_time:
            self._draw(function, frame)

    def close(self):
        """Draw what was left out. May be called more than once."""
        for function, frame in self._frames.items():
            if not (frame.is_drawn and frame.is_shown):
                self._draw(function, frame, is_last=True)

    def _draw(self, function, frame, is_last=False):
        start = time.monotonic()
        frame.times += 1
        frame.is_drawn, frame.is_shown = True, is_last or frame.times & (frame.times - 1) == 0
        try:
            for name, image_rgb in function(*frame.arguments).items():
                write_image(str(self.folder / f"{name}.png"), image_rgb)
                if self.writer and frame.is_shown:
                    self.writer.add_image(f"pictures/{name}", image_rgb, frame.step, dataformats="HWC")
        except Exception as error:
            # Whatever it is, hours of training are worth more than a picture.
            if function not in self._failed:
                print(f"note: pictures are missing, {function.__name__} failed: {type(error).__name__}: {error}")
            self._failed.add(function)
        now = time.monotonic()
        frame.next_time = now + (now - start) / MOST_SHARE
