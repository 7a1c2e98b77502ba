"""Run a network over a validation set: its loss and its scores, in one pass. Training and tools/get_map.py use this.

Several ranks share the images: each forwards its part, and the main one gathers all and scores.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.data.loader import build_val_loader
from utils.evaluation.scores import score_detections
from utils.evaluation.types import Detections, GroundTruth
from utils.inference.postprocess import suppress, to_image
from utils.runtime.distributed import Ranks, gathered, sum_over_ranks

MAX_BOXES = 1000  # of an image; COCO counts at most 100 per class

ALONE = Ranks()


class Thresholds(NamedTuple):
    """confidence: lowest score of a box; nms_iou: of suppression; min_overlap: IoU from which a box is right."""

    confidence: float = 0.001  # low, so that the curve behind an AP is whole
    nms_iou: float = 0.65
    min_overlap: float = 0.5


USUAL = Thresholds()


class Evaluation(NamedTuple):
    """loss: mean over the images of all ranks, or None; each batch divides by its own boxes, so that other batches, as
    on other numbers of ranks, give slightly another one. The rest only the main rank knows, on others None or empty:
    scores: as in score_detections, or None; unreadable: paths that did not decode; detections: of all images, or None;
    cut_off: paths of images that lack their end.
    """

    loss: float | None
    scores: dict | None
    unreadable: list
    detections: Detections | None
    cut_off: list = ()


@torch.no_grad()
def run_network(
    model,
    loader,
    records,
    device,
    dtype,
    criterion=None,
    collect=True,
    thresholds=USUAL,
    ranks=ALONE,
    after_batch=None,
):
    """Forward a validation set once.

    model: in eval mode on device. loader: from build_val_loader, over records. dtype: of the forward pass.
    criterion: also returns the loss. collect: also detects.
    ranks: all of them must call, each with a loader over its share, so that each image has one rank. after_batch: is
    called after each batch that every rank has.
    Returns (mean loss over all images or None, Detections of all images or None, paths that failed to decode, paths of
    images that lack their end); all but the loss are None and [] on other ranks than the main one.
    """
    sums, indices, found, unreadable = torch.zeros(2, dtype=torch.float64, device=device), [], [], []
    cut_off, shared = [], len(records) // ranks.world_size  # images that every rank has at least
    for batch in tqdm(loader, desc="validation", leave=False, disable=None if ranks.is_main else True):
        inputs = batch.images.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            raw = model(inputs)
        if criterion is not None:
            sums[0] += criterion(raw, batch.targets.to(device, non_blocking=True))["loss"] * len(inputs)
        sums[1] += len(inputs)
        is_shared = len(indices) < shared
        indices += batch.indices
        unreadable += batch.unreadable
        cut_off += batch.cut_off
        if collect:
            results = suppress(model.decode(raw), thresholds.confidence, thresholds.nms_iou, MAX_BOXES)
            for result, placed, index in zip(results, batch.placements, batch.indices, strict=True):
                found.append((index, to_image(result, placed, records.sizes_hw[index])))
        if after_batch and is_shared:
            after_batch()
    shares = gathered((indices, unreadable, cut_off, join_detections(found)))
    loss, images = sum_over_ranks(sums).tolist()
    loss = None if criterion is None else loss / max(images, 1)
    if not ranks.is_main:
        return loss, None, [], []
    indices, unreadable, cut_off, parts = zip(*shares, strict=True)
    assert sorted(chain(*indices)) == list(range(len(records))), "each image must come to one rank, once"
    return loss, merge(parts) if collect else None, sorted(chain(*unreadable)), sorted(chain(*cut_off))


def join_detections(found):
    """[(image index, utils.infer.ImageDetections)] -> Detections of all images as flat arrays."""
    ids = [np.full(len(item.scores), index, np.int64) for index, item in found]
    parts = [Detections(image, *item) for image, (_, item) in zip(ids, found, strict=True)]
    empty = np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    return merge([Detections(*empty), *parts])


def merge(parts):
    """Several Detections as one, in the order of the images, so that equal scores rank the same on 1 and N ranks."""
    merged = Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(merged.image_ids, kind="stable")
    return Detections(*(column[order] for column in merged))


def ground_truth(records):
    """All labelled boxes of Records as flat arrays; image i is entry i of the records."""
    image_ids = np.repeat(np.arange(len(records)), np.diff(records.first))
    return GroundTruth(image_ids, records.boxes_xyxy, records.classes, records.difficult)


def evaluate(
    model,
    loader,
    records,
    class_names,
    device,
    dtype,
    criterion=None,
    scored=True,
    thresholds=USUAL,
    ranks=ALONE,
    after_batch=None,
):
    """Loss and scores of a network on a validation set.

    loader: over records, unshuffled. ranks, after_batch: see run_network; all ranks must call.
    scored: False leaves the scores out (None), for epochs between evaluations.
    Returns an Evaluation.
    """
    loss, detections, unreadable, cut_off = run_network(
        model, loader, records, device, dtype, criterion, scored, thresholds, ranks, after_batch
    )
    scores = None
    if detections is not None:
        truth = ground_truth(records)
        scores = score_detections(truth, detections, class_names, len(records), thresholds.min_overlap)
    return Evaluation(loss, scores, unreadable, detections, cut_off)


def evaluate_detector(detector, records, dtype, batch_size, num_workers, thresholds=USUAL):
    """The Evaluation, without loss, of a utils.infer.Detector on Records; dtype: of the forward pass."""
    loader = build_val_loader(records, detector.input_shape, detector.resize_rule, batch_size, num_workers)
    model, device = detector.model, detector.device
    return evaluate(model, loader, records, detector.class_names, device, dtype, thresholds=thresholds)
