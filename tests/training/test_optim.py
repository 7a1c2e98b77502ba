import pytest
import torch
from torch import nn

from utils.training.optim import (
    ModelEMA,
    add_param_groups,
    build_optimizer,
    load_optimizer_state,
    parameter_groups,
    skips_on_device,
)


def test_only_weights_decay():
    """Prevents decay on BatchNorm and biases, which costs accuracy, and frozen parameters in the optimiser."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)), nn.Conv2d(2, 2, 1))
    module[3].requires_grad_(False)
    decayed, others = parameter_groups(module, 5e-4, start_epoch=7)
    assert (decayed["lr_scale"], others["lr_scale"]) == (1.0, 1.0)
    conv, norm, (linear,), _ = module
    assert [id(parameter) for parameter in decayed["params"]] == [id(conv.weight), id(linear.weight)]
    assert [id(parameter) for parameter in others["params"]] == [
        id(parameter) for parameter in (conv.bias, norm.weight, norm.bias, linear.bias)
    ]
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
    assert (decayed["start_epoch"], others["start_epoch"]) == (7, 7)


def test_groups_without_parameters_are_left_out():
    """Prevents empty groups in the optimiser, where the highest rate that is shown could be that of nothing."""
    assert parameter_groups(nn.ReLU(), 5e-4, 0) == []
    assert parameter_groups(nn.Linear(2, 2).requires_grad_(False), 5e-4, 0) == []
    (only,) = parameter_groups(nn.Linear(2, 2, bias=False), 5e-4, 0)
    assert len(only["params"]) == 1


def test_parameters_of_one_lr_scale_form_a_group():
    """Prevents an lr_scale that is asked for under half a name, and groups in an order that changes from run to run."""
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))
    scales = {"1.0.weight": 0.1, "1.0.bias": 0.1, "0.bias": 2.0}
    groups = parameter_groups(module, 5e-4, 0, lambda name: scales.get(name, 1.0))
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (2.0, 0.0),
        (1.0, 5e-4),
        (1.0, 0.0),
        (0.1, 5e-4),
        (0.1, 0.0),
    ]
    first, (second, norm) = module
    expected = [[first.bias], [first.weight], [norm.weight, norm.bias], [second.weight], [second.bias]]
    assert [[id(x) for x in group["params"]] for group in groups] == [[id(x) for x in part] for part in expected]
    (alone,) = parameter_groups(nn.Linear(1, 1, bias=False), 5e-4, 0, {"weight": 0.3}.get)
    assert alone["lr_scale"] == 0.3  # a name without a prefix


def test_new_parameters_are_added_and_the_others_keep_their_state():
    """Prevents a loss that leaps at the unfreeze epoch because the momentum of all weights is thrown away."""
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(False)
    optimizer = build_optimizer("sgd", parameter_groups(model, 5e-4, 0), 0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[head.weight]["momentum_buffer"].clone()

    add_param_groups(optimizer, parameter_groups(model, 5e-4, 10))
    assert len(optimizer.param_groups) == 2  # nothing is new while the backbone is frozen
    backbone.requires_grad_(True)
    for _ in range(2):  # the second time, nothing is new again
        add_param_groups(optimizer, parameter_groups(model, 5e-4, 10))
        shown = [
            (len(group["params"]), group["weight_decay"], group["start_epoch"]) for group in optimizer.param_groups
        ]
        assert shown == [(1, 5e-4, 0), (1, 0.0, 0), (1, 5e-4, 10), (1, 0.0, 10)]
    assert optimizer.param_groups[2]["params"][0] is backbone.weight
    assert optimizer.param_groups[3]["params"][0] is backbone.bias
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * 4
    assert torch.equal(optimizer.state[head.weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize("optimizer_type", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_every_optimizer_moves_what_is_added(optimizer_type):
    """Prevents a crash, or a backbone that stays still, at the unfreeze epoch."""
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 1)
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(False)
    optimizer = build_optimizer(optimizer_type, parameter_groups(model, 0.0, 0), 0.9)

    def step():
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        before = [parameter.detach().clone() for parameter in model.parameters()]
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]

    assert step() == [False, False, True, True]
    backbone.requires_grad_(True)
    add_param_groups(optimizer, parameter_groups(model, 0.0, 3))
    if optimizer_type == "adagrad":  # whose state some versions of torch fill only where it is made
        assert torch.equal(optimizer.state[backbone.weight]["sum"], torch.zeros(2, 2))
        assert optimizer.state[head.bias]["sum"].item() == 1.0
    assert step() == [True, True, True, True]


def test_nothing_to_add():
    """Prevents an empty group where nothing is unfrozen."""
    optimizer = build_optimizer("sgd", parameter_groups(nn.Linear(1, 1), 0.0, 0), 0.9)
    add_param_groups(optimizer, [])
    assert len(optimizer.param_groups) == 2


def values_under(optimizer_type, momentum, gradients, weight_decay=0.0, rate=0.1):
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
    assert values_under("sgd", 0.9, [1.0, 1.0]) == pytest.approx([0.81, 0.539])
    assert values_under("sgd", 0.0, [1.0, 1.0]) == pytest.approx([0.9, 0.8])


def test_adams_differ_in_their_decay():
    """Prevents adam in the place of adamw: under a gradient of 0, adamw shrinks by lr * decay, adam steps by lr."""
    assert values_under("adamw", 0.9, [0.0], weight_decay=0.1, rate=0.01) == pytest.approx([0.999])
    assert values_under("adam", 0.9, [0.0], weight_decay=0.1, rate=0.01) == pytest.approx([0.99])
    optimizer = build_optimizer("adamw", [{"params": [nn.Parameter(torch.ones(1))]}], 0.8)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_rmsprop_by_hand():
    """Prevents RMSprop without its momentum. Mean squares under gradients of 1, smoothed by 0.99: 0.01, then 0.0199.

    Steps of 1 / 0.1, then 0.9 * 10 + 1 / 0.1410674, times the rate of 0.01.
    """
    assert values_under("rmsprop", 0.9, [1.0, 1.0], rate=0.01) == pytest.approx([0.9, 0.7391119], abs=1e-6)
    assert values_under("rmsprop", 0.0, [1.0, 1.0], rate=0.01) == pytest.approx([0.9, 0.8291119], abs=1e-6)


def test_adagrad_by_hand():
    """Prevents another optimiser in its place: 3 / sqrt(9), then 4 / sqrt(9 + 16), whatever the momentum."""
    assert values_under("adagrad", 0.9, [3.0, 4.0]) == pytest.approx([0.9, 0.82])


def test_average_by_hand():
    """Prevents a wrong decay (shares 1/2, 1/2.1, 1/5), and BatchNorm statistics that lag behind the weights."""
    model = nn.BatchNorm1d(1)
    nn.init.zeros_(model.weight)
    average = ModelEMA(model, total_steps=100)
    assert average.horizon == 5.0
    assert average.model.weight.item() == 0.0

    with torch.no_grad():
        model.weight.fill_(1.0)
        model.running_mean.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    average.advance()
    average.update()
    assert average.model.weight.item() == pytest.approx(0.5)
    assert average.model.running_mean.item() == 3.0
    assert average.model.num_batches_tracked.item() == 7

    with torch.no_grad():
        model.weight.fill_(2.6)
    average.advance()
    average.update()
    assert average.model.weight.item() == pytest.approx(1.5)  # 0.5 + 2.1 / 2.1

    average.steps = 500  # far into the run the horizon no longer grows
    with torch.no_grad():
        model.weight.fill_(2.5)
    average.advance()
    average.update()
    assert average.model.weight.item() == pytest.approx(1.7)  # 1.5 + 1.0 / 5


def test_the_average_copies_layers_as_they_are():
    """Prevents an average of a scale before and a shift after unfreezing, which belong to different statistics."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    average = ModelEMA(model, 100)
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(3.0)
            layer.running_mean.fill_(4.0)
    average.copy_layers(model, [])
    assert [layer.weight.item() for layer in average.model] == [1.0, 1.0]
    average.copy_layers(model, ["1"])
    assert [layer.weight.item() for layer in average.model] == [1.0, 3.0]
    assert [layer.running_mean.item() for layer in average.model] == [0.0, 4.0]


