import numpy as np
import pytest

from utils.image.codec import read_image
from utils.reporting import images as gallery
from utils.reporting.images import Gallery


class Writer:
    """Stands for TensorBoard: remembers (tag, step, grey value)."""

    def __init__(self):
        self.images = []

    def add_image(self, tag, image, step, dataformats):
        assert dataformats == "HWC"
        self.images.append((tag, step, int(image[0, 0, 0])))


@pytest.fixture
def clock(monkeypatch):
    """The time that the gallery sees, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(gallery.time, "monotonic", lambda: now[0])
    return now


def grey(value):
    return {"grey": np.full((4, 5, 3), value, np.uint8)}


def test_the_file_shows_the_newest_and_tensorboard_the_course(tmp_path):
    """Prevents event files of gigabytes after hundreds of evaluations, and a last picture that nobody sees."""
    writer = Writer()
    pictures = Gallery(tmp_path, writer)
    for step in range(1, 12):
        pictures.draw(step, grey, step)
        pictures._frames[grey].next_time = 0.0
        assert read_image(str(tmp_path / "grey.png"))[0, 0].tolist() == [step] * 3
    assert writer.images == [("pictures/grey", step, step) for step in (1, 2, 4, 8)]
    pictures.close()
    pictures.close()
    assert writer.images[4:] == [("pictures/grey", 11, 11)]


def test_slow_pictures_are_drawn_seldom(tmp_path, clock):
    """Prevents a tiny data set from waiting for its pictures longer than for its training."""
    drawn = []

    def slow(step):
        drawn.append(step)
        clock[0] += 3.0
        return grey(step)

    pictures = Gallery(tmp_path)
    for step in range(1, 201):
        clock[0] += 1.0
        pictures.draw(step, slow, step)
    assert drawn == [1, 101]  # 3 of 100 seconds
    pictures.close()
    assert drawn == [1, 101, 200] and read_image(str(tmp_path / "grey.png"))[0, 0, 0] == 200


def test_a_failure_is_said_once_and_stops_nothing(tmp_path, capsys):
    """Prevents hours of training from being lost to a font, a full disk or a bug of a picture."""

    def broken():
        raise RuntimeError("no font")

    pictures = Gallery(tmp_path)
    for step in (1, 2):
        pictures.draw(step, broken)
        pictures._frames[broken].next_time = 0.0
    pictures.draw(2, grey, 7)
    pictures.close()
    assert capsys.readouterr().out == "note: pictures are missing, broken failed: RuntimeError: no font\n"
    assert [path.name for path in tmp_path.iterdir()] == ["grey.png"]


def test_nothing_to_draw_closes(tmp_path):
    """Prevents a run that fails early from failing again at its end."""
    Gallery(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
