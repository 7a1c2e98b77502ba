"""From decoded predictions to boxes: suppression, and several views of one image."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from nets.base import Decoded
from utils.image.letterbox import boxes_to_image
from utils.inference.base import Boxes

# More candidates than this per image are cut to the best before suppression, whose cost is quadratic.
PRE_NMS_TOPK = 3000
# Suppression moves each class away by the largest coordinate: of a box without bounds that would swallow all others.
MAX_COORDINATE = 1e5


@torch.no_grad()
def detect(model, raw, options):
    """What a network gives for a batch -> the boxes of each image, chosen in the way that its kind takes.

    model: with decode and has_nms. options: NMSOptions. Returns for each image (boxes_xyxy (n, 4) input pixels, scores
    (n,), class_ids (n,)), best first.
    """
    return select(model, model.decode(raw), options)


@torch.no_grad()
def select(model, decoded, options):
    """The boxes of each image among what a network decoded: see detect."""
    return (nms if model.has_nms else top_scores)(decoded, options)


@torch.no_grad()
def nms(decoded, options):
    """The boxes that stay where several places name one object: of those that overlap, the best of each class.

    decoded: a Decoded. options: NMSOptions; a score is objectness * class probability, 0..1. Each place names its most
    probable class. Returns what detect returns.
    """
    lowest = _lowest_scores(decoded, options)
    results = []
    for boxes_xyxy, class_logits, objectness in zip(
        decoded.boxes_xyxy, decoded.class_logits, _objectness(decoded), strict=True
    ):
        # No class lifts a place above its objectness, so that most places need no look at their classes.
        keep = (objectness >= lowest.min()).nonzero().squeeze(1)
        boxes_xyxy, class_logits, objectness = boxes_xyxy[keep], class_logits[keep], objectness[keep]
        class_logit, classes = class_logits.max(-1)
        scores = objectness * class_logit.sigmoid()
        keep = (scores >= lowest[classes]).nonzero().squeeze(1)
        if len(keep) > PRE_NMS_TOPK:
            keep = keep[scores[keep].topk(PRE_NMS_TOPK).indices]
        boxes_xyxy, scores, classes = boxes_xyxy[keep], scores[keep], classes[keep]
        apart_xyxy = boxes_xyxy.double().clamp(-MAX_COORDINATE, MAX_COORDINATE)
        keep = batched_nms(apart_xyxy, scores.double(), classes, options.nms_iou)[: options.max_boxes]
        results.append((boxes_xyxy[keep], scores[keep], classes[keep]))
    return results


@torch.no_grad()
def top_scores(decoded, options):
    """The boxes of the highest scores, for detectors whose places each learn an object of their own.

    decoded: a Decoded; a place counts once for each class. options: NMSOptions, whose nms_iou has no effect. Returns
    what detect returns. Source: `PostProcess` of facebookresearch/detr, with the focal-loss scores of Deformable DETR.
    """
    lowest, num_classes = _lowest_scores(decoded, options), decoded.class_logits.shape[-1]
    scores = (_objectness(decoded)[..., None] * decoded.class_logits.sigmoid()).flatten(1)
    results = []
    for boxes_xyxy, of_image in zip(decoded.boxes_xyxy, scores, strict=True):
        counted = of_image.masked_fill(of_image < lowest.repeat(len(boxes_xyxy)), -1)
        best, places = counted.topk(min(options.max_boxes, len(counted)))
        best, places = best[best >= 0], places[best >= 0]
        results.append((boxes_xyxy[places // num_classes], best, places % num_classes))
    return results


def _objectness(decoded):
    """(B, N) probabilities, 1 where the detector has none."""
    if decoded.objectness is None:
        return decoded.boxes_xyxy.new_ones(decoded.boxes_xyxy.shape[:2])
    return decoded.objectness.sigmoid()


def _lowest_scores(decoded, options):
    """(C,) the score from which on a class counts."""
    lowest = torch.as_tensor(options.confidence, dtype=torch.float32, device=decoded.boxes_xyxy.device)
    return lowest.expand(decoded.class_logits.shape[-1])


def to_image(result, placement, size_hw):
    """One entry of detect -> Boxes in pixels of the original image, clipped to it."""
    boxes_xyxy, scores, class_ids = (part.float().cpu().numpy() for part in result)
    return Boxes(boxes_to_image(boxes_xyxy, placement, size_hw), scores, class_ids.astype(np.int64))


class TestTimeAugmentation(nn.Module):
    """A network that looks at its images in several ways and decodes what it saw in all.

    It is used as the network itself. flip: look in a mirror too. scales: of the input's sides, which are rounded to
    multiples of the largest stride, 32.
    """

    has_nms = True  # the views name each object once each

    def __init__(self, model, flip, scales):
        super().__init__()
        self.model, self.flip, self.scales = model, flip, tuple(scales)

    def forward(self, images):
        """(B, 3, H, W) -> [(raw, (h, w) of this view, whether it is mirrored, (H, W))]."""
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
        """What forward gives -> the Decoded of all views side by side, in pixels of (H, W)."""
        parts = []
        for raw, (height, width), mirrored, whole_hw in views:
            decoded = self.model.decode(raw)
            x1, y1, x2, y2 = decoded.boxes_xyxy.unbind(-1)
            boxes_xyxy = torch.stack((width - x2, y1, width - x1, y2), -1) if mirrored else decoded.boxes_xyxy
            ratio = boxes_xyxy.new_tensor((whole_hw[1] / width, whole_hw[0] / height)).repeat(2)
            parts.append(decoded._replace(boxes_xyxy=boxes_xyxy * ratio))
        columns = zip(*parts, strict=True)
        return Decoded(*(None if column[0] is None else torch.cat(column, 1) for column in columns))
