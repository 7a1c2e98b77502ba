"""How many training samples one core makes in a second, and what each part of making one costs.

python benchmarks/loader.py [--train_annotation_path=... --samples=600 ...]

One process, one thread of OpenCV, CPU seconds. Mosaic on every sample, mixup with a second mosaic on half of them,
zoom, flip and colour. Where ultralytics is installed (pip install ultralytics), its own loader runs on the same images
with mosaic=1, mixup=0.5, and ratios are printed. Then, by the clock, what each cache of train.py takes and gives. Last,
the memory of a loader with two workers over epochs.
"""

import math
import os
import sys
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np
import psutil

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data import draw as rendering
from utils.data.annotations import Annotations, build_annotations, class_names_of
from utils.data.augment import AugmentOptions, SampleKey, augmented_targets, largest_scales, sample_parameters
from utils.data.disk_cache import DiskCache
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.image_cache import RamCache, decode, train_scales
from utils.data.loader import LoaderOptions, TrainDataset, build_train_loader, collate
from utils.data.sampling import MultiScale, epoch_order
from utils.data.sources import join, paths_of
from utils.image.opencv import cv2

# ----------------------------------------------------------------------------------------------------------------------
#   train_annotation_path   The images; any format that train.py reads.
#   input_sides             Sides of the square inputs that are measured.
#   samples                 Training samples per measurement; each is one image of the batch.
#   batch_size              Images per batch, for collation and for ultralytics.
#   cache_folder            Where the file of cache = 'disk' lies meanwhile; '' is the system's folder for such files.
#   memory_epochs           Memory is read after these epochs of a loader with two workers; [] leaves that out.
# ----------------------------------------------------------------------------------------------------------------------
train_annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt"
input_sides = [416, 640]
samples = 600
batch_size = 8
cache_folder = ""
memory_epochs = [1, 5, 20]

SETTINGS = AugmentOptions(augment_epochs=1000)


