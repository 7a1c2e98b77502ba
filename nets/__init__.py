"""Networks by name. `build_model(name, num_classes)` and `build_criterion(model)` are all the rest needs to know."""

from difflib import get_close_matches

from nets.backbones.torchvision import IMAGENET_PIXEL_RULE, TorchvisionBackbone
from nets.dfine.loss import DFINELoss
from nets.dfine.model import DFINE
from nets.losses import LossOptions
from nets.yolov4.loss import AnchorLoss
from nets.yolov4.model import YOLOv4, YOLOv4Tiny
from nets.yolox.loss import YOLOXLoss
from nets.yolox.model import YOLOX

_DFINE_N = {"trunk": "B0", "levels": 2, "channels": 128, "hidden": 512, "inner": 21, "depth": 2, "layers": 3}
_DFINE_N |= {"decoder_channels": 128, "decoder_hidden": 512, "points": (6, 6)}
_DFINE_X = {"trunk": "B5", "is_norm_frozen": True, "channels": 384, "hidden": 2048, "inner": 192, "reg_scale": 8}
# name: (network, loss, size of the network). Parameters at 80 classes in millions. Sizes: YOLOX paper, table 3;
# Peterande/D-FINE, configs/dfine.
MODELS = {
    "yolox_nano": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.25, "depthwise": True}),  # 0.91
    "yolox_tiny": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.375, "depthwise": False}),  # 5.06
    "yolox_s": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.5, "depthwise": False}),  # 8.97
    "yolox_m": (YOLOX, YOLOXLoss, {"depth": 0.67, "width": 0.75, "depthwise": False}),  # 25.3
    "yolox_l": (YOLOX, YOLOXLoss, {"depth": 1.0, "width": 1.0, "depthwise": False}),  # 54.2
    "yolox_x": (YOLOX, YOLOXLoss, {"depth": 1.33, "width": 1.25, "depthwise": False}),  # 99.1
    "yolov4_tiny": (YOLOv4Tiny, AnchorLoss, {}),  # 6.06
    "yolov4": (YOLOv4, AnchorLoss, {}),  # 64.4
    "dfine_n": (DFINE, DFINELoss, _DFINE_N),  # 3.78
    "dfine_s": (DFINE, DFINELoss, {"trunk": "B0", "inner": 64, "depth": 1, "layers": 3}),  # 10.3
    "dfine_m": (DFINE, DFINELoss, {"trunk": "B2", "inner": 128, "depth": 2, "layers": 4}),  # 19.6
    "dfine_l": (DFINE, DFINELoss, {"trunk": "B4", "is_norm_frozen": True}),  # 31.2
    "dfine_x": (DFINE, DFINELoss, _DFINE_X),  # 62.6
}


def build_model(model_name, num_classes, pixel_rule=None, decode_rule=None, backbone=""):
    """Make a network with fresh weights.

    model_name: a key of MODELS. num_classes: at least 1. pixel_rule: channel order, mean and std that the weights
    expect (see PixelNormalize); decode_rule: anchors and the like (see AnchorNetwork), entries that are left out are
    the network's own, as is None. backbone: a torchvision backbone in the place of the network's own (a key of
    nets.backbones.torchvision.BACKBONES), '' for its own. Raises ValueError for an unknown name, and for anchors where
    the network has none.
    """
    if model_name not in MODELS:
        nearest = get_close_matches(str(model_name), MODELS, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(f"model_name is {model_name!r}; expected one of {', '.join(MODELS)}.{hint}")
    network, _, size = MODELS[model_name]
    if decode_rule:
        if not decode_rule.keys() <= (network.decode_defaults or {}).keys():
            raise ValueError(f"{model_name} has no anchors: set anchors_path = '' and anchors_mask = [].")
        size = size | {"decode_rule": network.decode_defaults | decode_rule}
    if backbone and not network.takes_backbone:
        raise ValueError(f"{model_name} has a backbone of its own: set backbone = ''.")
    if backbone:
        size = size | {"backbone": TorchvisionBackbone(backbone)}
        pixel_rule = pixel_rule or IMAGENET_PIXEL_RULE
    model = network(num_classes, pixel_rule=pixel_rule, **size)
    model.name, model.backbone_name = model_name, backbone
    return model


def build_criterion(model, options=None):
    """The loss that belongs to a network from build_model: criterion(raw, targets) -> dict of scalars.

    options: a LossOptions, None for the usual ones.
    """
    return MODELS[model.name][1](model, options or LossOptions())
