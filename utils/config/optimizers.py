"""What suits each optimiser and network: the values that None stands for in train.py's block on learning."""

from typing import NamedTuple


class Suitable(NamedTuple):
    """Init_lr for a batch of 64, momentum and weight_decay."""

    Init_lr: float
    momentum: float
    weight_decay: float


SUITABLE = {
    "sgd": Suitable(1e-2, 0.937, 5e-4),
    "adam": Suitable(8e-3, 0.9, 0.0),
    "adamw": Suitable(8e-3, 0.9, 5e-2),
    "rmsprop": Suitable(1e-3, 0.9, 0.0),
    "adagrad": Suitable(8e-2, 0.9, 0.0),
}
# Channels relative to the "l" sizes. Torchvision's backbones count as 1.
WIDTHS = {
    "yolox_nano": 0.25,
    "yolox_tiny": 0.375,
    "yolox_s": 0.5,
    "yolox_m": 0.75,
    "yolox_l": 1.0,
    "yolox_x": 1.25,
    "yolov4_tiny": 0.5,
    "yolov4": 1.0,
}
# The width for which the rates of the adams stand above.
MEASURED_WIDTH = 0.25
# D-FINE: factor of the adams' rate, and of that the backbone's, which is pretrained. Source: Peterande/D-FINE,
# configs/dfine/custom, for the ratios; the rate of n was measured here on the drawn sample alone.
DFINE = {
    "dfine_n": (0.5, 0.5),
    "dfine_s": (0.25, 0.5),
    "dfine_m": (0.125, 0.1),
    "dfine_l": (0.125, 0.05),
    "dfine_x": (0.125, 0.01),
}
# Of the backbone from scratch, which has as much to learn as the rest.
FROM_SCRATCH = 0.5
# Queries are learned with gradients cut much shorter than cells are, and at the highest rate for longer.
CELLS = {"clip_grad_norm": 10.0, "lr_decay_type": "cos"}
QUERIES = {"clip_grad_norm": 0.1, "lr_decay_type": "flat_cos"}


def rate_scale(optimizer_type, model_name, backbone=""):
    """Factor of an optimiser's rate for a network: the best rate of the adams falls with the width.

    Source: Yang et al. 2022, "Tensor Programs V" (muP), table 3. Measured here for yolox_nano alone.
    """
    if optimizer_type not in ("adam", "adamw"):
        return 1.0
    if model_name in DFINE:
        return DFINE[model_name][0]
    width = 1.0 if backbone else WIDTHS.get(model_name, 1.0)
    return min(1.0, MEASURED_WIDTH / width)


def fill_in(values):
    """{name: value} of train.py's constants, with what suits in the place of None."""
    suitable = SUITABLE[values["optimizer_type"]]._asdict()
    suitable["Init_lr"] *= rate_scale(*(values[name] for name in ("optimizer_type", "model_name", "backbone")))
    is_dfine = values["model_name"] in DFINE
    suitable |= QUERIES if is_dfine else CELLS
    suitable["lr_scale"] = {}
    if is_dfine:
        suitable["lr_scale"] = {"backbone": DFINE[values["model_name"]][1] if values["model_path"] else FROM_SCRATCH}
    return values | {name: value for name, value in suitable.items() if values[name] is None}
