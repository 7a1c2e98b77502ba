"""Backbones of torchvision, in the place of a network's own. Their keys are torchvision's, so that its files load."""

from torch import nn
from torchvision.models import get_model

# Pixels as torchvision's weights expect them: RGB, ImageNet's mean and deviation in units of 0..255.
IMAGENET_PIXEL_RULE = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
RESNET_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
RESNET_BLOCKS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
# name: the last layers at strides 8, 16 and 32, and their channels.
BACKBONES = {
    "resnet18": (("layer2", "layer3", "layer4"), (128, 256, 512)),
    "resnet34": (("layer2", "layer3", "layer4"), (128, 256, 512)),
    "resnet50": (("layer2", "layer3", "layer4"), (512, 1024, 2048)),
    "resnet101": (("layer2", "layer3", "layer4"), (512, 1024, 2048)),
    "mobilenet_v2": (("6", "13", "18"), (32, 96, 1280)),
    "mobilenet_v3_large": (("6", "12", "16"), (40, 112, 960)),
    "efficientnet_b0": (("3", "5", "8"), (40, 112, 1280)),
    "efficientnet_v2_s": (("3", "5", "7"), (64, 160, 1280)),
    "convnext_tiny": (("3", "5", "7"), (192, 384, 768)),
    "convnext_small": (("3", "5", "7"), (192, 384, 768)),
    "swin_t": (("3", "5", "7"), (192, 384, 768)),
    "swin_s": (("3", "5", "7"), (192, 384, 768)),
}


class TorchvisionBackbone(nn.Module):
    """Maps images (B, 3, H, W), H and W multiples of 32, to [C3, C4, C5] at strides 8, 16, 32.

    name: a key of BACKBONES. Classification layers are left out. blocks: names of the layers of each block, in order.
    Raises ValueError for an unknown name.
    """

    strides = (8, 16, 32)

    def __init__(self, name):
        super().__init__()
        check_backbone(name)
        self.taps, self.out_channels = BACKBONES[name]
        self.is_channels_last = name.startswith("swin")
        whole = get_model(name, weights=None)
        if name.startswith("resnet"):
            self.layer_names, self.blocks = RESNET_LAYERS, RESNET_BLOCKS
            for layer in RESNET_LAYERS:
                self.add_module(layer, getattr(whole, layer))
        else:
            self.features = whole.features
            self.layer_names = [f"features.{number}" for number in range(int(self.taps[-1]) + 1)]
            self.blocks = [(name,) for name in self.layer_names]

    def forward(self, x):
        maps = []
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
            if name.removeprefix("features.") in self.taps:
                # Swin computes with channels last; the necks expect them first.
                maps.append(x.permute(0, 3, 1, 2).contiguous() if self.is_channels_last else x)
        return maps


def check_backbone(name):
    """Raise ValueError for a name that is no key of BACKBONES."""
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}; expected '' for the network's own, or one of {', '.join(BACKBONES)}.")
