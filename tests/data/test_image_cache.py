import multiprocessing
import pickle
from collections import namedtuple

import cv2
import numpy as np
import pytest

from utils.data import image_cache
from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.image_cache import (
    ImageCache,
    RamCache,
    UnreadableImageError,
    cache_fits,
    decode,
    free_bytes,
    train_scales,
)

FILLED_SIZES_HW = [(40, 60), (30, 20), (100, 50)]
GIGABYTE = 10**9


@pytest.fixture
def annotations(tmp_path):
    """Three grey images of 100 x 81, as JPEG, PNG and nothing."""
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg")]
    for value, path in zip((50, 150), paths, strict=False):
        cv2.imencode(path[-4:], np.full((81, 100, 3), value, np.uint8))[1].tofile(path)
    return Annotations(paths, [(81, 100)] * 3, [0] * 3, [], [])


@pytest.mark.parametrize(
    ("scale", "expected"), [(2, (81, 100)), (0.51, (81, 100)), (0.5, (41, 50)), (0.25, (21, 25)), (0.01, (11, 13))]
)
def test_size_of_decoded_images(annotations, scale, expected):
    """Prevents images decoded smaller than a sample draws them, and large ones decoded whole."""
    for index, value in ((0, 50), (1, 150)):
        image_rgb = decode(annotations, index, scale)
        assert image_rgb.shape == (*expected, 3)
        assert np.abs(image_rgb.astype(int) - value).max() <= 1


def test_unreadable_and_changed_images(annotations):
    """Prevents a trace without the image's name, and boxes of another image than the one that lies there now."""
    with pytest.raises(UnreadableImageError, match=r"c\.jpg") as raised:
        decode(annotations, 2)
    assert raised.value.path == annotations.path(2)
    # What a reduction hides, 83 / 4 rounded up is 81 / 4 rounded up, moves no box by much.
    for size_hw, scales in (((100, 81), (1, 0.5, 0.25)), ((83, 100), (1,))):
        annotations.sizes_hw[0] = size_hw
        for scale in scales:
            with pytest.raises(UnreadableImageError, match="its size is"):
                decode(annotations, 0, scale)


def test_truncated_files_are_known(annotations):
    """Prevents grey corners that nobody knows of because the image was kept, or came from another format."""
    with open(annotations.path(0), "r+b") as file:
        file.truncate(file.seek(-2, 2))
    found = set()
    assert decode(annotations, 0, 1.0, found).shape == decode(annotations, 0).shape == (81, 100, 3)
    decode(annotations, 1, 1.0, found)
    assert found == {0}
    cache = ImageCache(annotations, np.ones(3))
    assert cache.truncated == set()
    for index in (1, 0, 0):
        cache(index)
    assert cache.truncated == {0}


def test_recent_images_are_kept_up_to_a_size(annotations, monkeypatch):
    """Prevents decoding again what the last sample used, and workers whose memory grows with the data set."""
    read = []

    def note(annotations, index, *rest):
        read.append(index)
        return decode(annotations, 0, *rest)

    monkeypatch.setattr(image_cache, "decode", note)
    cache = ImageCache(annotations, np.ones(3), max_bytes=2 * 81 * 100 * 3)
    for index in (0, 1, 0, 2, 0, 1):
        assert cache(index).shape == (81, 100, 3)
    assert read == [0, 1, 2, 1]
    assert cache.kept_bytes == 2 * 81 * 100 * 3
    single = ImageCache(annotations, np.ones(3), max_bytes=1)
    assert single(0).shape == (81, 100, 3)


def test_recent_images_pickle_empty(annotations):
    """Prevents megabytes of pixels from being sent to each worker that is spawned."""
    cache = ImageCache(annotations, np.full(3, 0.5))
    cache(0)
    copy = pickle.loads(pickle.dumps(cache))
    assert (len(copy.kept), copy.kept_bytes) == (0, 0)
    assert copy(0).shape == (41, 50, 3)


def test_no_more_than_two_windows_are_kept(annotations, monkeypatch):
    """Prevents small images of windows long past from filling the memory of every worker."""
    monkeypatch.setattr(image_cache, "decode", lambda *_: np.zeros((1, 1, 3), np.uint8))
    cache = ImageCache(annotations, np.ones(100))
    for index in range(100):
        cache(index)
    assert (len(cache.kept), cache.kept_bytes) == (64, 192)


@pytest.fixture
def filled(tmp_path):
    """Images filled with 50, 100 and 150."""
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        cv2.imencode(".png", np.full((*FILLED_SIZES_HW[index], 3), 50 * (index + 1), np.uint8))[1].tofile(path)
    return Annotations(paths, FILLED_SIZES_HW, [0] * 3, [], [])


