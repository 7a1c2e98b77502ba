"""YOLOv4 and YOLOv4-tiny (Bochkovskiy et al. 2020, "YOLOv4"; Wang et al. 2020, "Scaled-YOLOv4").

Layers stand in the order of Darknet's yolov4.cfg and yolov4-tiny.cfg, and their names are those of the public PyTorch
weights.
"""

import torch
from torch import nn

from nets.backbones.csp_darknet53 import CSPDarknet53, CSPDarknet53Tiny
from nets.base import prior_logits
from nets.blocks import DarknetConv, pyramid_pool
from nets.yolov4.anchors import AnchorNetwork

PIXEL_RULE = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
# Anchors found on COCO for an input of 416 to 608 pixels; the same numbers stand in model_data/.
DECODE_RULE = {
    "anchors": [[12, 16], [19, 36], [40, 28], [36, 75], [76, 55], [72, 146], [142, 110], [192, 243], [459, 401]],
    "anchors_mask": [[6, 7, 8], [3, 4, 5], [0, 1, 2]],
    "scale_x_y": [1.2, 1.1, 1.05],
}
# Anchor 0 is unused: so it is in the release whose weights people have.
TINY_DECODE_RULE = {
    "anchors": [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]],
    "anchors_mask": [[3, 4, 5], [1, 2, 3]],
    "scale_x_y": [1.05, 1.05],
}


def convolutions(in_channels, *channels):
    """A chain of convolutions with kernels 1, 3, 1, ... and these output channels."""
    layers = []
    for number, out_channels in enumerate(channels):
        layers.append(DarknetConv(in_channels, out_channels, 3 if number % 2 else 1))
        in_channels = out_channels
    return nn.Sequential(*layers)


def head(in_channels, hidden, raw_channels, num_classes):
    """3x3 convolution, then the raw map of one stride."""
    prediction = nn.Conv2d(hidden, raw_channels, 1)
    # Anchors are the head's first guess of a size, so its box logits start at zero.
    per_anchor = torch.tensor([0.0, 0.0, 0.0, 0.0, *prior_logits(num_classes)])
    prediction.bias.data = per_anchor.repeat(raw_channels // len(per_anchor))
    return nn.Sequential(DarknetConv(in_channels, hidden, 3), prediction)


class Upsample(nn.Module):
    """1x1 convolution, then twice the resolution: (B, in, h, w) -> (B, out, 2h, 2w)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.upsample = nn.Sequential(DarknetConv(in_channels, out_channels, 1), nn.Upsample(scale_factor=2))

    def forward(self, x):
        return self.upsample(x)


class YOLOv4(AnchorNetwork):
    """A backbone with maps at strides 8, 16, 32, spatial pyramid pooling, PANet and three heads.

    num_classes: C >= 1. pixel_rule: see PixelNormalize. decode_rule: see AnchorNetwork. backbone: in the place of
    CSPDarknet53. None takes the network's own. Input sides are multiples of 32.
    """

    head_prefixes = ("yolo_head",)
    decode_defaults = DECODE_RULE

    def __init__(self, num_classes, pixel_rule=None, decode_rule=None, backbone=None):
        backbone = backbone or CSPDarknet53()
        super().__init__(num_classes, pixel_rule or PIXEL_RULE, decode_rule or DECODE_RULE, backbone.strides)
        c3, c4, c5 = backbone.out_channels
        out = self.raw_channels
        self.backbone = backbone
        self.conv1 = convolutions(c5, 512, 1024, 512)
        self.conv2 = convolutions(2048, 512, 1024, 512)
        self.upsample1 = Upsample(512, 256)
        self.conv_for_P4 = DarknetConv(c4, 256, 1)
        self.make_five_conv1 = convolutions(512, 256, 512, 256, 512, 256)
        self.upsample2 = Upsample(256, 128)
        self.conv_for_P3 = DarknetConv(c3, 128, 1)
        self.make_five_conv2 = convolutions(256, 128, 256, 128, 256, 128)
        self.yolo_head3 = head(128, 256, out, num_classes)
        self.down_sample1 = DarknetConv(128, 256, 3, 2)
        self.make_five_conv3 = convolutions(512, 256, 512, 256, 512, 256)
        self.yolo_head2 = head(256, 512, out, num_classes)
        self.down_sample2 = DarknetConv(256, 512, 3, 2)
        self.make_five_conv4 = convolutions(1024, 512, 1024, 512, 1024, 512)
        self.yolo_head1 = head(512, 1024, out, num_classes)

    @property
    def feature_extractor(self):
        """The part that Freeze_Train freezes."""
        return self.backbone

    def predict(self, features):
        """[C3, C4, C5] -> raw maps [(B, A * (5 + C), H/8, W/8), (.., H/16, W/16), (.., H/32, W/32)]."""
        c3, c4, c5 = features
        p5 = self.conv2(torch.cat(pyramid_pool(self.conv1(c5))[::-1], dim=1))
        p4 = self.make_five_conv1(torch.cat((self.conv_for_P4(c4), self.upsample1(p5)), dim=1))
        p3 = self.make_five_conv2(torch.cat((self.conv_for_P3(c3), self.upsample2(p4)), dim=1))
        p4 = self.make_five_conv3(torch.cat((self.down_sample1(p3), p4), dim=1))
        p5 = self.make_five_conv4(torch.cat((self.down_sample2(p4), p5), dim=1))
        return [self.yolo_head3(p3), self.yolo_head2(p4), self.yolo_head1(p5)]


class YOLOv4Tiny(AnchorNetwork):
    """A small backbone with maps at strides 16, 32, and two heads. Arguments as for YOLOv4."""

    head_prefixes = ("yolo_head",)
    decode_defaults = TINY_DECODE_RULE

    def __init__(self, num_classes, pixel_rule=None, decode_rule=None, backbone=None):
        backbone = backbone or CSPDarknet53Tiny()
        super().__init__(num_classes, pixel_rule or PIXEL_RULE, decode_rule or TINY_DECODE_RULE, backbone.strides[-2:])
        c4, c5 = backbone.out_channels[-2:]
        self.backbone = backbone
        self.conv_for_P5 = DarknetConv(c5, 256, 1)
        self.yolo_headP5 = head(256, 512, self.raw_channels, num_classes)
        self.upsample = Upsample(256, 128)
        self.yolo_headP4 = head(128 + c4, 256, self.raw_channels, num_classes)

    @property
    def feature_extractor(self):
        """The part that Freeze_Train freezes."""
        return self.backbone

    def predict(self, features):
        """[C4, C5] -> raw maps [(B, A * (5 + C), H/16, W/16), (.., H/32, W/32)]."""
        c4, c5 = features[-2:]
        p5 = self.conv_for_P5(c5)
        return [self.yolo_headP4(torch.cat((self.upsample(p5), c4), dim=1)), self.yolo_headP5(p5)]
