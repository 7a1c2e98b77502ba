import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from launched import on_ranks

from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.disk_cache import DiskCache
from utils.data.sampling import MultiScale
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training import caches
from utils.training.caches import build_caches

RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), Precision(torch.float32, False, ""))


def annotations_in(folder):
    paths = [str(folder / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        cv2.imencode(".png", np.full((40, 60, 3), 50 * number, np.uint8))[1].tofile(path)
    return Annotations(paths, [(40, 60)] * 3, [0] * 3, [], [])


def built(folder, annotations, runtime=RUNTIME):
    """What cache = 'disk' gives the loader, for a train.txt beside the images and inputs of 32 x 32 at most."""
    paths = {"train_annotation_path": str(folder / "train.txt"), "save_dir": str(folder / "logs")}
    multi_scale = MultiScale([(16, 32), (32, 32)], 1, 5)
    return build_caches(
        SimpleNamespace(cache="disk", **paths), annotations, AugmentOptions(), multi_scale, True, runtime
    )


def test_a_file_is_made_once(tmp_path, capsys):
    """Prevents a run that decodes all again, or that takes gigabytes of a disk without a word."""
    annotations, path = annotations_in(tmp_path), tmp_path / "train_32x32.cache"
    # 22 x 32 pixels each, 58 bytes of header, one of each image.
    for line in (f"3 images take 0.0 MB in {path}, which is made now", f"3 images, 0.0 MB, found in {path}"):
        cache, on_device = built(tmp_path, annotations)
        assert on_device is None
        assert [cache(number).mean() for number in range(3)] == [0, 50, 100]
        assert capsys.readouterr().out == f"cache 'disk': {line}\n"
    os.utime(annotations.path(1), (1, 1))
    built(tmp_path, annotations)
    assert capsys.readouterr().out.endswith("which is made now\n")


def test_a_disk_that_fills_meanwhile(tmp_path, monkeypatch, capsys):
    """Prevents a training that ends because a cache could not be written, which it can do without."""

    def write(cache, path, description):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(DiskCache, "write", write)
    assert built(tmp_path, annotations_in(tmp_path)) == (None, None)
    path, reason = tmp_path / "train_32x32.cache", "No space left on device"
    line = f"note: cache 'disk': {path} cannot be used ({reason}): images are decoded in each epoch instead."
    assert capsys.readouterr().out.splitlines()[1] == line


def test_a_file_that_another_run_has_just_made(tmp_path, monkeypatch):
    """Prevents two runs on Windows, where a mapped file cannot be replaced, of which the second goes without."""
    annotations, write = annotations_in(tmp_path), DiskCache.write

    def write_late(cache, path, description):
        write(cache, path, description)
        cache.block = None
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(DiskCache, "write", write_late)
    assert built(tmp_path, annotations)[0](2).mean() == 100


def test_no_room_is_said(tmp_path, monkeypatch, capsys):
    """Prevents a cache that is left out without a word."""
    monkeypatch.setattr(caches, "choose_path", lambda *_: (None, "no room"))
    assert built(tmp_path, annotations_in(tmp_path)) == (None, None)
    assert capsys.readouterr().out == "note: no room\n"


def cached_on_rank(runtime, folder):
    """What a rank has where there is no room, then how many images it decodes where there is, and the means of all."""
    decoded, decode = [], DiskCache.decode_scaled
    DiskCache.decode_scaled = lambda cache, index: decoded.append(index) or decode(cache, index)
    choose, caches.choose_path = caches.choose_path, lambda *_: (None, "no room")
    size_hw = [(40, 60)] * 3
    annotations = Annotations([str(folder / f"{number}.png") for number in range(3)], size_hw, [0] * 3, [], [])
    without, _ = built(folder, annotations, runtime)
    caches.choose_path = choose
    cache, _ = built(folder, annotations, runtime)
    return without, len(decoded), [float(cache(number).mean()) for number in range(3)]


@pytest.mark.slow
def test_one_rank_writes_for_all(tmp_path):
    """Prevents ranks that decode all images each, read half a file, or wait for ever where the disk is full."""
    annotations_in(tmp_path)
    (tmp_path / "ranks").mkdir()
    means = [0, 50, 100]
    assert on_ranks(cached_on_rank, 2, tmp_path / "ranks", tmp_path) == [(None, 3, means), (None, 0, means)]
