"""A window for pictures, where there is a screen; where there is none, nothing happens."""

import os
import subprocess
import sys

from utils.image.opencv import cv2
from utils.io.logger import logger

_TITLE = "predict"
_LARGEST_HW = (800, 1400)
_ESCAPE = 27


class Window:
    """Shows (H, W, 3) uint8 RGB pictures in a window; wanted: False shows nothing. Closed when a `with` ends."""

    def __init__(self, wanted):
        self.has_screen, self.is_open = wanted and has_screen(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.has_screen:
            cv2.destroyAllWindows()

    def show(self, image_rgb):
        """Show a picture without waiting. Returns False once a person has closed the window, or pressed q or Escape."""
        if not self.has_screen:
            return True
        return self._show(image_rgb, 1) not in (None, ord("q"), _ESCAPE)

    def show_until_key(self, image_rgb):
        """Show a picture until a person presses a key or closes the window."""
        if self.has_screen:
            logger.info("A key closes the window.")
            key = self._show(image_rgb, 50)
            while key == -1:
                key = self._key(50)

    def _show(self, image_rgb, milliseconds):
        if not self.is_open:
            height, width = image_rgb.shape[:2]
            scale = min(1, _LARGEST_HW[0] / height, _LARGEST_HW[1] / width)
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
            cv2.resizeWindow(_TITLE, max(1, int(width * scale)), max(1, int(height * scale)))
            self.is_open = True
        cv2.imshow(_TITLE, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        return self._key(milliseconds)

    def _key(self, milliseconds):
        """The key pressed within this time, -1 for none, None where the window has been closed."""
        key = cv2.waitKey(milliseconds)
        if cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1:
            self.is_open = False
            return None
        return key


def has_screen():
    """Whether OpenCV can open a window here, and somebody looks: the program's output goes to a terminal or an editor.

    Another process tries, because a screen that is named and cannot be reached ends the process that asks for it.
    """
    if not (sys.stdout.isatty() or "PYCHARM_HOSTED" in os.environ):
        return False
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    code = f"import cv2; cv2.namedWindow({_TITLE!r}); cv2.destroyAllWindows()"
    try:
        return (
            subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
