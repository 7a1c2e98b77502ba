"""Queries made of the boxes themselves, with noise: in training the decoder also learns to take the noise away.

Source: Zhang et al. 2022 (DINO), section 3.3; Peterande/D-FINE, src/zoo/dfine/denoising.py.
"""

from typing import NamedTuple

import torch

from nets.boxes import centre_size_to_xyxy
from nets.dfine.decoder import inverse_sigmoid
from nets.dfine.matcher import Pairs

QUERIES, CLASS_NOISE, BOX_NOISE = 100, 0.25, 1.0


class Noise(NamedTuple):
    """What is drawn for (B, K) queries: whether the class is another one and which, (B, K), and how the corners move:
    direction and share, (B, K, 4), share 0 to 1."""

    is_other: torch.Tensor
    classes: torch.Tensor
    is_positive: torch.Tensor
    shares: torch.Tensor


class DenoisingQueries(NamedTuple):
    """What DFINEDecoder takes: classes (B, K), box_logits (B, K, 4), groups (B, K)."""

    classes: torch.Tensor
    box_logits: torch.Tensor
    groups: torch.Tensor


def layout(boxes, queries=QUERIES):
    """(number of groups, queries of a group) for at most so many boxes of an image."""
    return max(1, queries // boxes), 2 * boxes


def draw_noise(batch, number, num_classes, device):
    shape = batch, number
    return Noise(
        torch.rand(shape, device=device) < CLASS_NOISE,
        torch.randint(num_classes, shape, device=device),
        torch.rand((*shape, 4), device=device) < 0.5,
        torch.rand((*shape, 4), device=device),
    )


def denoising_queries(classes, boxes, num_classes, queries=QUERIES, noise=None):
    """Each box twice in each group: near it, from which it is learned, and further off.

    classes: (B, G) int64, -1 for padding behind the boxes. boxes: (B, G, 4) centre and size as shares. noise: drawn
    here where it is None.
    """
    batch, number = classes.shape
    groups, size = layout(number, queries)
    noise = noise or draw_noise(batch, groups * size, num_classes, boxes.device)
    is_box = (classes >= 0).repeat(1, 2 * groups)
    known = classes.repeat(1, 2 * groups).where(is_box, torch.full_like(classes[:, :1], num_classes))
    known = torch.where(noise.is_other & is_box, noise.classes, known)
    place = torch.arange(groups * size, device=boxes.device)
    is_far = (place % size >= number)[None, :, None]
    boxes = boxes.repeat(1, 2 * groups, 1)
    move = (noise.shares + is_far) * BOX_NOISE * torch.where(noise.is_positive, 1, -1)
    corners_xyxy = centre_size_to_xyxy(boxes) + move * boxes[..., 2:].repeat(1, 1, 2) / 2
    corners_xyxy = corners_xyxy.clamp(0, 1)
    centre, sides = (corners_xyxy[..., :2] + corners_xyxy[..., 2:]) / 2, corners_xyxy[..., 2:] - corners_xyxy[..., :2]
    # Corners that passed each other leave negative sides.
    box_logits = inverse_sigmoid(torch.cat((centre, sides), dim=-1).abs())
    return DenoisingQueries(known, box_logits, (place // size).expand(batch, -1))


def denoising_pairs(classes, queries=QUERIES):
    """The Pairs of the near queries and their boxes. classes: (B, G), -1 for padding behind the boxes."""
    groups, size = layout(classes.shape[1], queries)
    images, boxes = (classes >= 0).nonzero(as_tuple=True)
    starts = torch.arange(groups, device=classes.device) * size
    return Pairs(images.repeat_interleave(groups), (boxes[:, None] + starts).flatten(), boxes.repeat_interleave(groups))
