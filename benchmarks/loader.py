"""How many training samples one core makes in a second, and what each part of making one costs.

python benchmarks/loader.py [--train_annotation_path=... --samples=600 ...]

One process, one thread of OpenCV, CPU seconds. Mosaic on every sample, mixup with a second mosaic on half of them,
zoom, flip and colour. Where ultralytics is installed (pip install ultralytics), its own loader runs on the same images
with mosaic=1, mixup=0.5, and ratios are printed. Last, the memory of a loader with two workers over epochs.
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

import utils.runtime.threads  # noqa: F401 # isort: skip
import numpy as np
import psutil

from utils.config.cli import run_script, script_constants
from utils.config.rules import check_values
from utils.data import augment as rendering
from utils.data.annotations import Records, class_names_of, read_source, to_records
from utils.data.augment import AugmentSettings, SampleKey, largest_scales, plan_sample, plan_targets
from utils.data.image_cache import RamCache, decode, train_scales
from utils.data.loader import TrainSamples, build_train_loader, collate
from utils.data.sampling import TrainShapes, epoch_order
from utils.image.opencv import cv2

# ----------------------------------------------------------------------------------------------------------------------
#   train_annotation_path   The images; any format that train.py reads.
#   input_sides             Sides of the square inputs that are measured.
#   samples                 Training samples per measurement; each is one image of the batch.
#   batch_size              Images per batch, for collation and for ultralytics.
#   memory_epochs           Memory is read after these epochs of a loader with two workers; [] leaves that out.
# ----------------------------------------------------------------------------------------------------------------------
train_annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt"
input_sides = [416, 640]
samples = 600
batch_size = 8
memory_epochs = [1, 5, 20]

SETTINGS = AugmentSettings(augment_epochs=1000)


def cpu_seconds(work) -> float:
    """CPU seconds of this process that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def epoch_keys(records, shape, count):
    """The keys of so many samples, epoch after epoch."""
    keys, epoch = [], 0
    while len(keys) < count:
        order, partners = epoch_order(len(records), 0, epoch)
        keys += [
            SampleKey(epoch, index, shape, tuple(row))
            for index, row in zip(order.tolist(), partners.tolist(), strict=True)
        ]
        epoch += 1
    return keys[:count]


def measure_ours(records, shape, settings):
    """{name: images per CPU second} of the loader as train.py builds it, without and with the cache."""
    rates = {}
    for name in ("no cache", "ram"):
        load_image = filled_cache(records, shape) if name == "ram" else None
        loader = build_train_loader(
            records, SETTINGS, 0, TrainShapes([shape]), settings.batch_size, 0, load_image=load_image
        )

        def run(loader=loader):
            seen = 0
            for epoch in range(settings.samples):
                loader.batch_sampler.set_epoch(epoch)
                for batch in loader:
                    seen += len(batch.images)
                    if seen >= settings.samples:
                        return

        for batch in islice(loader, 3):
            assert len(batch.images)
        rates[name] = settings.samples / cpu_seconds(run)
    return rates


def filled_cache(records, shape):
    cache = RamCache(records, train_scales(records, [shape], SETTINGS), shared=False)
    cache.fill(None)
    return cache


