"""Box sides as distributions: D-FINE's bins, and the boxes that they mean.

Source: D-FINE (Peng et al. 2024), section 4.1 and appendix; Peterande/D-FINE, src/zoo/dfine/dfine_utils.py.
"""

import torch

from nets.boxes import centre_size_to_xyxy

# Bins of a side are numbered 0 to BINS.
BINS = 32
SMALLEST = 1e-16


def bin_values(up, reg_scale):
    """(BINS + 1,) float32 the distance that each bin stands for: fine near 0, coarse far from it, two ends.

    up, reg_scale: factors of the weight file, as numbers or tensors.
    """
    bound = abs(up) * abs(reg_scale)
    step = (bound + 1) ** (2 / (BINS - 2))
    right = [step**number - 1 for number in range(1, BINS // 2)]
    values = [-2 * bound, *(-value for value in reversed(right)), 0 * bound, *right, 2 * bound]
    return torch.stack([torch.as_tensor(value, dtype=torch.float32).reshape(()) for value in values])


def expected_distances(corners, values):
    """The mean of each side's distribution. corners: (..., 4 * (BINS + 1)) logits. Returns (..., 4) float32."""
    return corners.float().unflatten(-1, (4, BINS + 1)).softmax(-1) @ values


def distances_to_boxes(reference_cxcywh, distances, reg_scale):
    """The boxes that lie so far from a reference: left, top, right, bottom in the unit of its sides over reg_scale.

    reference_cxcywh: (..., 4). distances: (..., 4). Returns (..., 4) centre and size.
    """
    centre, size = reference_cxcywh.float().split(2, dim=-1)
    unit = size / reg_scale
    top_left = centre - (reg_scale / 2 + distances[..., :2]) * unit
    bottom_right = centre + (reg_scale / 2 + distances[..., 2:]) * unit
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def boxes_to_distances(reference_cxcywh, boxes_cxcywh, reg_scale):
    """The inverse of distances_to_boxes: (..., 4)."""
    centre, size = reference_cxcywh.split(2, dim=-1)
    corners_xyxy = centre_size_to_xyxy(boxes_cxcywh)
    unit = size / reg_scale + SMALLEST
    left_top = (centre - corners_xyxy[..., :2]) / unit - reg_scale / 2
    right_bottom = (corners_xyxy[..., 2:] - centre) / unit - reg_scale / 2
    return torch.cat((left_top, right_bottom), dim=-1)


def soft_bins(distances, values):
    """Between which bins distances lie: (number of the left one int64, weight of it, weight of the right one).

    distances: (...). Beyond the ends the last bin has all the weight.
    """
    left = (torch.bucketize(distances, values, right=True) - 1).clamp(0, BINS - 1)
    low, high = values[left], values[left + 1]
    right_weight = ((distances - low) / (high - low)).clamp(0, 1)
    return left, 1 - right_weight, right_weight
