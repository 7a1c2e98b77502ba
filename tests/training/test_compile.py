from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.runtime.device import Place, Precision
from utils.runtime.distributed import Ranks
from utils.training import compile as compiling
from utils.training.compile import compile_if_faster
from utils.training.engine import Stepper

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")
TRIED = "torch.compile is tried on a few steps, which takes up to some minutes ..."


class Toy(nn.Module):
    """A network with statistics, whose steps take a second of a clock that only it moves."""

    def __init__(self, clock):
        super().__init__()
        self.conv, self.norm, self.clock = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), clock
        self.resting = nn.BatchNorm2d(2)

    def train(self, mode=True):
        super().train(mode)
        self.resting.eval()
        return self

    def forward(self, images):
        self.clock[0] += 1.0
        return self.resting(self.norm(self.conv(images.float())))


def mean_loss(raw, targets):
    assert targets.shape == (len(raw), 16, 5)
    return {"loss": raw.mean(), "count": torch.tensor([0.0, len(raw)])}


def tried(monkeypatch, compile_model):
    """What compile_if_faster returns where torch.compile is compile_model: (network, model, lines)."""
    clock, lines = [100.0], []
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(torch, "compile", compile_model)
    model = Toy(clock)
    model.norm.running_mean.fill_(3.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), None, FLOAT32, CPU)
    place = Place(CPU, Ranks(), FLOAT32, lines.append)
    network = compile_if_faster(model, mean_loss, stepper, (2, 3, 4, 6), place)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and model.norm.training and not model.resting.training
    assert (stepper.total, stepper.gathered) == (None, [])
    return network, model, lines


def taking(seconds, first=0.0):
    """A compiler whose networks need so many seconds per step, and more in the first, which compiles."""

    def compile_model(model, dynamic):
        assert not dynamic
        waits = [first]

        def network(images):
            assert (images.shape, images.dtype) == ((2, 3, 4, 6), torch.uint8)
            raw = model(images)
            model.clock[0] += seconds - 1.0 + (waits.pop() if waits else 0.0)
            return raw

        return network

    return compile_model


def test_a_faster_network_is_used(monkeypatch):
    """Prevents the minutes of the first step, which compiles, from counting as slowness; the trial leaves no trace in
    weights, statistics and gradients."""
    network, model, lines = tried(monkeypatch, taking(0.5, first=300.0))
    model.clock[0] = 0.0
    for images, seconds in ((2, 0.5), (1, 1.5), (2, 2.0)):  # a batch of another shape runs as it is
        network(torch.zeros(images, 3, 4, 6, dtype=torch.uint8))
        assert model.clock[0] == seconds
    assert lines == [TRIED, "torch.compile: 0.500 s per step instead of 1.000 s"]


@pytest.mark.parametrize("seconds", [1.5, 1.0, 0.98])
def test_a_slower_network_is_dropped(monkeypatch, seconds):
    """Prevents compile = True from slowing a training down, or from being dropped without a word; a gain of 2 % is
    noise."""
    network, model, lines = tried(monkeypatch, taking(seconds))
    assert network is model
    assert lines == [
        TRIED,
        f"note: compiled steps take {seconds:.3f} s, others 1.000 s; training goes on without torch.compile.",
    ]


@pytest.mark.parametrize(
    ("message", "shown"),
    [("no C++ compiler\nmany more lines", "no C++ compiler"), ("", "no reason given"), ("\n  \n", "no reason given")],
)
@pytest.mark.parametrize("when", ["at once", "in the first step"])
def test_a_failing_compiler_ends_no_training(monkeypatch, when, message, shown):
    """Prevents a missing compiler from ending a run, or from filling the screen: one line says why it goes on."""

    def fail(*_, **__):
        raise RuntimeError(message)

    network, model, lines = tried(monkeypatch, fail if when == "at once" else lambda model, dynamic: fail)
    assert network is model
    assert lines == [
        TRIED,
        f"note: torch.compile fails here (RuntimeError: {shown}); training goes on without it.",
    ]


def test_ctrl_c_is_no_failure_of_the_compiler(monkeypatch):
    """Prevents minutes of compilation that cannot be stopped."""

    def interrupted(_model, **_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tried(monkeypatch, interrupted)


def test_data_parallel_is_not_compiled(monkeypatch):
    """Prevents a compiled network inside DataParallel, which copies it for every step."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model, lines = Toy([0.0]), []
    place = Place(torch.device("cuda"), Ranks(), FLOAT32, lines.append)
    assert compile_if_faster(model, mean_loss, None, (2, 3, 4, 6), place) is model
    assert lines == [
        "note: compile is True, but one process drives several GPUs here: start one process per GPU with torchrun, or "
        "choose one by gpu_ids."
    ]
