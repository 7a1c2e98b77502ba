"""SimOTA: which cells learn which box (YOLOX paper, section 2.1, "SimOTA"; OTA, Ge et al. 2021).

Shapes: B images, G padded boxes per image, N cells of all maps, K candidate cells of one box, S selected at most.
A box can only be learned by the 3x3 cells around its centre on each map, so K = 9 * maps is fixed and small. Costs are
gathered for these K cells alone, instead of filling a table of G x N; all shapes are static, nothing leaves the device.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid

from nets.boxes import paired_iou
from nets.losses import resolve_conflicts

# Cells within 1.5 strides of the centre: the one the centre lies in and its eight neighbours.
NEIGHBOURS = 1
# Dynamic k: as many cells as the sum of the 10 highest IoUs says.
MAX_CELLS_PER_BOX = 10
IOU_WEIGHT = 3.0
# Stands for log(0), as in torch's binary cross entropy.
LOG_ZERO = -100.0


class Assignment(NamedTuple):
    """positive (B, N) bool: the cell learns a box. box_index (B, N) int64: which of the G; 0 where not positive."""

    positive: torch.Tensor
    box_index: torch.Tensor


@torch.no_grad()
def assign(decoded, targets, map_sizes, strides):
    """Choose the cells that learn each box.

    decoded: a Decoded. targets: (B, G, 5) x1, y1, x2, y2 in input pixels and class, -1 marks
    padding. map_sizes: (h, w) per map, strides: pixels per cell, both ascending in stride. Returns an Assignment.
    Each box gets its k cheapest candidates, k = sum of its ten best IoUs, at least one; a cell wanted by several boxes
    goes to the one with the lowest cost (the first of equals).
    """
    cells, valid = candidate_cells(targets, map_sizes, strides)
    cost, iou = matching_cost(decoded, targets, cells)
    cost = cost.masked_fill(~valid, torch.inf)
    selectable = min(MAX_CELLS_PER_BOX, cost.shape[-1])
    wanted = iou.masked_fill(~valid, 0.0).topk(selectable).values.sum(-1).int().clamp(min=1)
    cost, order = cost.topk(selectable, largest=False)
    rank = torch.arange(selectable, device=cost.device)
    cost = cost.masked_fill(rank >= wanted.unsqueeze(-1), torch.inf)
    return Assignment(*resolve_conflicts(cost, cells.gather(-1, order), decoded.boxes_xyxy.shape[1]))


def candidate_cells(targets, map_sizes, strides):
    """The 3x3 cells around each box's centre on each map.

    targets: (B, G, 5). Returns cells (B, G, K) int64, positions among the N cells, and valid (B, G, K) bool: the cell
    exists on the map and the box is no padding.
    """
    centre_x = (targets[..., 0] + targets[..., 2]) / 2
    centre_y = (targets[..., 1] + targets[..., 3]) / 2
    offset = torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=targets.device)
    cells, valid, first = [], [], 0
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        column = (centre_x / stride).long()[..., None, None] + offset
        row = (centre_y / stride).long()[..., None, None] + offset[:, None]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        position = first + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        cells.append(position.flatten(2))
        valid.append(inside.flatten(2))
        first += height * width
    is_box = targets[..., 4:] >= 0
    return torch.cat(cells, dim=-1), torch.cat(valid, dim=-1) & is_box


def matching_cost(decoded, targets, cells):
    """Cost of each candidate: class cross entropy of sqrt(objectness * class) plus 3 * -log IoU.

    decoded: a Decoded, targets: (B, G, 5), cells: (B, G, K). Returns cost and IoU, both (B, G, K).
    """
    batch, boxes, candidates = cells.shape
    num_classes = decoded.class_logits.shape[-1]
    flat = cells.flatten(1)
    predicted_xyxy = decoded.boxes_xyxy.gather(1, flat[..., None].expand(-1, -1, 4))
    predicted_xyxy = predicted_xyxy.view(batch, boxes, candidates, 4)
    iou = paired_iou(predicted_xyxy, targets[..., None, :4])

    log_p = (logsigmoid(decoded.class_logits) + logsigmoid(decoded.objectness[..., None])) / 2
    log_not_p = torch.log1p(-log_p.exp()).clamp(min=LOG_ZERO)
    # The cross entropy against a one-hot class: "not p" summed over all classes, then the true class put right.
    as_background = -log_not_p.sum(-1).gather(1, flat).view(batch, boxes, candidates)
    true_class = cells * num_classes + targets[..., 4:].long().clamp(min=0)
    correction = (log_not_p - log_p.clamp(min=LOG_ZERO)).flatten(1).gather(1, true_class.flatten(1)).view_as(cells)
    return as_background + correction - IOU_WEIGHT * torch.log(iou + 1e-8), iou
