import pytest
import torch
from torch import nn

from utils.optim import (
    ModelEma,
    build_optimizer,
    parameter_groups,
    rate_at,
    scaled_rates,
    set_rates,
    take_in,
)


@pytest.mark.parametrize(
    ("initial", "minimum", "optimizer_type", "batch_size", "highest", "lowest"),
    [
        (1e-2, None, "sgd", 64, 1e-2, 1e-4),
        (1e-2, None, "sgd", 8, 1.25e-3, 1.25e-5),
        (1e-2, None, "sgd", 1, 5e-4, 5e-6),
        (1e-2, None, "sgd", 1024, 5e-2, 5e-4),
        (1e-3, None, "adamw", 64, 1e-3, 1e-5),
        (1e-3, None, "adamw", 32, 5e-4, 5e-6),
        (1e-3, None, "adamw", 8, 3e-4, 3e-6),
        (1e-3, None, "adam", 8, 3e-4, 3e-6),
        (1e-3, None, "adam", 128, 1e-3, 1e-5),
        (1e-2, 2e-4, "sgd", 32, 5e-3, 1e-4),
        (1e-2, 0.0, "sgd", 64, 1e-2, 5e-6),
        (1e-2, 1e-2, "sgd", 64, 1e-2, 5e-4),
    ],
)
def test_rates_follow_the_batch_within_limits(initial, minimum, optimizer_type, batch_size, highest, lowest):
    """Prevents small batches from diverging, and tiny or huge ones from leaving the range in which training works."""
    rates = scaled_rates(initial, minimum, optimizer_type, batch_size)
    assert rates == (pytest.approx(highest, rel=1e-9), pytest.approx(lowest, rel=1e-9))


@pytest.mark.parametrize(
    ("progress", "epochs", "expected"),
    [
        # 80 epochs: 3 of warm-up (5 % would be 4), a cosine over epochs 3 to 76, 4 flat.
        (0.0, 80, 1.0),
        (3.0, 80, 1.0),
        (21.25, 80, 0.8828427),  # a quarter of the cosine: 0.2 + 0.4 * (1 + cos 45 degrees)
        (39.5, 80, 0.6),
        (57.75, 80, 0.3171573),
        (76.0, 80, 0.2),
        (80.0, 80, 0.2),
        # 400 epochs: 3 and 15 at most. 20 epochs: 1 and 1 at least. Tiny runs: a quarter each at most.
        (194.0, 400, 0.6),
        (385.0, 400, 0.2),
        (10.0, 20, 0.6),
        (0.5, 2, 1.0),
        (1.0, 2, 0.6),
        (2.0, 2, 0.2),
        (0.5, 1, 0.6),
    ],
)
def test_shape_of_the_schedule(progress, epochs, expected):
    """Prevents a schedule that never reaches its lowest rate, or divides by zero in very short runs."""
    assert rate_at(progress, epochs, 1.0, 0.2) == pytest.approx(expected, abs=1e-6)


def test_groups_that_join_later_warm_up_on_their_own():
    """Prevents the unfrozen backbone from starting at the full rate, and the others from warming up twice."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "joined": joined} for joined in (0, 10)]
    optimizer = build_optimizer("sgd", groups, 0.9)
    expected = {0: (0.0, 0.0), 1.5: (0.025, 0.0), 3: (0.1, 0.0), 10: (0.1, 0.0), 11: (0.1, 0.1 / 9), 13: (0.1, 0.1)}
    for progress, rates in expected.items():
        assert set_rates(optimizer, progress, 80, 0.1, 0.1) == pytest.approx(max(rates))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_only_weights_decay():
    """Prevents decay on BatchNorm and biases, which costs accuracy, and frozen parameters in the optimiser."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)), nn.Conv2d(2, 2, 1))
    module[3].requires_grad_(False)
    decayed, others = parameter_groups(module, 5e-4, joined=7)
    conv, norm, (linear,), _ = module
    assert [id(parameter) for parameter in decayed["params"]] == [id(conv.weight), id(linear.weight)]
    assert [id(parameter) for parameter in others["params"]] == [
        id(parameter) for parameter in (conv.bias, norm.weight, norm.bias, linear.bias)
    ]
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
    assert (decayed["joined"], others["joined"]) == (7, 7)
    assert [group["params"] for group in parameter_groups(nn.ReLU(), 5e-4, 0)] == [[], []]


