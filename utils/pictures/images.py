"""Images with boxes: what the network learns from, and what it finds beside what is labelled."""

from os.path import basename

import numpy as np

from utils.pictures.sheet import boxes_tile, image_tile, sheet

MOST_TRAINING, MOST_PAIRS = 16, 6
MOST_PREDICTED = 50  # boxes of an image, the surest
_PAGE_WIDTH, _PAIR_TILE = 1600, (380, 380)


def batch_picture(batches, records, class_names):
    """{"train_batch": (H, W, 3) uint8 RGB}: training images exactly as the network gets them, up to MOST_TRAINING; {}
    without any.

    batches: an iterable of utils.data.dataset.Batch, of which no more are taken than needed. records: they come from.
    """
    samples = []
    for number, batch in enumerate(batches, 1):
        for image, targets, index in zip(batch.images.numpy(), batch.targets.numpy(), batch.indices, strict=True):
            samples.append((number, image.transpose(1, 2, 0), targets[targets[:, 4] >= 0], index))
        if len(samples) >= MOST_TRAINING:
            break
    samples = samples[:MOST_TRAINING]
    if not samples:
        return {}
    columns = int(np.ceil(len(samples) ** 0.5))
    side = min(_PAGE_WIDTH // columns, 640)
    tiles = [
        boxes_tile(image, (side, side), boxes[:, :4], boxes[:, 4].astype(int), None, class_names)
        for _, image, boxes, _ in samples
    ]
    captions = [
        f"batch {number}, boxes: {len(boxes)}, {basename(records.path(index))}" for number, _, boxes, index in samples
    ]
    return {"train_batch": sheet(tiles, captions, columns)}


def prediction_picture(records, detections, class_names, confidences, seed):
    """{"val_pred": (H, W, 3) uint8 RGB}: some images twice, with what is labelled and with what was found.

    detections: utils.eval.inputs.Detections on the records. confidences: (C,) from which on a box of each class counts.
    seed: chooses the images. {} where there is none.
    """
    tiles, captions = [], []
    for index in choose_images(records, MOST_PAIRS, seed):
        rows = np.flatnonzero(detections.image_ids == index)
        rows = rows[detections.scores[rows] >= confidences[detections.classes[rows]]]
        surest = rows[np.argsort(-detections.scores[rows], kind="stable")][:MOST_PREDICTED]
        labelled = records.boxes(index), records.labels(index), None
        found = detections.boxes_xyxy[surest], detections.classes[surest], detections.scores[surest]
        tiles += [image_tile(records, index, _PAIR_TILE, boxes, class_names) for boxes in (labelled, found)]
        captions.append(f"labelled: {len(labelled[0])}, {basename(records.path(index))}")
        captions.append(f"predicted: {len(rows)}" + (f", shown: {len(surest)}" if len(surest) < len(rows) else ""))
    if not tiles:
        return {}
    page = sheet(tiles, captions, 4 if len(tiles) > 2 else 2)
    if len(tiles) > 2:
        middle = page.shape[1] // 2
        page[:, middle - 2 : middle + 2] = 0  # so that nobody takes the neighbour for the partner
    return {"val_pred": page}


def choose_images(records, most, seed):
    """Indices of so many images, the same for the same seed; those with boxes come first, in the order of the records.

    Returns a list, [] for no images.
    """
    shuffled = np.random.default_rng(seed).permutation(len(records))
    is_empty = np.diff(records.first)[shuffled] == 0
    chosen = np.sort(shuffled[np.argsort(is_empty, kind="stable")][:most])
    return chosen[np.argsort(np.diff(records.first)[chosen] == 0, kind="stable")].tolist()
