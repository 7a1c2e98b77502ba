"""Images with boxes: what the network learns from, what it finds beside what is labelled, many on one sheet."""

import io
from os.path import basename

import numpy as np
from PIL import Image

from utils.image.codec import read_image, reduction_for
from utils.image.draw import draw_boxes, shortened, write_text
from utils.image.letterbox import PAD, resize_into

CAPTION, _SIZE, _GAP = 28, 16, 8


def sheet(tiles, captions, columns):
    """Images on a white ground, from left to right and from top to bottom. Returns (H, W, 3) uint8 RGB.

    tiles: (h, w, 3) uint8 RGB, at least one; the largest sets the size of all places. captions: a line under each.
    """
    height, width = np.max([tile.shape[:2] for tile in tiles], axis=0)
    step_y, step_x = height + CAPTION + _GAP, width + _GAP
    page = np.full((-(-len(tiles) // columns) * step_y + _GAP, columns * step_x + _GAP, 3), 255, np.uint8)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top, left = _GAP + number // columns * step_y, _GAP + number % columns * step_x
        page[top : top + height, left : left + width] = PAD
        y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
        page[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        write_text(page, shortened(caption, width, _SIZE), (left, top + height + 20), _SIZE)
    return page


def boxes_tile(image_rgb, size_hw, boxes_xyxy, class_ids, scores, class_names):
    """An image as large as a tile of size_hw (height, width) holds it, with boxes drawn at that size; see draw_boxes.

    boxes_xyxy: (N, 4) in pixels of the image.
    """
    scale = min(size_hw[0] / image_rgb.shape[0], size_hw[1] / image_rgb.shape[1])
    tile = np.empty((*(max(1, round(side * scale)) for side in image_rgb.shape[:2]), 3), np.uint8)
    resize_into(tile, image_rgb)
    return draw_boxes(tile, np.asarray(boxes_xyxy) * scale, class_ids, scores, class_names, every_name=False)


def image_tile(annotations, index, size_hw, boxes, class_names):
    """One image of the annotations as large as a tile of size_hw holds it; grey where it cannot be read.

    boxes: boxes_xyxy (N, 4) in pixels of the image, class_ids (N,), scores (N,) or None; see draw_boxes.
    """
    try:
        # No more pixels are decoded than the tile shows.
        reduction = reduction_for((np.array(size_hw) / annotations.sizes_hw[index]).min())
        image_rgb = read_image(annotations.path(index), reduction)
    except (OSError, ValueError):
        reduction, image_rgb = 1, np.full((*annotations.sizes_hw[index], 3), PAD, np.uint8)
    boxes_xyxy, class_ids, scores = boxes
    return boxes_tile(image_rgb, size_hw, boxes_xyxy / reduction, class_ids, scores, class_names)


# How a picture becomes smaller until it fits: factor of its side, quality of JPEG.
_STEPS = ((1, 82), (1, 60), (0.6, 60), (0.3, 40))


def small_jpeg(annotations, index, side, most_bytes):
    """One image of the annotations as the bytes of a JPEG, its longer side at most so many pixels, never larger than it
    is. One that takes more than most_bytes gets coarser, and then smaller."""
    size_hw = annotations.sizes_hw[index].astype(float)
    for factor, quality in _STEPS:
        scale = min(1.0, factor * side / size_hw.max())
        encoded = jpeg_bytes(image_tile(annotations, index, size_hw * scale, (np.zeros((0, 4)), [], None), []), quality)
        if len(encoded) <= most_bytes:
            break
    return encoded


def jpeg_bytes(image_rgb, quality):
    """An image (H, W, 3) uint8 RGB as the bytes of a JPEG. quality: 1 to 95."""
    encoded = io.BytesIO()
    Image.fromarray(image_rgb).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


MOST_TRAINING, MOST_PAIRS = 16, 6
MOST_PREDICTED = 50  # boxes of an image, the surest
_PAGE_WIDTH, _PAIR_TILE = 1600, (380, 380)


def batch_picture(batches, annotations, class_names):
    """{"train_batch": (H, W, 3) uint8 RGB}: training images exactly as the network gets them, up to MOST_TRAINING; {}
    without any.

    batches: an iterable of utils.data.loader.Batch, of which no more are taken than needed. annotations: they come
    from.
    """
    samples = []
    for number, batch in enumerate(batches, 1):
        for image, targets, index in zip(batch.images.cpu().numpy(), batch.targets.numpy(), batch.indices, strict=True):
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
        f"batch {number}, boxes: {len(boxes)}, {basename(annotations.path(index))}"
        for number, _, boxes, index in samples
    ]
    return {"train_batch": sheet(tiles, captions, columns)}


def prediction_picture(annotations, detections, class_names, confidences, seed):
    """{"val_pred": (H, W, 3) uint8 RGB}: some images twice, with what is labelled and with what was found.

    detections: Detections on the annotations. confidences: (C,) from which on a box of each class
    counts. seed: chooses the images. {} where there is none.
    """
    tiles, captions = [], []
    for index in choose_images(annotations, MOST_PAIRS, seed):
        rows = np.flatnonzero(detections.image_ids == index)
        rows = rows[detections.scores[rows] >= confidences[detections.classes[rows]]]
        surest = rows[np.argsort(-detections.scores[rows], kind="stable")][:MOST_PREDICTED]
        labelled = annotations.boxes(index), annotations.labels(index), None
        found = detections.boxes_xyxy[surest], detections.classes[surest], detections.scores[surest]
        tiles += [image_tile(annotations, index, _PAIR_TILE, boxes, class_names) for boxes in (labelled, found)]
        captions.append(f"labelled: {len(labelled[0])}, {basename(annotations.path(index))}")
        captions.append(f"predicted: {len(rows)}" + (f", shown: {len(surest)}" if len(surest) < len(rows) else ""))
    if not tiles:
        return {}
    page = sheet(tiles, captions, 4 if len(tiles) > 2 else 2)
    if len(tiles) > 2:
        middle = page.shape[1] // 2
        page[:, middle - 2 : middle + 2] = 0  # so that nobody takes the neighbour for the partner
    return {"val_pred": page}


def choose_images(annotations, most, seed):
    """Indices of so many images, the same for the same seed; those with boxes come first, in the order of the
    annotations.

    Returns a list, [] for no images.
    """
    shuffled = np.random.default_rng(seed).permutation(len(annotations))
    is_empty = np.diff(annotations.offsets)[shuffled] == 0
    chosen = np.sort(shuffled[np.argsort(is_empty, kind="stable")][:most])
    return chosen[np.argsort(np.diff(annotations.offsets)[chosen] == 0, kind="stable")].tolist()
