import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.data import device_cache
from utils.data.annotations import build_annotations
from utils.data.augment import AugmentOptions, sample_parameters
from utils.data.copy_paste import find_donors
from utils.data.device_cache import DeviceCache, fits_device, smallest_scale
from utils.data.draw import apply_parameters
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.image_cache import RamCache, ReadableImages, UnreadableImageError, train_scales
from utils.data.loader import LoaderOptions, build_train_loader
from utils.data.sampling import EpochBatchSampler, MultiScale
from utils.io.class_names import read_class_names

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHAPE = (160, 192)


@pytest.fixture(scope="module")
def annotations():
    """The first 24 images of the drawn sample."""
    names = read_class_names(ROOT / "model_data/sample_classes.txt")
    raw = read_raw_annotations(ROOT / "VOCdevkit/Sample/ImageSets/Main/train.txt", "train")
    whole, _ = build_annotations(raw, names)
    return whole.subset(range(24)) if hasattr(whole, "subset") else whole


@pytest.fixture(scope="module")
def ram(annotations):
    cache = RamCache(annotations, train_scales(annotations, [SHAPE], AugmentOptions()), shared=False)
    cache.fill(None)
    return cache


def parameters(annotations, options, count=12, epoch=0):
    sampler = EpochBatchSampler(len(annotations), count, 3, MultiScale([SHAPE]))
    sampler.set_epoch(epoch, count)
    return [sample_parameters(annotations, key, 3, options) for key in next(iter(sampler))]


def difference(annotations, ram, batch, scale, device=CPU):
    """Mean difference of the grey levels to what the CPU draws, of each sample."""
    drawn = DeviceCache(ram, annotations, scale, 114, device)(batch)
    assert drawn.dtype == torch.uint8 and drawn.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([apply_parameters(params, ram, annotations, 114) for params in batch]).astype(int)
    return np.abs(drawn.permute(0, 2, 3, 1).cpu().numpy() - expected).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mosaic_prob": 0.0, "mixup_prob": 0.0, "flip_prob": 1.0},
        {"mosaic_prob": 0.0, "mixup_prob": 1.0, "hue_gain": 0.5},
        {"scale_range": (0.2, 0.6)},
        {"scale_range": (1.5, 3.0), "aspect_jitter": 0.9},
        {"augment_epochs": 0},
        {"copy_paste": 1.0, "flip_prob": 0.5},
    ],
)
def test_pixels_are_those_of_the_cpu(annotations, ram, changes, device):
    """Prevents another geometry, mixture, colour or side in training with cache = 'gpu' than without."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    options = AugmentOptions(**{"augment_epochs": 10, "donors": find_donors(annotations)} | changes)
    scale = smallest_scale([SHAPE], options)
    found = difference(annotations, ram, parameters(annotations, options), scale, torch.device(device))
    assert found.max() < 1.0 and found.mean() < 0.5


def test_batches_are_drawn_in_parts(annotations, ram, monkeypatch):
    """Prevents large batches from filling the memory, and samples that change places."""
    batch = parameters(annotations, AugmentOptions(augment_epochs=10))
    whole = DeviceCache(ram, annotations, 0.4, 114, CPU)(batch)
    monkeypatch.setattr(device_cache, "PIXELS_AT_ONCE", 5 * SHAPE[0] * SHAPE[1])
    assert torch.equal(DeviceCache(ram, annotations, 0.4, 114, CPU)(batch), whole)


def test_main_memory_holds_one_image_more(annotations, ram):
    """Prevents cache = 'gpu' from taking 3.7 times the main memory that was checked to be free."""
    DeviceCache(ram, annotations, 0.2, 114, CPU)  # what is imported at first use is no image
    tracemalloc.start()
    cache = DeviceCache(ram, annotations, 0.2, 114, CPU)  # torch's own memory, here the device's, is not traced
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.2 * len(ram.block) < 0.2 * cache.block.numel()


def test_the_loader_gives_the_same_boxes(annotations, ram):
    """Prevents boxes that belong to other random choices than the pixels."""
    options, arguments = AugmentOptions(augment_epochs=10), (3, MultiScale([SHAPE]), 8, LoaderOptions())
    cache = DeviceCache(ram, annotations, 0.4, 114, CPU)
    plain = build_train_loader(annotations, options, *arguments, ram)
    drawn = build_train_loader(annotations, options, *arguments, ReadableImages(ram), cache)
    count = 0
    for loader in (plain, drawn):
        loader.batch_sampler.set_epoch(0, 8)
    for first, second in zip(plain, drawn, strict=True):
        count += len(second.images)
        assert torch.equal(first.targets, second.targets) and first.indices == second.indices
        assert first.images.shape == second.images.shape
        assert (first.images.int() - second.images.int()).abs().float().mean() < 0.5
    assert count == len(annotations)


def test_an_image_that_cannot_be_read_is_replaced(annotations, ram):
    """Prevents black images in training with cache = 'gpu' where a file is damaged."""
    broken = SimpleNamespace(annotations=annotations, unreadable={3: "damaged"}, truncated={4})
    readable = ReadableImages(broken)
    assert readable(2) is None and readable.truncated == {4}
    with pytest.raises(UnreadableImageError, match="damaged"):
        readable(3)
    cache = DeviceCache(ram, annotations, 0.4, 114, CPU)
    options = AugmentOptions(augment_epochs=10, mosaic=False, mixup=False)
    loader = build_train_loader(annotations, options, 3, MultiScale([SHAPE]), 8, LoaderOptions(), readable, cache)
    loader.batch_sampler.set_epoch(0, 8)
    batches = list(loader)
    assert [path for batch in batches for path in batch.unreadable] == [annotations.path(3)]
    assert 3 not in [index for batch in batches for index in batch.indices]


@pytest.mark.parametrize(
    ("shapes", "scale_range", "expected"),
    [
        ([(416, 416)], (0.5, 1.5), 0.4472),
        ([(512, 512), (256, 256)], (0.5, 1.5), 0.2236),
        ([(64, 96)], (1.0, 1.0), 0.8944),
    ],
)
def test_the_smallest_scale(shapes, scale_range, expected):
    """Prevents pixels that are skipped where an image is drawn smaller than its smallest copy."""
    assert smallest_scale(shapes, AugmentOptions(scale_range=scale_range)) == pytest.approx(expected, abs=1e-4)


def test_what_fits_on_a_gpu(monkeypatch):
    """Prevents a cache that leaves no memory for the training, and silence where there is no GPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (8e9, 80e9))
    words = "cache 'gpu': images take 3.00 GB; half of what is free on the GPU is 4.0 GB"
    assert fits_device(3e9, torch.device("cuda")) == (True, words)
    assert fits_device(5e9, torch.device("cuda")) == (False, f"{words.replace('3.00', '5.00')}: 'ram' takes its place.")
    sentence = "cache is 'gpu', but the training runs on the CPU: 'ram' takes its place."
    assert fits_device(1.0, CPU) == (False, sentence)