@pytest.mark.parametrize(("total_steps", "horizon"), [(4000, 200.0), (20, 1.0), (5, 1.0), (0, 1.0)])
def test_the_horizon_follows_the_length_of_the_run(total_steps, horizon):
    """Prevents the average of a short run from staying at its untrained start."""
    model = nn.BatchNorm1d(1)
    average = ModelEMA(model, total_steps)
    assert average.horizon == horizon
    if horizon == 1.0:
        with torch.no_grad():
            model.weight.fill_(4.0)
        average.advance()
        average.update()
        assert average.model.weight.item() == 4.0


def test_the_average_is_a_model_of_its_own():
    """Prevents an average that shares memory with the model, trains along, or leaves the model in eval mode."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = ModelEMA(model, 1000)
    assert model.training and not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = average.model[0].weight.item()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert average.model[0].weight.item() == before


def trained_in_two_phases(optimizer_type, **changes):
    """A head that trains from epoch 0 and a backbone that trains from epoch 3 on: (model, optimiser)."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(optimizer_type, parameter_groups(model, 5e-4, 0), changes.get("momentum", 0.9))
    model[0].requires_grad_(True)
    add_param_groups(optimizer, parameter_groups(model, changes.get("weight_decay", 5e-4), 3))
    return model, optimizer


