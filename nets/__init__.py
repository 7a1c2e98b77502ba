"""Networks by name. `build_model(name, num_classes)` and `build_criterion(model)` are all the rest needs to know."""

from difflib import get_close_matches

from nets.yolox import YOLOX
from nets.yolox_loss import YOLOXLoss

# name: (network, loss, size of the network). Sizes: YOLOX paper, table 3; parameters at 80 classes in millions.
MODELS = {
    "yolox_nano": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.25, "depthwise": True}),  # 0.91
    "yolox_tiny": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.375, "depthwise": False}),  # 5.06
    "yolox_s": (YOLOX, YOLOXLoss, {"depth": 0.33, "width": 0.5, "depthwise": False}),  # 8.97
    "yolox_m": (YOLOX, YOLOXLoss, {"depth": 0.67, "width": 0.75, "depthwise": False}),  # 25.3
    "yolox_l": (YOLOX, YOLOXLoss, {"depth": 1.0, "width": 1.0, "depthwise": False}),  # 54.2
    "yolox_x": (YOLOX, YOLOXLoss, {"depth": 1.33, "width": 1.25, "depthwise": False}),  # 99.1
}


def build_model(model_name, num_classes, pixel_rule=None):
    """Make a network with fresh weights.

    model_name: a key of MODELS. num_classes: at least 1. pixel_rule: channel order, mean and std that the weights
    expect (see PixelNormalize), None for the network's own. Raises ValueError for an unknown name.
    """
    if model_name not in MODELS:
        nearest = get_close_matches(str(model_name), MODELS, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(f"model_name is {model_name!r}; expected one of {', '.join(MODELS)}.{hint}")
    network, _, size = MODELS[model_name]
    model = network(num_classes, pixel_rule=pixel_rule, **size)
    model.name = model_name
    return model


def build_criterion(model):
    """The loss that belongs to a network from build_model: criterion(raw, targets) -> dict of scalars."""
    return MODELS[model.name][1](model)
