"""D-FINE's encoder: attention on the coarsest map, then maps mixed downwards and upwards.

Attribute names are those of the public weights. Source: D-FINE (Peng et al. 2024), section 3, and RT-DETR (Zhao et al.
2023), section 4.2; Peterande/D-FINE, src/zoo/dfine/hybrid_encoder.py.
"""

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate

from nets.norm_act import norm_act

TEMPERATURE = 10_000
HEADS = 8


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and SiLU with act."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, act=True):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x):
        return norm_act(self.conv(x), self.norm, self.act)


class RepBottleneck(nn.Module):
    """A 3x3 and a 1x1 convolution of the same map, added, SiLU."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, act=False)
        self.conv2 = ConvNorm(channels, channels, 1, act=False)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv1(x) + self.conv2(x))


class CSPRepLayer(nn.Module):
    """Bottlenecks on a squeezed map, and another squeezed one added."""

    def __init__(self, in_channels, out_channels, depth):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1)
        self.conv2 = ConvNorm(in_channels, out_channels, 1)
        self.bottlenecks = nn.Sequential(*(RepBottleneck(out_channels) for _ in range(depth)))

    def forward(self, x):
        return self.bottlenecks(self.conv1(x)) + self.conv2(x)


class ELANBlock(nn.Module):
    """(B, 2 D, h, w) -> (B, D, h, w): two halves and two branches concatenated. inner: channels of a branch."""

    def __init__(self, channels, inner, depth):
        super().__init__()
        self.cv1 = ConvNorm(2 * channels, 2 * channels, 1)
        self.cv2 = nn.Sequential(CSPRepLayer(channels, inner, depth), ConvNorm(inner, inner, 3))
        self.cv3 = nn.Sequential(CSPRepLayer(inner, inner, depth), ConvNorm(inner, inner, 3))
        self.cv4 = ConvNorm(2 * channels + 2 * inner, channels, 1)

    def forward(self, x):
        maps = list(self.cv1(x).chunk(2, dim=1))
        maps.append(self.cv2(maps[-1]))
        maps.append(self.cv3(maps[-1]))
        return self.cv4(torch.cat(maps, dim=1))


class Downsample(nn.Module):
    """1x1, then depthwise 3x3 with stride 2, without activations."""

    def __init__(self, channels):
        super().__init__()
        self.cv1 = ConvNorm(channels, channels, 1, act=False)
        self.cv2 = ConvNorm(channels, channels, 3, 2, channels, act=False)

    def forward(self, x):
        return self.cv2(self.cv1(x))


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each added and normalised. Tokens (B, N, D), positions (1, N, D)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, tokens, positions):
        queries = tokens + positions
        tokens = self.norm1(tokens + self.self_attn(queries, queries, tokens, need_weights=False)[0])
        return self.norm2(tokens + self.linear2(gelu(self.linear1(tokens))))


class TransformerEncoder(nn.Module):
    """Layers in a row."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.layers = nn.ModuleList([TransformerLayer(channels, hidden)])

    def forward(self, tokens, positions):
        for layer in self.layers:
            tokens = layer(tokens, positions)
        return tokens


class HybridEncoder(nn.Module):
    """Maps of the backbone, ascending stride -> maps of D channels each.

    in_channels: of the maps. hidden: of the feed-forward layer. inner, depth: see ELANBlock. transposed_positions: the
    table of positions as the released weights know it, which exchanges rows and columns; the same on square maps but
    for that exchange.
    """

    def __init__(self, in_channels, channels, hidden, inner, depth, transposed_positions):
        super().__init__()
        self.channels, self.transposed_positions = channels, transposed_positions
        self.input_proj = nn.ModuleList(ConvNorm(number, channels, 1, act=False) for number in in_channels)
        self.encoder = nn.ModuleList([TransformerEncoder(channels, hidden)])
        steps = range(len(in_channels) - 1)
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, channels, 1, act=False) for _ in steps)
        self.fpn_blocks = nn.ModuleList(ELANBlock(channels, inner, depth) for _ in steps)
        self.downsample_convs = nn.ModuleList(nn.Sequential(Downsample(channels)) for _ in steps)
        self.pan_blocks = nn.ModuleList(ELANBlock(channels, inner, depth) for _ in steps)

    def forward(self, features):
        maps = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        maps[-1] = self.attend(maps[-1])
        coarse = [maps[-1]]  # from the coarsest on
        for lateral, block, fine in zip(self.lateral_convs, self.fpn_blocks, maps[-2::-1], strict=True):
            coarse[-1] = lateral(coarse[-1])
            coarse.append(block(torch.cat((interpolate(coarse[-1], scale_factor=2.0), fine), dim=1)))
        mixed = [coarse.pop()]
        for downsample, block in zip(self.downsample_convs, self.pan_blocks, strict=True):
            mixed.append(block(torch.cat((downsample(mixed[-1]), coarse.pop()), dim=1)))
        return mixed

    def attend(self, x):
        height, width = x.shape[-2:]
        positions = position_table(height, width, self.channels, self.transposed_positions, x.device)
        tokens = self.encoder[0](x.flatten(2).transpose(1, 2), positions)
        return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()


def position_table(height, width, channels, transposed=False, device="cpu"):
    """Sines and cosines of the place of each cell of a map, row by row: (1, height * width, channels) float32.

    transposed: the cells are numbered column by column, as the original's table is, which is then added to cells in
    rows: on a map that is no square their places are crooked, and released weights expect that.
    """
    numbers, rows, columns = (
        torch.arange(count, dtype=torch.float32, device=device) for count in (channels // 4, height, width)
    )
    frequencies = TEMPERATURE ** (-numbers / (channels // 4))
    if transposed:
        places = torch.meshgrid(columns, rows, indexing="ij")
    else:
        places = torch.meshgrid(rows, columns, indexing="ij")[::-1]
    angles = [place.flatten()[:, None] * frequencies for place in places]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)[None]
