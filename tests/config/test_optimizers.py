import pytest

from utils.config.optimizers import SUITABLE, WIDTHS, fill_in
from utils.config.rules import RELEASE_NAMES


def filled(**changes):
    values = {"optimizer_type": "adamw", "model_name": "yolox_nano", "backbone": "", "seed": 3}
    values |= dict.fromkeys(("Init_lr", "momentum", "weight_decay")) | changes
    return fill_in(values)


@pytest.mark.parametrize(
    ("optimizer_type", "model_name", "expected"),
    [
        ("adamw", "yolox_nano", (8e-3, 0.9, 0.05)),
        ("adamw", "yolox_s", (4e-3, 0.9, 0.05)),
        ("adam", "yolov4", (2e-3, 0.9, 0.0)),
        ("sgd", "yolox_s", (1e-2, 0.937, 5e-4)),
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
    assert set(WIDTHS) == {name for name in RELEASE_NAMES if "conv" not in name}
