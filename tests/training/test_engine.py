import math
from types import SimpleNamespace

import pytest
import torch
from launched import on_ranks
from torch import nn

from nets import build_criterion, build_model
from nets.base import DetectorBase
from nets.losses import Criterion
from utils.runtime import distributed
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo, MixedPrecision
from utils.training import engine
from utils.training.engine import LossMeter, OptimWrapper, train_one_epoch
from utils.training.nonfinite import DelayedFlag, NonFiniteLossError
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups

FLOAT32 = Precision(torch.float32, False, "")
NAN, INF = float("nan"), float("inf")
PARTS = ("loss", "box", "obj", "cls", "l1")


def batch_of(*images, unreadable=(), truncated=()):
    """A batch whose images are rows of numbers; targets are not looked at."""
    targets = torch.zeros(len(images))
    return SimpleNamespace(
        images=torch.tensor(images), targets=targets, unreadable=list(unreadable), truncated=list(truncated)
    )


class CriterionOf(Criterion):
    """A loss out of a function of (raw, targets)."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def mean_loss(raw, _targets):
    """The mean over images, whose gradient for a linear network is the mean of the images."""
    loss = raw.float().mean()
    parts = dict(zip(PARTS, (loss, 2 * loss, 3 * loss, 4 * loss, 5 * loss), strict=True))
    return parts | {"count": torch.tensor([0.0, len(raw)])}


def loss_per_positive(raw, targets):
    """The sum over images, divided by the larger number of positives and images; targets: positives of each image."""
    count = torch.stack([targets.sum(), torch.tensor(float(len(raw)))])
    return {"loss": raw.sum() / count.max(), "count": count}


def runtime_of(precision=FLOAT32):
    return RuntimeContext(torch.device("cpu"), DistInfo(), precision)


def make_optim(model, criterion=mean_loss, ema=None, runtime=None, accumulate=1, rate=1.0, **clipping):
    """Plain gradient descent with the given rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return OptimWrapper(model, CriterionOf(criterion), optimizer, ema, runtime or runtime_of(), accumulate, **clipping)


