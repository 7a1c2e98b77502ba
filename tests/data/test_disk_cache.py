import copy
import os
import pickle
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.data import disk_cache
from utils.data.annotations import Annotations
from utils.data.disk_cache import HEADER_BYTES, DiskCache, cache_paths, choose_path
from utils.data.image_cache import RESERVED_BYTES, RamCache, UnreadableImageError
from utils.data.tiles import tiled
from utils.image.tiles import TileOptions

SIZES_HW = [(40, 60), (30, 20), (101, 53)]
SCALES = np.array([0.5, 2.0, 0.33])
# 20 x 30, 30 x 20 and 34 x 18 pixels, and a byte for each image.
FILE_BYTES = HEADER_BYTES + 3 * (600 + 600 + 612) + 3


@pytest.fixture
def annotations(tmp_path):
    """Three images of noise, JPEG and PNG."""
    random, paths = np.random.default_rng(0), [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg")]
    for path, size_hw in zip(paths, SIZES_HW, strict=True):
        cv2.imencode(path[-4:], random.integers(0, 256, (*size_hw, 3), np.uint8))[1].tofile(path)
    return Annotations(paths, SIZES_HW, [0] * 3, [], [])


@pytest.fixture
def path(annotations, tmp_path):
    """A file of these images."""
    path = tmp_path / "train_32x32.cache"
    assert DiskCache(annotations, SCALES).write(path, None)
    return path


def opened(annotations, path, scales=SCALES):
    """The file as another run, which has seen nothing yet, opens it; None where it does not take it."""
    cache = DiskCache(annotations, scales)
    return cache if cache.open(path) else None


def test_pixels_are_those_of_main_memory(annotations, path):
    """Prevents a cache that learns from other pixels than the one it stands for, in the run that writes it or later."""
    ram = RamCache(annotations, SCALES, shared=False)
    ram.fill(None)
    assert path.stat().st_size == FILE_BYTES
    cache = opened(annotations, path)
    for index in (2, 0, 1):
        np.testing.assert_array_equal(cache(index), ram(index))
    assert cache(2).shape == (34, 18, 3)


def test_a_file_that_is_there_is_not_decoded_again(annotations, path, monkeypatch):
    """Prevents minutes of decoding at the start of every run, which the file is there to spare."""
    monkeypatch.setattr(DiskCache, "decode_scaled", None)
    assert opened(annotations, path)(1).shape == (30, 20, 3)


@pytest.mark.parametrize("change", ["bytes", "time", "gone", "scale", "order", "decoder"])
def test_a_file_of_other_images_is_not_taken(annotations, path, monkeypatch, change):
    """Prevents boxes on pixels that are not those of the image: each of what the pixels follow from counts."""
    scales, image = SCALES, Path(annotations.path(0))
    if change == "bytes":
        time = image.stat().st_mtime_ns
        image.write_bytes(image.read_bytes() + b"\0")
        os.utime(image, ns=(time, time))
    elif change == "time":
        os.utime(image, (1, 1))
    elif change == "gone":
        image.unlink()
    elif change == "scale":
        scales = np.array([0.5, 0.9, 0.33])
    elif change == "order":
        annotations = Annotations([annotations.path(1), annotations.path(0)], SIZES_HW[1::-1], [0] * 2, [], [])
        scales = SCALES[1::-1]
    else:
        monkeypatch.setattr(disk_cache.cv2, "__version__", "0.0")
    assert opened(annotations, path, scales) is None


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: b"",
        lambda whole: whole[:10],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: bytes(HEADER_BYTES) + whole[HEADER_BYTES:],
        lambda whole: b"x" * len(whole),
    ],
)
def test_a_file_that_is_not_whole_or_not_of_ours_is_not_taken(annotations, path, content):
    """Prevents a process that ends by a bus error, or pixels of another program's file."""
    path.write_bytes(content(path.read_bytes()))
    assert opened(annotations, path) is None


def test_other_tiles_of_the_same_images_are_not_taken(annotations, path):
    """Prevents the boxes of a tile on the pixels of another one."""
    entries = [tiled(annotations, TileOptions(32, overlap)) for overlap in (0.0, 0.5)]
    assert DiskCache(entries[0], np.ones(len(entries[0]))).write(path, None)
    assert DiskCache(entries[0], np.ones(len(entries[0]))).open(path)
    moved = copy.deepcopy(entries[0])
    moved.tiles_xyxy[1] += [1, 0, 1, 0]
    for others in (entries[1], moved):
        assert not DiskCache(others, np.ones(len(others))).open(path)


def test_nothing_and_a_folder_are_no_file(annotations, path):
    """Prevents a trace where there is no file yet, or something else of its name."""
    assert opened(annotations, path.with_name("none")) is None
    assert opened(annotations, path.parent) is None


def test_an_interruption_leaves_the_old_file_or_none(annotations, path, tmp_path, monkeypatch):
    """Prevents half a file, or a temporary one of gigabytes, where Ctrl-C or a full disk ends the decoding."""
    before, decode = path.read_bytes(), DiskCache.decode_scaled

    def stop(cache, index):
        if index == 1:
            raise KeyboardInterrupt
        return decode(cache, index)

    monkeypatch.setattr(DiskCache, "decode_scaled", stop)
    for target in (path, tmp_path / "new.cache"):
        with pytest.raises(KeyboardInterrupt):
            DiskCache(annotations, SCALES).write(target, None)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.jpg", "c.jpg", path.name]


def test_two_runs_that_write_at_once(annotations, path):
    """Prevents two trainings that begin together from mixing their halves of a file, or taking it from each other."""
    whole, reader = path.read_bytes(), opened(annotations, path)
    writers = [DiskCache(annotations, SCALES) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda cache: cache.write(path, None), writers)) == [True] * 4
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.glob("*cache*")] == [path.name]
    np.testing.assert_array_equal(reader(0), writers[0](0))