def free_memory(monkeypatch, available, shared=None):
    """Pretend that so many bytes are free in main memory and in shared memory (None: as much as anyone wants)."""
    memory, usage = namedtuple("memory", "available"), namedtuple("usage", "free")
    monkeypatch.setattr(image_cache.psutil, "virtual_memory", lambda: memory(available + image_cache.RESERVED_BYTES))
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(2**60 if shared is None else shared))
    monkeypatch.setattr(image_cache, "CGROUPS", ())


@pytest.mark.parametrize("shared", [False, True])
def test_all_images_are_kept_at_their_scale(filled, shared):
    """Prevents images mixed up in the block, enlarged for nothing, or written over by a sample."""
    cache = RamCache(filled, np.array([0.5, 2.0, 0.33]), shared)
    cache.fill(None)
    assert [cache(index).shape for index in range(3)] == [(20, 30, 3), (30, 20, 3), (33, 17, 3)]
    for index in (2, 0, 1):
        assert (cache(index) == 50 * (index + 1)).all()


def test_files_are_read_once(filled, tmp_path):
    """Prevents a cache that decodes all the same."""
    cache = RamCache(filled, np.ones(3), shared=False)
    cache.fill(None)
    for path in tmp_path.iterdir():
        path.unlink()
    assert (cache(1) == 100).all()


def test_unreadable_images_are_known_to_the_cache(filled):
    """Prevents black images with boxes on them where a file is damaged."""
    with open(filled.path(1), "wb") as file:
        file.write(b"nothing")
    cache = RamCache(filled, np.ones(3), shared=False)
    cache.fill(None)
    with pytest.raises(UnreadableImageError, match=r"1\.png") as raised:
        cache(1)
    assert raised.value.path == filled.path(1)
    assert (cache(2) == 150).all()


def _look(cache, queue):
    queue.put([int(cache(index).mean()) for index in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_share_one_copy(filled, method):
    """Prevents workers that see an empty cache, or get a copy each."""
    context = multiprocessing.get_context(method)
    cache, queue = RamCache(filled, np.ones(3), shared=True), context.Queue()
    cache.fill(None)
    process = context.Process(target=_look, args=(cache, queue))
    process.start()
    assert queue.get(timeout=60) == [50, 100, 150]
    process.join(60)


def test_what_it_takes_is_said(filled, monkeypatch):
    """Prevents a machine that starts to swap: what does not fit is left out, and said."""
    free_memory(monkeypatch, 3 * GIGABYTE)
    sentence = "cache 'ram': 3 images take 0.0 MB; 3.0 GB are free in main memory"
    assert cache_fits(filled, np.ones(3), shared=False) == (True, sentence)
    free_memory(monkeypatch, 24000)
    fits, sentence = cache_fits(filled, np.ones(3), shared=False)
    assert not fits
    assert sentence.startswith("cache 'ram' would take 0.0 MB, and 0.0 MB are free in main memory: images are ")
    # 8,000 pixels and the rounding: one copy fits, not two.
    free_memory(monkeypatch, 26000)
    assert cache_fits(filled, np.ones(3), shared=False)[0]
    assert not cache_fits(filled, np.ones(3), shared=False, copies=2)[0]


def test_shared_memory_limits_what_is_shared(filled, monkeypatch):
    """Prevents the bus error of containers, whose shared memory is 64 MB."""
    monkeypatch.setattr(image_cache, "SHARED_FOLDER", image_cache.Path("."))
    free_memory(monkeypatch, 3 * GIGABYTE, shared=64 * 10**6)
    assert free_bytes(shared=True) == (64 * 10**6, "are free in . (Docker: --shm-size)")
    assert free_bytes(shared=False) == (3 * GIGABYTE, "are free in main memory")


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    """Prevents a container from being killed because the machine around it has memory left."""
    free_memory(monkeypatch, 30 * GIGABYTE)
    other = tmp_path / "none"
    monkeypatch.setattr(image_cache, "CGROUPS", ((tmp_path, "max", "current", "inactive_file"), (other, "a", "b", "c")))
    # What Linux keeps of files that were read counts as used there, and is given back on demand.
    (tmp_path / "current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 4000\n")
    for text, expected in (("max\n", 30 * GIGABYTE), (f"{5 * 2**30 + 1000}\n", 3 * 2**30), ("2000", 0)):
        (tmp_path / "max").write_text(text)
        assert free_bytes(shared=False)[0] == expected


def test_train_scales(filled):
    """Prevents a cache at the size of the files where the network sees a small input: 64 / 60, 96 / 30, 64 / 100."""
    scales = train_scales(filled, [(32, 32), (64, 96)], AugmentOptions(augment_epochs=5))
    np.testing.assert_allclose(scales, [1.6, 2.133333, 0.64], rtol=1e-5)


def test_a_cache_of_no_images():
    """Prevents a failure where there is nothing to keep."""
    RamCache(Annotations([], [], [], [], []), np.zeros(0), shared=False).fill(None)