def linear(inputs=1):
    network = nn.Linear(inputs, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def run_epoch(optim, batches, set_lr=lambda fraction: 0.1, meter=None, **options):
    """An epoch with the optimiser's own model, in the run's precision."""
    network = MixedPrecision(optim.model, optim.runtime)
    return train_one_epoch(network, batches, optim, set_lr, meter or LossMeter(), title="epoch", **options)


def train(model, batches, set_lr=lambda fraction: fraction, precision=FLOAT32, **options):
    return run_epoch(make_optim(model, runtime=runtime_of(precision), **options), batches, set_lr)


def test_the_peak_of_memory_is_read_where_the_epoch_ends(monkeypatch):
    """Prevents a peak that what follows the epoch has reset before anybody reads it."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 7)
    optim = make_optim(linear())
    assert run_epoch(optim, [batch_of([1.0])]).peak_memory is None
    gpu = SimpleNamespace(device=torch.device("cpu"), on_gpu=True)
    network = MixedPrecision(optim.model, optim.runtime)
    optim.runtime = gpu
    assert train_one_epoch(network, [batch_of([1.0])], optim, lambda fraction: 0.1, LossMeter()).peak_memory == 7


def test_two_batches_of_four_step_like_one_of_eight():
    """Prevents accumulated gradients that are summed instead of averaged, or cleared in between."""
    fractions, gathered, whole = [], linear(), linear()
    batches = [batch_of([1.0], [2.0], [3.0], [4.0]), batch_of([5.0], [6.0], [7.0], [8.0])]
    result = train(gathered, batches, accumulate=2, set_lr=lambda fraction: fractions.append(fraction) or 0.25)
    train(whole, [batch_of(*([float(x)] for x in range(1, 9)))])
    assert gathered.weight.item() == whole.weight.item() == -4.5
    assert fractions == [1.0]
    assert result.learning_rate == 0.25


def test_the_last_window_of_an_epoch_may_be_short():
    """Prevents leftover batches from being dropped, stepping at half their strength, or leaking into the next epoch."""
    fractions, network = [], linear()
    batches = [batch_of([1.0], [3.0]), batch_of([5.0], [7.0]), batch_of([9.0])]
    train(network, batches, accumulate=2, set_lr=lambda fraction: fractions.append(fraction) or 1.0)
    assert fractions == [pytest.approx(2 / 3), 1.0]
    assert network.weight.item() == -13.0  # the mean of 2 and 6, then 9
    assert network.weight.grad is None


def test_without_accumulation_every_batch_is_a_step():
    """Prevents gradients of one step from staying for the next."""
    network = linear()
    train(network, [batch_of([1.0]), batch_of([2.0]), batch_of([4.0])])
    assert network.weight.item() == -7.0


def test_a_window_divides_by_the_counts_of_all_its_batches():
    """Prevents batches of few positives from pushing as hard as those of many, and the positives of one batch from
    standing against the images of another."""

    def step(network, batches, counts, accumulate):
        for batch, positives in zip(batches, counts, strict=True):
            batch.targets = torch.tensor(positives)
        train(network, batches, accumulate=accumulate, criterion=loss_per_positive)
        return -network.weight.item()

    few, many = batch_of([1.0], [3.0]), batch_of([5.0], [7.0])
    # 6 positives and 4 images: (1 + 3 + 5 + 7) / 6. The mean of the batches' losses would be (4 / 2 + 12 / 6) / 2.
    assert step(linear(), [few, many], [[0.0, 0.0], [1.0, 5.0]], 2) == pytest.approx(16 / 6)
    assert step(linear(), [many, few], [[1.0, 5.0], [0.0, 0.0]], 2) == pytest.approx(16 / 6)
    whole = batch_of([1.0], [3.0], [5.0], [7.0])
    assert step(linear(), [whole], [[0.0, 0.0, 1.0, 5.0]], 1) == pytest.approx(16 / 6)
    # 3 positives and 4 images, though one batch alone has more positives than images.
    assert step(linear(), [few, many], [[0.0, 0.0], [1.0, 2.0]], 2) == pytest.approx(16 / 4)
    # A second window begins anew: 4 / 2, then 12 / 6.
    assert step(linear(), [few, many], [[0.0, 0.0], [1.0, 5.0]], 1) == pytest.approx(2 + 2)


@pytest.mark.parametrize("scales", [False, True])
def test_clipping_bounds_the_gradient(scales):
    """Prevents wild steps, and clipping of gradients that still carry float16's loss scale."""
    network = linear(2)
    train(network, [batch_of([3.0, 4.0])], clip_grad_norm=1.0, precision=Precision(torch.float32, scales, ""))
    assert network.weight.tolist()[0] == pytest.approx([-0.6, -0.8], abs=1e-5)
    network = linear(2)
    train(network, [batch_of([3.0, 4.0])], clip_grad_norm=6.0, precision=Precision(torch.float32, scales, ""))
    assert network.weight.tolist()[0] == pytest.approx([-3.0, -4.0])


@pytest.mark.parametrize(
    ("norm_type", "expected"),
    [(2.0, [0.6, 0.8]), (1.0, [3 / 7, 4 / 7]), (float("inf"), [0.75, 1.0])],
)
def test_the_norm_that_is_bounded(norm_type, expected):
    """Prevents clip_norm_type without effect: the gradient 3, 4 has norms 5, 7 and 4."""
    network = linear(2)
    train(network, [batch_of([3.0, 4.0])], clip_grad_norm=1.0, clip_norm_type=norm_type)
    assert [-value for value in network.weight.tolist()[0]] == pytest.approx(expected, abs=1e-5)
    assert torch.linalg.vector_norm(network.weight, norm_type).item() == pytest.approx(1.0, abs=1e-5)


def test_the_norm_is_that_of_all_gradients_of_a_step():
    """Prevents clipping of each tensor, or each batch, by itself: weights 6 and bias 2 gather from two batches, and
    become 3 and 1."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)

    def doubled(raw, _targets):
        return {"loss": 2 * raw.mean(), "count": torch.tensor([0.0, len(raw)])}

    train(
        network, [batch_of([1.0]), batch_of([5.0])], accumulate=2, criterion=doubled, clip_grad_norm=10**0.5, rate=1.0
    )
    assert [-network.weight.item(), -network.bias.item()] == pytest.approx([3.0, 1.0], abs=1e-5)


def test_losses_are_means_over_images():
    """Prevents a short last batch from counting as much as a full one: (4 * 1 + 2 * 4) / 6."""
    network = linear()
    nn.init.ones_(network.weight)
    full = batch_of([1.0], [1.0], [1.0], [1.0])
    batches = [full, batch_of([4.0], [4.0], unreadable=["a.jpg", "b.jpg"], truncated=["c.jpg"])]
    result = train(network, batches, rate=0.0)
    assert result.losses == pytest.approx({"loss": 2.0, "box": 4.0, "obj": 6.0, "cls": 8.0, "l1": 10.0})
    assert (result.unreadable, result.truncated, result.skipped) == (["a.jpg", "b.jpg"], ["c.jpg"], 0)


class Scaled(torch.autograd.Function):
    """Passes values on and multiplies gradients: a finite loss with a gradient that may be anything."""

    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def bad_loss(raw, targets):
    """mean_loss; the first target says what is wrong: 1 the loss is NaN, 2 it is infinite, 3 its gradient is NaN."""
    factors = {0: (1.0, 1.0), 1: (NAN, 1.0), 2: (INF, 1.0), 3: (1.0, NAN)}
    of_loss, of_gradient = factors[int(targets[0])]
    return mean_loss(Scaled.apply(raw, of_gradient) * of_loss, targets)


def batches_with(*faults):
    """One batch of two images for each number of a fault, see bad_loss."""
    batches = [batch_of([1.0 + number], [3.0]) for number in range(len(faults))]
    for batch, fault in zip(batches, faults, strict=True):
        batch.targets[0] = fault
    return batches


def late_optim(model, kind, is_late, criterion=bad_loss, accumulate=1, **options):
    """An OptimWrapper as on a GPU (late: the optimiser skips a step by itself), or one that knows at once."""
    optimizer = kind(model.parameters(), lr=0.1, **options, fused=is_late)
    ema = ModelEMA(model, 1000) if list(model.buffers()) else None
    optim = OptimWrapper(model, CriterionOf(criterion), optimizer, ema, runtime_of(), accumulate)
    optim.found_inf = DelayedFlag(is_late)
    return optim


def everything(optim):
    """All that a step moves, as one list of tensors: weights, statistics, momenta and the average of the weights."""
    momenta = (value for state in optim.optimizer.state.values() for value in state.values())
    tensors = [*optim.model.state_dict().values(), *momenta, *optim.ema.model.state_dict().values()]
    return [value.clone() for value in tensors if isinstance(value, torch.Tensor) and value.is_floating_point()]


@pytest.mark.parametrize("fault", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("kind", "options"), [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {})]
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_step_that_is_not_finite_leaves_no_trace(is_late, kind, options, accumulate, fault):
    """Prevents NaN in weights, momenta, statistics, the average or the logged losses; one bad batch of a step spoils
    all of it. Where the device must not be waited for, the optimiser skips the step by itself."""
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optim = late_optim(model.train(), kind, is_late, accumulate=accumulate, **options)

    def epoch(*faults):
        return run_epoch(optim, batches_with(*faults))

    assert epoch(0, 0).skipped == 0
    before, bias = everything(optim), model[2].bias.item()
    result = epoch(*[0] * (accumulate - 1), fault)
    after = everything(optim)
    assert len(before) > 15 and all(map(torch.equal, before, after))
    assert (result.skipped, optim.bad_in_a_row) == (1, 1)
    assert math.isnan(result.losses["loss"])  # of no step there is a loss
    result = epoch(*[0] * accumulate)
    assert (result.skipped, optim.bad_in_a_row) == (0, 0)
    assert model[2].bias.item() < bias
    assert all(value.isfinite().all() for value in everything(optim))


@pytest.mark.parametrize("is_late", [False, True])
def test_losses_are_those_of_the_finite_batches(is_late):
    """Prevents one batch of NaN from hiding the loss of an epoch; counted once, whenever it becomes known."""
    optim = late_optim(linear(), torch.optim.SGD, is_late, mean_loss)
    nn.init.ones_(optim.model.weight)
    optim.optimizer.param_groups[0]["lr"] = 0.0
    result = run_epoch(optim, [batch_of([1.0]), batch_of([NAN]), batch_of([5.0]), batch_of([INF])])
    assert (result.losses["loss"], result.losses["box"], result.skipped) == (3.0, 6.0, 2)


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_fifth_bad_step_in_a_row_ends_the_training(is_late, accumulate):
    """Prevents hours of steps that change nothing, and a search in the wrong images: those of the last bad step are
    handed over, also where it is learned of a step later."""
    optim = late_optim(linear(), torch.optim.SGD, is_late, accumulate=accumulate)
    steps = [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]
    batches = batches_with(*(fault for step in steps for fault in [0] * (accumulate - 1) + [step]))
    with pytest.raises(NonFiniteLossError) as error:
        run_epoch(optim, batches)
    assert error.value.batches == batches[10 * accumulate : 11 * accumulate]
    assert str(error.value) == "The loss or its gradient was no finite number in 5 steps in a row."
    assert error.value.exit_status == 3


@pytest.mark.parametrize("is_late", [False, True])
def test_bad_steps_are_counted_over_the_end_of_an_epoch(is_late):
    """Prevents epochs of few steps from beginning the count anew, so that such a run never ends."""
    optim = late_optim(linear(), torch.optim.SGD, is_late)

    def epoch(*faults):
        batches.extend(batches_with(*faults))
        return run_epoch(optim, batches[-len(faults) :]).skipped

    batches = []
    assert (epoch(1, 1), optim.bad_in_a_row) == (2, 2)
    assert (epoch(0), optim.bad_in_a_row) == (0, 0)
    assert (epoch(1, 1), epoch(1, 1), optim.bad_in_a_row) == (2, 2, 4)
    with pytest.raises(NonFiniteLossError) as error:
        epoch(1)
    assert error.value.batches == batches[-1:]


def test_a_loss_scale_is_lowered_before_a_training_is_given_up():
    """Prevents float16 from ending a good training: its scale of 65,536 is halved with each step that overflows."""
    float16 = Precision(torch.float32, True, "")
    model = nn.Sequential(linear(), nn.BatchNorm1d(1).eval())
    optim = make_optim(model, bad_loss, ModelEMA(model, 1000), runtime_of(float16))
    assert optim.max_in_a_row == 21
    run_epoch(optim, batches_with(*[1] * 20))
    assert optim.scaler.get_scale() == 65536 / 2**20
    assert model[0].weight.item() == optim.ema.model[0].weight.item() == 0.0
    with pytest.raises(NonFiniteLossError):
        run_epoch(optim, batches_with(1))


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_an_epoch_taken_up_again_tells_what_a_whole_one_tells(tmp_path, cut):
    """Prevents losses, counts and rates of a resumed epoch that are those of its second half: equal bit for bit."""
    values = torch.rand(5, 2, 1, generator=torch.Generator().manual_seed(1)).tolist()
    batches = [batch_of(*part, unreadable=["a.jpg"][number:]) for number, part in enumerate(values)]
    batches[3].truncated.append("b.jpg")
    batches[1].targets[0] = 1
    seen = []

    def part_of(batches, optim, meter, first=0, stop=9):
        def after_step(done):
            seen.append(done)
            if done == stop:
                raise InterruptedError

        return run_epoch(optim, batches, lambda fraction: 0.1 * fraction, meter, first=first, after_step=after_step)

    whole = part_of(batches, make_optim(linear(), bad_loss, accumulate=2), LossMeter())
    assert seen == [2, 4, 5]
    assert (whole.skipped, whole.unreadable, whole.truncated) == (1, ["a.jpg"], ["b.jpg"])

    optim, meter = make_optim(linear(), bad_loss, accumulate=2), LossMeter()
    if cut:
        with pytest.raises(InterruptedError):
            part_of(batches, optim, meter, stop=cut)
    torch.save(meter.state_dict(), tmp_path / "meter.pth")
    again = LossMeter()
    again.load_state_dict(torch.load(tmp_path / "meter.pth", weights_only=True))
    seen.clear()
    resumed = part_of(batches[cut:], optim, again, first=cut)
    assert seen == [done for done in (2, 4, 5) if done > cut]
    for name in ("losses", "learning_rate", "unreadable", "truncated", "skipped"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert resumed.seconds >= again.state_dict()["waited"] > 0


def test_a_meter_of_nothing_and_its_state():
    """Prevents a state that goes on changing, and a loss of an epoch in which no batch was finite."""
    meter, again = LossMeter(), LossMeter()
    state = meter.state_dict()
    again.load_state_dict(state)
    assert again.result().losses == {}
    meter.unreadable.append("a.jpg")
    assert state["unreadable"] == []
    meter.update({"loss": torch.tensor(NAN), "count": torch.ones(2)}, 4)
    assert math.isnan(meter.result().losses["loss"]) and math.isnan(meter.mean_loss())


def test_the_state_of_a_meter_has_the_keys_of_all_versions():
    """Prevents checkpoints of the version before, and their epoch that is not done, from becoming unreadable."""
    meter = LossMeter()
    meter.truncated.append("a.jpg")
    keys = {"parts", "sums", "images", "seconds", "waited", "learning_rate", "skipped", "unreadable", "cut_off"}
    state = meter.state_dict()
    assert set(state) == keys and state["cut_off"] == ["a.jpg"]
    again = LossMeter()
    again.load_state_dict(state)
    assert vars(again) == vars(meter)


def test_an_epoch_without_batches():
    """Prevents a division by zero, and a step without gradients."""
    network = linear()
    result = train(network, [])
    assert result.losses == {}
    assert (result.images_per_second, result.learning_rate, result.unreadable) == (0.0, 0.0, [])
    assert network.weight.item() == 0.0


def test_waiting_for_data_is_told_from_computing(monkeypatch):
    """Prevents a data wait that counts the network's time: the loader takes 3 s and the step 1 s, twice."""
    clock = [100.0]
    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class SlowLoader:
        def __len__(self):
            return 2

        def __iter__(self):
            for _ in range(2):
                clock[0] += 3.0
                yield batch_of([1.0], [1.0])

    def slow_loss(raw, targets):
        clock[0] += 1.0
        return mean_loss(raw, targets)

    result = train(linear(), SlowLoader(), criterion=slow_loss)
    assert (result.seconds, result.data_wait, result.images_per_second) == (8.0, 0.75, 0.5)


def test_the_forward_pass_alone_runs_in_low_precision():
    """Prevents a loss computed in bfloat16, whose sums over thousands of cells lose small terms."""
    seen = []

    def criterion(raw, targets):
        seen.append((raw.dtype, torch.is_autocast_enabled("cpu")))
        return mean_loss(raw, targets)

    network = linear()
    train(network, [batch_of([1.0])], criterion=criterion, precision=Precision(torch.bfloat16, False, ""))
    train(network, [batch_of([1.0])], criterion=criterion)
    assert seen == [(torch.bfloat16, False), (torch.float32, False)]
    assert network.weight.dtype == torch.float32
    assert network.weight.item() == -2.0


def test_a_criterion_may_feed_the_network():
    """Prevents a detector with queries from being trained without them: they come from the targets, before the loss."""

    class Fed(CriterionOf):
        def extra_inputs(self, targets, images):
            return (targets + 1,)

    class Adds(nn.Module):
        def forward(self, images, extra):
            return images + extra[:, None]

    optim = OptimWrapper(Adds(), Fed(mean_loss), make_optim(linear()).optimizer, None, runtime_of())
    losses = optim.compute_loss(optim.model, torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 4.0]))
    assert losses["loss"].item() == (1 + 4 + 2 + 5) / 2