def take_steps(model, optimizer, first, last):
    """Steps first to last - 1, each of its own batch and rate."""
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        images = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("optimizer_type", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
@pytest.mark.parametrize("cut", [0, 3])
def test_a_loaded_optimizer_goes_on_to_the_last_bit(tmp_path, optimizer_type, cut):
    """Prevents momenta of other parameters after both phases have begun, and a state that torch refuses to load."""
    whole, optimizer = trained_in_two_phases(optimizer_type)
    take_steps(whole, optimizer, 0, 6)

    model, optimizer = trained_in_two_phases(optimizer_type)
    take_steps(model, optimizer, 0, cut)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pth")
    weights, state = torch.load(tmp_path / "state.pth", weights_only=True)
    model, optimizer = trained_in_two_phases(optimizer_type)
    model.load_state_dict(weights)
    load_optimizer_state(optimizer, state)
    assert [group["start_epoch"] for group in optimizer.param_groups] == [0, 0, 3, 3]
    take_steps(model, optimizer, cut, 6)
    assert all(map(torch.equal, model.state_dict().values(), whole.state_dict().values()))


def test_a_loaded_optimizer_keeps_what_the_constants_say():
    """Prevents weight_decay and momentum that are edited before a resume from having no effect; and a GPU's fused
    optimiser from becoming the slow one because its state was saved on a CPU."""
    _, old = trained_in_two_phases("adamw")
    model, new = trained_in_two_phases("adamw", momentum=0.8, weight_decay=0.05)
    new.param_groups[0]["fused"] = True
    load_optimizer_state(new, old.state_dict())
    assert [(group["betas"][0], group["weight_decay"], group["fused"]) for group in new.param_groups] == [
        (0.8, 5e-4, True),
        (0.8, 0.0, None),
        (0.8, 0.05, None),
        (0.8, 0.0, None),
    ]
    assert new.param_groups[2]["params"][0] is model[0].weight


def test_other_groups_than_those_of_the_checkpoint():
    """Prevents momenta that land on other parameters, or a trace, where what trains was changed before a resume."""
    _, both = trained_in_two_phases("sgd")
    head = build_optimizer("sgd", parameter_groups(nn.Linear(3, 1), 5e-4, 0), 0.9)
    with pytest.raises(ValueError) as error:
        load_optimizer_state(head, both.state_dict())
    assert str(error.value) == (
        "The checkpoint's optimiser moves 6 tensors in 4 groups, and now there are 2 in 2: Freeze_Train, Freeze_Epoch, "
        "freeze_whole_run, train_only, freeze_layers, freeze_blocks or lr_scale are others. Set them back, or start a "
        "new training from its weights by model_path."
    )


@pytest.mark.parametrize("fused", [True, False])
def test_fused_sgd_starts_with_momenta_of_zero(fused):
    """Prevents momenta that nobody has written, where the first step of a fused optimiser is skipped; the steps are
    the same with them."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True, fused=fused)
    add_param_groups(optimizer, [{"params": [added := nn.Parameter(torch.ones(1))]}])
    assert skips_on_device(optimizer) is fused
    assert (added in optimizer.state) is fused
    for _ in range(2):
        added.grad = torch.ones(1)
        optimizer.step()
    assert added.item() == pytest.approx(0.539)


def test_the_average_stays_where_a_step_is_skipped():
    """Prevents an average that moves on while its model stands still."""
    model = nn.BatchNorm1d(1)
    average = ModelEMA(model, 1000)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.advance()
    average.update(torch.tensor(True))
    assert average.model.weight.item() == 1.0
    average.advance()
    average.update(torch.tensor(False))
    assert average.model.weight.item() == pytest.approx(1 + 2 / 2.1)


def test_the_average_goes_on_from_its_state():
    """Prevents an average that begins anew at a resume: with another share, from the present weights."""
    model = nn.BatchNorm1d(1)
    whole, first = ModelEMA(model, 1000), ModelEMA(model, 1000)
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(step / 7)
        whole.advance()
        whole.update()
        if step == 3:
            state = first.state_dict()
            first = ModelEMA(model, 1000)
            first.load_state_dict(state)
        first.advance()
        first.update()
    assert (first.steps, first.model.weight.item()) == (6, whole.model.weight.item())
