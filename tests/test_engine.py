import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets import build_criterion, build_model
from nets.detector import DetectionNetwork
from utils import engine
from utils.device import Precision
from utils.engine import Stepper, train_one_epoch
from utils.optim import ModelEma, build_optimizer, parameter_groups

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, False, "")
PARTS = ("loss", "box", "obj", "cls", "l1")


def batch_of(*images, unreadable=()):
    """A batch whose images are rows of numbers; targets are not looked at."""
    return SimpleNamespace(images=torch.tensor(images), targets=torch.zeros(len(images)), unreadable=list(unreadable))


def mean_loss(raw, _targets):
    """The mean over images, whose gradient for a linear network is the mean of the images."""
    loss = raw.float().mean()
    parts = dict(zip(PARTS, (loss, 2 * loss, 3 * loss, 4 * loss, 5 * loss), strict=True))
    return parts | {"count": torch.tensor([0.0, len(raw)])}


def loss_per_positive(raw, targets):
    """The sum over images, divided by the larger number of positives and images; targets: positives of each image."""
    count = torch.stack([targets.sum(), torch.tensor(float(len(raw)))])
    return {"loss": raw.sum() / count.max(), "count": count}


def make_stepper(network, ema=None, precision=FLOAT32, rate=1.0, **clipping):
    """Plain gradient descent with the given rate."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    return Stepper(network, optimizer, ema, precision, CPU, **clipping)


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


def test_a_window_divides_by_the_counts_of_all_its_batches():
    """Prevents batches of few positives from pushing as hard as those of many, and the positives of one batch from
    standing against the images of another."""

    def step(network, batches, counts, accumulate):
        for batch, positives in zip(batches, counts, strict=True):
            batch.targets = torch.tensor(positives)
        train(network, batches, accumulate, criterion=loss_per_positive)
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
    batches = [batch_of([1.0], [1.0], [1.0], [1.0]), batch_of([4.0], [4.0], unreadable=["a.jpg", "b.jpg"])]
    result = train(network, batches, rate=0.0)
    assert result.losses == pytest.approx({"loss": 2.0, "box": 4.0, "obj": 6.0, "cls": 8.0, "l1": 10.0})
    assert result.unreadable == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("ranks", "batches_taken"), [(1, 2), (2, 4)])
def test_an_epoch_whose_loss_is_not_finite_is_broken_off(monkeypatch, ranks, batches_taken):
    """Prevents hours of steps with NaN; and one of several ranks that leaves the others waiting for it."""
    taken = []
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_READINGS", -1.0)
    monkeypatch.setattr(engine, "world_size", lambda: ranks)

    def criterion(raw, targets):
        taken.append(len(raw))
        return mean_loss(raw * (float("nan") if len(taken) == 2 else 1.0), targets)

    result = train(linear(), [batch_of([1.0]) for _ in range(4)], criterion=criterion)
    assert taken == [1] * batches_taken
    assert math.isnan(result.losses["loss"])


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
    rests, because it sees the small batches."""
    model, (images, targets) = build_model(name, 3), scene()
    criterion = build_criterion(model)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    resting = {id(parameter) for norm in norms for parameter in norm.parameters()}
    model.freeze({key for key, parameter in model.named_parameters() if id(parameter) in resting})
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def batches(size):
        parts = zip(images.split(size), targets.split(size), strict=True)
        return [SimpleNamespace(images=part, targets=boxes, unreadable=[]) for part, boxes in parts]

    def movement(size, accumulate):
        model.load_state_dict(start)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stepper = Stepper(model, torch.optim.SGD(trained, lr=0.1), None, FLOAT32, CPU)
        train_one_epoch(model.train(), criterion, batches(size), stepper, lambda share: 0.1, accumulate, "")
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