def test_what_a_criterion_feeds_is_made_of_the_targets_in_host_memory(monkeypatch):
    """Prevents a step of a detector with queries that cannot begin before a GPU has ended the last one."""
    monkeypatch.setattr(engine, "on_device", lambda loader, _: ((b, b.images, b.targets.clone()) for b in loader))
    seen, batch, optim = [], batch_of([1.0]), make_optim(linear())
    optim.criterion.extra_inputs = lambda targets, images: seen.append(targets is batch.targets) or ()
    run_epoch(optim, [batch])
    assert seen == [True]


def test_the_average_follows_every_step():
    """Prevents an average of weights that misses steps, or follows batches instead of steps."""
    network = linear()
    average = ModelEMA(nn.Sequential(network, nn.BatchNorm1d(1)), total_steps=1000)
    model = nn.Sequential(network, nn.BatchNorm1d(1))
    optim = make_optim(model, ema=average, accumulate=2)
    batches = [batch_of([1.0]) for _ in range(4)]
    train_one_epoch(network, batches, optim, lambda fraction: fraction, LossMeter())
    assert average.steps == 2
    assert network.weight.item() == -2.0
    # Weights -1, then -2, with shares 1/2 and 1/2.1 of the average.
    assert average.model[0].weight.item() == pytest.approx(-0.5 - 1.5 / 2.1)


