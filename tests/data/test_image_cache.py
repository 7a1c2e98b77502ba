import pickle

import cv2
import numpy as np
import pytest

from utils.data import image_cache as images
from utils.data.annotations import Records
from utils.data.image_cache import RecentImages, UnreadableImageError, decode


@pytest.fixture
def records(tmp_path):
    """Three grey images of 100 x 81, as JPEG, PNG and nothing."""
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg")]
    for value, path in zip((50, 150), paths, strict=False):
        cv2.imencode(path[-4:], np.full((81, 100, 3), value, np.uint8))[1].tofile(path)
    return Records(paths, [(81, 100)] * 3, [0] * 3, [], [])


@pytest.mark.parametrize(
    ("scale", "expected"), [(2, (81, 100)), (0.51, (81, 100)), (0.5, (41, 50)), (0.25, (21, 25)), (0.01, (11, 13))]
)
def test_size_of_decoded_images(records, scale, expected):
    """Prevents images decoded smaller than a sample draws them, and large ones decoded whole."""
    for index, value in ((0, 50), (1, 150)):
        image_rgb = decode(records, index, scale)
        assert image_rgb.shape == (*expected, 3)
        assert np.abs(image_rgb.astype(int) - value).max() <= 1


def test_unreadable_and_changed_images(records):
    """Prevents a trace without the image's name, and boxes of another image than the one that lies there now."""
    with pytest.raises(UnreadableImageError, match=r"c\.jpg") as raised:
        decode(records, 2)
    assert raised.value.path == records.path(2)
    # What a reduction hides, 83 / 4 rounded up is 81 / 4 rounded up, moves no box by much.
    for size_hw, scales in (((100, 81), (1, 0.5, 0.25)), ((83, 100), (1,))):
        records.sizes_hw[0] = size_hw
        for scale in scales:
            with pytest.raises(UnreadableImageError, match="its size is"):
                decode(records, 0, scale)


def test_files_that_are_cut_off_are_known(records):
    """Prevents grey corners that nobody knows of because the image was kept, or came from another format."""
    with open(records.path(0), "r+b") as file:
        file.truncate(file.seek(-2, 2))
    found = set()
    assert decode(records, 0, 1.0, found).shape == decode(records, 0).shape == (81, 100, 3)
    decode(records, 1, 1.0, found)
    assert found == {0}
    recent = RecentImages(records, np.ones(3))
    assert recent.cut_off == set()
    for index in (1, 0, 0):
        recent(index)
    assert recent.cut_off == {0}


def test_recent_images_are_kept_up_to_a_size(records, monkeypatch):
    """Prevents decoding again what the last sample used, and workers whose memory grows with the data set."""
    read = []
    monkeypatch.setattr(images, "decode", lambda records, index, *rest: read.append(index) or decode(records, 0, *rest))
    recent = RecentImages(records, np.ones(3), most_bytes=2 * 81 * 100 * 3)
    for index in (0, 1, 0, 2, 0, 1):
        assert recent(index).shape == (81, 100, 3)
    assert read == [0, 1, 2, 1]
    assert recent.kept_bytes == 2 * 81 * 100 * 3
    single = RecentImages(records, np.ones(3), most_bytes=1)
    assert single(0).shape == (81, 100, 3)


def test_recent_images_pickle_empty(records):
    """Prevents megabytes of pixels from being sent to each worker that is spawned."""
    recent = RecentImages(records, np.full(3, 0.5))
    recent(0)
    copy = pickle.loads(pickle.dumps(recent))
    assert (len(copy.kept), copy.kept_bytes) == (0, 0)
    assert copy(0).shape == (41, 50, 3)


def test_no_more_than_two_windows_are_kept(records, monkeypatch):
    """Prevents small images of windows long past from filling the memory of every worker."""
    monkeypatch.setattr(images, "decode", lambda *_: np.zeros((1, 1, 3), np.uint8))
    recent = RecentImages(records, np.ones(100))
    for index in range(100):
        recent(index)
    assert (len(recent.kept), recent.kept_bytes) == (64, 192)
