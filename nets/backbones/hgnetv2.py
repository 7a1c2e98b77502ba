"""HGNetV2, the backbone of D-FINE: blocks that concatenate the output of every layer, as PaddleDetection made it.

Attribute names are those of the public weights. Sizes: Peterande/D-FINE, src/nn/backbone/hgnetv2.py.
"""

import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad
from torchvision.ops import FrozenBatchNorm2d

from nets.norm_act import norm_act

# Channels of the stem (in the middle, out), then of each stage: in the middle, out, blocks, layers of a block.
SIZES = {
    "B0": ((16, 16), ((16, 64, 1, 3), (32, 256, 1, 3), (64, 512, 2, 3), (128, 1024, 1, 3))),
    "B2": ((24, 32), ((32, 96, 1, 4), (64, 384, 1, 4), (128, 768, 3, 4), (256, 1536, 1, 4))),
    "B4": ((32, 48), ((48, 128, 1, 6), (96, 512, 1, 6), (192, 1024, 3, 6), (384, 2048, 1, 6))),
    "B5": ((32, 64), ((64, 128, 1, 6), (128, 512, 2, 6), (256, 1024, 5, 6), (512, 2048, 2, 6))),
}
# The later stages have light layers with kernels of 5 x 5.
LIGHT_FROM = 2


class Affine(nn.Module):
    """One scale and one bias for a whole map, learned."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.scale * x + self.bias


class ConvUnit(nn.Module):
    """Convolution without bias, BatchNorm, and, with act, ReLU and an Affine where options have one.

    options: (whether an Affine follows ReLU, class of the norm).
    """

    def __init__(self, in_channels, out_channels, kernel_size, options, stride=1, groups=1, act=True, padding=None):
        super().__init__()
        has_affine, norm = options
        padding = (kernel_size - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = norm(out_channels)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()
        self.lab = Affine() if act and has_affine else nn.Identity()

    def forward(self, x):
        return self.lab(norm_act(self.conv(x), self.bn, self.act))


class LightConvUnit(nn.Module):
    """A 1x1 convolution without activation, then a depthwise one."""

    def __init__(self, in_channels, out_channels, kernel_size, options):
        super().__init__()
        self.conv1 = ConvUnit(in_channels, out_channels, 1, options, act=False)
        self.conv2 = ConvUnit(out_channels, out_channels, kernel_size, options, groups=out_channels)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Stem(nn.Module):
    """Images (B, 3, H, W) -> (B, out, H / 4, W / 4)."""

    def __init__(self, middle, out_channels, options):
        super().__init__()
        self.stem1 = ConvUnit(3, middle, 3, options, stride=2)
        self.stem2a = ConvUnit(middle, middle // 2, 2, options, padding=0)
        self.stem2b = ConvUnit(middle // 2, middle, 2, options, padding=0)
        self.stem3 = ConvUnit(2 * middle, middle, 3, options, stride=2)
        self.stem4 = ConvUnit(middle, out_channels, 1, options)

    def forward(self, x):
        # Kernels of 2 x 2 keep the size by a border on the right and at the bottom.
        x = pad(self.stem1(x), (0, 1, 0, 1))
        convolved = self.stem2b(pad(self.stem2a(x), (0, 1, 0, 1)))
        pooled = max_pool2d(x, kernel_size=2, stride=1, ceil_mode=True)
        return self.stem4(self.stem3(torch.cat((pooled, convolved), dim=1)))


class Block(nn.Module):
    """Layers in a row; input and all outputs are concatenated and squeezed. shortcut: the input is added at the end."""

    def __init__(self, in_channels, middle, out_channels, layers, is_light, options, shortcut):
        super().__init__()
        unit, kernel_size = (LightConvUnit, 5) if is_light else (ConvUnit, 3)
        inputs = (in_channels, *([middle] * (layers - 1)))
        self.layers = nn.ModuleList(unit(channels, middle, kernel_size, options) for channels in inputs)
        self.aggregation = nn.Sequential(
            ConvUnit(in_channels + layers * middle, out_channels // 2, 1, options),
            ConvUnit(out_channels // 2, out_channels, 1, options),
        )
        self.shortcut = shortcut

    def forward(self, x):
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        y = self.aggregation(torch.cat(maps, dim=1))
        return x + y if self.shortcut else y


class Stage(nn.Module):
    """Halves the size, in all stages but the first, then some blocks."""

    def __init__(self, number, in_channels, size, options):
        super().__init__()
        middle, out_channels, blocks, layers = size
        self.downsample = (
            ConvUnit(in_channels, in_channels, 3, options, 2, in_channels, act=False) if number else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(
                Block(channels, middle, out_channels, layers, number >= LIGHT_FROM, options, shortcut=block > 0)
                for block, channels in enumerate((in_channels, *([out_channels] * (blocks - 1))))
            )
        )

    def forward(self, x):
        return self.blocks(self.downsample(x))


class HGNetV2(nn.Module):
    """Images (B, 3, H, W) -> maps of the last `levels` stages, whose strides are 4, 8, 16 and 32.

    size: a key of SIZES. has_affine: an Affine follows each ReLU. is_norm_frozen: BatchNorm keeps the statistics and
    factors of the weight file, as the authors train the larger ones; see learn_norms. channels: of the maps.
    """

    def __init__(self, size, levels, has_affine, is_norm_frozen):
        super().__init__()
        (middle, out_channels), stages = SIZES[size]
        options = (has_affine, FrozenBatchNorm2d if is_norm_frozen else nn.BatchNorm2d)
        self.stem = Stem(middle, out_channels, options)
        inputs = (out_channels, *(stage[1] for stage in stages))
        self.stages = nn.ModuleList(
            Stage(number, channels, stage, options)
            for number, (channels, stage) in enumerate(zip(inputs, stages, strict=False))
        )
        self.levels, self.channels = levels, [stage[1] for stage in stages][-levels:]

    def learn_norms(self):
        """Put a fresh BatchNorm that learns in the place of each frozen one."""
        for unit in self.modules():
            if isinstance(unit, ConvUnit) and isinstance(unit.bn, FrozenBatchNorm2d):
                unit.bn = nn.BatchNorm2d(len(unit.bn.weight))

    def forward(self, images):
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-self.levels :]
