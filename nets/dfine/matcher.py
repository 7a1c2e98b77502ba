"""Which query learns which box: the cheapest assignment of each output, and the union of them all.

Source: Carion et al. 2020 (DETR), section 3.1; D-FINE, appendix A.3; Peterande/D-FINE, src/zoo/dfine/matcher.py.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from nets.boxes import centre_size_to_xyxy, paired_giou

CLASS_WEIGHT, DISTANCE_WEIGHT, IOU_WEIGHT = 2, 5, 2
ALPHA, GAMMA, EPSILON = 0.25, 2, 1e-8


class Pairs(NamedTuple):
    """Queries and the boxes that they learn: images, queries, boxes, each (P,) int64."""

    images: torch.Tensor
    queries: torch.Tensor
    boxes: torch.Tensor


@torch.no_grad()
def match(outputs, classes, boxes):
    """The Pairs of each output by itself, and those of their union.

    outputs: pairs of logits (B, Q, C) and boxes (B, Q, 4), centre and size. classes: (B, G) int64, -1 for padding.
    boxes: (B, G, 4) centre and size. Both in the unit of the outputs' boxes. Returns (list of Pairs, Pairs).
    """
    costs = torch.stack([assignment_cost(logits, found, classes, boxes) for logits, found in outputs])
    # Here the host waits for the device, for all outputs and images at once.
    costs, is_box = costs.nan_to_num(nan=1.0).cpu().numpy(), (classes >= 0).cpu().numpy()
    chosen = [
        [_assign(costs[output, image][:, is_box[image]], is_box[image]) for image in range(len(classes))]
        for output in range(len(outputs))
    ]
    chosen.append([_union([output[image] for output in chosen]) for image in range(len(classes))])
    found = [_to_pairs(output, classes.device) for output in chosen]
    return found[:-1], found[-1]


def assignment_cost(logits, found, classes, boxes):
    """(B, Q, G) what it costs that a query learns a box, by class, distance and overlap."""
    probabilities = logits.float().sigmoid()
    negative = (1 - ALPHA) * probabilities**GAMMA * -(1 - probabilities + EPSILON).log()
    positive = ALPHA * (1 - probabilities) ** GAMMA * -(probabilities + EPSILON).log()
    index = classes.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    class_cost = (positive - negative).gather(2, index)
    distance = torch.cdist(found.float(), boxes, p=1)
    corners_xyxy = centre_size_to_xyxy(found.float())[:, :, None], centre_size_to_xyxy(boxes)[:, None]
    overlap = paired_giou(*corners_xyxy)
    return CLASS_WEIGHT * class_cost + DISTANCE_WEIGHT * distance - IOU_WEIGHT * overlap


def _assign(cost, is_box):
    """{(query, box)} of the cheapest assignment. cost: (Q, boxes that are there). is_box: (G,) bool."""
    if not cost.shape[1]:
        return []
    from lap import lapjv  # of lapx; only this family of networks needs it

    _, query_of, _ = lapjv(np.ascontiguousarray(cost.T, dtype=np.float64), extend_cost=True)
    return [(int(query), int(box)) for query, box in zip(query_of, np.flatnonzero(is_box), strict=True) if query >= 0]


def _union(assignments):
    """The pairs of all assignments of an image, each query with the box that most of them give it.

    Of equally frequent ones the first box wins, so that the same numbers always give the same pairs.
    """
    counts = Counter(pair for pairs in assignments for pair in pairs)
    box_of = {}
    for (query, box), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        box_of.setdefault(query, box)
    return sorted(box_of.items())


def _to_pairs(images, device):
    rows = [(image, *pair) for image, pairs in enumerate(images) for pair in pairs]
    return Pairs(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T.to(device))
