"""Which anchors learn which box, by shape (Redmon & Farhadi 2018, "YOLOv3", section 2.1; `iou_thresh` of Darknet's
yolov4.cfg for further anchors).

Shapes: B images, G padded boxes per image, L maps with A anchors each, K = L * A anchors in all, N predictions.
A box can only be learned in the cell that its centre lies in, by one of K anchors: all shapes are static, and nothing
leaves the device.
"""

from typing import NamedTuple

import torch

from nets.boxes import shape_iou
from nets.losses import resolve_conflicts

# Beside the best anchor, every one whose shape overlaps the box's by this IoU learns it too.
MATCH_IOU = 0.213


class Matches(NamedTuple):
    """predictions (B, G, K) int64: positions among the N of decode. learns (B, G, K) bool: this one learns box g.

    positive (B, N) bool: the prediction learns a box.
    """

    predictions: torch.Tensor
    learns: torch.Tensor
    positive: torch.Tensor


@torch.no_grad()
def match(targets, anchors, map_sizes, strides):
    """Choose the anchors that learn each box.

    targets: (B, G, 5) x1, y1, x2, y2 in input pixels and class, -1 marks padding. anchors: (L, A, 2) width and height
    in input pixels; map_sizes: (h, w) per map; strides: pixels per cell; all ascending in stride. A prediction wanted
    by several boxes goes to the one whose shape fits best (the first of equals). Returns Matches.
    """
    predictions, num_predictions = candidates(targets, anchors.shape[1], map_sizes, strides)
    iou = shape_iou(targets, anchors)
    best = torch.zeros_like(iou, dtype=torch.bool).scatter(-1, iou.argmax(-1, keepdim=True), True)
    wanted = (best | (iou > MATCH_IOU)) & (targets[..., 4:] >= 0)
    cost = (-iou).masked_fill(~wanted, torch.inf)
    positive, owner = resolve_conflicts(cost, predictions, num_predictions)
    box = torch.arange(targets.shape[1], device=targets.device)[:, None]
    learns = wanted & (owner.gather(1, predictions.flatten(1)).view_as(predictions) == box)
    return Matches(predictions, learns, positive)


def candidates(targets, anchors_per_map, map_sizes, strides):
    """The anchors of the cells that each box's centre lies in.

    Returns their positions (B, G, K) int64 among the predictions of decode, and the number of these.
    """
    centre = (targets[..., :2] + targets[..., 2:4]) / 2
    anchor = torch.arange(anchors_per_map, device=targets.device)
    positions, first = [], 0
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        column = (centre[..., 0] / stride).long().clamp(0, width - 1)
        row = (centre[..., 1] / stride).long().clamp(0, height - 1)
        positions.append((first + row * width + column)[..., None] * anchors_per_map + anchor)
        first += height * width
    return torch.cat(positions, dim=-1), first * anchors_per_map
