"""What every detection network of this project shares: pixels in, parts that can be frozen, raw maps out."""

import math
from typing import NamedTuple

import torch
from torch import nn

from nets.blocks import PixelNormalize

# e^7 = 1,100 strides, or times an anchor, is beyond any image; without a bound one wild logit turns the loss into NaN.
MAX_LOG_SIZE = 7.0
# What an untrained head predicts. Objects are rare, so that the many negatives do not swamp the first steps; a class is
# one of C with an overlap of a half. A head that had to reach these numbers from far away would spend a short training
# on its biases.
OBJECT_PRIOR = 0.01
CLASS_PRIOR = 0.5


class Decoded(NamedTuple):
    """What a detector says of N places of its input.

    boxes_xyxy: (B, N, 4) float32 x1, y1, x2, y2 in input pixels. class_logits: (B, N, C) float32. objectness: (B, N)
    float32 logits, None for detectors that have none.
    """

    boxes_xyxy: torch.Tensor
    class_logits: torch.Tensor
    objectness: torch.Tensor | None = None


class DetectorBase(nn.Module):
    """Base of all networks: `model(images) -> raw`, `model.decode(raw) -> Decoded`.

    A subclass provides the property `feature_extractor` (images -> [C3, C4, C5]), `predict(features, *extra) -> raw`
    (maps in ascending stride, for YOLO), `decode`, `class_rows()`, and in head_prefixes how the names of the head's
    parameters begin. The network takes uint8 RGB (B, 3, H, W) and owns its normalisation. extra: what its criterion's
    extra_inputs gives in training. decode_rule: plain values that decode needs beyond the weights. backbone_name: of
    torchvision, '' for the network's own. has_nms: whether suppression has to choose among its boxes, as it has where
    several places learn one object; without, raw has tokens (B, N), which places became queries. takes_backbone:
    whether one of torchvision may stand in the place of its own.
    """

    parts = ("backbone", "neck", "head")
    head_prefixes = ()
    decode_defaults = None
    has_nms = True
    takes_backbone = True

    def __init__(self, num_classes, pixel_rule):
        super().__init__()
        self.num_classes = num_classes
        self.normalize = PixelNormalize(pixel_rule)
        self.decode_rule = {}
        self.resize_rule = {"mode": "topleft", "pad": 114}  # how its images come to the size of the input
        self.backbone_name = ""
        self.backbone_frozen = False
        self.frozen_norms = ()

    def remarks(self, _input_shape):
        """Sentences on what an input of (height, width) means for this network; none for most."""
        return ()

    def adapt_to(self, state):
        """Make layers as the weights {key: tensor} that come next need them, {} for none: training calls it first."""

    def extractor_prefix(self):
        """How the names of the feature extractor's parameters begin."""
        return next(name for name, part in self.named_modules() if part is self.feature_extractor) + "."

    def part_of(self, name):
        """Which of self.parts a parameter belongs to, by its name."""
        if name.startswith(self.extractor_prefix()):
            return "backbone"
        return "head" if name.startswith(self.head_prefixes) else "neck"

    def freeze(self, names):
        """Freeze these parameters and free all others.

        names: collection of parameter names. Frozen parameters get no gradient, and a BatchNorm layer all of whose
        parameters are frozen keeps its running statistics. Returns the names of the BatchNorm layers that were frozen
        until now and learn from now on.
        """
        prefix = self.extractor_prefix()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names)
        self.backbone_frozen = all(name in names for name, _ in self.named_parameters() if name.startswith(prefix))
        before, self.frozen_norms = self.frozen_norms, tuple(self._find_frozen_norms())
        self.train(self.training)
        return [name for name in before if name not in self.frozen_norms]

    def _find_frozen_norms(self):
        for name, part in self.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                own = list(part.parameters())
                if own and not any(parameter.requires_grad for parameter in own):
                    yield name

    def train(self, mode=True):
        super().train(mode)
        for name in self.frozen_norms:
            self.get_submodule(name).eval()
        if self.backbone_frozen:
            self.feature_extractor.eval()  # without the random depth that some backbones train with
        return self

    def forward(self, images, *extra):
        # Without a graph a frozen extractor keeps no activations; a partly frozen one saves what autograd can tell.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
            features = self.feature_extractor(self.normalize(images))
        return self.predict(features, *extra)


def prior_logits(num_classes):
    """What an untrained head says of a cell: objectness logit, then num_classes class logits."""
    return [_logit(OBJECT_PRIOR)] + num_classes * [_logit(CLASS_PRIOR / num_classes)]


def _logit(probability):
    return math.log(probability / (1 - probability))


def cell_grid(level):
    """Column and row of each cell of a raw map (B, channels, h, w), row by row: float32 (h * w, 2) on its device."""
    height, width = level.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=level.device, dtype=torch.float32),
        torch.arange(width, device=level.device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack((columns, rows), dim=-1).view(-1, 2)
