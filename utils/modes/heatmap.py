"""Where on a picture a network sees objects: its best score at each place, for each stride and for all together."""

from pathlib import Path

import numpy as np
import torch

from utils.image.codec import write_image
from utils.image.opencv import cv2
from utils.inference.base import open_picture
from utils.io.errors import UserError
from utils.io.logger import logger

_SHARE = 0.55  # of the colours in the mixture with the picture


def draw_heatmaps(detector, settings):
    """Write NAME_stride8.jpg, ..., NAME_joined.jpg of the picture settings.image into dir_save_path.

    detector: a utils.inference.Detector. settings: predict.py's constants. The colours go from blue, 0, to red, the
    highest score on the picture, which is printed for each map. Returns the paths. Raises ValueError without a picture.
    """
    if not settings.image:
        raise UserError("image is ''; expected the picture to look at.")
    image_rgb = open_picture(settings.image, settings.max_megapixels)
    maps, folder, paths = score_maps(detector, image_rgb), Path(settings.dir_save_path), []
    folder.mkdir(parents=True, exist_ok=True)
    best = max(scores.max() for scores in maps.values())
    for name, scores in maps.items():
        paths.append(folder / f"{Path(settings.image).stem}_{name}.jpg")
        write_image(str(paths[-1]), overlay(image_rgb, scores / max(best, 1e-9)))
        logger.info(f"{name:<9} highest score {scores.max():.3f}; saved {paths[-1]}")
    return paths


@torch.no_grad()
def score_maps(detector, image_rgb):
    """{"stride8": (H, W) float32 in 0..1, ..., "joined": the highest of all}: objectness times the probability of the
    best class, in pixels of the network's input that the picture covers. Of a network of queries "boxes" alone: of
    those that cover a pixel the surest.
    """
    batch, (placed,) = detector.preprocess([image_rgb])
    raw = detector.forward(batch)
    decoded = detector.model.decode(raw)
    if decoded.objectness is None:
        return {"boxes": _box_map(decoded, batch.shape[1:3], placed)}
    scores = (decoded.objectness.sigmoid() * decoded.class_logits.max(-1).values.sigmoid())[0]
    cells = [level.shape[-2] * level.shape[-1] for level in raw]
    each = len(scores) // sum(cells)  # boxes of a cell: one, or one for each anchor
    maps = {}
    levels = scores.split([each * count for count in cells])
    for stride, level, level_scores in zip(detector.model.strides, raw, levels, strict=True):
        grid = level_scores.view(*level.shape[-2:], each).max(2).values.cpu().numpy()
        whole = cv2.resize(grid, batch.shape[2:0:-1], interpolation=cv2.INTER_LINEAR)
        maps[f"stride{stride}"] = _of_picture(whole, placed)
    return maps | {"joined": np.max(list(maps.values()), 0)}


def _box_map(decoded, size_hw, placed):
    scores = decoded.class_logits[0].amax(-1).sigmoid().cpu().numpy()
    boxes_xyxy = decoded.boxes_xyxy[0].round().clamp(min=0).int().cpu().numpy()
    whole = np.zeros(size_hw, np.float32)
    for number in scores.argsort():  # the surest last, over all others
        x1, y1, x2, y2 = boxes_xyxy[number]
        whole[y1:y2, x1:x2] = scores[number]
    return _of_picture(whole, placed)


def _of_picture(whole, placed):
    """The part of a map of the network's input that the picture covers."""
    (height, width), top, left = placed.new_hw, placed.offset_y, placed.offset_x
    return whole[top : top + height, left : left + width]


def overlay(image_rgb, heat):
    """A picture under the colours of a map (h, w) of 0..1, which is stretched over it; uint8 as the picture."""
    heat = cv2.resize(heat, image_rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours_bgr = cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.addWeighted(cv2.cvtColor(colours_bgr, cv2.COLOR_BGR2RGB), _SHARE, image_rgb, 1 - _SHARE, 0)
