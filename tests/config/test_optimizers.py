import re

import pytest

from utils.config.optimizers import DFINE, SUITABLE, WIDTHS, fill_in
from utils.config.rules import RELEASE_NAMES


def filled(**changes):
    values = {"optimizer_type": "adamw", "model_name": "yolox_nano", "backbone": "", "model_path": "", "seed": 3}
    values |= dict.fromkeys(("Init_lr", "momentum", "weight_decay", "lr_decay_type", "lr_scale", "clip_grad_norm"))
    return fill_in(values | changes)


@pytest.mark.parametrize(
    ("optimizer_type", "model_name", "expected"),
    [
        ("adamw", "yolox_nano", (8e-3, 0.9, 0.05)),
        ("adamw", "yolox_s", (4e-3, 0.9, 0.05)),
        ("adam", "yolov4", (2e-3, 0.9, 0.0)),
        ("sgd", "yolox_s", (1e-2, 0.937, 5e-4)),
        ("adamw", "dfine_n", (4e-3, 0.9, 0.05)),
        ("sgd", "dfine_n", (1e-2, 0.937, 5e-4)),
    ],
)
def test_none_is_what_suits_optimiser_and_network(optimizer_type, model_name, expected):
    """Prevents the rate of one optimiser from staying in force when another is chosen."""
    values = filled(optimizer_type=optimizer_type, model_name=model_name)
    assert tuple(values[name] for name in ("Init_lr", "momentum", "weight_decay")) == expected
    assert values["seed"] == 3


def test_what_is_given_stays():
    """Prevents a zero, or a rate of the user's own, from being taken for None."""
    values = filled(Init_lr=1e-4, momentum=0, weight_decay=0.0)
    assert (values["Init_lr"], values["momentum"], values["weight_decay"]) == (1e-4, 0, 0.0)


def test_each_optimiser_and_network_has_its_values():
    """Prevents a new network from training at the rate of one that is four times as narrow."""
    assert all(None not in suitable for suitable in SUITABLE.values())
    assert {*WIDTHS, *DFINE} == {name for name in RELEASE_NAMES if not re.search("conv|obj|_coco", name)}


def test_queries_learn_with_short_gradients_a_slow_backbone_and_their_own_schedule():
    """Prevents a network with queries from training with the safeguard of one with cells, and the reverse."""
    yolox, dfine = filled(), filled(model_name="dfine_m", model_path="dfine_m")
    assert (yolox["clip_grad_norm"], yolox["lr_scale"], yolox["lr_decay_type"]) == (10.0, {}, "cos")
    assert (dfine["clip_grad_norm"], dfine["lr_scale"], dfine["lr_decay_type"]) == (0.1, {"backbone": 0.1}, "flat_cos")
    assert filled(model_name="dfine_x")["lr_scale"] == {"backbone": 0.5}  # from scratch it has as much to learn
    assert filled(model_name="dfine_m", lr_decay_type="step")["lr_decay_type"] == "step"
    assert filled(model_name="dfine_m", clip_grad_norm=0.0, lr_scale={})["lr_scale"] == {}
