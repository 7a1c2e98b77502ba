"""The decoded images that the constant cache asks for: in main memory, on disk, or on the GPU."""

import logging

import numpy as np
import torch

from utils.data.device_cache import DeviceCache, fits_device, smallest_scale
from utils.data.disk_cache import DiskCache, cache_paths, choose_path
from utils.data.image_cache import RamCache, ReadableImages, cache_fits, train_scales
from utils.io.logger import logger
from utils.io.text import amount, counted
from utils.runtime.distributed import all_reduce_sum, local_world_size


def build_caches(settings, annotations, augment, multi_scale, shared, runtime):
    """(what gives the loader its decoded images, what draws them on the device); None each where there is none.

    augment: AugmentOptions. multi_scale: the sizes of the batches. shared: whether other processes read the images.
    """
    if not settings.cache:
        return None, None
    scales, on_gpu = train_scales(annotations, multi_scale.shapes, augment), settings.cache == "gpu"
    if settings.cache == "disk":
        return _disk_cache(settings, annotations, scales, multi_scale.shapes, runtime), None
    if on_gpu:
        sizes_hw = annotations.sizes_hw * np.minimum(scales, 1)[:, None]
        # A third more for the smaller copies of each image.
        needed = 4 * float((sizes_hw + 1).prod(axis=1).sum())
        on_gpu = _all_agree(runtime, *fits_device(needed, runtime.device))
    shared = shared and not on_gpu
    if not _all_agree(runtime, *cache_fits(annotations, scales, shared, local_world_size())):
        return None, None
    ram = RamCache(annotations, scales, shared)
    ram.fill("decoding into main memory" if runtime.dist.is_main else None)
    if not on_gpu:
        return ram, None
    smallest = smallest_scale(multi_scale.shapes, augment)
    return ReadableImages(ram), DeviceCache(ram, annotations, smallest, augment.pad, runtime.device)


def _disk_cache(settings, annotations, scales, shapes, runtime):
    """A DiskCache whose file was found or made; None where a rank has none."""
    cache = DiskCache(annotations, scales)
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    paths = cache_paths(settings.train_annotation_path, settings.save_dir, largest)
    # One writes and the others find it; another machine may have a disk of its own.
    turn = 0 if runtime.dist.is_main else 1 if runtime.dist.local_rank == 0 else 2
    for number in range(3 if runtime.dist.world_size > 1 else 1):
        answer = _find_or_write(cache, paths, runtime.dist.is_main) if number == turn else (True, "")
        if not _all_agree(runtime, *answer):
            return None
    return cache


def _find_or_write(cache, paths, is_main):
    """(whether a DiskCache has its file now, a sentence for people)."""
    images, size = len(cache.annotations), amount(cache.file_bytes)
    if any(map(cache.open, paths)):
        return True, f"cache 'disk': {counted(images, 'image')}, {size}, found in {cache.path}"
    path, sentence = choose_path(paths, cache.file_bytes, images)
    if path is None:
        return False, sentence
    logger.info(sentence)
    reason = "another training has just put other images there"
    try:
        is_there = cache.write(path, "decoding to disk" if is_main else None)
    except OSError as error:
        reason = error.strerror or str(error)
        is_there = cache.open(path)  # Windows replaces no file that another training has just made and reads
    otherwise = f"cache 'disk': {path} cannot be used ({reason}): images are decoded in each epoch instead."
    return is_there, "" if is_there else otherwise


def _all_agree(runtime, fits, sentence):
    """Whether all ranks have room; logs the sentence. Ranks must agree before one takes memory: else the others see
    less of it."""
    if sentence:
        logger.log(logging.INFO if fits else logging.WARNING, sentence)
    return all_reduce_sum(torch.tensor(float(fits), device=runtime.device)) == runtime.dist.world_size
