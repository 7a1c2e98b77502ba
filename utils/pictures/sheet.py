"""Many images on one: tiles in rows, a caption under each."""

import numpy as np

from utils.data.letterbox import PAD, read_image, reduction_for, resize_into
from utils.draw import draw_boxes
from utils.pictures.text import shortened, write_text

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


def image_tile(records, index, size_hw, boxes, class_names):
    """One image of the records as large as a tile of size_hw holds it; grey where it cannot be read.

    boxes: boxes_xyxy (N, 4) in pixels of the image, class_ids (N,), scores (N,) or None; see draw_boxes.
    """
    try:
        # No more pixels are decoded than the tile shows.
        reduction = reduction_for((np.array(size_hw) / records.sizes_hw[index]).min())
        image_rgb = read_image(records.path(index), reduction)
    except (OSError, ValueError):
        reduction, image_rgb = 1, np.full((*records.sizes_hw[index], 3), PAD, np.uint8)
    boxes_xyxy, class_ids, scores = boxes
    return boxes_tile(image_rgb, size_hw, boxes_xyxy / reduction, class_ids, scores, class_names)
