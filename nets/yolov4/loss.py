"""The loss of networks with anchors: boxes, objectness and classes over the anchors that fit by shape."""

from nets.losses import Criterion, box_loss, class_loss, class_targets, objectness_loss, overlapping, scale_losses
from nets.yolov4.matcher import match

BOX_WEIGHT = 5.0


class AnchorLoss(Criterion):
    """criterion(raw, targets) -> {"loss", "box", "obj", "cls"}: scalars, scaled and ready to log, and "count".

    model: the AnchorNetwork whose raw maps are compared with the targets. options: LossOptions. raw: maps (B, A * (5 +
    C), h, w); targets: (B, G, 5) x1, y1, x2, y2 in input pixels and class, -1 marks padding. For scale and count see
    nets.losses.scale_losses. Boxes without area, and images without boxes, give finite losses. Raises ValueError where
    options.map_weights does not fit the network.
    """

    def __init__(self, model, options):
        super().__init__()
        # Not as a submodule: the criterion shall hold no weights, only ask how the maps are read.
        self.decode, self.anchors_of = model.decode, lambda: model.anchors
        self.strides = model.strides
        self.options = options
        self.iou_type = options.iou_type or "ciou"
        self.map_weights = tuple(options.map_weights) or (1.0,) * len(model.strides)
        if len(self.map_weights) != len(model.strides):
            raise ValueError(
                f"map_weights has {len(self.map_weights)} numbers, and {model.name} has {len(model.strides)} maps; "
                "give one number for each, fine map first, or [] for 1."
            )

    def forward(self, raw, targets):
        decoded = self.decode(raw)
        map_sizes = [tuple(level.shape[-2:]) for level in raw]
        anchors = self.anchors_of()
        predictions, learns, positive = match(targets, anchors, map_sizes, self.strides)

        # Only what may learn a box is looked at: G * K predictions instead of all N.
        boxes, candidates = predictions.shape[1:]
        boxes_xyxy, class_logits = (
            values.gather(1, predictions.flatten(1)[..., None].expand(-1, -1, values.shape[-1])).unflatten(
                1, (boxes, candidates)
            )
            for values in (decoded.boxes_xyxy, decoded.class_logits)
        )
        box, _ = box_loss(self.iou_type, boxes_xyxy, targets[:, :, None, :4])
        wanted = class_targets(targets[..., 4], class_logits.shape[-1], self.options.label_smoothing)
        classes = class_loss(class_logits, wanted[:, :, None].expand_as(class_logits))

        sums = {
            "box": BOX_WEIGHT * (box * learns).sum(),
            "obj": self.objectness(decoded, targets, positive, map_sizes, anchors.shape[1]),
            "cls": (classes * learns).sum(),
        }
        return scale_losses(sums, positive)

    def objectness(self, decoded, targets, positive, map_sizes, anchors_per_map):
        """Sum over all predictions but those that see a box well without being chosen to learn it."""
        loss = objectness_loss(decoded.objectness, positive.float(), self.options)
        if self.options.ignore_iou < 1:
            ignored = overlapping(decoded.boxes_xyxy.detach(), targets, self.options.ignore_iou) & ~positive
            loss = loss.masked_fill(ignored, 0.0)
        sizes = [height * width * anchors_per_map for height, width in map_sizes]
        parts = loss.split(sizes, dim=1)
        return sum(weight * part.sum() for weight, part in zip(self.map_weights, parts, strict=True))
