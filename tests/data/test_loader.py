import multiprocessing
import pickle
import random
from unittest.mock import Mock, call

import cv2
import numpy as np
import pytest
import torch

from utils.data import image_cache as images
from utils.data.annotations import Records
from utils.data.augment import AugmentSettings, SampleKey, largest_scales
from utils.data.image_cache import RamCache, RecentImages
from utils.data.loader import Sample, TrainSamples, ValSamples, build_train_loader, build_val_loader, collate
from utils.data.sampling import EpochBatchSampler, TrainShapes
from utils.image.codec import read_image_with_gaps
from utils.image.letterbox import boxes_to_image

SETTINGS = AugmentSettings(augment_epochs=2)
SHAPE = (64, 96)
ONE = TrainShapes([SHAPE])
# Two shapes besides the input's own, drawn anew with every batch of the first two epochs.
THREE = TrainShapes([(64, 96), (32, 64), (96, 128)], 1, 2)
RULE = {"mode": "center", "pad": 114}


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"图 {index}.png") for index in range(7)]
    for path in paths:
        cv2.imencode(".png", rng.integers(0, 256, (40, 50, 3), np.uint8))[1].tofile(path)
    boxes = [(index, 5, index + 20, 30) for index in range(6)]
    return Records(paths, [(40, 50)] * 7, [1] * 6 + [0], boxes, [0, 1, 2, 0, 1, 2])


def samples_of(records, settings, seed=0):
    return TrainSamples(records, settings, seed, RecentImages(records, largest_scales(records, [SHAPE], settings)))


def key(epoch, index, shape=SHAPE):
    return SampleKey(epoch, index, shape, tuple((index + step) % 7 for step in range(1, 8)))


