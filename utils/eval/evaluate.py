"""Run a network over a validation set: its loss and its scores, in one pass. Training and tools/get_map.py use this."""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.eval.inputs import Detections, GroundTruth
from utils.eval.scores import score_detections
from utils.infer import suppress, to_image

# Low, so that the curve behind an AP is whole. COCO counts at most 100 boxes per image and class.
CONFIDENCE, NMS_IOU, MAX_BOXES = 0.001, 0.65, 1000


class Evaluation(NamedTuple):
    """loss: mean over images or None; scores: as in score_detections or None; unreadable: paths that did not decode."""

    loss: float | None
    scores: dict | None
    unreadable: list


@torch.no_grad()
def run_network(
    model, loader, records, device, dtype, criterion=None, collect=True, confidence=CONFIDENCE, nms_iou=NMS_IOU
):
    """Forward a validation set once.

    model: in eval mode on device. loader: from build_val_loader, over records. dtype: of the forward pass.
    criterion: also returns the loss. collect: also detects.
    Returns (mean loss over images or None, Detections over all images or None, paths that failed to decode).
    """
    losses, images, found, unreadable = torch.zeros((), device=device), 0, [], []
    for batch in tqdm(loader, desc="validation", leave=False, disable=None):
        inputs = batch.images.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            raw = model(inputs)
        if criterion is not None:
            losses += criterion(raw, batch.targets.to(device, non_blocking=True))["loss"] * len(inputs)
        images += len(inputs)
        unreadable += batch.unreadable
        if collect:
            results = suppress(model.decode(raw), confidence, nms_iou, MAX_BOXES)
            for result, placed, index in zip(results, batch.placements, batch.indices, strict=True):
                found.append((index, to_image(result, placed, records.sizes_hw[index])))
    loss = None if criterion is None else losses.item() / max(images, 1)
    return loss, join_detections(found) if collect else None, unreadable


def join_detections(found):
    """[(image index, utils.infer.ImageDetections)] -> Detections of all images as flat arrays."""
    ids = [np.full(len(item.scores), index, np.int64) for index, item in found]
    parts = [(item.boxes_xyxy, item.scores, item.class_ids) for _, item in found]
    empty = [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)]
    boxes_xyxy, scores, classes = (np.concatenate([rest, *column]) for rest, *column in zip(empty, *parts, strict=True))
    return Detections(np.concatenate([np.zeros(0, np.int64), *ids]), boxes_xyxy, scores, classes)


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
    confidence=CONFIDENCE,
    nms_iou=NMS_IOU,
    min_overlap=0.5,
):
    """Loss and scores of a network on a validation set.

    loader: over records, unshuffled. scored: False leaves the scores out (None), for epochs between evaluations.
    confidence: lowest score of a box; nms_iou: of suppression; min_overlap: IoU from which a box is right.
    Returns an Evaluation.
    """
    loss, detections, unreadable = run_network(
        model, loader, records, device, dtype, criterion, scored, confidence, nms_iou
    )
    scores = None
    if scored:
        scores = score_detections(ground_truth(records), detections, class_names, records.sizes_hw, min_overlap)
    return Evaluation(loss, scores, unreadable)