def cpu_seconds(work) -> float:
    """CPU seconds of this process that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def epoch_keys(annotations, shape, count):
    """The keys of so many samples, epoch after epoch."""
    keys, epoch = [], 0
    while len(keys) < count:
        order, partners = epoch_order(len(annotations), 0, epoch)
        keys += [
            SampleKey(epoch, index, shape, tuple(row))
            for index, row in zip(order.tolist(), partners.tolist(), strict=True)
        ]
        epoch += 1
    return keys[:count]


def our_loader(annotations, shape, settings, cache=None):
    """The loader as train.py builds it."""
    return build_train_loader(annotations, SETTINGS, 0, MultiScale([shape]), settings.batch_size, load_image=cache)


def read_samples(loader, count):
    """Take batches from a loader, epoch after epoch, until they hold so many samples."""
    seen = 0
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            seen += len(batch.images)
            if seen >= count:
                return


def measure_ours(annotations, shape, settings):
    """{name: images per CPU second} of our loader, without and with the cache."""
    rates = {}
    for name in ("no cache", "ram"):
        loader = our_loader(annotations, shape, settings, filled_cache(annotations, shape) if name == "ram" else None)
        for batch in islice(loader, 3):
            assert len(batch.images)
        rates[name] = settings.samples / cpu_seconds(lambda loader=loader: read_samples(loader, settings.samples))
    return rates


def filled_cache(annotations, shape):
    cache = RamCache(annotations, train_scales(annotations, [shape], SETTINGS), shared=False)
    cache.fill(None)
    return cache


def print_caches(annotations, shape, settings):
    """Seconds until each cache is ready; of the epochs after, images per CPU second, and by the clock, which also sees
    the disk."""
    title = f"caches at {shape[0]}x{shape[1]}"
    print(f"\n{title:24s} {'ready after':>12s} {'images per CPU second':>22s} {'per second':>12s}")
    with tempfile.TemporaryDirectory(dir=settings.cache_folder or None) as folder:
        path = Path(folder) / "images.cache"
        caches = {
            "no cache": lambda: None,
            "ram": lambda: filled_cache(annotations, shape),
            "disk, first run": lambda: file_of_images(annotations, shape, path),
            "disk, second run": lambda: file_of_images(annotations, shape, path),
        }
        for name, make in caches.items():
            start = time.perf_counter()
            loader = our_loader(annotations, shape, settings, make())
            ready = time.perf_counter()
            used = cpu_seconds(lambda loader=loader: read_samples(loader, settings.samples))
            passed = time.perf_counter() - ready
            print(
                f"{name:24s} {ready - start:10.2f} s {settings.samples / used:22.0f} {settings.samples / passed:12.0f}"
            )
            del loader  # what maps a file keeps it in memory
            forget(path)


def file_of_images(annotations, shape, path):
    """A DiskCache whose file is found, else written."""
    cache = DiskCache(annotations, train_scales(annotations, [shape], SETTINGS))
    assert cache.open(path) or cache.write(path, None)
    return cache


def forget(path):
    """Have the system drop what it keeps of a file in memory, as if the machine had been started again since."""
    if path.is_file() and hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def print_parts(annotations, shape, settings):
    """What each part of a sample costs, with all images in memory, and what decoding one adds."""
    keys = epoch_keys(annotations, shape, settings.samples)
    cache = filled_cache(annotations, shape)
    parameters = [sample_parameters(annotations, key, 0, SETTINGS) for key in keys]
    images = [placed for params in parameters for part in (params, params.partner) if part for placed in part.images]
    canvas = np.full((*shape, 3), 114, np.uint8)
    some = TrainDataset(annotations, SETTINGS, 0, cache)
    batch = [some[key] for key in keys[: settings.batch_size]]
    largest = largest_scales(annotations, [shape], SETTINGS)
    pairs, drawn = [None] * sum(params.partner is not None for params in parameters), canvas.copy()
    parts = {
        "decode one image": (keys, lambda key: decode(annotations, key.index, largest[key.index])),
        "parameters": (keys, lambda key: sample_parameters(annotations, key, 0, SETTINGS)),
        "boxes": (parameters, lambda params: augmented_targets(annotations, params)),
        "crop and resize the images": (
            images,
            lambda placed: rendering.draw_image(
                canvas, placed, cache(placed.index), annotations.sizes_hw[placed.index].tolist()
            ),
        ),
        "blend (mixup)": (pairs, lambda _: rendering.blend(canvas, drawn, 0.5)),
        "colour": (parameters, lambda params: rendering.change_colour(canvas, *params.gains)),
        "flip": ([params for params in parameters if params.flip], lambda _: rendering.flip(canvas)),
        "collate": (range(len(keys) // len(batch)), lambda _: collate(batch)),
    }
    print(f"\n{shape[0]}x{shape[1]}, ms per sample")
    for name, (items, work) in parts.items():
        seconds = cpu_seconds(lambda items=items, work=work: deque(map(work, items), maxlen=0))
        print(f"  {name:28s} {seconds / len(keys) * 1e3:7.3f}")


def write_yolo(annotations, folder):
    """Write the annotations in YOLO's layout, the images as links, into an empty folder."""
    for part in ("images", "labels"):
        (Path(folder) / part).mkdir()
    for index in range(len(annotations)):
        source = Path(annotations.path(index)).resolve()
        (Path(folder) / "images" / f"{index}{source.suffix}").symlink_to(source)
        height, width = annotations.sizes_hw[index].tolist()
        boxes_xyxy = annotations.boxes(index) / [width, height, width, height]
        centres, sides = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        rows = np.column_stack([annotations.labels(index), centres, sides])
        np.savetxt(Path(folder) / "labels" / f"{index}.txt", rows, "%d %.6f %.6f %.6f %.6f")


