import pytest
import torch
from torch import nn

from nets.losses import Criterion
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo, MixedPrecision
from utils.training import compile as module
from utils.training.compile import CompiledNetwork, compile_network
from utils.training.engine import OptimWrapper

FLOAT32 = Precision(torch.float32, False, "")
SHAPE = (2, 3, 4, 6)
TRIED = "torch.compile translates the network, which takes up to some minutes ...\n"


class Toy(nn.Module):
    """A network with statistics, of which one layer is frozen; it counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.passes = 0

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images):
        self.passes += 1
        return self.frozen(self.norm(self.conv(images.float())))


class MeanLoss(Criterion):
    def forward(self, raw, targets):
        assert targets.shape == (len(raw), 16, 5)
        return {"loss": raw.mean(), "count": torch.tensor([0.0, len(raw)])}


def optim_of(model, device="cpu"):
    runtime = RuntimeContext(torch.device(device), DistInfo(), FLOAT32)
    return OptimWrapper(model, MeanLoss(), torch.optim.SGD(model.parameters(), lr=1.0), None, runtime)


def compiled_by(monkeypatch, compiler):
    """What compile_network returns where torch.compile is compiler: (the network it was given, what it gave).

    Holds that the step which tries it leaves no trace.
    """
    monkeypatch.setattr(torch, "compile", compiler)
    model = Toy()
    model.norm.running_mean.fill_(3.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optim = optim_of(model)
    network = MixedPrecision(model.train(), optim.runtime)
    try:
        return network, compile_network(network, optim, SHAPE)
    finally:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert model.training and model.norm.training and not model.frozen.training
        assert (optim.total, optim.gathered, optim.bad_in_a_row) == (None, [], 0)


def counting(calls):
    """A compiler whose networks note what they are called with."""

    def compiler(network, dynamic, fullgraph):
        assert not dynamic and fullgraph

        def compiled(images):
            calls.append((tuple(images.shape), images.dtype))
            return network(images)

        return compiled

    return compiler


def test_a_compiled_network_is_used(monkeypatch, capsys):
    """Prevents compile without effect, and a translation for the last batch of each epoch, which has another
    shape; the step that tries it leaves no trace in weights, statistics and gradients."""
    calls = []
    network, compiled = compiled_by(monkeypatch, counting(calls))
    assert isinstance(compiled, CompiledNetwork) and calls == [(SHAPE, torch.uint8)]
    for images in (2, 1, 2):  # a batch of another shape runs as it is
        compiled(torch.zeros(images, *SHAPE[1:], dtype=torch.uint8))
    assert (len(calls), network.network.passes) == (3, 4)
    assert capsys.readouterr().out == TRIED


@pytest.mark.parametrize(
    ("message", "shown"),
    [("no C++ compiler\nmany more lines", "no C++ compiler"), ("", "no reason given"), ("\n  \n", "no reason given")],
)
@pytest.mark.parametrize("when", ["at once", "in the first step"])
def test_a_failing_compiler_ends_no_training(monkeypatch, capsys, when, message, shown):
    """Prevents a missing compiler from ending a run, or from filling the screen: one line says why it goes on."""

    def fail(*_, **__):
        raise RuntimeError(message)

    network, compiled = compiled_by(monkeypatch, fail if when == "at once" else lambda network, **_: fail)
    assert compiled is network
    note = f"note: torch.compile fails here (RuntimeError: {shown}); training goes on without it.\n"
    assert capsys.readouterr().out == TRIED + note


def test_a_compiler_that_fails_on_another_rank_alone(monkeypatch, capsys):
    """Prevents ranks that run different networks, of which one waits for gradients that never come."""
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "all_reduce_sum", lambda works: works)
    network, compiled = compiled_by(monkeypatch, counting([]))
    assert compiled is network
    note = "note: torch.compile fails here (on another process); training goes on without it.\n"
    assert capsys.readouterr().out == TRIED + note


def test_ctrl_c_is_no_failure_of_the_compiler(monkeypatch):
    """Prevents minutes of compilation that cannot be stopped."""

    def interrupted(_model, **_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled_by(monkeypatch, interrupted)


def test_a_network_of_queries_is_not_compiled(monkeypatch, capsys):
    """Prevents a translation for every number of boxes, which ends the training once there were too many."""
    monkeypatch.setattr(MeanLoss, "needs_host", True)
    calls = []
    network, compiled = compiled_by(monkeypatch, counting(calls))
    assert compiled is network and calls == []
    assert capsys.readouterr().out.startswith("note: compile is 'default', but this network has another number of")


def test_data_parallel_is_not_compiled(monkeypatch, capsys):
    """Prevents a compiled network inside DataParallel, which copies it for every step."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model = Toy()
    optim = optim_of(model)
    optim.runtime = RuntimeContext(torch.device("cuda"), DistInfo(), FLOAT32)
    assert compile_network(model, optim, SHAPE) is model
    assert capsys.readouterr().out == (
        "note: compile is 'default', but one process drives several GPUs here: start one process per GPU with "
        "torchrun, or choose one by gpu_ids.\n"
    )


def test_gradients_wait_through_a_compiled_network():
    """Prevents ranks that exchange gradients after each batch where several are accumulated."""
    entered = []

    class Waits(Toy):
        def no_sync(self):
            entered.append(True)
            return torch.no_grad()

    with CompiledNetwork(Waits(), SHAPE).no_sync():
        assert entered == [True] and not torch.is_grad_enabled()
    with CompiledNetwork(Toy(), SHAPE).no_sync():
        assert torch.is_grad_enabled()
