import numpy as np
import pytest

from utils.data import image_cache
from utils.data.annotations import Annotations
from utils.data.image_cache import ImageCache, RamCache, decode
from utils.data.tiles import tiled
from utils.image.codec import read_image, write_image
from utils.image.tiles import TileOptions

OPTIONS = TileOptions(64, 0.25)


@pytest.fixture
def annotations(tmp_path):
    """A picture of 100 x 64 pixels with two boxes, which becomes two tiles, and a small one without any."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 100, 3), np.uint8)
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, image_rgb in zip(paths, (pixels, pixels[:50, :50]), strict=True):
        write_image(path, image_rgb)
    return Annotations(paths, [(64, 100), (50, 50)], [2, 0], [[10, 10, 20, 30], [50, 40, 70, 64]], [1, 0])


def test_tiles_are_entries_with_their_boxes(annotations):
    """Prevents boxes in pixels of the image, and the box of a sliver of an object."""
    entries = tiled(annotations, OPTIONS)
    assert entries.images.tolist() == [0, 0, 0, 1]
    assert entries.sizes_hw.tolist() == [[64, 100], [64, 64], [64, 60], [50, 50]]
    assert [entries.boxes(index).tolist() for index in range(4)] == [
        [[10, 10, 20, 30], [50, 40, 70, 64]],
        [[10, 10, 20, 30], [50, 40, 64, 64]],
        [[10, 40, 30, 64]],
        [],
    ]
    assert [entries.labels(index).tolist() for index in range(4)] == [[1, 0], [1, 0], [0], []]
    assert [entries.path(index)[-5:] for index in range(4)] == ["a.png"] * 3 + ["b.png"]


def test_a_box_stays_where_enough_of_it_is_seen():
    """Prevents targets that are a strip of an object: three tenths of it must be there."""
    boxes_xyxy = [[54, 0, 74, 10], [60, 20, 80, 30]]
    whole = Annotations(["a.png"], [(64, 128)], [2], boxes_xyxy, [0, 0])
    entries = tiled(whole, TileOptions(64, 0.0))
    assert [entries.boxes(index).tolist() for index in (1, 2)] == [[[54, 0, 64, 10]], [[0, 0, 10, 10], [0, 20, 16, 30]]]


def test_whole_images_stay_as_they_are(annotations):
    """Prevents the cost of tiles where nobody asked for them."""
    assert tiled(annotations, TileOptions(0)) is annotations


def test_no_images():
    """Prevents a failure on an empty set."""
    assert len(tiled(Annotations([], [], [], [], []), OPTIONS)) == 0


def test_the_pixels_of_a_tile(annotations):
    """Prevents tiles that show another part of the picture than their boxes are in, also where it is decoded smaller,
    and a view that keeps the whole picture in memory."""
    entries, pixels = tiled(annotations, OPTIONS), read_image(annotations.path(0))
    assert (decode(entries, 2) == pixels[:, 40:]).all()
    assert (decode(entries, 2, 0.25) == read_image(annotations.path(0), 4)[:, 10:]).all()
    assert decode(entries, 1).base is None
    assert (ImageCache(entries, np.ones(4))(0) == pixels).all()


def test_a_picture_is_decoded_once_for_its_tiles(annotations, monkeypatch):
    """Prevents a cache that takes as many times longer to fill as a picture has tiles."""
    read, paths = image_cache.read_image_with_gaps, []
    monkeypatch.setattr(image_cache, "read_image_with_gaps", lambda *key: (paths.append(key), read(*key))[1])
    entries = tiled(annotations, OPTIONS)
    ram = RamCache(entries, np.ones(4), shared=False)
    ram.fill(None)
    assert [(ram(index) == decode(entries, index)).all() for index in range(4)] == [True] * 4
    assert sorted(path[-5:] for path, _ in paths[:3]) == ["a.png", "a.png", "b.png"]
