"""The loss of YOLOX: IoU, objectness, class and L1 terms over SimOTA's cells."""

import torch

from nets.base import cell_grid
from nets.losses import Criterion, box_loss, class_loss, class_targets, objectness_loss, scale_losses
from nets.yolox.simota import assign

BOX_WEIGHT = 5.0


class YOLOXLoss(Criterion):
    """criterion(raw, targets) -> {"loss", "box", "obj", "cls", "l1"}: scalars, scaled and ready to log, and "count".

    model: the network whose raw maps are compared with the targets; its decode and strides are used. options:
    LossOptions. The paper adds L1 for the last epochs alone; in trainings of some hundred steps it helps from the
    first. raw: maps (B, 5 + C, h, w); targets: (B,
    G, 5) x1, y1, x2, y2 in input pixels and class, -1 marks padding. For scale and count see nets.losses.scale_losses.
    Boxes without area, and images without boxes, give finite losses. Raises ValueError for options.map_weights, which
    this loss does not have.
    """

    def __init__(self, model, options):
        super().__init__()
        self.decode = model.decode
        self.strides = model.strides
        self.options = options
        self.iou_type = options.iou_type or "iou"
        if options.map_weights:
            raise ValueError(f"map_weights concerns networks with anchors, and {model.name} has none: set it to [].")

    def forward(self, raw, targets):
        decoded = self.decode(raw)
        map_sizes = [tuple(level.shape[-2:]) for level in raw]
        positive, box_index = assign(decoded, targets, map_sizes, self.strides)
        matched = targets.gather(1, box_index.unsqueeze(-1).expand(-1, -1, 5))

        box, iou = box_loss(self.iou_type, decoded.boxes_xyxy, matched[..., :4])
        # A class is as certain as its box is good: the target is the IoU, not 1.
        wanted = class_targets(matched[..., 4], decoded.class_logits.shape[-1], self.options.label_smoothing)
        classes = class_loss(decoded.class_logits, wanted * iou.unsqueeze(-1))
        sums = {
            "box": BOX_WEIGHT * (box * positive).sum(),
            "obj": objectness_loss(decoded.objectness, positive.float(), self.options).sum(),
            "cls": (classes * positive).sum(),
            "l1": self.l1_loss(raw, matched, positive),
        }
        return scale_losses(sums, positive)

    def l1_loss(self, raw, matched, positive):
        """Sum of |raw - what the head should have said| over dx, dy, log w, log h of the positive cells."""
        sizes = [level.shape[-2] * level.shape[-1] for level in raw]
        total = 0.0
        for level, stride, box, mask in zip(
            raw, self.strides, matched.split(sizes, 1), positive.split(sizes, 1), strict=True
        ):
            predicted = level[:, :4].float().flatten(2).transpose(1, 2)
            centre = (box[..., :2] + box[..., 2:4]) / 2 / stride - cell_grid(level)
            size = torch.log((box[..., 2:4] - box[..., :2]) / stride + 1e-8)
            total = total + ((predicted - torch.cat((centre, size), -1)).abs().sum(-1) * mask).sum()
        return total
