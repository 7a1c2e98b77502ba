"""YOLOX: CSPDarknet, PAFPN and a decoupled, anchor-free head (Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021").

State-dict keys are those of the official release, so that its files load as they are.
"""

import math

import torch
from torch import nn
from torch.nn.functional import interpolate

from nets.backbones.csp_darknet import CSPDarknet
from nets.base import MAX_LOG_SIZE, Decoded, DetectorBase, cell_grid, prior_logits
from nets.blocks import BaseConv, CSPLayer, conv_class
from nets.boxes import centre_size_to_xyxy

# The official release works on BGR pixels 0..255 as OpenCV reads them.
PIXEL_RULE = {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
# The side of a box that an untrained head predicts, in strides: as it typically is on the map that learns it.
SIDE_PRIOR = 4.0


class PAFPN(nn.Module):
    """A top-down and a bottom-up path over the backbone's maps; [C3, C4, C5] -> [P3, P4, P5] with these channels.

    The attribute `backbone` is the official key of the backbone inside it. One whose maps have other channels gets 1x1
    convolutions in between.
    """

    def __init__(self, backbone, channels, depth, depthwise):
        super().__init__()
        self.backbone = backbone
        self.adapters = None
        if tuple(backbone.out_channels) != channels:
            pairs = zip(backbone.out_channels, channels, strict=True)
            self.adapters = nn.ModuleList(BaseConv(given, wanted, 1, 1) for given, wanted in pairs)
        c3, c4, c5 = channels
        conv = conv_class(depthwise)

        def csp(in_channels, out_channels):
            return CSPLayer(in_channels, out_channels, round(3 * depth), shortcut=False, depthwise=depthwise)

        self.lateral_conv0 = BaseConv(c5, c4, 1, 1)
        self.C3_p4 = csp(2 * c4, c4)
        self.reduce_conv1 = BaseConv(c4, c3, 1, 1)
        self.C3_p3 = csp(2 * c3, c3)
        self.bu_conv2 = conv(c3, c3, 3, 2)
        self.C3_n3 = csp(2 * c3, c4)
        self.bu_conv1 = conv(c4, c4, 3, 2)
        self.C3_n4 = csp(2 * c4, c5)

    def forward(self, features):
        if self.adapters is not None:
            features = [adapt(feature) for adapt, feature in zip(self.adapters, features, strict=True)]
        c3, c4, c5 = features
        lateral_5 = self.lateral_conv0(c5)
        top_down_4 = self.C3_p4(torch.cat((_upsample(lateral_5), c4), dim=1))
        lateral_4 = self.reduce_conv1(top_down_4)
        p3 = self.C3_p3(torch.cat((_upsample(lateral_4), c3), dim=1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), lateral_4), dim=1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), lateral_5), dim=1))
        return [p3, p4, p5]


def _upsample(x):
    return interpolate(x, scale_factor=2, mode="nearest")


class DecoupledHead(nn.Module):
    """One branch for classes, one for box and objectness, per scale; [P3, P4, P5] -> raw maps (B, 5 + C, h, w).

    Channels of a raw map: dx, dy, log w, log h in units of the stride, objectness logit, C class logits.
    """

    def __init__(self, num_classes, in_channels, hidden, depthwise):
        super().__init__()
        conv = conv_class(depthwise)

        def branch():
            return nn.Sequential(conv(hidden, hidden, 3, 1), conv(hidden, hidden, 3, 1))

        def prediction(channels):
            return nn.ModuleList(nn.Conv2d(hidden, channels, 1) for _ in in_channels)

        self.cls_convs = nn.ModuleList(branch() for _ in in_channels)
        self.reg_convs = nn.ModuleList(branch() for _ in in_channels)
        self.cls_preds = prediction(num_classes)
        self.reg_preds = prediction(4)
        self.obj_preds = prediction(1)
        self.stems = nn.ModuleList(BaseConv(channels, hidden, 1, 1) for channels in in_channels)
        objectness, *classes = prior_logits(num_classes)
        for level in range(len(in_channels)):
            nn.init.constant_(self.obj_preds[level].bias, objectness)
            nn.init.constant_(self.cls_preds[level].bias, classes[0])
            nn.init.constant_(self.reg_preds[level].bias[2:], math.log(SIDE_PRIOR))

    def forward(self, features):
        raw = []
        for level, feature in enumerate(features):
            stem = self.stems[level](feature)
            classes = self.cls_convs[level](stem)
            boxes = self.reg_convs[level](stem)
            parts = (self.reg_preds[level](boxes), self.obj_preds[level](boxes), self.cls_preds[level](classes))
            raw.append(torch.cat(parts, dim=1))
        return raw


class YOLOX(DetectorBase):
    """YOLOX of any size.

    num_classes: C >= 1. depth, width, depthwise: size of the model, see nets.MODELS. pixel_rule: see PixelNormalize.
    backbone: in the place of CSPDarknet, None for that. Input sides are multiples of 32.
    """

    head_prefixes = ("head.",)

    def __init__(self, num_classes, depth, width, depthwise, pixel_rule=None, backbone=None):
        super().__init__(num_classes, pixel_rule or PIXEL_RULE)
        channels = tuple(int(64 * width) * factor for factor in (4, 8, 16))
        backbone = backbone or CSPDarknet(depth, width, depthwise)
        self.strides = backbone.strides
        self.backbone = PAFPN(backbone, channels, depth, depthwise)
        self.head = DecoupledHead(num_classes, channels, int(256 * width), depthwise)

    @property
    def feature_extractor(self):
        """The part that Freeze_Train freezes: CSPDarknet alone, not the PAFPN around it."""
        return self.backbone.backbone

    def class_rows(self):
        """Parameters with a row for each class: {name: (1, rows before those of the classes)}."""
        return {name: (1, 0) for name, _ in self.named_parameters() if name.startswith("head.cls_preds.")}

    def predict(self, features):
        """[C3, C4, C5] -> raw maps [(B, 5 + C, H/8, W/8), (.., H/16, W/16), (.., H/32, W/32)]."""
        return self.head(self.backbone(features))

    def decode(self, raw):
        """Raw maps -> Decoded; N counts the cells of all maps in ascending stride, row by row."""
        boxes, logits = [], []
        for level, stride in zip(raw, self.strides, strict=True):
            cells = level.float().flatten(2).transpose(1, 2)
            centre = (cells[..., :2] + cell_grid(level)) * stride
            size = cells[..., 2:4].clamp(max=MAX_LOG_SIZE).exp() * stride
            boxes.append(centre_size_to_xyxy(torch.cat((centre, size), -1)))
            logits.append(cells[..., 4:])
        logits = torch.cat(logits, dim=1)
        return Decoded(torch.cat(boxes, dim=1), logits[..., 1:], logits[..., 0])
