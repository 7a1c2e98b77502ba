"""What the losses of all networks share: options, overlap of boxes as a loss, objectness, and how terms are scaled."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from nets.boxes import EPSILON, area, paired_iou

IOU_TYPES = ("iou", "ciou", "siou")
# Pairs of predictions and boxes whose overlap is computed at once: 64 MiB a tensor.
MAX_OVERLAPS = 2**24


class Criterion(nn.Module):
    """Base of all losses: `criterion(raw, targets) -> {"loss", part ..., "count"}`, see scale_losses.

    needs_host: whether a step waits for the CPU, so that it cannot be recorded for the GPU.
    """

    needs_host = False

    def extra_inputs(self, targets, images):
        """What the network gets beside the images in a training step on these targets: a tuple of tensors (B, ...).

        targets: on the device of the images, or in the host's memory; the result is on that of the images. Empty for
        YOLO. A detector that learns to denoise boxes gets its queries here.
        """
        return ()


class LossOptions(NamedTuple):
    """What a user may choose about the loss.

    iou_type: one of IOU_TYPES, '' for the network's own. label_smoothing: share of a class target that is spread over
    all classes. focal_loss: objectness pays for hard cells above all, with focal_alpha (weight of the cells that hold
    an object; the others have 1 - focal_alpha) and focal_gamma. ignore_iou: a prediction that overlaps a box more than
    this is no negative example; 1 for none. map_weights: factor of each map's objectness, ascending in stride, empty
    for 1. The last two concern networks with anchors.
    """

    iou_type: str = ""
    label_smoothing: float = 0.0
    focal_loss: bool = False
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    ignore_iou: float = 0.7
    map_weights: tuple = ()


def box_loss(iou_type, predicted_xyxy, target_xyxy):
    """How far predicted boxes are from their targets, and their IoU.

    predicted_xyxy, target_xyxy: (..., 4). Returns (loss (...), IoU (...) without gradient). 'iou' is 1 - IoU^2
    (YOLOX), 'ciou' Zheng et al. 2020, 'siou' Gevorgyan 2022. All are finite for boxes without area.
    """
    iou = paired_iou(predicted_xyxy, target_xyxy)
    if iou_type == "iou":
        return 1 - iou.square(), iou.detach()
    penalty = _ciou_penalty if iou_type == "ciou" else _siou_penalty
    return 1 - iou + penalty(predicted_xyxy, target_xyxy, iou.detach()), iou.detach()


def _sides(boxes_xyxy):
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=EPSILON)


def _centres(boxes_xyxy):
    return (boxes_xyxy[..., 2:] + boxes_xyxy[..., :2]) / 2


def _enclosing_sides(first_xyxy, second_xyxy):
    """Width and height of the smallest box around both."""
    top_left = torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2])
    return (torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:]) - top_left).clamp(min=EPSILON)


def _ciou_penalty(predicted_xyxy, target_xyxy, iou):
    """Distance of the centres over the enclosing diagonal, and difference of the aspect ratios."""
    distance = (_centres(predicted_xyxy) - _centres(target_xyxy)).square().sum(-1)
    diagonal = _enclosing_sides(predicted_xyxy, target_xyxy).square().sum(-1)
    angles = [torch.atan(sides[..., 0] / sides[..., 1]) for sides in (_sides(predicted_xyxy), _sides(target_xyxy))]
    difference = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    # A constant factor: the aspect ratio counts the more, the better the boxes overlap.
    share = difference.detach() / (1 - iou + difference.detach() + EPSILON)
    return distance / (diagonal + EPSILON) + share * difference


def _siou_penalty(predicted_xyxy, target_xyxy, _iou):
    """Half of: distance of the centres, dearer where it is aligned with no axis, and difference of the sides."""
    offset = _centres(predicted_xyxy) - _centres(target_xyxy)
    # sin(2 * angle) of the line between the centres: 0 along an axis, 1 on the diagonal.
    angle = 2 * offset.abs().prod(-1) / (offset.square().sum(-1) + EPSILON)
    share = (offset / _enclosing_sides(predicted_xyxy, target_xyxy)).square()
    distance = (1 - torch.exp((angle[..., None] - 2) * share)).sum(-1)
    predicted, target = _sides(predicted_xyxy), _sides(target_xyxy)
    difference = (predicted - target).abs() / torch.maximum(predicted, target)
    shape = (1 - torch.exp(-difference)).pow(4).sum(-1)
    return (distance + shape) / 2


def objectness_loss(logits, targets, options):
    """Cross entropy of objectness logits against targets 0..1 of the same shape, focal where the options ask for it."""
    if options.focal_loss:
        return sigmoid_focal_loss(logits, targets, options.focal_alpha, options.focal_gamma)
    return binary_cross_entropy_with_logits(logits, targets, reduction="none")


def class_targets(classes, num_classes, label_smoothing):
    """Class numbers (...), of any value where they do not count, to target probabilities (..., num_classes)."""
    # one_hot would look at all values first, which makes the host wait.
    targets = (classes.long().unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).float()
    return targets * (1 - label_smoothing) + label_smoothing / num_classes if label_smoothing else targets


def class_loss(logits, targets):
    """Cross entropy (...) of class logits and target probabilities, both (..., C)."""
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


def scale_losses(sums, positives):
    """Turn the sums over a batch into what is logged and learned from.

    sums: {part: scalar}. positives: (B, ...) bool, one entry for each cell that may learn a box.
    Returns {"loss": sum of all parts, part: ..., "count": (2,) positives and images}. All parts are divided by the
    larger of the two counts: a batch that holds hardly a box shall not push harder than others. Batches that are
    summed up to one divide by the larger of the summed counts.
    """
    count = torch.stack([positives.sum(), positives.new_full((), len(positives), dtype=torch.int64)]).float()
    parts = {part: value / count.max() for part, value in sums.items()}
    return {"loss": sum(parts.values()), **parts, "count": count}


def overlapping(predicted_xyxy, targets, min_iou):
    """Which predictions overlap any box by more than min_iou: (B, N, 4) and (B, G, 5), padded by class -1 -> (B, N).

    So many images at a time that MAX_OVERLAPS pairs lie in memory.
    """
    pairs = predicted_xyxy.shape[1] * max(targets.shape[1], 1)
    images = max(MAX_OVERLAPS // pairs, 1)
    parts = zip(predicted_xyxy.split(images), targets.split(images), strict=True)
    return torch.cat([_overlapping(*part, min_iou) for part in parts])


def _overlapping(predicted_xyxy, targets, min_iou):
    x1, y1, x2, y2 = predicted_xyxy[:, :, None].unbind(-1)
    left, top, right, bottom, classes = targets[:, None].unbind(-1)
    width = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).clamp_(min=0)
    height = torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).clamp_(min=0)
    intersection = width.mul_(height)
    areas = area(predicted_xyxy)[:, :, None] + area(targets[..., :4])[:, None]
    # intersection / (areas - intersection) > min_iou, without another tensor of this size for the quotient.
    return ((intersection * (1 + min_iou) > areas.mul_(min_iou)) & (classes >= 0)).any(-1)


def resolve_conflicts(cost, cells, num_cells):
    """Give each cell to one box at most.

    cost: (B, G, S), infinite where a cell is not wanted; cells: (B, G, S) int64 positions among num_cells, no two
    wanted ones of a box alike. The lowest cost wins, the first box of equals. Returns (positive (B, num_cells) bool:
    the cell learns a box, box_index (B, num_cells) int64: which of the G, 0 where not positive).
    """
    batch, boxes, _ = cost.shape
    flat_cost, flat_cells = cost.flatten(1), cells.flatten(1)
    lowest = flat_cost.new_full((batch, num_cells), torch.inf).scatter_reduce(1, flat_cells, flat_cost, "amin")
    wins = flat_cost.isfinite() & (flat_cost == lowest.gather(1, flat_cells))
    box = torch.arange(boxes, device=cost.device).view(1, -1, 1).expand_as(cells).flatten(1)
    owner = cells.new_full((batch, num_cells), boxes)
    owner = owner.scatter_reduce(1, flat_cells, torch.where(wins, box, boxes), "amin")
    positive = owner < boxes
    return positive, owner.masked_fill(~positive, 0)