def print_parts(records, shape, settings):
    """What each part of a sample costs, with all images in memory, and what decoding one adds."""
    keys = epoch_keys(records, shape, settings.samples)
    cache = filled_cache(records, shape)
    plans = [plan_sample(records, key, 0, SETTINGS) for key in keys]
    tiles = [tile for plan in plans for part in (plan, plan.partner) if part for tile in part.tiles]
    canvas = np.full((*shape, 3), 114, np.uint8)
    some = TrainSamples(records, SETTINGS, 0, cache)
    batch = [some[key] for key in keys[: settings.batch_size]]
    largest = largest_scales(records, [shape], SETTINGS)
    pairs, drawn = [None] * sum(plan.partner is not None for plan in plans), canvas.copy()
    parts = {
        "decode one image": (keys, lambda key: decode(records, key.index, largest[key.index])),
        "plan": (keys, lambda key: plan_sample(records, key, 0, SETTINGS)),
        "boxes": (plans, lambda plan: plan_targets(records, plan)),
        "crop and resize the tiles": (
            tiles,
            lambda tile: rendering.draw_tile(canvas, tile, cache(tile.index), records.sizes_hw[tile.index].tolist()),
        ),
        "blend (mixup)": (pairs, lambda _: rendering.blend(canvas, drawn, 0.5)),
        "colour": (plans, lambda plan: rendering.change_colour(canvas, *plan.gains)),
        "flip": ([plan for plan in plans if plan.flip], lambda _: rendering.flip(canvas)),
        "collate": (range(len(keys) // len(batch)), lambda _: collate(batch)),
    }
    print(f"\n{shape[0]}x{shape[1]}, ms per sample")
    for name, (items, work) in parts.items():
        seconds = cpu_seconds(lambda items=items, work=work: deque(map(work, items), maxlen=0))
        print(f"  {name:28s} {seconds / len(keys) * 1e3:7.3f}")


def write_yolo(records, folder):
    """Write the records in YOLO's layout, the images as links, into an empty folder."""
    for part in ("images", "labels"):
        (Path(folder) / part).mkdir()
    for index in range(len(records)):
        source = Path(records.path(index)).resolve()
        (Path(folder) / "images" / f"{index}{source.suffix}").symlink_to(source)
        height, width = records.sizes_hw[index].tolist()
        boxes_xyxy = records.boxes(index) / [width, height, width, height]
        centres, sides = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        rows = np.column_stack([records.labels(index), centres, sides])
        np.savetxt(Path(folder) / "labels" / f"{index}.txt", rows, "%d %.6f %.6f %.6f %.6f")


def measure_ultralytics(records, side, settings):
    """{name: images per CPU second} of ultralytics' loader; {} where it is not installed."""
    try:
        from ultralytics.cfg import get_cfg
        from ultralytics.data.dataset import YOLODataset
    except ImportError:
        return {}
    rates = {}
    options = get_cfg(overrides={"mosaic": 1.0, "mixup": 0.5, "imgsz": side})
    names = {"names": {number: str(number) for number in range(max(records.classes, default=0) + 1)}, "channels": 3}
    with tempfile.TemporaryDirectory() as folder:
        write_yolo(records, folder)
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


def repeated(records, count):
    """The records over and over, to at least so many: no image is still at hand when it comes again."""
    copies = max(1, math.ceil(count / len(records)))
    paths = [records.path(index) for index in range(len(records))]
    counts = np.diff(records.first)
    return Records(
        paths * copies,
        np.tile(records.sizes_hw, (copies, 1)),
        np.tile(counts, copies),
        np.tile(records.boxes_xyxy, (copies, 1)),
        np.tile(records.classes, copies),
    )


def print_memory(records, shape, settings):
    """Memory of this process and two workers that is theirs alone, after some epochs."""
    loader = build_train_loader(records, SETTINGS, 0, TrainShapes([shape]), settings.batch_size, 2)
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
    source = read_source(settings.train_annotation_path)
    try:
        names = class_names_of([source])
    except ValueError:
        names = [str(number) for number in range(max(source.classes, default=0) + 1)]
    records, _ = to_records(source, names)
    sizes = sorted({f"{width}x{height}" for height, width in records.sizes_hw.tolist()})
    print(f"{len(records)} images ({', '.join(sizes[:3])}), {os.cpu_count()} cores, OpenCV {cv2.__version__}")
    print(f"\n{'images per CPU second':24s} {'this loader':>12s} {'ultralytics':>12s} {'ratio':>6s}")
    many = repeated(records, 2000)
    for side in settings.input_sides:
        ours, theirs = measure_ours(many, (side, side), settings), measure_ultralytics(many, side, settings)
        for name, rate in ours.items():
            other = theirs.get(name)
            beside = f" {other:12.0f} {rate / other:6.2f}" if other else f" {'-':>12s} {'-':>6s}"
            print(f"{f'{side}, {name}':24s} {rate:12.0f}{beside}")
    for side in settings.input_sides:
        print_parts(records, (side, side), settings)
    if settings.memory_epochs:
        print_memory(records, (settings.input_sides[0],) * 2, settings)


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_values)
