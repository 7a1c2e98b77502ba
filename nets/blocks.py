"""Building blocks shared by the networks. Attribute names are those of the public weights, so that files load as is."""

import torch
from torch import nn
from torch.nn.functional import max_pool2d

from nets.norm_act import norm_act

BATCHNORM_EPS = 1e-3
BATCHNORM_MOMENTUM = 0.03
DARKNET_BATCHNORM_EPS = 1e-5


class PixelNormalize(nn.Module):
    """Turns uint8 RGB images into what the network's weights expect: channel order, mean and scale.

    rule: {"channels": "RGB" or "BGR", "mean": 3 floats, "std": 3 floats}, in pixel units 0..255 and in the rule's own
    channel order. Input (B, 3, H, W) RGB 0..255 of any dtype, output float32 of the same shape and memory format.
    Buffers are left out of the state dict, whose keys belong to the public weights; the rule travels in the file's
    metadata.
    """

    def __init__(self, rule):
        super().__init__()
        if rule["channels"] not in ("RGB", "BGR"):
            raise ValueError(f"pixel rule: channels is {rule['channels']!r}, expected 'RGB' or 'BGR'.")
        self.rule = rule
        mean = torch.tensor(rule["mean"], dtype=torch.float32).view(1, 3, 1, 1)
        std = torch.tensor(rule["std"], dtype=torch.float32).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.is_identity = not any(rule["mean"]) and all(value == 1 for value in rule["std"])

    def forward(self, images):
        if self.rule["channels"] == "BGR":
            images = images.flip(1)
        images = images.float()
        return images if self.is_identity else (images - self.mean) * self.scale


class BaseConv(nn.Module):
    """Convolution without bias, BatchNorm, SiLU; (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels, out_channels, kernel_size, stride, groups=1):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BATCHNORM_EPS, momentum=BATCHNORM_MOMENTUM)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return norm_act(self.conv(x), self.bn, self.act)


class DarknetConv(BaseConv):
    """BaseConv as Darknet computes it: LeakyReLU 0.1 or another activation, a smaller epsilon in BatchNorm."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, activation=None):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.bn.eps = DARKNET_BATCHNORM_EPS
        self.act = activation(inplace=True) if activation else nn.LeakyReLU(0.1, inplace=True)


class DWConv(nn.Module):
    """Depthwise, then pointwise convolution: the cheap stand-in for BaseConv in the nano model."""

    def __init__(self, in_channels, out_channels, kernel_size, stride):
        super().__init__()
        self.dconv = BaseConv(in_channels, in_channels, kernel_size, stride, groups=in_channels)
        self.pconv = BaseConv(in_channels, out_channels, 1, 1)

    def forward(self, x):
        return self.pconv(self.dconv(x))


def conv_class(depthwise):
    """The 3x3 convolution of a model: DWConv for depthwise models, else BaseConv."""
    return DWConv if depthwise else BaseConv


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution with an optional shortcut; keeps (B, channels, H, W)."""

    def __init__(self, channels, shortcut, depthwise):
        super().__init__()
        self.conv1 = BaseConv(channels, channels, 1, 1)
        self.conv2 = conv_class(depthwise)(channels, channels, 3, 1)
        self.shortcut = shortcut

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPLayer(nn.Module):
    """Cross-stage partial layer: half of the channels pass through `depth` bottlenecks (CSPNet, section 3.1)."""

    def __init__(self, in_channels, out_channels, depth, shortcut, depthwise):
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = BaseConv(in_channels, hidden, 1, 1)
        self.conv2 = BaseConv(in_channels, hidden, 1, 1)
        self.conv3 = BaseConv(2 * hidden, out_channels, 1, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise) for _ in range(depth)))

    def forward(self, x):
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling with kernels 5, 9, 13: widens the view of the last stage at no loss of resolution."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = BaseConv(in_channels, hidden, 1, 1)
        self.conv2 = BaseConv(4 * hidden, out_channels, 1, 1)

    def forward(self, x):
        return self.conv2(torch.cat(pyramid_pool(self.conv1(x)), dim=1))


def pyramid_pool(x):
    """A map (B, C, h, w) and its maxima over 5x5, 9x9 and 13x13 neighbours: four maps of that shape."""
    maps = [x]
    for _ in range(3):
        # Two 5x5 maxima in a row are one 9x9 maximum, three are one 13x13: the same numbers for less work.
        maps.append(max_pool2d(maps[-1], 5, stride=1, padding=2))
    return maps


class Focus(nn.Module):
    """Folds each 2x2 patch of pixels into channels, then a 3x3 convolution; (B, C, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = BaseConv(4 * in_channels, out_channels, 3, 1)

    def forward(self, x):
        top, bottom = x[..., ::2, :], x[..., 1::2, :]
        return self.conv(torch.cat((top[..., ::2], bottom[..., ::2], top[..., 1::2], bottom[..., 1::2]), dim=1))