def test_images_that_cannot_be_read(annotations, path):
    """Prevents black images with boxes on them, and one that was out of reach once from being left out for ever; what
    lacks its last bytes is known to later runs, too."""
    for index, size in ((1, 10), (2, Path(annotations.path(2)).stat().st_size - 2)):
        os.truncate(annotations.path(index), size)
    assert opened(annotations, path) is None
    assert DiskCache(annotations, SCALES).write(path, None)
    cache = opened(annotations, path)
    assert (list(cache.unreadable), cache.truncated) == ([1], {2})
    with pytest.raises(UnreadableImageError, match=r"b\.jpg"):
        cache(1)
    assert cache(2).shape == (34, 18, 3)


def test_an_image_that_can_be_read_again(annotations, path, monkeypatch):
    """Prevents a share that did not answer once from leaving an image out of all later runs."""
    decode = DiskCache.decode_scaled

    def fail(cache, index):
        if index == 0:
            raise UnreadableImageError("a.png", "no answer")
        return decode(cache, index)

    with monkeypatch.context() as patched:
        patched.setattr(DiskCache, "decode_scaled", fail)
        assert DiskCache(annotations, SCALES).write(path, None)
        assert opened(annotations, path).unreadable == {0: "a.png: no answer"}
    assert opened(annotations, path) is None


def test_workers_map_the_file(annotations, path):
    """Prevents a copy of all pixels in the message to each worker that is spawned, and workers that fail where the file
    was replaced in between: they decode."""
    cache = opened(annotations, path)
    sent = pickle.dumps(cache)
    assert len(sent) < 3000
    worker = pickle.loads(sent)
    assert worker.block is not None
    np.testing.assert_array_equal(worker(0), cache(0))
    path.write_bytes(b"another")
    late = pickle.loads(sent)
    assert late.block is None
    os.truncate(path, 0)
    assert late(2).shape == (34, 18, 3)


def test_no_images(tmp_path):
    """Prevents a failure where there is nothing to keep."""
    cache = DiskCache(Annotations([], [], [], [], []), np.zeros(0))
    assert cache.write(tmp_path / "none.cache", None)


def test_where_the_file_lies(tmp_path):
    """Prevents two data sets with a train.txt each from writing over each other's file in one save_dir, and inputs of
    two sizes over the other's."""
    beside, in_save_dir = cache_paths(str(tmp_path / "a/train.txt"), str(tmp_path / "logs"), (416, 640))
    assert beside == tmp_path / "a/train_416x640.cache"
    assert in_save_dir.parent == tmp_path / "logs" and in_save_dir.name.endswith("_train_416x640.cache")
    assert cache_paths(str(tmp_path / "b/train.txt"), str(tmp_path / "logs"), (416, 640))[1] != in_save_dir
    assert cache_paths("images/train/", "logs", (32, 32))[0] == Path("images/train_32x32.cache").absolute()


def test_the_file_of_several_sources_lies_beside_the_first(tmp_path):
    """Prevents a list of sources from writing over the file of its first source, or of another list."""
    first, second, third = (str(tmp_path / name) for name in ("a/train.txt", "b/data.yaml", "c/data.yaml"))
    alone, both, others = (
        cache_paths(given, str(tmp_path / "logs"), (32, 64))[0] for given in ([first], [first, second], [first, third])
    )
    assert alone == tmp_path / "a/train_32x64.cache"
    assert both.parent == others.parent == tmp_path / "a" and both.name.endswith("_train_32x64.cache")
    assert len({alone, both, others}) == 3


def test_the_first_place_with_room_is_taken(tmp_path, monkeypatch):
    """Prevents a disk that is filled to its end, and a training that stops where data are read-only."""
    full, free, file = tmp_path / "full/a.cache", tmp_path / "free/b.cache", tmp_path / "file"
    file.touch()
    usage = namedtuple("usage", "free")

    def disk_usage(folder):
        return usage(RESERVED_BYTES + (2000 if folder == free.parent else 999))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert choose_path([full, free], 1000, 7) == (
        free,
        f"cache 'disk': 7 images take 0.0 MB in {free}, which is made now",
    )
    assert choose_path([full], 999, 7)[0] == full
    path, sentence = choose_path([file / "c.cache", full], 5 * 10**9, 7)
    assert path is None
    assert sentence.startswith(f"cache 'disk': 7 images take 5.0 GB, but {file} cannot be written to (")
    assert f") and {full.parent} has 0.0 MB to spare: images are decoded in each epoch instead. Make room, " in sentence


def test_a_folder_that_is_marked_as_read_only_stays_as_it_is(tmp_path):
    """Prevents files in data that others share, where the user is root and the system would not refuse."""
    shared, own = tmp_path / "shared/a.cache", tmp_path / "own/b.cache"
    shared.parent.mkdir()
    shared.parent.chmod(0o555)
    assert choose_path([shared, own], 1, 1)[0] == own
    assert list(shared.parent.iterdir()) == []
    assert f"{shared.parent} cannot be written to (it is marked as read-only)" in choose_path([shared], 1, 1)[1]


def test_what_a_killed_run_left_is_removed(tmp_path):
    """Prevents gigabytes that nobody knows of, and the loss of what another run is just writing, or of other files."""
    path = tmp_path / "train_32x32.cache"
    for name in (f"{path.name}.1.tmp", f"{path.name}.2.tmp", "mine.3.tmp"):
        (tmp_path / name).touch()
    for name in (f"{path.name}.1.tmp", "mine.3.tmp"):
        os.utime(tmp_path / name, (1, 1))
    choose_path([path], 1, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.3.tmp", f"{path.name}.2.tmp"]
