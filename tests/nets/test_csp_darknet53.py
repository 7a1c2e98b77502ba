import pytest
import torch
from torch import nn

from nets.backbones.csp_darknet53 import CSPDarknet53, CSPDarknet53Tiny, Stage, TinyStage
from nets.blocks import DarknetConv


def on_meta(network):
    """A network without memory for its weights."""
    with torch.device("meta"):
        return network()


class Times(nn.Module):
    """Stands in for a convolution: tells in the result which way the numbers went."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize(
    ("network", "strides", "channels", "shapes"),
    [
        (CSPDarknet53, (8, 16, 32), (256, 512, 1024), [(12, 8), (6, 4), (3, 2)]),
        (CSPDarknet53Tiny, (16, 32), (256, 512), [(6, 4), (3, 2)]),
    ],
)
def test_maps_are_as_announced(network, strides, channels, shapes):
    """Prevents height and width from being swapped, and a backbone from announcing other channels than it gives."""
    backbone = on_meta(network)
    assert (backbone.strides, backbone.out_channels) == (strides, channels)
    maps = backbone(torch.zeros(2, 3, 96, 64, device="meta"))
    assert [tuple(level.shape) for level in maps] == [
        (2, count, *shape) for count, shape in zip(channels, shapes, strict=True)
    ]


@pytest.mark.parametrize(
    ("network", "activation", "convolutions"), [(CSPDarknet53, nn.Mish, 72), (CSPDarknet53Tiny, nn.LeakyReLU, 15)]
)
def test_layers_have_the_settings_of_darknet(network, activation, convolutions):
    """Prevents a forgotten activation, and YOLOX's BatchNorm epsilon of 1e-3, with which Darknet weights drift."""
    layers = [layer for layer in on_meta(network).modules() if isinstance(layer, DarknetConv)]
    assert len(layers) == convolutions
    assert {type(layer.act) for layer in layers} == {activation}
    assert {getattr(layer.act, "negative_slope", 0.1) for layer in layers} == {0.1}
    assert {layer.bn.eps for layer in layers} == {1e-5}
    assert all(layer.conv.bias is None for layer in layers)


def test_first_stage_keeps_all_channels_in_both_branches():
    """Prevents the first stage from being split like the others: such a network takes no public weights."""
    with torch.device("meta"):
        first, second = Stage(32, 64, 1, is_first=True), Stage(64, 128, 2, is_first=False)
    for stage, branch, hidden, joined in ((first, 64, 32, 128), (second, 64, 64, 128)):
        assert stage.split_conv0.conv.out_channels == stage.split_conv1.conv.out_channels == branch
        assert stage.blocks_conv[0].block[0].conv.out_channels == hidden
        assert stage.concat_conv.conv.in_channels == joined
    assert [len(first.blocks_conv), len(second.blocks_conv)] == [2, 3]


def test_a_stage_joins_its_branches_in_darknet_order():
    """Prevents the straight branch from coming before the residual one: the weights load, and nothing is detected.

    The pixel is 1, the branches multiply it by 2 and 3; each residual block adds half of what passes: 3 -> 4.5.
    """
    stage = Stage(1, 2, 1, is_first=False)
    stage.downsample_conv, stage.split_conv0, stage.split_conv1 = nn.Identity(), Times(2), Times(3)
    stage.blocks_conv[0].block, stage.blocks_conv[1] = Times(0.5), Times(10)
    stage.concat_conv = nn.Identity()
    assert stage(torch.ones(1, 1, 1, 1)).flatten().tolist() == [45, 2]


def test_a_tiny_stage_works_on_its_second_half():
    """Prevents the first half of the channels from taking the way of the second, and any join in the wrong order.

    Channels 1 and 2 enter; 2 becomes 20 (conv2), then 60 (conv3); the neck gets 60, 20, the next stage all four.
    """
    stage = TinyStage(2)
    stage.conv1, stage.conv2, stage.conv3, stage.conv4 = Times(1), Times(10), Times(3), Times(1)
    pixels = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    joined, pooled = stage(pixels)
    assert joined.shape == (1, 2, 2, 2)
    assert joined[0, :, 0, 0].tolist() == [60, 20]
    assert pooled.flatten().tolist() == [1, 2, 60, 20]


def test_no_images():
    """Prevents an empty batch from failing inside the backbone."""
    maps = on_meta(CSPDarknet53Tiny)(torch.zeros(0, 3, 32, 32, device="meta"))
    assert [tuple(level.shape) for level in maps] == [(0, 256, 2, 2), (0, 512, 1, 1)]