def test_new_parameters_join_and_the_others_keep_their_state():
    """Prevents a loss that leaps at the unfreeze epoch because the momentum of all weights is thrown away."""
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(False)
    optimizer = build_optimizer("sgd", parameter_groups(model, 5e-4, 0), 0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[head.weight]["momentum_buffer"].clone()

    take_in(optimizer, model, 5e-4, joined=10)
    assert len(optimizer.param_groups) == 2  # nothing is new while the backbone is frozen
    backbone.requires_grad_(True)
    for _ in range(2):  # the second time, nothing is new again
        take_in(optimizer, model, 5e-4, joined=10)
        shown = [(len(group["params"]), group["weight_decay"], group["joined"]) for group in optimizer.param_groups]
        assert shown == [(1, 5e-4, 0), (1, 0.0, 0), (1, 5e-4, 10), (1, 0.0, 10)]
    assert optimizer.param_groups[2]["params"][0] is backbone.weight
    assert optimizer.param_groups[3]["params"][0] is backbone.bias
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * 4
    assert torch.equal(optimizer.state[head.weight]["momentum_buffer"], momentum)


def steps_of(optimizer_type, momentum, gradients, weight_decay=0.0, rate=0.1):
    """The values that a weight of 1.0 takes under these gradients."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(optimizer_type, [{"params": [weight], "weight_decay": weight_decay}], momentum)
    values = []
    for gradient in gradients:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        values.append(weight.item())
    return values


def test_sgd_looks_ahead():
    """Prevents plain momentum in the place of Nesterov's: 1 - 0.1 * 1.9, then - 0.1 * (1 + 0.9 * 1.9)."""
    assert steps_of("sgd", 0.9, [1.0, 1.0]) == pytest.approx([0.81, 0.539])
    assert steps_of("sgd", 0.0, [1.0, 1.0]) == pytest.approx([0.9, 0.8])


def test_adams_differ_in_their_decay():
    """Prevents adam in the place of adamw: under a gradient of 0, adamw shrinks by lr * decay, adam steps by lr."""
    assert steps_of("adamw", 0.9, [0.0], weight_decay=0.1, rate=0.01) == pytest.approx([0.999])
    assert steps_of("adam", 0.9, [0.0], weight_decay=0.1, rate=0.01) == pytest.approx([0.99])
    optimizer = build_optimizer("adamw", [{"params": [nn.Parameter(torch.ones(1))]}], 0.8)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_average_by_hand():
    """Prevents a wrong decay (shares 1/2, 1/2.1, 1/5), and BatchNorm statistics that lag behind the weights."""
    model = nn.BatchNorm1d(1)
    nn.init.zeros_(model.weight)
    average = ModelEma(model, total_steps=100)
    assert average.horizon == 5.0
    assert average.model.weight.item() == 0.0

    with torch.no_grad():
        model.weight.fill_(1.0)
        model.running_mean.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    average.update(model)
    assert average.model.weight.item() == pytest.approx(0.5)
    assert average.model.running_mean.item() == 3.0
    assert average.model.num_batches_tracked.item() == 7

    with torch.no_grad():
        model.weight.fill_(2.6)
    average.update(model)
    assert average.model.weight.item() == pytest.approx(1.5)  # 0.5 + 2.1 / 2.1

    average.steps = 500  # far into the run the horizon no longer grows
    with torch.no_grad():
        model.weight.fill_(2.5)
    average.update(model)
    assert average.model.weight.item() == pytest.approx(1.7)  # 1.5 + 1.0 / 5


@pytest.mark.parametrize(("total_steps", "horizon"), [(4000, 200.0), (20, 1.0), (5, 1.0), (0, 1.0)])
def test_the_horizon_follows_the_length_of_the_run(total_steps, horizon):
    """Prevents the average of a short run from staying at its untrained start."""
    model = nn.BatchNorm1d(1)
    average = ModelEma(model, total_steps)
    assert average.horizon == horizon
    if horizon == 1.0:
        with torch.no_grad():
            model.weight.fill_(4.0)
        average.update(model)
        assert average.model.weight.item() == 4.0


def test_the_average_is_a_model_of_its_own():
    """Prevents an average that shares memory with the model, trains along, or leaves the model in eval mode."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = ModelEma(model, 1000)
    assert model.training and not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = average.model[0].weight.item()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert average.model[0].weight.item() == before