def scene():
    """Eight images of 64 x 64, of which some hold nothing and some a crowd."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    targets = torch.zeros(8, 16, 5)
    targets[..., 4] = -1
    for row, boxes in zip(targets, (0, 0, 1, 0, 12, 9, 2, 3), strict=True):
        corner = torch.rand(boxes, 2, generator=generator) * 30
        side = 8 + torch.rand(boxes, 2, generator=generator) * 25
        row[:boxes, :4] = torch.cat((corner, corner + side), dim=1)
        row[:boxes, 4] = torch.randint(0, 3, (boxes,), generator=generator).float()
    return images, targets


@pytest.mark.parametrize("name", ["yolox_nano", "yolov4_tiny"])
def test_four_batches_of_two_step_like_one_of_eight(name):
    """Prevents accumulation that averages the batches' losses: their normalisers belong to the whole window. BatchNorm
    is frozen, because it sees the small batches."""
    model, (images, targets) = build_model(name, 3), scene()
    criterion = build_criterion(model)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters()}
    model.freeze({key for key, parameter in model.named_parameters() if id(parameter) in of_norms})
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def batches(size):
        parts = zip(images.split(size), targets.split(size), strict=True)
        return [SimpleNamespace(images=part, targets=boxes, unreadable=[], truncated=[]) for part, boxes in parts]

    def movement(size, accumulate):
        model.load_state_dict(start)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optim = OptimWrapper(model, criterion, torch.optim.SGD(trained, lr=0.1), None, runtime_of(), accumulate)
        train_one_epoch(model.train(), batches(size), optim, lambda fraction: 0.1, LossMeter())
        return torch.cat([(value - start[key]).flatten() for key, value in model.state_dict().items()])

    def naive_movement():
        model.load_state_dict(start)
        model.zero_grad()
        for batch in batches(2):
            (criterion(model(batch.images), batch.targets)["loss"] / 4).backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        parts = (
            gradients.get(key) if gradients.get(key) is not None else torch.zeros_like(start[key]) for key in start
        )
        return torch.cat([-0.1 * part.flatten() for part in parts])

    whole, gathered = movement(8, 1), movement(2, 4)
    assert (gathered - whole).norm() < 1e-3 * whole.norm()
    assert (naive_movement() - whole).norm() > 0.1 * whole.norm()


def steps_and_losses(runtime):
    """What two ranks step and tell, see test_two_ranks_step_like_one_process."""
    positives = torch.tensor([0.0, 5.0, 1.0, 0.0, 0.0, 9.0, 0.0, 1.0])
    images, found, results = torch.arange(1.0, 9.0).view(8, 1), {"steps": []}, []

    def epoch(start, rate, criterion, batches, accumulate=1):
        model = linear()
        nn.init.constant_(model.weight, start)
        network = distributed.wrap_model(model, runtime)
        optim = make_optim(model, criterion, runtime=runtime, accumulate=accumulate, rate=rate)
        result = train_one_epoch(network, batches, optim, lambda fraction: 1.0, LossMeter())
        return model.weight.item(), result

    for batch_size, accumulate in ((8, 1), (4, 2)):
        mine = [slice(start + runtime.dist.rank, start + batch_size, 2) for start in range(0, 8, batch_size)]
        batches = [batch_of(*images[part].tolist()) for part in mine]
        for batch, part in zip(batches, mine, strict=True):
            batch.targets = positives[part]
        found["steps"].append(-epoch(0.0, 1.0, loss_per_positive, batches, accumulate)[0])
    for values in ([[[1.0], [2.0], [3.0]]], [[[10.0]]]), ([[[1.0]], [[4.0]]], [[[NAN]], [[1.0]]]):
        batches = [batch_of(*images) for images in values[runtime.dist.rank]]
        weight, result = epoch(1.0, 1.0, mean_loss, batches)
        results.append((result.losses["loss"], result.losses["box"], result.skipped, weight))
    norm = nn.BatchNorm2d(1)
    norm.running_mean += runtime.dist.rank + 5
    distributed.broadcast_buffers(norm)
    return found | {"results": results, "statistics": norm.running_mean.item(), "world_size": distributed.world_size()}


def test_two_ranks_step_like_one_process(tmp_path):
    """Prevents ranks whose losses are averaged though they hold unequal numbers of objects, gradients that are not
    exchanged where batches accumulate; logged losses of one rank's images alone, and ranks that part ways over NaN.

    The images 1 to 8 sum up to 36; there are 16 positives and 8 images, so the step is 36 / 16, whoever holds what. The
    mean of 1, 2, 3 on one rank and 10 on the other is 4. NaN on one rank costs both the step: losses and weight only
    know the second one, of (4 + 1) / 2.
    """
    for result in on_ranks(steps_and_losses, 2, tmp_path):
        assert result.pop("steps") == pytest.approx([2.25, 2.25])
        first, second = result.pop("results")
        assert first == pytest.approx((4.0, 8.0, 0, -3.0))
        assert second == pytest.approx((2.5, 5.0, 1, -1.5))
        assert result == {"world_size": 2, "statistics": 5}  # statistics: those of rank 0


class Toy(DetectorBase):
    """The smallest network with a part to freeze."""

    def __init__(self):
        super().__init__(1, {"channels": "RGB", "mean": [0.0] * 3, "std": [1.0] * 3})
        self.feature_extractor = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.neck = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    def predict(self, features):
        return self.neck(features)


def test_the_frozen_part_stays_to_the_last_bit():
    """Prevents frozen weights and statistics from drifting by gradients, weight decay, BatchNorm or the average."""
    model = Toy()
    frozen = {name for name, _ in model.named_parameters() if name.startswith("feature_extractor.")}
    assert model.freeze(frozen) == []
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.1, 0), 0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    average = ModelEMA(model, 100)

    def criterion(raw, targets):
        return mean_loss(raw**2, targets)

    optim = OptimWrapper(model, CriterionOf(criterion), optimizer, average, runtime_of(), clip_grad_norm=1.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    batch = SimpleNamespace(images=images, targets=torch.zeros(4), unreadable=[], truncated=[])

    train_one_epoch(model.train(), [batch] * 3, optim, lambda fraction: 0.1, LossMeter())
    for state in (model.state_dict(), average.model.state_dict()):
        same = {key for key, value in state.items() if torch.equal(value, before[key])}
        assert same == {key for key in before if key.startswith("feature_extractor.")}
