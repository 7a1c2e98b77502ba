from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets.detector import DetectionNetwork
from utils import engine
from utils.device import Precision
from utils.engine import Stepper, train_one_epoch
from utils.optim import ModelEma, build_optimizer, parameter_groups

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")
PARTS = ("loss", "box", "obj", "cls", "l1")


def batch_of(*images, unreadable=()):
    """A batch whose images are rows of numbers; targets are not looked at."""
    return SimpleNamespace(images=torch.tensor(images), targets=torch.zeros(len(images)), unreadable=list(unreadable))


def mean_loss(raw, _targets):
    """The mean over images, whose gradient for a linear network is the mean of the images."""
    loss = raw.float().mean()
    return dict(zip(PARTS, (loss, 2 * loss, 3 * loss, 4 * loss, 5 * loss), strict=True))


def make_stepper(network, ema=None, precision=FLOAT32, clip_grad_norm=0.0, rate=1.0):
    """Plain gradient descent with the given rate."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    return Stepper(network, optimizer, ema, precision, CPU, clip_grad_norm)


def linear(inputs=1):
    network = nn.Linear(inputs, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def train(network, batches, accumulate=1, set_rates=lambda share: share, criterion=mean_loss, **options):
    stepper = make_stepper(network, **options)
    return train_one_epoch(network, criterion, batches, stepper, set_rates, accumulate, "epoch")


def test_two_batches_of_four_step_like_one_of_eight():
    """Prevents accumulated gradients that are summed instead of averaged, or cleared in between."""
    shares, gathered, whole = [], linear(), linear()
    batches = [batch_of([1.0], [2.0], [3.0], [4.0]), batch_of([5.0], [6.0], [7.0], [8.0])]
    result = train(gathered, batches, accumulate=2, set_rates=lambda share: shares.append(share) or 0.25)
    train(whole, [batch_of(*([float(x)] for x in range(1, 9)))])
    assert gathered.weight.item() == whole.weight.item() == -4.5
    assert shares == [1.0]
    assert result.learning_rate == 0.25


def test_the_last_window_of_an_epoch_may_be_short():
    """Prevents leftover batches from being dropped, stepping at half their strength, or leaking into the next epoch."""
    shares, network = [], linear()
    batches = [batch_of([1.0], [3.0]), batch_of([5.0], [7.0]), batch_of([9.0])]
    train(network, batches, accumulate=2, set_rates=lambda share: shares.append(share) or 1.0)
    assert shares == [pytest.approx(2 / 3), 1.0]
    assert network.weight.item() == -13.0  # the mean of 2 and 6, then 9
    assert network.weight.grad is None


def test_without_accumulation_every_batch_is_a_step():
    """Prevents gradients of one step from staying for the next."""
    network = linear()
    train(network, [batch_of([1.0]), batch_of([2.0]), batch_of([4.0])])
    assert network.weight.item() == -7.0


@pytest.mark.parametrize("scales", [False, True])
def test_clipping_bounds_the_gradient(scales):
    """Prevents wild steps, and clipping of gradients that still carry float16's loss scale."""
    network = linear(2)
    train(network, [batch_of([3.0, 4.0])], clip_grad_norm=1.0, precision=Precision(torch.float32, scales, ""))
    assert network.weight.tolist()[0] == pytest.approx([-0.6, -0.8], abs=1e-5)
    network = linear(2)
    train(network, [batch_of([3.0, 4.0])], clip_grad_norm=6.0, precision=Precision(torch.float32, scales, ""))
    assert network.weight.tolist()[0] == pytest.approx([-3.0, -4.0])


def test_losses_are_means_over_images():
    """Prevents a short last batch from counting as much as a full one: (4 * 1 + 2 * 4) / 6."""
    network = linear()
    nn.init.ones_(network.weight)
    batches = [batch_of([1.0], [1.0], [1.0], [1.0]), batch_of([4.0], [4.0], unreadable=["a.jpg", "b.jpg"])]
    result = train(network, batches, rate=0.0)
    assert result.losses == pytest.approx({"loss": 2.0, "box": 4.0, "obj": 6.0, "cls": 8.0, "l1": 10.0})
    assert result.unreadable == ["a.jpg", "b.jpg"]


def test_an_epoch_without_batches():
    """Prevents a division by zero, and a step without gradients."""
    network = linear()
    result = train(network, [])
    assert result.losses == dict.fromkeys(PARTS, 0.0)
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


def test_the_average_follows_every_step():
    """Prevents an average of weights that misses steps, or follows batches instead of steps."""
    network = linear()
    average = ModelEma(nn.Sequential(network, nn.BatchNorm1d(1)), total_steps=1000)
    model = nn.Sequential(network, nn.BatchNorm1d(1))
    stepper = make_stepper(model, ema=average)
    batches = [batch_of([1.0]) for _ in range(4)]
    train_one_epoch(network, mean_loss, batches, stepper, lambda share: share, 2, "epoch")
    assert average.steps == 2
    assert network.weight.item() == -2.0
    # Weights -1, then -2, with shares 1/2 and 1/2.1 of the average.
    assert average.model[0].weight.item() == pytest.approx(-0.5 - 1.5 / 2.1)


class Toy(DetectionNetwork):
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
    model.freeze(True)
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.1, 0), 0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    average = ModelEma(model, 100)
    stepper = Stepper(model, optimizer, average, FLOAT32, CPU, 1.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    batch = SimpleNamespace(images=images, targets=torch.zeros(4), unreadable=[])

    def criterion(raw, targets):
        return mean_loss(raw**2, targets)

    model.train()
    train_one_epoch(model, criterion, [batch] * 3, stepper, lambda share: 0.1, 1, "epoch")
    for state in (model.state_dict(), average.model.state_dict()):
        same = {key for key, value in state.items() if torch.equal(value, before[key])}
        assert same == {key for key in before if key.startswith("feature_extractor.")}
