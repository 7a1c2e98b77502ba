import multiprocessing
import pickle
import random
from unittest.mock import Mock, call

import cv2
import numpy as np
import pytest
import torch

from utils.data import image_cache
from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions, SampleKey, largest_scales
from utils.data.image_cache import ImageCache, RamCache
from utils.data.loader import (
    LoaderOptions,
    Sample,
    TrainDataset,
    ValDataset,
    build_train_loader,
    build_val_loader,
    collate,
)
from utils.data.sampling import MultiScale
from utils.image.codec import read_image_with_gaps
from utils.image.letterbox import boxes_to_image

OPTIONS = AugmentOptions(augment_epochs=2)
SHAPE = (64, 96)
ONE = MultiScale([SHAPE])
# Two shapes besides the input's own, drawn anew with every batch of the first two epochs.
THREE = MultiScale([(64, 96), (32, 64), (96, 128)], 1, 2)
RULE = {"mode": "center", "pad": 114}


@pytest.fixture
def annotations(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"图 {index}.png") for index in range(7)]
    for path in paths:
        cv2.imencode(".png", rng.integers(0, 256, (40, 50, 3), np.uint8))[1].tofile(path)
    boxes = [(index, 5, index + 20, 30) for index in range(6)]
    return Annotations(paths, [(40, 50)] * 7, [1] * 6 + [0], boxes, [0, 1, 2, 0, 1, 2])


def dataset_of(annotations, options, seed=0):
    cache = ImageCache(annotations, largest_scales(annotations, [SHAPE], options))
    return TrainDataset(annotations, options, seed, cache)


def key(epoch, index, shape=SHAPE):
    return SampleKey(epoch, index, shape, tuple((index + step) % 7 for step in range(1, 8)))


