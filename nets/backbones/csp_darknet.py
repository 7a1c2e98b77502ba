"""CSPDarknet, the backbone of YOLOX."""

from torch import nn

from nets.blocks import CSPLayer, Focus, SPPBottleneck, conv_class


class CSPDarknet(nn.Module):
    """Five stages; maps images (B, 3, H, W), H and W multiples of 32, to [C3, C4, C5] at strides 8, 16, 32.

    depth, width: multipliers of the number of bottlenecks and of channels (YOLOX, table 3). depthwise: 3x3 convolutions
    are depthwise separable. out_channels and strides describe the three maps.
    """

    strides = (8, 16, 32)

    def __init__(self, depth, width, depthwise):
        super().__init__()
        channels = int(64 * width)
        blocks = max(round(3 * depth), 1)
        self.out_channels = (4 * channels, 8 * channels, 16 * channels)
        self.stem = Focus(3, channels)
        self.dark2 = self._stage(channels, blocks, depthwise)
        self.dark3 = self._stage(2 * channels, 3 * blocks, depthwise)
        self.dark4 = self._stage(4 * channels, 3 * blocks, depthwise)
        self.dark5 = nn.Sequential(
            conv_class(depthwise)(8 * channels, 16 * channels, 3, 2),
            SPPBottleneck(16 * channels, 16 * channels),
            CSPLayer(16 * channels, 16 * channels, blocks, shortcut=False, depthwise=depthwise),
        )

    @staticmethod
    def _stage(in_channels, blocks, depthwise):
        out_channels = 2 * in_channels
        return nn.Sequential(
            conv_class(depthwise)(in_channels, out_channels, 3, 2),
            CSPLayer(out_channels, out_channels, blocks, shortcut=True, depthwise=depthwise),
        )

    def forward(self, x):
        x = self.dark2(self.stem(x))
        c3 = self.dark3(x)
        c4 = self.dark4(c3)
        return [c3, c4, self.dark5(c4)]
