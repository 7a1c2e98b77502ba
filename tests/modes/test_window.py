import sys
from types import SimpleNamespace

import numpy as np
import pytest

from utils.modes import window
from utils.modes.window import Window, has_screen

PICTURE = np.zeros((1600, 700, 3), np.uint8)


@pytest.fixture
def screen(monkeypatch):
    """A screen on which the next keys are pressed; what is shown, and how large, is written down."""
    seen = SimpleNamespace(keys=[], shown=[], size=None, visible=1.0, closed=0)
    monkeypatch.setattr(window, "has_screen", lambda: True)
    fakes = {
        "namedWindow": lambda *_: None,
        "resizeWindow": lambda _, *size_wh: setattr(seen, "size", size_wh),
        "imshow": lambda _, image: seen.shown.append(image),
        "waitKey": lambda _: seen.keys.pop(0) if seen.keys else -1,
        "getWindowProperty": lambda *_: seen.visible,
        "destroyAllWindows": lambda: setattr(seen, "closed", seen.closed + 1),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(window.cv2, name, fake)
    return seen


def test_no_screen_no_window(monkeypatch):
    """Prevents a crash on servers, where OpenCV's windows end the whole process."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PYCHARM_HOSTED", "1")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_screen()
    with Window(True) as shown:
        assert shown.show(PICTURE)
        shown.show_until_key(PICTURE)


def test_nobody_looks(monkeypatch):
    """Prevents a window that holds up a script, whose output goes to a file, until somebody finds it."""
    monkeypatch.delenv("PYCHARM_HOSTED", raising=False)
    monkeypatch.setattr(window.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert not has_screen()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert has_screen()


def test_a_screen_that_cannot_be_reached(monkeypatch):
    """Prevents the end of the process where DISPLAY names a screen of a session that is over."""
    monkeypatch.setenv("PYCHARM_HOSTED", "1")
    monkeypatch.setenv("DISPLAY", ":4711")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform.startswith("linux"):
        assert not has_screen()


def test_nobody_wants_a_window(screen):
    """Prevents a window with show = False."""
    with Window(False) as shown:
        assert shown.show(PICTURE)
        shown.show_until_key(PICTURE)
    assert (screen.shown, screen.closed) == ([], 0)


def test_a_picture_waits_for_a_key_or_for_the_window_to_be_closed(screen):
    """Prevents a window that closes at once, one that never ends, and red and blue swapped."""
    screen.keys = [-1, -1, ord("x"), ord("y")]
    with Window(True) as shown:
        shown.show_until_key(PICTURE + np.uint8([1, 2, 3]))
    assert (screen.keys, screen.size, screen.closed) == ([ord("y")], (350, 800), 1)
    assert screen.shown[0][0, 0].tolist() == [3, 2, 1]
    screen.visible = 0.0
    with Window(True) as shown:
        shown.show_until_key(PICTURE)


def test_a_video_ends_by_q_escape_or_closing(screen):
    """Prevents a window of a camera that nobody can end."""
    with Window(True) as shown:
        screen.keys = [-1, ord("a"), ord("q"), 27]
        assert [shown.show(PICTURE) for _ in range(4)] == [True, True, False, False]
        screen.visible = 0.0
        assert not shown.show(PICTURE)