def epoch_batches(loader, epoch, batch_size=3):
    loader.batch_sampler.set_epoch(epoch, batch_size)
    return list(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_same_batches_for_any_number_of_workers(annotations):
    """Prevents runs that depend on num_workers, and persistent workers that miss the epoch, the end of mosaic or the
    size of a batch."""
    loaders = [build_train_loader(annotations, OPTIONS, 5, THREE, 3, LoaderOptions(workers)) for workers in (0, 1, 3)]
    for epoch, batch_size in ((0, 3), (1, 2), (2, 3), (0, 3)):
        expected, *others = (epoch_batches(loader, epoch, batch_size) for loader in loaders)
        assert len(expected) == {3: 3, 2: 4}[batch_size]
        for batches in others:
            assert len(batches) == len(expected)
            for first, second in zip(expected, batches, strict=True):
                assert first.indices == second.indices
                assert torch.equal(first.images, second.images)
                assert torch.equal(first.targets, second.targets)


def test_epochs_differ_and_global_random_state_is_untouched(annotations):
    """Prevents the same epoch over and over, and a loader that changes what the model's initialisation draws."""
    loader = build_train_loader(annotations, OPTIONS, 5, ONE, 7)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, second = (epoch_batches(loader, epoch, 7)[0] for epoch in (0, 1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first.indices != second.indices
    assert not torch.equal(first.images, second.images)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are not forked here")
def test_forked_workers_start_after_opencv_used_threads(annotations):
    """Prevents a training that hangs before its first step because images were resized in the main process before."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    large = np.zeros((2000, 2000, 3), np.uint8)
    cv2.cvtColor(cv2.resize(large, (1500, 1500)), cv2.COLOR_RGB2HSV)
    try:
        loader = build_train_loader(annotations, OPTIONS, 5, ONE, 7, LoaderOptions(1, timeout=20))
        loader.multiprocessing_context = "fork"
        assert len(epoch_batches(loader, 0, 7)) == 1
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(threads)


def test_batch_layout(annotations):
    """Prevents images that must be copied to become channels_last, and targets whose padding looks like boxes."""
    batch = epoch_batches(build_train_loader(annotations, OPTIONS, 0, ONE, 7), 5, 7)[0]
    assert (batch.images.shape, batch.images.dtype) == ((7, 3, 64, 96), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.targets.shape, batch.targets.dtype) == ((7, 16, 5), torch.float32)
    for index, rows in zip(batch.indices, batch.targets, strict=True):
        assert rows[0, 4] == (-1 if index == 6 else index % 3)
        assert rows[1:].tolist() == [[0, 0, 0, 0, -1]] * 15
    assert sorted(batch.indices) == list(range(7))
    assert batch.unreadable == []


@pytest.mark.parametrize(("count", "padded"), [(0, 16), (16, 16), (17, 32), (33, 64), (120, 128)])
def test_targets_are_padded_to_powers_of_two(count, padded):
    """Prevents dropped boxes and a new shape with nearly every batch."""
    boxes_xyxy = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    image = np.zeros((8, 8, 3), np.uint8)
    empty = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 0, None, [])
    batch = collate([empty, Sample(image, boxes_xyxy, np.arange(count), 1, None, [])])
    assert batch.targets.shape == (2, padded, 5)
    assert (batch.targets[..., 4] >= 0).sum(dim=1).tolist() == [0, count]
    assert batch.targets[1, :count, :4].numpy().tolist() == boxes_xyxy.tolist()
    assert batch.targets[1, :count, 4].tolist() == list(range(count))


@pytest.mark.parametrize("augment_epochs", [0, 1])
@pytest.mark.parametrize("shape", [(32, 64), (64, 96), (96, 128), (128, 32)])
def test_samples_have_the_drawn_shape_and_boxes_inside_it(annotations, shape, augment_epochs):
    """Prevents boxes that belong to an image of another size, with mosaic and without."""
    options = AugmentOptions(augment_epochs)
    boxes = 0
    for index in range(6):
        sample = dataset_of(annotations, options)[key(0, index, shape)]
        height, width = shape
        assert sample.image_rgb.shape == (height, width, 3)
        assert (sample.boxes_xyxy >= 0).all() and (sample.boxes_xyxy <= [width, height, width, height]).all()
        boxes += len(sample.boxes_xyxy)
        if not augment_epochs:
            # An image of 50 x 40, in the upper left corner; its box keeps its part of it.
            scale = min(width / 50, height / 40)
            expected = np.array([index, 5, index + 20, 30]) * scale
            np.testing.assert_allclose(sample.boxes_xyxy, [expected], atol=1.0)
    assert boxes >= 6


def test_unreadable_image_is_replaced_and_named(annotations):
    """Prevents one file damaged during training from ending it, or from being skipped silently."""
    bad = annotations.path(3)
    with open(bad, "wb") as file:
        file.write(b"nothing")
    single = AugmentOptions(augment_epochs=1, mosaic=False, mixup=False)
    sample = dataset_of(annotations, single)[key(0, 3)]
    assert (sample.index, sample.unreadable) == (4, [bad])
    batch = epoch_batches(build_train_loader(annotations, single, 0, ONE, 7), 0, 7)[0]
    assert batch.unreadable == [bad]
    assert sorted(batch.indices) == [0, 1, 2, 4, 4, 5, 6]
    first, second = (batch.images[row] for row, index in enumerate(batch.indices) if index == 4)
    assert not torch.equal(first, second)


def test_changed_image_size_counts_as_unreadable(annotations):
    """Prevents boxes of an image that was replaced by another one during training from being trained."""
    cv2.imencode(".png", np.zeros((50, 40, 3), np.uint8))[1].tofile(annotations.path(0))
    assert dataset_of(annotations, AugmentOptions())[key(0, 0)].unreadable == [annotations.path(0)]


def test_nothing_readable_is_an_error(annotations, tmp_path):
    """Prevents an endless search when the disk with the images is gone."""
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="7 samples in a row"):
        dataset_of(annotations, OPTIONS)[key(0, 0)]


def test_validation_batches_lead_back_to_the_images(annotations):
    """Prevents detections mapped to the wrong image or through the wrong placement."""
    for workers in (0, 2):
        batches = list(build_val_loader(annotations, (64, 96), RULE, 4, LoaderOptions(workers)))
        assert [batch.indices for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
        batch = batches[0]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.placements[2] == (1.6, 1.6, 0, 8, (64, 80))
        np.testing.assert_allclose(batch.targets[2, 0], [11.2, 8, 43.2, 48, 2], rtol=1e-6)
        back = boxes_to_image(batch.targets[2, :1, :4].numpy(), batch.placements[2], annotations.sizes_hw[2])
        np.testing.assert_allclose(back, annotations.boxes(2), atol=1e-4)


def test_unreadable_validation_image_is_named_and_keeps_its_boxes(annotations):
    """Prevents a score that rises because images cannot be read."""
    with open(annotations.path(1), "wb") as file:
        file.write(b"")
    sample = build_val_loader(annotations, (64, 96), RULE, 4).dataset[1]
    assert sample.unreadable == [annotations.path(1)]
    assert (sample.image_rgb == 114).all()
    assert len(sample.boxes_xyxy) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_truncated_images_are_trained_and_named(tmp_path, cached):
    """Prevents images that are thrown away for a few bytes, and grey corners that nobody knows of."""
    paths = [str(tmp_path / f"{index}.jpg") for index in range(4)]
    for path in paths:
        encoded = cv2.imencode(".jpg", np.full((40, 50, 3), 90, np.uint8))[1]
        encoded[: -2 if path == paths[2] else None].tofile(path)
    annotations = Annotations(paths, [(40, 50)] * 4, [0] * 4, [], [])
    cache = RamCache(annotations, np.ones(4), shared=False) if cached else None
    cache.fill(None) if cached else None
    loader = build_train_loader(annotations, AugmentOptions(0), 0, ONE, 4, load_image=cache)
    batches = [epoch_batches(loader, epoch, 4)[0] for epoch in (0, 1)] + list(
        build_val_loader(annotations, SHAPE, RULE, 4)
    )
    for batch in batches:
        assert (batch.truncated, batch.unreadable, sorted(batch.indices)) == ([paths[2]], [], [0, 1, 2, 3])
        assert abs(int(batch.images[batch.indices.index(2), 0, 32, 48]) - 90) <= 1


def test_images_can_come_from_elsewhere(annotations):
    """Prevents a cache from being bypassed."""
    load = Mock(return_value=np.full((40, 50, 3), 200, np.uint8), truncated=set())
    sample = TrainDataset(annotations, AugmentOptions(), 0, load)[key(0, 2, (40, 50))]
    assert (load.call_args_list, np.unique(sample.image_rgb).tolist()) == ([call(2)], [200])


def test_datasets_pickle(annotations):
    """Prevents a loader that cannot start its workers on Windows, or that sends them what was decoded before."""
    dataset = dataset_of(annotations, OPTIONS)
    image_rgb = dataset[key(1, 2)].image_rgb
    assert dataset.load_image.kept_bytes > 0
    train = pickle.loads(pickle.dumps(dataset))
    assert (train.load_image.kept_bytes, len(train.load_image.kept)) == (0, 0)
    assert np.array_equal(train[key(1, 2)].image_rgb, image_rgb)
    assert len(pickle.loads(pickle.dumps(ValDataset(annotations, SHAPE, RULE, dataset.load_image)))) == 7


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_spawned_workers_give_the_same_batches(annotations, cached):
    """Prevents a loader that only works where workers are forked: Windows and macOS spawn them."""

    def batches(workers, context):
        cache = RamCache(annotations, np.ones(7), shared=workers > 0) if cached else None
        cache.fill(None) if cached else None
        loader = build_train_loader(annotations, OPTIONS, 5, ONE, 3, LoaderOptions(workers), cache)
        loader.multiprocessing_context = context
        return epoch_batches(loader, 1)

    for first, second in zip(batches(0, None), batches(2, "spawn"), strict=True):
        assert first.indices == second.indices
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets, second.targets)


def test_an_image_is_decoded_once_for_its_neighbours(tmp_path, monkeypatch):
    """Prevents mosaics that decode four images for each sample: 40 images, 40 samples, 40 times decoding."""
    paths = [str(tmp_path / f"{index}.png") for index in range(40)]
    for path in paths:
        cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tofile(path)
    annotations, read = Annotations(paths, [(8, 8)] * 40, [0] * 40, [], []), []

    def note(path, *rest):
        read.append(path)
        return read_image_with_gaps(path, *rest)

    monkeypatch.setattr(image_cache, "read_image_with_gaps", note)
    options = AugmentOptions(1, mixup_prob=1.0)
    assert len(epoch_batches(build_train_loader(annotations, options, 0, ONE, 8), 0, 8)) == 5
    assert sorted(read) == sorted(paths)


def test_ranks_share_the_validation_images(annotations):
    """Prevents images that are validated twice, or not at all, where several processes evaluate."""
    seen = [[], [], []]
    for rank, indices in enumerate(seen):
        for batch in build_val_loader(annotations, SHAPE, RULE, 2, LoaderOptions(rank=rank, world_size=3)):
            indices += batch.indices
    assert seen == [[0, 3, 6], [1, 4], [2, 5]]
