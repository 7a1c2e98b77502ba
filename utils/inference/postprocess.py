"""From decoded predictions to boxes: suppression, and several views of one image."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from utils.image.letterbox import boxes_to_image
from utils.inference.base import ImageDetections

# More candidates than this per image are cut to the best before suppression, whose cost is quadratic.
MAX_CANDIDATES = 3000


@torch.no_grad()
def suppress(decoded, confidence, nms_iou, max_boxes=100):
    """Turn decoded predictions into the boxes that stay.

    decoded: (B, N, 5 + C) from model.decode. confidence: lowest objectness * class probability, 0..1, one for all or
    one for each class. nms_iou: boxes of one class that overlap more than this are one. Each cell names its most
    probable class. Returns for each image (boxes_xyxy (n, 4) input pixels, scores (n,), class_ids (n,)), best first, at
    most max_boxes.
    """
    lowest = torch.as_tensor(confidence, dtype=torch.float32, device=decoded.device).expand(decoded.shape[-1] - 5)
    results = []
    for cells, objectness in zip(decoded, decoded[..., 4].sigmoid(), strict=True):
        # No class lifts a cell above its objectness, so that most cells need no look at their classes.
        keep = (objectness >= lowest.min()).nonzero().squeeze(1)
        cells, objectness = cells[keep], objectness[keep]
        class_probability, classes = cells[:, 5:].max(-1)
        score = objectness * class_probability.sigmoid()
        keep = (score >= lowest[classes]).nonzero().squeeze(1)
        if len(keep) > MAX_CANDIDATES:
            keep = keep[score[keep].topk(MAX_CANDIDATES).indices]
        boxes_xyxy, score, classes = cells[keep, :4], score[keep], classes[keep]
        keep = batched_nms(boxes_xyxy, score, classes, nms_iou)[:max_boxes]
        results.append((boxes_xyxy[keep], score[keep], classes[keep]))
    return results


def to_image(result, placement, size_hw):
    """One entry of suppress -> ImageDetections in pixels of the original image, clipped to it."""
    boxes_xyxy, scores, class_ids = (part.float().cpu().numpy() for part in result)
    return ImageDetections(boxes_to_image(boxes_xyxy, placement, size_hw), scores, class_ids.astype(np.int64))


class Views(nn.Module):
    """A network that looks at its images in several ways (test-time augmentation) and decodes what it saw in all.

    It is used as the network itself. flip: look in a mirror too. scales: of the input's sides, which are rounded to
    multiples of the largest stride, 32.
    """

    def __init__(self, model, flip, scales):
        super().__init__()
        self.model, self.flip, self.scales = model, flip, tuple(scales)

    def forward(self, images):
        """(B, 3, H, W) -> [(raw maps, (h, w) of this view, whether it is mirrored, (H, W))]."""
        views, whole_hw = [], tuple(images.shape[-2:])
        for scale in self.scales:
            size_hw = tuple(max(1, round(side * scale / 32)) * 32 for side in whole_hw)
            view = images
            if size_hw != whole_hw:
                view = interpolate(images.float(), size_hw, mode="bilinear", antialias=True)
            views += [
                (self.model(view.flip(-1) if mirrored else view), size_hw, mirrored, whole_hw)
                for mirrored in (False, True)[: 1 + self.flip]
            ]
        return views

    def decode(self, views):
        """What forward gives -> (B, N, 5 + C) as a network's, N counts the boxes of all views, in pixels of (H, W)."""
        decoded = []
        for raw, (height, width), mirrored, whole_hw in views:
            boxes_xyxy, logits = self.model.decode(raw).split_with_sizes((4, 1 + self.model.num_classes), -1)
            if mirrored:
                x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
                boxes_xyxy = torch.stack((width - x2, y1, width - x1, y2), -1)
            ratio = boxes_xyxy.new_tensor((whole_hw[1] / width, whole_hw[0] / height)).repeat(2)
            decoded.append(torch.cat((boxes_xyxy * ratio, logits), -1))
        return torch.cat(decoded, 1)
