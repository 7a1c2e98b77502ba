import multiprocessing
from collections import namedtuple

import cv2
import numpy as np
import pytest

from utils.data import image_cache as cache
from utils.data.annotations import Records
from utils.data.augment import AugmentSettings
from utils.data.image_cache import RamCache, UnreadableImageError, cache_fits, free_bytes, train_scales

SIZES_HW = [(40, 60), (30, 20), (100, 50)]
GIGABYTE = 10**9


@pytest.fixture
def records(tmp_path):
    """Images filled with 50, 100 and 150."""
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        cv2.imencode(".png", np.full((*SIZES_HW[index], 3), 50 * (index + 1), np.uint8))[1].tofile(path)
    return Records(paths, SIZES_HW, [0] * 3, [], [])


def free_memory(monkeypatch, available, shared=None):
    """Pretend that so many bytes are free in main memory and in shared memory (None: as much as anyone wants)."""
    memory, usage = namedtuple("memory", "available"), namedtuple("usage", "free")
    monkeypatch.setattr(cache.psutil, "virtual_memory", lambda: memory(available + cache.RESERVED_BYTES))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(2**60 if shared is None else shared))
    monkeypatch.setattr(cache, "CGROUPS", ())


@pytest.mark.parametrize("shared", [False, True])
def test_images_are_kept_at_their_scale(records, shared):
    """Prevents images mixed up in the block, enlarged for nothing, or written over by a sample."""
    kept = RamCache(records, np.array([0.5, 2.0, 0.33]), shared)
    kept.fill(None)
    assert [kept(index).shape for index in range(3)] == [(20, 30, 3), (30, 20, 3), (33, 17, 3)]
    for index in (2, 0, 1):
        assert (kept(index) == 50 * (index + 1)).all()


def test_files_are_read_once(records, tmp_path):
    """Prevents a cache that decodes all the same."""
    kept = RamCache(records, np.ones(3), shared=False)
    kept.fill(None)
    for path in tmp_path.iterdir():
        path.unlink()
    assert (kept(1) == 100).all()


def test_unreadable_images_are_known(records):
    """Prevents black images with boxes on them where a file is damaged."""
    with open(records.path(1), "wb") as file:
        file.write(b"nothing")
    kept = RamCache(records, np.ones(3), shared=False)
    kept.fill(None)
    with pytest.raises(UnreadableImageError, match=r"1\.png") as raised:
        kept(1)
    assert raised.value.path == records.path(1)
    assert (kept(2) == 150).all()


def _look(kept, queue):
    queue.put([int(kept(index).mean()) for index in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_share_one_copy(records, method):
    """Prevents workers that see an empty cache, or get a copy each."""
    context = multiprocessing.get_context(method)
    kept, queue = RamCache(records, np.ones(3), shared=True), context.Queue()
    kept.fill(None)
    process = context.Process(target=_look, args=(kept, queue))
    process.start()
    assert queue.get(timeout=60) == [50, 100, 150]
    process.join(60)


def test_what_it_takes_is_said(records, monkeypatch):
    """Prevents a machine that starts to swap: what does not fit is left out, and said."""
    free_memory(monkeypatch, 3 * GIGABYTE)
    sentence = "cache 'ram': 3 images take 0.0 MB; 3.0 GB are free in main memory"
    assert cache_fits(records, np.ones(3), shared=False) == (True, sentence)
    free_memory(monkeypatch, 24000)
    fits, sentence = cache_fits(records, np.ones(3), shared=False)
    assert not fits
    assert sentence.startswith("note: cache 'ram' would take 0.0 MB, and 0.0 MB are free in main memory: images are ")
    # 8,000 pixels and the rounding: one copy fits, not two.
    free_memory(monkeypatch, 26000)
    assert cache_fits(records, np.ones(3), shared=False)[0]
    assert not cache_fits(records, np.ones(3), shared=False, copies=2)[0]


def test_shared_memory_limits_what_is_shared(records, monkeypatch):
    """Prevents the bus error of containers, whose shared memory is 64 MB."""
    monkeypatch.setattr(cache, "SHARED_FOLDER", cache.Path("."))
    free_memory(monkeypatch, 3 * GIGABYTE, shared=64 * 10**6)
    assert free_bytes(shared=True) == (64 * 10**6, "are free in . (Docker: --shm-size)")
    assert free_bytes(shared=False) == (3 * GIGABYTE, "are free in main memory")


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    """Prevents a container from being killed because the machine around it has memory left."""
    free_memory(monkeypatch, 30 * GIGABYTE)
    other = tmp_path / "none"
    monkeypatch.setattr(cache, "CGROUPS", ((tmp_path, "max", "current", "inactive_file"), (other, "a", "b", "c")))
    # What Linux keeps of files that were read counts as used there, and is given back on demand.
    (tmp_path / "current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 4000\n")
    for text, expected in (("max\n", 30 * GIGABYTE), (f"{5 * 2**30 + 1000}\n", 3 * 2**30), ("2000", 0)):
        (tmp_path / "max").write_text(text)
        assert free_bytes(shared=False)[0] == expected


def test_train_scales(records):
    """Prevents a cache at the size of the files where the network sees a small input: 64 / 60, 96 / 30, 64 / 100."""
    scales = train_scales(records, [(32, 32), (64, 96)], AugmentSettings(augment_epochs=5))
    np.testing.assert_allclose(scales, [1.6, 2.133333, 0.64], rtol=1e-5)


def test_no_images():
    """Prevents a failure where there is nothing to keep."""
    RamCache(Records([], [], [], [], []), np.zeros(0), shared=False).fill(None)
