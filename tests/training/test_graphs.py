import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets import build_criterion, build_model
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo, MixedPrecision
from utils.training.engine import OptimWrapper
from utils.training.graphs import MAX_GRAPHS, WARM_UP_STEPS, GraphedOptimWrapper, why_no_graphs
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups, set_rate

FLOAT32 = Precision(torch.float32, False, "")
CPU = RuntimeContext(torch.device("cpu"), DistInfo(), FLOAT32)
GPU = RuntimeContext(torch.device("cuda"), DistInfo(), FLOAT32)


class Replayed(GraphedOptimWrapper):
    """Runs the captured function again where a GPU would replay its kernels, into the tensors of the first run."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.captured, self.replayed = 0, 0

    def capture(self, function):
        self.captured += 1
        # As on a GPU, capturing itself changes nothing.
        state = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.norm_backup.kept))
        average = copy.deepcopy(self.ema.model.state_dict())
        is_bad, losses = function()
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        self.norm_backup.kept.copy_(state[2])
        self.ema.model.load_state_dict(average)
        self.optimizer.zero_grad(set_to_none=True)

        def replay():
            self.replayed += 1
            bad_now, losses_now = function()
            self.optimizer.zero_grad(set_to_none=True)
            is_bad.copy_(bad_now)
            for part, value in losses_now.items():
                losses[part].copy_(value)

        return replay, (is_bad, losses)


def optim_of(wrapper, optimizer_type="sgd"):
    torch.manual_seed(0)
    model = build_model("yolox_nano", 2).train()
    model.freeze(())
    optimizer = build_optimizer(optimizer_type, parameter_groups(model, 5e-4, 0), 0.9)
    optim = wrapper(model, build_criterion(model), optimizer, ModelEMA(model, 100), CPU)
    optim.norm_backup.save()
    return optim


def batch_of(seed, images=2, side=32, boxes=16):
    torch.manual_seed(seed)
    targets = torch.zeros(images, boxes, 5)
    targets[..., 4] = -1
    targets[:, 0] = torch.tensor([4.0, 4.0, 20.0, 24.0, 1.0])
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8), targets


def train(optim, batches):
    network, losses = MixedPrecision(optim.model, CPU), []
    for number, batch in enumerate(batches, 1):
        for group in optim.optimizer.param_groups:
            set_rate(group, 1e-5 * number)
        losses.append(optim.train_step(network, *batch)[1]["loss"].item())
    return losses, torch.cat([value.flatten().float() for value in optim.ema.model.state_dict().values()])


@pytest.mark.parametrize("optimizer_type", ["sgd", "adamw"])
def test_replayed_steps_are_the_same_steps(optimizer_type):
    """Prevents steps on the pixels, boxes, learning rate or share of the average of the step that was captured."""
    batches = [batch_of(seed) for seed in range(7)]
    plain, graphed = optim_of(OptimWrapper, optimizer_type), optim_of(Replayed, optimizer_type)
    (losses, average), (losses_graphed, average_graphed) = train(plain, batches), train(graphed, batches)
    assert losses_graphed == pytest.approx(losses, rel=1e-3)
    assert (average - average_graphed).norm() < 1e-3 * average.norm()
    assert (graphed.captured, graphed.replayed) == (1, 7 - WARM_UP_STEPS)
    assert graphed.ema.steps == plain.ema.steps == 7


def test_each_shape_has_its_graph():
    """Prevents a graph that gets a batch of another shape, or with other boxes."""
    optim = optim_of(Replayed)
    shapes = [(2, 32, 16), (1, 32, 16), (2, 64, 16), (2, 32, 32)]
    for images, side, boxes in shapes:
        train(optim, [batch_of(0, images, side, boxes)] * (WARM_UP_STEPS + 2))
    assert (optim.captured, optim.replayed) == (4, 8)
    train(optim, [batch_of(0)])
    assert (optim.captured, optim.replayed) == (4, 9)


def test_a_new_phase_has_new_graphs():
    """Prevents a graph of the frozen phase from training on when the backbone is to learn."""
    optim = optim_of(Replayed)
    train(optim, [batch_of(0)] * (WARM_UP_STEPS + 1))
    optim.begin_phase()
    train(optim, [batch_of(0)] * (WARM_UP_STEPS + 1))
    assert (optim.captured, optim.replayed) == (2, 2)


def test_graphs_have_a_bound(monkeypatch):
    """Prevents a training in many sizes from filling the memory with graphs."""
    monkeypatch.setattr("utils.training.graphs.MAX_GRAPHS", 1)
    optim = optim_of(Replayed)
    for images in (1, 2):
        train(optim, [batch_of(0, images)] * (WARM_UP_STEPS + 1))
    assert optim.captured == 1 and MAX_GRAPHS > 1


def test_a_capture_that_fails_ends_no_training(capsys):
    """Prevents a step that cannot be captured from ending a run, or from leaving half a step behind."""

    class Fails(Replayed):
        def capture(self, function):
            self.captured += 1
            function()
            raise RuntimeError("operation not permitted when stream is capturing\nmany more lines")

    batches = [batch_of(seed) for seed in range(WARM_UP_STEPS + 3)]
    optim = optim_of(Fails)
    train(optim, batches)
    assert (optim.captured, optim.replayed, optim.gathered) == (1, 0, [])
    assert capsys.readouterr().out == (
        "note: This step cannot be a CUDA graph (operation not permitted when stream is capturing); training goes on "
        "without graphs.\n"
    )


def test_a_replayed_step_that_is_not_finite_is_skipped():
    """Prevents NaN from reaching the weights in a graph, where the host looks only later."""
    optim = optim_of(Replayed)
    train(optim, [batch_of(0)] * (WARM_UP_STEPS + 1))
    before = copy.deepcopy(optim.model.state_dict())
    images, targets = batch_of(0)
    targets[:, 0, 0] = torch.nan
    is_skipped, losses = optim.train_step(MixedPrecision(optim.model, CPU), images, targets)
    assert is_skipped and losses["loss"].isnan()
    after = optim.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if "running" in key)


@pytest.mark.parametrize(
    ("runtime", "optimizer_type", "accumulate", "reason"),
    [
        (GPU, "sgd", 1, ""),
        (CPU, "sgd", 1, "they need an NVIDIA GPU"),
        (GPU._replace(dist=DistInfo(0, 0, 2)), "sgd", 1, "they work for one process with one GPU"),
        (
            GPU._replace(precision=Precision(torch.float16, True, "")),
            *("sgd", 1, "float16 with its loss scaling leaves steps out on the host"),
        ),
        (GPU, "sgd", 2, "accumulate is above 1"),
        (GPU, "rmsprop", 1, "this optimizer_type has no fused form; sgd, adam and adamw have"),
    ],
)
def test_where_graphs_cannot_be(runtime, optimizer_type, accumulate, reason):
    """Prevents graphs where a step does something on the host, and silence about why there are none."""
    fused = {"fused": optimizer_type == "sgd"}
    assert why_no_graphs(runtime, SimpleNamespace(defaults=fused), accumulate) == reason


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer_type", ["sgd", "adamw"])
def test_graphs_on_a_gpu(optimizer_type):
    """Prevents a captured step that differs from the plain one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    runtime = RuntimeContext(torch.device("cuda"), DistInfo(), Precision(torch.bfloat16, False, ""))
    found = []
    for wrapper in (OptimWrapper, GraphedOptimWrapper):
        torch.manual_seed(0)
        model = build_model("yolox_nano", 2).cuda().train()
        optimizer = build_optimizer(optimizer_type, parameter_groups(model, 5e-4, 0), 0.9)
        optim = wrapper(model, build_criterion(model), optimizer, ModelEMA(model, 100), runtime)
        optim.norm_backup.save()
        network = MixedPrecision(model, runtime)
        for seed in range(8):
            for group in optimizer.param_groups:
                set_rate(group, 1e-4 * seed)
            batch = [values.cuda() for values in batch_of(seed, side=64)]
            losses = optim.train_step(network, *batch)[1]
        found.append(losses["loss"].item())
    assert optim.failure == "" and len(optim._graphs) == 1
    assert found[1] == pytest.approx(found[0], rel=2e-2)


def test_the_rate_of_a_fused_optimiser_lies_on_the_device():
    """Prevents a learning rate that a graph has once read as a number and keeps for ever."""
    optim = optim_of(Replayed)
    rates = [group["lr"] for group in optim.optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in rates)
    set_rate(optim.optimizer.param_groups[0], 0.25)
    assert rates[0].item() == 0.25
    group = {"lr": 0.1, "params": [nn.Parameter(torch.zeros(1))]}
    set_rate(group, 0.5)
    assert group["lr"] == 0.5
