"""Networks that predict boxes as changes of anchors: what their raw maps mean."""

import torch

from nets.base import MAX_LOG_SIZE, Decoded, DetectorBase, cell_grid
from nets.boxes import centre_size_to_xyxy


class AnchorNetwork(DetectorBase):
    """Base of the networks with anchors: holds them, and decodes.

    decode_rule: {"anchors": [[width, height], ...] in input pixels, "anchors_mask": the anchors of each map, coarse
    stride first as in the classic repos, "scale_x_y": for each map, ascending in stride, how far beyond its cell a
    centre may lie (1 is not at all)}. strides: pixels per cell, ascending. Raises ValueError where the rule does not
    fit the maps.
    """

    def __init__(self, num_classes, pixel_rule, decode_rule, strides):
        super().__init__(num_classes, pixel_rule)
        check_decode_rule(decode_rule, len(strides))
        self.decode_rule = decode_rule
        self.strides = strides
        # From here on maps ascend in stride everywhere: (maps, anchors of a map, 2).
        masks = torch.tensor(decode_rule["anchors_mask"][::-1])
        anchors = torch.tensor(decode_rule["anchors"], dtype=torch.float32)
        self.register_buffer("anchors", anchors[masks], persistent=False)

    @property
    def raw_channels(self):
        """Channels of a raw map: tx, ty, tw, th, objectness logit and C class logits for each anchor."""
        return self.anchors.shape[1] * (5 + self.num_classes)

    def class_rows(self):
        """Parameters with a row for each class: {name: (anchors, rows of each anchor before those of the classes)}."""
        names = [name for name, _ in self.named_parameters() if name.startswith(self.head_prefixes)]
        return {name: (self.anchors.shape[1], 5) for name in names if name.split(".")[-2] == "1"}

    def decode(self, raw):
        """Raw maps -> Decoded; N counts the maps in ascending stride, their cells row by row, and a cell's anchors.

        Source: `get_yolo_box` of AlexeyAB/darknet, src/yolo_layer.c.
        """
        boxes, logits = [], []
        for level, stride, anchors, scale in zip(
            raw, self.strides, self.anchors, self.decode_rule["scale_x_y"], strict=True
        ):
            predicted = level.float().permute(0, 2, 3, 1).unflatten(-1, (len(anchors), -1)).flatten(1, 2)
            offset = predicted[..., :2].sigmoid() * scale - (scale - 1) / 2
            centre = (offset + cell_grid(level)[:, None]) * stride
            size = predicted[..., 2:4].clamp(max=MAX_LOG_SIZE).exp() * anchors
            boxes.append(centre_size_to_xyxy(torch.cat((centre, size), dim=-1)).flatten(1, 2))
            logits.append(predicted[..., 4:].flatten(1, 2))
        logits = torch.cat(logits, dim=1)
        return Decoded(torch.cat(boxes, dim=1), logits[..., 1:], logits[..., 0])


def check_decode_rule(rule, maps):
    """Raise ValueError where anchors and masks do not describe `maps` raw maps."""
    anchors, masks = rule["anchors"], rule["anchors_mask"]
    if len(masks) != maps:
        raise ValueError(
            f"anchors_mask has {len(masks)} lists, and this network {maps} maps; give one list of anchor numbers for "
            "each map, coarse stride first, or leave anchors_path and anchors_mask empty for the network's own."
        )
    if not masks[0] or any(len(mask) != len(masks[0]) for mask in masks):
        raise ValueError(f"anchors_mask is {masks}; every list must have the same number of anchors, at least one.")
    if len(rule["scale_x_y"]) != maps:
        raise ValueError(
            f"scale_x_y has {len(rule['scale_x_y'])} numbers, and this network {maps} maps; it needs one for each."
        )
    wrong = [number for mask in masks for number in mask if not 0 <= number < len(anchors)]
    if wrong:
        raise ValueError(
            f"anchors_mask names anchor {wrong[0]}, but there are only {len(anchors)} anchors, counted from 0; correct "
            "anchors_mask or the file of anchors_path."
        )
