"""Geometry of boxes as tensors, shared by losses, assignment and inference."""

import torch

# Keeps divisions finite for boxes without area; far below the area of one pixel.
EPSILON = 1e-7
# The same for boxes in shares of the image, where an area of a pixel is 1e-7.
SMALLEST_AREA = 1e-16


def centre_size_to_xyxy(boxes_cxcywh):
    """Turn centre and size into corners.

    boxes_cxcywh: (..., 4) centre x, centre y, width, height in any unit. Returns (..., 4) x1, y1, x2, y2 in that unit.
    """
    centre, size = boxes_cxcywh.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def area(boxes_xyxy):
    """Area of (..., 4) boxes x1, y1, x2, y2; zero where a side is zero or negative. Returns (...)."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def paired_iou(first_xyxy, second_xyxy):
    """Intersection over union of boxes at the same place of two broadcastable tensors.

    first_xyxy, second_xyxy: (..., 4) x1, y1, x2, y2 in one unit. Returns (...) in [0, 1]; 0, never NaN, where both
    boxes have no area.
    """
    top_left = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    bottom_right = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = area(torch.cat((top_left, bottom_right), dim=-1))
    union = area(first_xyxy) + area(second_xyxy) - intersection
    return intersection / union.clamp(min=EPSILON)


def shape_iou(targets, anchors):
    """IoU (B, G, K) of boxes and anchors laid upon each other; 0 for boxes without area."""
    sides = (targets[..., 2:4] - targets[..., :2]).clamp(min=0)[:, :, None]
    anchors = anchors.flatten(0, 1)
    intersection = torch.minimum(sides, anchors).prod(-1)
    return intersection / (sides.prod(-1) + anchors.prod(-1) - intersection)


def paired_giou(first_xyxy, second_xyxy):
    """Generalised IoU of boxes at the same place of two broadcastable tensors: (...) in (-1, 1].

    It is the IoU less the share of the smallest box around both that neither covers (Rezatofighi et al. 2019).
    """
    top_left = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    bottom_right = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    intersection = area(torch.cat((top_left, bottom_right), dim=-1))
    union = (area(first_xyxy) + area(second_xyxy) - intersection).clamp(min=SMALLEST_AREA)
    corners = torch.minimum(first_xyxy, second_xyxy)[..., :2], torch.maximum(first_xyxy, second_xyxy)[..., 2:]
    around = area(torch.cat(corners, dim=-1)).clamp(min=SMALLEST_AREA)
    return intersection / union - (around - union) / around