RANKS = """
import json, sys
from types import SimpleNamespace
import torch
from utils import device as machine, engine
from utils.engine import Stepper, train_one_epoch

torch.set_num_threads(1)
settings = dict(gpu_ids="", Cuda=False, fp16=False, seed=11, cudnn_benchmark=True, deterministic=False, cpu_threads=1)
place = machine.set_up(SimpleNamespace(**settings, distributed=True))
positives = torch.tensor([0.0, 5.0, 1.0, 0.0, 0.0, 9.0, 0.0, 1.0])
images = torch.arange(1.0, 9.0).view(8, 1)

def criterion(raw, targets):
    count = torch.stack([targets.sum(), torch.tensor(float(len(raw)))])
    return {"loss": raw.sum() / count.max(), "count": count}

found = []
for batch_size, accumulate in ((8, 1), (4, 2)):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    network = machine.parallel(model, place)
    mine = [slice(start + place.ranks.rank, start + batch_size, 2) for start in range(0, 8, batch_size)]
    batches = [SimpleNamespace(images=images[part], targets=positives[part], unreadable=[]) for part in mine]
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), None, place.precision, place.device)
    train_one_epoch(network, criterion, batches, stepper, lambda share: 1.0, accumulate, "")
    found.append(-model.weight.item())

class Batches(list):
    def __iter__(self):
        for number, batch in enumerate(super().__iter__(), start=1):
            self.taken = number
            yield batch

def mean_loss(raw, targets):
    return {"loss": raw.mean(), "box": 2 * raw.mean(), "count": torch.tensor([0.0, len(raw)])}

engine.SECONDS_BETWEEN_READINGS = -1.0
losses, taken = [], []
for values in ([1.0, 2.0, 3.0], [10.0]), ([1.0, 1.0], [float("nan"), 1.0]):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    network = machine.parallel(model, place)
    mine = torch.tensor(values[place.ranks.rank]).view(-1, 1)
    parts = [mine] if not losses else [mine[:1], mine[1:]]
    batches = Batches(SimpleNamespace(images=part, targets=part, unreadable=[]) for part in parts)
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.0), None, place.precision, place.device)
    losses.append(train_one_epoch(network, mean_loss, batches, stepper, lambda share: 0.0, 1, "").losses)
    taken.append(batches.taken)
norm = torch.nn.BatchNorm2d(1)
norm.running_mean += place.ranks.rank + 5
machine.follow_main(norm)
told = [machine.told_by_main(value if place.ranks.is_main else None, place.device) for value in (0.1, None)]
result = dict(steps=found, told=told[0], nothing=told[1] != told[1], ranks=machine.world_size())
result |= dict(means=losses[0], nan=losses[1]["loss"] != losses[1]["loss"], taken=taken)
result |= dict(statistics=norm.running_mean.item())
with open(f"{sys.argv[1]}/{place.ranks.rank}.json", "w") as file:
    json.dump(result, file)
del network  # it holds the process group, whose threads must not outlive the program
machine.leave_ranks()
"""


def test_two_ranks_step_like_one_process(tmp_path):
    """Prevents ranks whose losses are averaged though they hold unequal numbers of objects, gradients that are not
    exchanged where batches accumulate, and a validation loss that only the main rank knows; logged losses of one rank's
    images alone, and a rank that ends for NaN while the other waits for it for ever.

    The images 1 to 8 sum up to 36; there are 16 positives and 8 images, so the step is 36 / 16, whoever holds what. The
    mean of 1, 2, 3 on one rank and 10 on the other is 4. Where one rank has NaN both take both of their batches.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(tmp_path)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=60)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result.pop("means") == pytest.approx({"loss": 4.0, "box": 8.0})
        assert (result.pop("nan"), result.pop("taken")) == (True, [1, 2])
        assert result.pop("statistics") == 5  # those of rank 0
        assert result == {"steps": [pytest.approx(2.25)] * 2, "told": 0.1, "nothing": True, "ranks": 2}


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
    frozen = {name for name, _ in model.named_parameters() if name.startswith("feature_extractor.")}
    assert model.freeze(frozen) == []
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
