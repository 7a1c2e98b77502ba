"""Decoded as one tensor (B, N, 5 + C) and back: boxes, objectness, classes side by side are easier to write down."""

import torch

from nets.base import Decoded


def packed(decoded):
    """A Decoded -> (B, N, 5 + C): x1, y1, x2, y2, objectness logit, class logits."""
    return torch.cat((decoded.boxes_xyxy, decoded.objectness[..., None], decoded.class_logits), dim=-1)


def unpacked(values):
    """What `packed` gives -> a Decoded."""
    return Decoded(values[..., :4], values[..., 5:], values[..., 4])


def decoded_rows(*rows):
    """One image's Decoded of two classes, from (box, objectness logit, two class logits) of each place."""
    return unpacked(torch.tensor([[*box, *logits] for box, *logits in rows]).view(1, -1, 7))
