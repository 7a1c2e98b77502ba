"""CSPDarknet53 and its small sister, the backbones of YOLOv4 and YOLOv4-tiny.

Layers stand in the order of Darknet's yolov4.cfg and yolov4-tiny.cfg, and their names are those of the public PyTorch
weights. Source: Bochkovskiy et al. 2020, "YOLOv4"; CSPNet, Wang et al. 2020.
"""

from functools import partial

import torch
from torch import nn

from nets.blocks import DarknetConv

# Residual blocks of the five stages.
STAGE_BLOCKS = (1, 2, 8, 8, 4)


class ResidualBlock(nn.Module):
    """1x1 then 3x3 convolution beside a shortcut; keeps (B, channels, H, W)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.block = nn.Sequential(
            DarknetConv(channels, hidden, 1, activation=nn.Mish), DarknetConv(hidden, channels, 3, activation=nn.Mish)
        )

    def forward(self, x):
        return x + self.block(x)


class Stage(nn.Module):
    """Halves the resolution; then one of two branches passes through residual blocks (CSPNet, section 3.1).

    (B, in, H, W) -> (B, out, H / 2, W / 2). is_first: both branches keep all channels, else half of them.
    """

    def __init__(self, in_channels, out_channels, blocks, is_first):
        super().__init__()
        conv = partial(DarknetConv, activation=nn.Mish)
        branch = out_channels if is_first else out_channels // 2
        self.downsample_conv = conv(in_channels, out_channels, 3, 2)
        self.split_conv0 = conv(out_channels, branch, 1)
        self.split_conv1 = conv(out_channels, branch, 1)
        residuals = (ResidualBlock(branch, out_channels // 2) for _ in range(blocks))
        self.blocks_conv = nn.Sequential(*residuals, conv(branch, branch, 1))
        self.concat_conv = conv(2 * branch, out_channels, 1)

    def forward(self, x):
        x = self.downsample_conv(x)
        straight = self.split_conv0(x)
        return self.concat_conv(torch.cat((self.blocks_conv(self.split_conv1(x)), straight), dim=1))


class CSPDarknet53(nn.Module):
    """Maps images (B, 3, H, W), H and W multiples of 32, to [C3, C4, C5] at strides 8, 16, 32."""

    strides = (8, 16, 32)
    out_channels = (256, 512, 1024)

    def __init__(self):
        super().__init__()
        self.conv1 = DarknetConv(3, 32, 3, activation=nn.Mish)
        self.stages = nn.ModuleList(
            Stage(32 * 2**number, 64 * 2**number, blocks, is_first=number == 0)
            for number, blocks in enumerate(STAGE_BLOCKS)
        )

    def forward(self, x):
        x = self.conv1(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-3:]


class TinyStage(nn.Module):
    """Four convolutions, of which two work on half of the channels only; (B, C, H, W) -> (B, C, H, W) twice.

    Returns what the neck may use, and both halves of the next stage's input, (B, 2 * C, H / 2, W / 2).
    """

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv1 = DarknetConv(channels, channels, 3)
        self.conv2 = DarknetConv(half, half, 3)
        self.conv3 = DarknetConv(half, half, 3)
        self.conv4 = DarknetConv(channels, channels, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        whole = self.conv1(x)
        first = self.conv2(whole[:, whole.shape[1] // 2 :])
        joined = self.conv4(torch.cat((self.conv3(first), first), dim=1))
        return joined, self.pool(torch.cat((whole, joined), dim=1))


class CSPDarknet53Tiny(nn.Module):
    """Maps images (B, 3, H, W), H and W multiples of 32, to [C4, C5] at strides 16, 32."""

    strides = (16, 32)
    out_channels = (256, 512)

    def __init__(self):
        super().__init__()
        self.conv1 = DarknetConv(3, 32, 3, 2)
        self.conv2 = DarknetConv(32, 64, 3, 2)
        self.resblock_body1 = TinyStage(64)
        self.resblock_body2 = TinyStage(128)
        self.resblock_body3 = TinyStage(256)
        self.conv3 = DarknetConv(512, 512, 3)

    def forward(self, x):
        _, x = self.resblock_body1(self.conv2(self.conv1(x)))
        _, x = self.resblock_body2(x)
        c4, x = self.resblock_body3(x)
        return [c4, self.conv3(x)]