def measure_ultralytics(annotations, side, settings):
    """{name: images per CPU second} of ultralytics' loader; {} where it is not installed."""
    try:
        from ultralytics.cfg import get_cfg
        from ultralytics.data.dataset import YOLODataset
    except ImportError:
        return {}
    rates = {}
    options = get_cfg(overrides={"mosaic": 1.0, "mixup": 0.5, "imgsz": side})
    names = {"names": {number: str(number) for number in range(max(annotations.classes, default=0) + 1)}, "channels": 3}
    with tempfile.TemporaryDirectory() as folder:
        write_yolo(annotations, folder)
        for name, cache in (("no cache", False), ("ram", "ram")):
            dataset = YOLODataset(
                img_path=f"{folder}/images",
                data=names,
                imgsz=side,
                cache=cache,
                augment=True,
                hyp=options,
                prefix="",
                batch_size=settings.batch_size,
                rect=False,
            )
            order = np.random.default_rng(0).permutation(len(dataset)).tolist()

            def run(count, dataset=dataset, order=order):
                for start in range(0, count, settings.batch_size):
                    batch = order[start : start + settings.batch_size]
                    YOLODataset.collate_fn([dataset[index] for index in batch])

            run(2 * settings.batch_size)
            rates[name] = settings.samples / cpu_seconds(lambda run=run: run(settings.samples))
    return rates


def repeated(annotations, count):
    """The annotations over and over, to at least so many: no image is still at hand when it comes again."""
    copies = max(1, math.ceil(count / len(annotations)))
    paths = [annotations.path(index) for index in range(len(annotations))]
    counts = np.diff(annotations.offsets)
    return Annotations(
        paths * copies,
        np.tile(annotations.sizes_hw, (copies, 1)),
        np.tile(counts, copies),
        np.tile(annotations.boxes_xyxy, (copies, 1)),
        np.tile(annotations.classes, copies),
    )


def print_memory(annotations, shape, settings):
    """Memory of this process and two workers that is theirs alone, after some epochs."""
    loader = build_train_loader(annotations, SETTINGS, 0, MultiScale([shape]), settings.batch_size, LoaderOptions(2))
    process = psutil.Process()
    print(f"\nmemory of the process and two workers at {shape[0]}x{shape[1]}, no cache (unique to each, summed)")
    for epoch in range(max(settings.memory_epochs)):
        loader.batch_sampler.set_epoch(epoch)
        for _ in loader:
            pass
        if epoch + 1 in settings.memory_epochs:
            everyone = [process, *process.children(recursive=True)]
            used = sum(member.memory_full_info().uss for member in everyone)
            print(f"  after epoch {epoch + 1:2d}  {used / 2**20:6.0f} MiB")


def main(settings):
    """Print all tables."""
    cv2.setNumThreads(1)
    sources = [read_raw_annotations(path) for path in paths_of(settings.train_annotation_path)]
    try:
        names = class_names_of(sources)
    except ValueError:
        names = [str(number) for number in range(max(max(source.classes, default=0) for source in sources) + 1)]
    annotations = join([build_annotations(source, names) for source in sources]).annotations
    sizes = sorted({f"{width}x{height}" for height, width in annotations.sizes_hw.tolist()})
    print(f"{len(annotations)} images ({', '.join(sizes[:3])}), {os.cpu_count()} cores, OpenCV {cv2.__version__}")
    print(f"\n{'images per CPU second':24s} {'this loader':>12s} {'ultralytics':>12s} {'ratio':>6s}")
    many = repeated(annotations, 2000)
    for side in settings.input_sides:
        ours, theirs = measure_ours(many, (side, side), settings), measure_ultralytics(many, side, settings)
        for name, rate in ours.items():
            other = theirs.get(name)
            beside = f" {other:12.0f} {rate / other:6.2f}" if other else f" {'-':>12s} {'-':>6s}"
            print(f"{f'{side}, {name}':24s} {rate:12.0f}{beside}")
    for side in settings.input_sides:
        print_caches(annotations, (side, side), settings)
    for side in settings.input_sides:
        print_parts(annotations, (side, side), settings)
    if settings.memory_epochs:
        print_memory(annotations, (settings.input_sides[0],) * 2, settings)


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
