"""Run a network over a validation set: its loss and its scores, in one pass. Training and tools/get_map.py use this.

Several ranks share the images: each forwards its part, and the main one gathers all and scores.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.data.loader import LoaderOptions, build_val_loader
from utils.data.tiles import tiled
from utils.evaluation.scores import score_detections
from utils.evaluation.types import DetectionTable, GroundTruth
from utils.image.tiles import TileOptions, join_tiles
from utils.inference.base import NMSOptions
from utils.inference.postprocess import detect, to_image
from utils.runtime.device import FLOAT32, RuntimeContext
from utils.runtime.distributed import DistInfo, all_reduce_sum, broadcast_buffers, gather_objects


class EvalOptions(NamedTuple):
    """confidence: lowest score of a box; nms_iou: of suppression; min_overlap: IoU from which a box is right;
    max_boxes: of an image.
    """

    confidence: float = 0.001  # low, so that the curve behind an AP is whole
    nms_iou: float = 0.65
    min_overlap: float = 0.5
    max_boxes: int = 1000  # COCO counts at most 100 per class


DEFAULT, WHOLE = EvalOptions(), TileOptions()


class Evaluation(NamedTuple):
    """loss: mean over the images of all ranks, or None; each batch divides by its own boxes, so that other batches, as
    on other numbers of ranks, give slightly another one. The rest only the main rank knows, on others None or empty:
    scores: as in score_detections, or None; unreadable: paths that did not decode; detections: of all images, or None;
    truncated: paths of images that lack their end.
    """

    loss: float | None
    scores: dict | None
    unreadable: list
    detections: DetectionTable | None
    truncated: list = ()


def evaluate(
    model,
    loader,
    annotations,
    class_names,
    runtime,
    criterion=None,
    scored=True,
    options=DEFAULT,
    after_batch=None,
    tiles=WHOLE,
):
    """Loss and scores of a network on a validation set.

    model: is set to eval mode, on the runtime's device. loader: from build_val_loader, over annotations, or over them
    in `tiles`. criterion: for the loss, None for none. scored: False leaves the scores out, for epochs between
    evaluations. after_batch: is called after each batch that every rank has. All ranks must call, each with a loader
    over its share, so that each image has one rank. Returns an Evaluation, whose detections are those of whole images.
    """
    model.eval()
    broadcast_buffers(model)
    entries = tiled(annotations, tiles)
    loss, detections, unreadable, truncated = run_network(
        model, loader, entries, runtime, criterion, scored, options, after_batch
    )
    scores = None
    if detections is not None:
        if tiles.tile:
            detections = join_images(detections, entries, options)
            unreadable, truncated = sorted(set(unreadable)), sorted(set(truncated))
        truth = ground_truth(annotations)
        scores = score_detections(truth, detections, class_names, len(annotations), options.min_overlap)
    return Evaluation(loss, scores, unreadable, detections, truncated)


def evaluate_detector(detector, annotations, batch_size, num_workers, options=DEFAULT):
    """The Evaluation, without loss, of a utils.inference.Detector on Annotations."""
    workers = LoaderOptions(num_workers)
    entries = tiled(annotations, detector.tiles)
    loader = build_val_loader(entries, detector.input_shape, detector.resize_rule, batch_size, workers)
    runtime = RuntimeContext(detector.device, DistInfo(), FLOAT32)
    names, tiles = detector.class_names, detector.tiles
    return evaluate(detector.model, loader, annotations, names, runtime, options=options, tiles=tiles)


@torch.no_grad()
def run_network(model, loader, annotations, runtime, criterion=None, detects=True, options=DEFAULT, after_batch=None):
    """Forward a validation set once; arguments as in evaluate. detects: whether boxes are wanted.

    In float32, whatever a training's precision is: bfloat16 has too few digits for scores, which costs up to 0.013 of
    AP50, and float16 overflows where BatchNorm's statistics are young. Returns (mean loss over all images or None,
    DetectionTable of all images or None, paths that failed to decode, paths of images that lack their end); all but the
    loss are None and [] on other ranks than the main one.
    """
    device, nms_options = runtime.device, NMSOptions(options.confidence, options.nms_iou, options.max_boxes)
    sums, indices, found, unreadable = torch.zeros(2, dtype=torch.float64, device=device), [], [], []
    truncated, shared = [], len(annotations) // runtime.dist.world_size  # images that every rank has at least
    if criterion is not None:
        criterion.eval()
    for batch in tqdm(loader, desc="validation", leave=False, disable=None if runtime.dist.is_main else True):
        inputs = batch.images.to(device, non_blocking=True)
        raw = model(inputs)
        if criterion is not None:
            sums[0] += criterion(raw, batch.targets.to(device, non_blocking=True))["loss"] * len(inputs)
        sums[1] += len(inputs)
        is_shared = len(indices) < shared
        indices += batch.indices
        unreadable += batch.unreadable
        truncated += batch.truncated
        if detects:
            results = detect(model, raw, nms_options)
            for result, placed, index in zip(results, batch.placements, batch.indices, strict=True):
                found.append((index, to_image(result, placed, annotations.sizes_hw[index])))
        if after_batch and is_shared:
            after_batch()
    if criterion is not None:
        criterion.train()
    shares = gather_objects((indices, unreadable, truncated, join_detections(found)))
    loss, images = all_reduce_sum(sums).tolist()
    loss = None if criterion is None else loss / max(images, 1)
    if not runtime.dist.is_main:
        return loss, None, [], []
    indices, unreadable, truncated, parts = zip(*shares, strict=True)
    assert sorted(chain(*indices)) == list(range(len(annotations))), "each image must come to one rank, once"
    return loss, merge(parts) if detects else None, sorted(chain(*unreadable)), sorted(chain(*truncated))


def join_detections(found):
    """[(image index, utils.inference.base.Boxes)] -> the DetectionTable of all images."""
    ids = [np.full(len(item.scores), index, np.int64) for index, item in found]
    parts = [DetectionTable(image, *item) for image, (_, item) in zip(ids, found, strict=True)]
    empty = np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    return merge([DetectionTable(*empty), *parts])


def merge(parts):
    """Several DetectionTables as one, in the order of the images: equal scores rank the same on any number of ranks."""
    merged = DetectionTable(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(merged.image_ids, kind="stable")
    return DetectionTable(*(column[order] for column in merged))


def join_images(table, entries, options):
    """What was found in tiles, a DetectionTable of TiledAnnotations' entries, as the one of their images."""
    images, tiles_xyxy = entries.images[table.image_ids], entries.tiles_xyxy[table.image_ids]
    boxes_xyxy = table.boxes_xyxy + tiles_xyxy[:, [0, 1, 0, 1]].astype(np.float32)
    assert (np.diff(images) >= 0).all(), "the table and the tiles must be in the order of the images"
    parts = [np.zeros(0, np.int64)]
    for image, first, count in zip(*np.unique(images, return_index=True, return_counts=True), strict=True):
        rows, size_hw = np.arange(first, first + count), entries.whole.sizes_hw[image].tolist()
        found = boxes_xyxy[rows], table.scores[rows], table.classes[rows], tiles_xyxy[rows]
        parts.append(rows[join_tiles(*found, size_hw, entries.options, options.nms_iou)[: options.max_boxes]])
    rows = np.concatenate(parts)
    return DetectionTable(images[rows], boxes_xyxy[rows], table.scores[rows], table.classes[rows])


def ground_truth(annotations):
    """All labelled boxes of Annotations as flat arrays; image i is entry i of the annotations."""
    image_ids = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    boxes_xyxy, areas = annotations.boxes_xyxy, annotations.areas
    return GroundTruth(image_ids, boxes_xyxy, annotations.classes, annotations.difficult, areas)
