"""What every detection network of this project shares: pixels in, a part that can be frozen, raw maps out."""

import torch
from torch import nn

from nets.blocks import PixelNormalize


class DetectionNetwork(nn.Module):
    """Base of all networks: `model(images) -> raw maps`, `model.decode(raw) -> boxes and logits`.

    A subclass provides the property `feature_extractor` (images -> [C3, C4, C5]), `predict(features) -> raw maps` in
    ascending stride, and `decode`. The network takes uint8 RGB (B, 3, H, W) and owns its normalisation.
    """

    def __init__(self, num_classes, pixel_rule):
        super().__init__()
        self.num_classes = num_classes
        self.normalize = PixelNormalize(pixel_rule)
        self.frozen = False

    def freeze(self, frozen=True):
        """Freeze or unfreeze the feature extractor: no gradient, no graph, BatchNorm keeps its running statistics."""
        self.frozen = frozen
        self.feature_extractor.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.feature_extractor.eval()
        return self

    def forward(self, images):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.feature_extractor(self.normalize(images))
        return self.predict(features)
