import pytest
import torch
from torch import nn

from nets.norm_act import norm_act


def layers(act):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    return conv, norm, act


ACTIVATIONS = [nn.SiLU, nn.Mish, lambda inplace: nn.LeakyReLU(0.1, inplace)]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_values_gradients_and_statistics_are_those_of_the_layers(act):
    """Prevents a backward pass with the wrong statistics, or through the wrong side of the activation."""
    x = torch.randn(2, 3, 6, 6)
    outputs, gradients, statistics = [], [], []
    for run in (lambda y, norm, act: act(norm(y)), norm_act):
        conv, norm, activation = layers(act(inplace=True))
        inputs = x.clone().requires_grad_()
        output = run(conv(inputs), norm, activation)
        (output * torch.arange(output.numel()).view_as(output) / 100).sum().backward()
        outputs.append(output.detach())
        gradients.append([inputs.grad, conv.weight.grad, norm.weight.grad, norm.bias.grad])
        statistics.append([norm.running_mean, norm.running_var])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics[1], statistics[0])


def saved_bytes(function):
    """Memory that a forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(size for size, _ in storages.values())


def test_one_map_is_kept_instead_of_two():
    """Prevents an activation that clones what BatchNorm gave: a third of a network's memory in training."""
    x = torch.randn(4, 3, 32, 32)
    conv, norm, act = layers(nn.SiLU(inplace=True))
    a_map = 4 * 4 * 30 * 30 * 4  # bytes
    plain = saved_bytes(lambda: act(norm(conv(x))))
    assert plain - saved_bytes(lambda: norm_act(conv(x), norm, act)) == pytest.approx(a_map, rel=1e-3)


@pytest.mark.parametrize("case", ["eval", "no gradient", "another norm", "another activation"])
def test_all_else_runs_as_it_is(case):
    """Prevents inference with the statistics of a batch, and layers that backbones of other projects bring."""
    conv, norm, act = layers(nn.GELU() if case == "another activation" else nn.SiLU())
    norm = nn.GroupNorm(2, 4) if case == "another norm" else norm
    norm.train(case != "eval")
    x = torch.randn(2, 3, 6, 6)
    with torch.set_grad_enabled(case != "no gradient"):
        output = norm_act(conv(x), norm, act)
    assert "NormAct" not in str(output.grad_fn)
    if case != "no gradient":
        torch.testing.assert_close(output, act(norm(conv(x))))
