from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.runtime.device import Precision
from utils.training.engine import Stepper
from utils.training.nonfinite import first_not_finite, write_black_box

CPU = torch.device("cpu")
NAN = float("nan")


class Toy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))


def loss_of(raw, _targets):
    return {"loss": raw.mean(), "box": 2 * raw.mean(), "count": torch.ones(2)}


def batch_of(*images):
    return SimpleNamespace(images=torch.tensor(images), targets=torch.zeros(len(images), 1, 5))


def stepper_of(model):
    return Stepper(model, torch.optim.SGD(model.parameters(), 0.1), None, Precision(torch.float32, False, ""), CPU)


def cause(model, batch, criterion=loss_of):
    return first_not_finite(model, criterion, stepper_of(model), batch)


GOOD = batch_of([1.0, 2.0], [3.0, 5.0])


def test_the_first_layer_is_named():
    """Prevents a search from the end: all layers behind the broken one give NaN too; and hooks that stay behind."""
    model = Toy()
    with torch.no_grad():
        model[2][0].weight[0, 0] = NAN
    assert cause(model, GOOD) == "the output of layer 2.0"
    assert not any(part._forward_hooks for part in model.modules())
    assert cause(Toy(), batch_of([1.0, 2.0], [NAN, 5.0])) == "the output of layer 0"
    assert cause(Toy(), GOOD) == ""


def test_a_loss_is_named():
    """Prevents the blame on the network where the loss itself fails: the first part that does."""

    def broken(raw, targets):
        return loss_of(raw, targets) | {"box": raw.mean() * float("inf")}

    assert cause(Toy(), GOOD, broken) == "the loss 'box'"


def test_a_gradient_is_named():
    """Prevents a cause that stays unknown because the forward pass is well: the root of 0 has an endless slope."""

    def steep(raw, targets):
        return loss_of(raw, targets) | {"loss": (raw * 0).sqrt().sum()}

    assert cause(Toy(), GOOD, steep).startswith("the gradient of 0.")


def test_what_is_left_of_a_bad_step(tmp_path):
    """Prevents a black box that lacks what the step needs to be run again, that holds the statistics the search left,
    or that torch refuses to load."""
    model, path = Toy(), tmp_path / "black_box.pth"
    stepper, bad = stepper_of(model), batch_of([NAN, 2.0], [3.0, 5.0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = write_black_box(path, model, loss_of, stepper, [GOOD, bad], ["a.jpg", "b.jpg"], {"seed": 3}, 4)
    assert words == "the output of layer 0"
    assert all(parameter.grad is None for parameter in model.parameters())
    kept = torch.load(path, weights_only=True)
    assert (kept["paths"], kept["settings"], kept["epoch"]) == (["a.jpg", "b.jpg"], {"seed": 3}, 5)
    assert kept["first_not_finite"] == words
    assert torch.equal(kept["images"][0], GOOD.images) and torch.equal(kept["targets"][1], bad.targets)
    assert all(torch.equal(value, before[key]) for key, value in kept["model"].items())


@pytest.mark.parametrize("batches", [[], [GOOD]])
def test_a_step_that_is_well_when_run_again(tmp_path, batches):
    """Prevents a cause out of thin air, such as where a GPU had a bad moment."""
    model = Toy()
    words = write_black_box(tmp_path / "box.pth", model, loss_of, stepper_of(model), batches, [], {}, 0)
    assert words == "nothing any more"