def epoch_batches(loader, epoch, batch_size=3):
    loader.batch_sampler.set_epoch(epoch, batch_size)
    return list(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_same_batches_for_any_number_of_workers(records):
    """Prevents runs that depend on num_workers, and persistent workers that miss the epoch, the end of mosaic or the
    size of a batch."""
    loaders = [build_train_loader(records, SETTINGS, 5, THREE, 3, workers) for workers in (0, 1, 3)]
    for epoch, batch_size in ((0, 3), (1, 2), (2, 3), (0, 3)):
        expected, *others = (epoch_batches(loader, epoch, batch_size) for loader in loaders)
        assert len(expected) == {3: 3, 2: 4}[batch_size]
        for batches in others:
            assert len(batches) == len(expected)
            for first, second in zip(expected, batches, strict=True):
                assert first.indices == second.indices
                assert torch.equal(first.images, second.images)
                assert torch.equal(first.targets, second.targets)


def test_epochs_differ_and_global_random_state_is_untouched(records):
    """Prevents the same epoch over and over, and a loader that changes what the model's initialisation draws."""
    loader = build_train_loader(records, SETTINGS, 5, ONE, 7, 0)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, second = (epoch_batches(loader, epoch, 7)[0] for epoch in (0, 1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first.indices != second.indices
    assert not torch.equal(first.images, second.images)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are not forked here")
def test_forked_workers_start_after_opencv_used_threads(records):
    """Prevents a training that hangs before its first step because images were resized in the main process before."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    large = np.zeros((2000, 2000, 3), np.uint8)
    cv2.cvtColor(cv2.resize(large, (1500, 1500)), cv2.COLOR_RGB2HSV)
    try:
        loader = build_train_loader(records, SETTINGS, 5, ONE, 7, 1)
        loader.timeout, loader.multiprocessing_context = 20, "fork"
        assert len(epoch_batches(loader, 0, 7)) == 1
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(threads)


def test_batch_layout(records):
    """Prevents images that must be copied to become channels_last, and targets whose padding looks like boxes."""
    batch = epoch_batches(build_train_loader(records, SETTINGS, 0, ONE, 7, 0), 5, 7)[0]
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


def keys(sampler, epoch, batch_size=None):
    sampler.set_epoch(epoch, batch_size)
    return list(sampler)


def test_sampler_covers_every_image_once():
    """Prevents dropped or doubled images, and an order that does not change."""
    sampler = EpochBatchSampler(11, 4, 3, ONE)
    first, second = keys(sampler, 0), keys(sampler, 1)
    assert [len(batch) for batch in first] == [4, 4, 3]
    assert len(sampler) == 3
    assert sorted(index for batch in first for _, index, _, _ in batch) == list(range(11))
    assert {sample.epoch for batch in second for sample in batch} == {1}
    assert [sample.index for sample in first[0]] != [sample.index for sample in second[0]]
    assert keys(sampler, 0) == first
    assert len(keys(sampler, 0, 6)) == len(sampler) == 2


@pytest.mark.parametrize(
    ("count", "batch_size", "lengths"), [(1, 8, [2]), (1, 1, [1]), (2, 8, [2]), (5, 8, [5]), (9, 4, [4, 4, 2])]
)
def test_small_sets_and_short_last_batches(count, batch_size, lengths):
    """Prevents sets smaller than a batch from training nothing, and BatchNorm from seeing a single image."""
    sampler = EpochBatchSampler(count, batch_size, 0, ONE)
    batches = keys(sampler, 0)
    assert [len(batch) for batch in batches] == lengths
    drawn = [sample.index for batch in batches for sample in batch]
    assert len(set(drawn)) == len(drawn)
    assert {index % count for index in drawn} == set(range(count))


@pytest.mark.parametrize("count", [1, 3, 16, 17, 23])
def test_ranks_share_the_single_process_batches(count):
    """Prevents ranks that see the same images, or a last batch that only some of the ranks have."""
    ranks = [keys(EpochBatchSampler(count, 8, 0, THREE, rank, 4), 1) for rank in range(4)]
    single = keys(EpochBatchSampler(count, 8, 0, THREE), 1)
    assert {len(batches) for batches in ranks} == {len(single)}
    for parts, whole in zip(zip(*ranks, strict=True), single, strict=True):
        assert min(len(part) for part in parts) >= 2
        together = [sample for part in parts for sample in part]
        assert len(together) == len(set(together))
        assert set(whole) <= set(together)
        assert len(together) == max(8, len(whole))
        assert len({sample.input_shape for sample in together}) == 1


@pytest.mark.parametrize(
    ("start", "batch_size", "expected"),
    [
        (0, 4, [[6, 1, 8, 2], [3, 7, 10, 5], [0, 4, 9]]),
        (4, 4, [[3, 7, 10, 5], [0, 4, 9]]),
        (9, 4, [[4, 9]]),
        (10, 4, [[9, 17]]),  # filled up as ever: 17 is the second visit of the first image, 6
        (7, 2, [[5, 0], [4, 9]]),
        (11, 4, []),
        (12, 4, []),
    ],
)
def test_the_rest_of_an_epoch(start, batch_size, expected):
    """Prevents a resumed run from seeing images twice, or never, and a start that stays for the next epoch."""
    sampler = EpochBatchSampler(11, 4, 3, THREE)
    sampler.set_epoch(1, batch_size, start)
    assert [[sample.index for sample in batch] for batch in sampler] == expected
    assert len(sampler) == len(expected)
    sampler.set_epoch(2)
    assert sum(map(len, sampler)) == {4: 11, 2: 12}[batch_size]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_the_rest_of_an_epoch_is_that_of_an_uninterrupted_one(rank, world_size):
    """Prevents other partners, sizes or fill-up after a resume than without it."""
    sampler = EpochBatchSampler(11, 4, 3, THREE, rank, world_size)
    whole = keys(sampler, 1)
    assert [batch[0].input_shape for batch in whole] == [(96, 128), (64, 96), (32, 64)]
    assert [len(batch) for batch in whole] == ([4, 4, 3] if world_size == 1 else [2, 2, 2])
    for done in range(4):
        sampler.set_epoch(1, 4, 4 * done)
        assert list(sampler) == whole[done:]


def test_batches_change_their_size_and_end_with_the_inputs_own():
    """Prevents multi_scale without effect, samples of one batch that differ in size, and last epochs on other sizes."""
    sampler = EpochBatchSampler(40, 2, 3, THREE)
    for epoch, expected in ((0, set(THREE.shapes)), (1, set(THREE.shapes)), (2, {(64, 96)}), (7, {(64, 96)})):
        shapes = [{sample.input_shape for sample in batch} for batch in keys(sampler, epoch)]
        assert all(len(shape) == 1 for shape in shapes)
        assert set.union(*shapes) == expected
    slow = EpochBatchSampler(40, 2, 3, THREE._replace(period=5))
    shapes = [batch[0].input_shape for batch in keys(slow, 0)]
    assert all(len(set(shapes[start : start + 5])) == 1 for start in range(0, 20, 5))


@pytest.mark.parametrize("augment_epochs", [0, 1])
@pytest.mark.parametrize("shape", [(32, 64), (64, 96), (96, 128), (128, 32)])
def test_samples_have_the_drawn_shape_and_boxes_inside_it(records, shape, augment_epochs):
    """Prevents boxes that belong to an image of another size, with mosaic and without."""
    settings = AugmentSettings(augment_epochs)
    boxes = 0
    for index in range(6):
        sample = samples_of(records, settings)[key(0, index, shape)]
        height, width = shape
        assert sample.image_rgb.shape == (height, width, 3)
        assert (sample.boxes_xyxy >= 0).all() and (sample.boxes_xyxy <= [width, height, width, height]).all()
        boxes += len(sample.boxes_xyxy)
        if not augment_epochs:
            # An image of 50 x 40, in the upper left corner; its box keeps its share of it.
            scale = min(width / 50, height / 40)
            expected = np.array([index, 5, index + 20, 30]) * scale
            np.testing.assert_allclose(sample.boxes_xyxy, [expected], atol=1.0)
    assert boxes >= 6


def test_sampler_errors():
    """Prevents a training on nothing and uneven ranks."""
    with pytest.raises(ValueError, match="no images"):
        EpochBatchSampler(0, 4, 0, ONE)
    for batch_size, world_size in ((0, 1), (6, 4)):
        with pytest.raises(ValueError, match=f"batch size {batch_size} "):
            EpochBatchSampler(9, batch_size, 0, ONE, 0, world_size)


def test_unreadable_image_is_replaced_and_named(records):
    """Prevents one file damaged during training from ending it, or from being skipped silently."""
    bad = records.path(3)
    with open(bad, "wb") as file:
        file.write(b"nothing")
    single = AugmentSettings(augment_epochs=1, mosaic=False, mixup=False)
    sample = samples_of(records, single)[key(0, 3)]
    assert (sample.index, sample.unreadable) == (4, [bad])
    batch = epoch_batches(build_train_loader(records, single, 0, ONE, 7, 0), 0, 7)[0]
    assert batch.unreadable == [bad]
    assert sorted(batch.indices) == [0, 1, 2, 4, 4, 5, 6]
    first, second = (batch.images[row] for row, index in enumerate(batch.indices) if index == 4)
    assert not torch.equal(first, second)


def test_changed_image_size_counts_as_unreadable(records):
    """Prevents boxes of an image that was replaced by another one during training from being trained."""
    cv2.imencode(".png", np.zeros((50, 40, 3), np.uint8))[1].tofile(records.path(0))
    assert samples_of(records, AugmentSettings())[key(0, 0)].unreadable == [records.path(0)]


def test_nothing_readable_is_an_error(records, tmp_path):
    """Prevents an endless search when the disk with the images is gone."""
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="7 samples in a row"):
        samples_of(records, SETTINGS)[key(0, 0)]


def test_validation_batches_lead_back_to_the_images(records):
    """Prevents detections mapped to the wrong image or through the wrong placement."""
    for workers in (0, 2):
        batches = list(build_val_loader(records, (64, 96), RULE, 4, workers))
        assert [batch.indices for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
        batch = batches[0]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.placements[2] == (1.6, 1.6, 0, 8, (64, 80))
        np.testing.assert_allclose(batch.targets[2, 0], [11.2, 8, 43.2, 48, 2], rtol=1e-6)
        back = boxes_to_image(batch.targets[2, :1, :4].numpy(), batch.placements[2], records.sizes_hw[2])
        np.testing.assert_allclose(back, records.boxes(2), atol=1e-4)


def test_unreadable_validation_image_is_named_and_keeps_its_boxes(records):
    """Prevents a score that rises because images cannot be read."""
    with open(records.path(1), "wb") as file:
        file.write(b"")
    sample = build_val_loader(records, (64, 96), RULE, 4, 0).dataset[1]
    assert sample.unreadable == [records.path(1)]
    assert (sample.image_rgb == 114).all()
    assert len(sample.boxes_xyxy) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_images_that_are_cut_off_are_trained_and_named(tmp_path, cached):
    """Prevents images that are thrown away for a few bytes, and grey corners that nobody knows of."""
    paths = [str(tmp_path / f"{index}.jpg") for index in range(4)]
    for path in paths:
        encoded = cv2.imencode(".jpg", np.full((40, 50, 3), 90, np.uint8))[1]
        encoded[: -2 if path == paths[2] else None].tofile(path)
    records = Records(paths, [(40, 50)] * 4, [0] * 4, [], [])
    cache = RamCache(records, np.ones(4), shared=False) if cached else None
    cache.fill(None) if cached else None
    loader = build_train_loader(records, AugmentSettings(0), 0, ONE, 4, 0, load_image=cache)
    batches = [epoch_batches(loader, epoch, 4)[0] for epoch in (0, 1)] + list(
        build_val_loader(records, SHAPE, RULE, 4, 0)
    )
    for batch in batches:
        assert (batch.cut_off, batch.unreadable, sorted(batch.indices)) == ([paths[2]], [], [0, 1, 2, 3])
        assert abs(int(batch.images[batch.indices.index(2), 0, 32, 48]) - 90) <= 1


def test_images_can_come_from_elsewhere(records):
    """Prevents a cache from being bypassed."""
    load = Mock(return_value=np.full((40, 50, 3), 200, np.uint8), cut_off=set())
    sample = TrainSamples(records, AugmentSettings(), 0, load)[key(0, 2, (40, 50))]
    assert (load.call_args_list, np.unique(sample.image_rgb).tolist()) == ([call(2)], [200])


def test_datasets_pickle(records):
    """Prevents a loader that cannot start its workers on Windows, or that sends them what was decoded before."""
    samples = samples_of(records, SETTINGS)
    image_rgb = samples[key(1, 2)].image_rgb
    assert samples.load_image.kept_bytes > 0
    train = pickle.loads(pickle.dumps(samples))
    assert (train.load_image.kept_bytes, len(train.load_image.kept)) == (0, 0)
    assert np.array_equal(train[key(1, 2)].image_rgb, image_rgb)
    assert len(pickle.loads(pickle.dumps(ValSamples(records, SHAPE, RULE, samples.load_image)))) == 7


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_spawned_workers_give_the_same_batches(records, cached):
    """Prevents a loader that only works where workers are forked: Windows and macOS spawn them."""

    def batches(workers, context):
        cache = RamCache(records, np.ones(7), shared=workers > 0) if cached else None
        cache.fill(None) if cached else None
        loader = build_train_loader(records, SETTINGS, 5, ONE, 3, workers, load_image=cache)
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
    records, read = Records(paths, [(8, 8)] * 40, [0] * 40, [], []), []

    def note(path, *rest):
        read.append(path)
        return read_image_with_gaps(path, *rest)

    monkeypatch.setattr(images, "read_image_with_gaps", note)
    settings = AugmentSettings(1, mixup_prob=1.0)
    assert len(epoch_batches(build_train_loader(records, settings, 0, ONE, 8, 0), 0, 8)) == 5
    assert sorted(read) == sorted(paths)


def test_ranks_share_the_validation_images(records):
    """Prevents images that are validated twice, or not at all, where several processes evaluate."""
    shares = [[], [], []]
    for rank, share in enumerate(shares):
        for batch in build_val_loader(records, SHAPE, RULE, 2, 0, False, rank, 3):
            share += batch.indices
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
