import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launched import on_ranks
from torch import nn

from nets.losses import Criterion
from tests.checkpoint.test_resume import METADATA
from utils.checkpoint import checkpointer as module
from utils.checkpoint.checkpointer import Checkpointer, Progress, meter_state_for, progress_of
from utils.checkpoint.resume import read_checkpoint
from utils.checkpoint.writer import BackgroundWriter
from utils.runtime.device import Precision, RuntimeContext, random_states, set_random_states
from utils.runtime.distributed import DistInfo
from utils.runtime.signals import Stopped
from utils.training.engine import LossMeter, OptimWrapper, train_one_epoch
from utils.training.lr_schedule import LRSchedule
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups
from utils.training.phases import Phase
from utils.weights.save import save_content, snapshot

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("progress", "batch_size", "done", "expected"),
    [
        (Progress(4), 8, 0, Progress(4, 0)),
        (Progress(4), 8, 2, Progress(4, 16)),
        (Progress(4), 8, 3, Progress(4, 20)),
        (Progress(4), 8, 20, Progress(4, 20)),
        (Progress(4, 16), 8, 2, Progress(4, 16)),
        (Progress(4, 16), 8, 3, Progress(4, 20)),
        # Batches of 8 before, of 6 from here on: 8 images count as two of them.
        (Progress(4, 8), 6, 3, Progress(4, 14)),
        (Progress(4, 20), 8, 3, Progress(4, 20)),
    ],
)
def test_progress_by_hand(progress, batch_size, done, expected):
    """Prevents images that train twice or never in an epoch that is taken up again: it has 20 images."""
    assert progress.after(done, batch_size, 20) == expected


def test_a_phase_begins_with_its_first_step():
    """Prevents an optimiser whose groups are not those of the checkpoint at the unfreeze epoch: there it is saved
    before the backbone trains."""
    unfrozen = Phase(False, 10, 20, 8)
    reached = [Progress(9, 90), Progress(10, 0), Progress(10, 8), Progress(11, 0)]
    assert [progress.has_begun(unfrozen) for progress in reached] == [False, False, True, True]
    assert [progress.batches(8) for progress in (*reached[:2], Progress(0, 17))] == [12, 0, 3]


def test_random_states_go_on_through_a_file(tmp_path):
    """Prevents other random numbers after a resume, and states that torch refuses to load."""

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.normal(), np.random.rand()

    np.random.normal()  # numpy keeps the second of a pair
    save_content(tmp_path / "states.pth", snapshot(random_states(CPU)))
    drawn = draw()
    assert draw() != drawn
    set_random_states(torch.load(tmp_path / "states.pth", weights_only=True), CPU)
    assert draw() == drawn


class SquaredMean(Criterion):
    def forward(self, raw, _targets):
        return {"loss": raw.square().mean(), "count": torch.tensor([0.0, 4.0])}


def parts_of(ema=True, scales=True):
    """What moves in a small training: (OptimWrapper, LRSchedule)."""
    settings = SimpleNamespace(lr_decay_type="plateau", UnFreeze_Epoch=9, Init_Epoch=0, Init_lr=0.1, Min_lr=None)
    vars(settings).update(lr_factor=0.5, lr_patience=0, lr_cooldown=0, lr_gamma=None)
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = build_optimizer("sgd", parameter_groups(model, 5e-4, 0), 0.9)
    runtime = RuntimeContext(CPU, DistInfo(), Precision(torch.float32, scales, ""))
    optim = OptimWrapper(model, SquaredMean(), optimizer, ModelEMA(model, 100) if ema else None, runtime)
    return optim, LRSchedule(settings)


def train_epoch(optim, schedule, number):
    """Two steps; then the schedule looks at a loss that only rises."""
    images = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(number))
    batches = [SimpleNamespace(images=part, targets=part, unreadable=[], truncated=[]) for part in images]

    def set_lr(fraction):
        return schedule.set_lr(optim.optimizer, 1 + number + fraction, 0.1, 0.001)

    result = train_one_epoch(optim.model.train(), batches, optim, set_lr, LossMeter())
    schedule.end_epoch(1.0 + number)
    return result.losses["loss"], result.learning_rate


def test_a_training_goes_on_to_the_last_bit(tmp_path):
    """Prevents weights, momenta, averages, rates, scale or a count of bad steps that begin anew at a resume."""
    whole, of_whole = parts_of()
    start = snapshot(whole.model.state_dict())
    numbers = [train_epoch(whole, of_whole, number) for number in range(4)]

    optim, schedule = parts_of()
    for part in (optim.model, optim.ema.model):
        part.load_state_dict(start)
    for number in range(2):
        train_epoch(optim, schedule, number)
    optim.bad_in_a_row = 3
    states = [part.state_dict() for part in (optim.model, optim, schedule)]
    save_content(tmp_path / "states.pth", snapshot({"states": states}))
    states = torch.load(tmp_path / "states.pth", weights_only=True)["states"]

    optim, schedule = parts_of()
    optim.model.load_state_dict(states[0])
    optim.load_state_dict(states[1])
    schedule.load_state_dict(states[2], 2)
    assert optim.bad_in_a_row == 3
    assert [train_epoch(optim, schedule, number) for number in (2, 3)] == numbers[2:]
    assert numbers[2][1] < numbers[1][1]
    for mine, its in ((optim.model, whole.model), (optim.ema.model, whole.ema.model)):
        assert all(map(torch.equal, mine.state_dict().values(), its.state_dict().values()))
    assert optim.scaler.state_dict() == whole.scaler.state_dict()


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_average_and_loss_scale_may_come_or_go_with_a_resume(before, after):
    """Prevents a crash where ema or the machine's precision is another one, and an average of a start that the training
    has left long ago."""
    optim, schedule = parts_of(before, before)
    train_epoch(optim, schedule, 0)
    weights, state = snapshot((optim.model.state_dict(), optim.state_dict()))
    optim, _ = parts_of(after, after)
    optim.model.load_state_dict(weights)
    optim.load_state_dict(state)
    if after:
        averaged = optim.ema.model.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in averaged.items())


def make_checkpointer(folder, monkeypatch, minutes=10.0, order=(11, 6), runtime=None):
    """A Checkpointer of a small training, and the clock that it reads. folder: of the run, None as on other ranks."""
    clock, state = [100.0], {"rows": [], "files": {}, "told": []}
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run_logger = SimpleNamespace(folder=folder)
    if folder:
        vars(run_logger).update(metadata=METADATA | {"epoch": 9}, writer=BackgroundWriter(), state_dict=lambda: state)
    settings, signals = SimpleNamespace(save_minutes=minutes, seed=3), SimpleNamespace(name="")
    optim, schedule = parts_of()
    parts = run_logger, runtime or optim.runtime, settings, {"seed": 11}, list(order), signals, optim, schedule
    return Checkpointer(*parts), clock


def meter_of(loss, images=4):
    meter = LossMeter()
    meter.update({"loss": torch.tensor(loss), "count": torch.ones(2)}, images)
    return meter


def test_it_saves_when_it_is_time_to(tmp_path, monkeypatch):
    """Prevents long epochs of which nothing is saved, and a save with every step."""
    checkpointer, clock = make_checkpointer(tmp_path, monkeypatch, minutes=2.0)
    checkpointer.after_step(Progress(0, 4), meter_of(1.0))
    clock[0] += 119.0
    checkpointer.after_step(Progress(0, 8), meter_of(1.0))
    checkpointer.run_logger.writer.wait()
    assert not checkpointer.path.exists()
    clock[0] += 2.0
    checkpointer.after_step(Progress(0, 12), meter_of(1.0))
    clock[0] += 119.0
    checkpointer.after_step(Progress(0, 16), meter_of(1.0))
    checkpointer.run_logger.writer.close()
    assert read_checkpoint(checkpointer.path)["run"]["images"] == 12


def test_nothing_is_saved_while_no_step_is_possible(tmp_path, monkeypatch):
    """Prevents the last good checkpoint from giving way to weights that lead to NaN at once; a signal still saves."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    checkpointer.optim.bad_in_a_row = 1
    checkpointer.save(Progress(1))
    checkpointer.run_logger.writer.wait()
    assert not checkpointer.path.exists()
    checkpointer.signals.name = "SIGTERM"
    with pytest.raises(Stopped):
        checkpointer.after_step(Progress(1, 4), meter_of(1.0))
    assert read_checkpoint(checkpointer.path)["run"]["epoch"] == 1


def test_a_run_whose_last_step_was_skipped_is_over(tmp_path, monkeypatch):
    """Prevents a finished run that counts as unfinished, so that resume trains its end a second time."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    checkpointer.optim.bad_in_a_row = 1
    checkpointer.save(Progress(9), is_over=True)
    checkpointer.run_logger.writer.close()
    assert read_checkpoint(checkpointer.path)["run"]["is_over"]


def test_a_signal_that_the_other_ranks_do_not_know_saves_nothing(tmp_path, monkeypatch):
    """Prevents one rank that gathers alone, where the others go on: a signal counts once all ranks know of it."""
    gathered = []
    monkeypatch.setattr(module, "gather_objects", lambda state: gathered.append(state) or [state])
    checkpointer, _ = make_checkpointer(None, monkeypatch)
    checkpointer.optim.bad_in_a_row, checkpointer.signals.name = 1, "SIGTERM"
    checkpointer.save(Progress(1))
    assert gathered == []
    checkpointer.signals.name = ""
    monkeypatch.setattr(module.AsyncFlags, "__call__", lambda self, *wanted: (True, False))
    with pytest.raises(Stopped):
        checkpointer.after_step(Progress(1, 4), meter_of(1.0))
    assert len(gathered) == 1


def be_stopped(runtime, folder):
    """Steps of a rank, of which the last was no finite number; rank 1 alone gets a signal. Returns how it ended."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        checkpointer, _ = make_checkpointer(folder if runtime.dist.is_main else None, monkeypatch, runtime=runtime)
        checkpointer.optim.bad_in_a_row = 1
        checkpointer.signals.name = "SIGTERM" if runtime.dist.rank else ""
        with pytest.raises(Stopped) as stop:
            for images in (2, 4, 6):
                checkpointer.after_step(Progress(0, images), meter_of(1.0))
    return str(stop.value).split(";")[0]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(tmp_path):
    """Prevents ranks that wait for each other for hours, because the signal came while a step was not finite."""
    path = tmp_path / "run/last_checkpoint.pth"
    path.parent.mkdir()
    assert on_ranks(be_stopped, 2, tmp_path, path.parent) == [
        f"Stopped by another process, which was asked to in epoch 1. Nothing is lost, all is in {path}",
        "Stopped by SIGTERM.",
    ]
    assert read_checkpoint(path)["run"]["images"] == 4 and len(read_checkpoint(path)["ranks"]) == 2


def test_a_run_is_not_over_while_its_weights_are_not_on_disk(tmp_path, monkeypatch):
    """Prevents a run that cannot be resumed, though its last weights found no room."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)

    def write():
        raise OSError(28, "No space left on device", "best.pth")

    checkpointer.run_logger.writer.submit("weights", write)
    checkpointer.save(Progress(2), is_over=True)
    assert not checkpointer.path.exists()
    with pytest.raises(ValueError, match=r"best\.pth"):
        checkpointer.run_logger.writer.close()


def test_zero_minutes_save_at_the_ends_of_epochs_only(tmp_path, monkeypatch):
    """Prevents save_minutes = 0 from meaning with every step."""
    checkpointer, clock = make_checkpointer(tmp_path, monkeypatch, minutes=0)
    clock[0] += 1e6
    checkpointer.after_step(Progress(0, 4), meter_of(1.0))
    checkpointer.run_logger.writer.close()
    assert not checkpointer.path.exists()


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    """Prevents steps that are lost at the end of a cluster's time, and a run of which nobody knows how to go on."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    checkpointer.signals.name = "SIGTERM"
    with pytest.raises(Stopped) as stop:
        checkpointer.after_step(Progress(2, 8), meter_of(1.0))
    assert stop.value.exit_status == 143
    assert str(stop.value) == (
        f"Stopped by SIGTERM in epoch 3. Nothing is lost, all is in {tmp_path / 'last_checkpoint.pth'}; go on with: "
        f"python train.py --resume={tmp_path}"
    )
    run = read_checkpoint(tmp_path / "last_checkpoint.pth")["run"]
    assert (run["epoch"], run["images"], run["is_over"]) == (2, 8, False)


def test_ctrl_c_is_called_what_people_call_it(tmp_path, monkeypatch):
    """Prevents the name of a signal before people who pressed two keys."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    checkpointer.signals.name = "SIGINT"
    with pytest.raises(Stopped, match=r"^Stopped by Ctrl-C in epoch 1\. Nothing is lost") as stop:
        checkpointer.after_step(Progress(0, 4), meter_of(1.0))
    assert stop.value.exit_status == 130


def test_a_stop_that_could_not_save_says_so(tmp_path, monkeypatch, capsys):
    """Prevents the sentence that nothing is lost where the disk was full."""
    checkpointer, _ = make_checkpointer(tmp_path / "gone", monkeypatch)
    checkpointer.signals.name = "SIGINT"
    with pytest.raises(ValueError, match="could not be written to the end"):
        checkpointer.after_step(Progress(0, 4), meter_of(1.0))
    assert "could not be written: No such file or directory" in capsys.readouterr().out


def test_other_ranks_stop_too_and_write_nothing(tmp_path, monkeypatch):
    """Prevents a rank that trains on alone, or writes over the main one's file."""
    checkpointer, clock = make_checkpointer(None, monkeypatch)
    clock[0] += 1e6
    checkpointer.after_step(Progress(0, 4), meter_of(1.0))
    monkeypatch.setattr(module.AsyncFlags, "__call__", lambda self, *wanted: (True, False))
    with pytest.raises(Stopped) as stop:
        checkpointer.after_step(Progress(0, 8), meter_of(1.0))
    assert (str(stop.value), stop.value.exit_status) == ("Stopped by another process, which was asked to.", 143)
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_as_it_was_then(tmp_path, monkeypatch):
    """Prevents a file that mixes two steps because it is written while the training goes on."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    optim, schedule, jobs = checkpointer.optim, checkpointer.schedule, []
    checkpointer.run_logger.writer = SimpleNamespace(submit=lambda *job: jobs.append(job), wait=lambda: None, failed=[])
    train_epoch(optim, schedule, 0)
    before = [value.clone() for value in (*optim.model.parameters(), *optim.ema.model.parameters())]
    checkpointer.save(Progress(1), is_over=True)
    train_epoch(optim, schedule, 1)
    ((name, write),) = jobs
    write()
    content = read_checkpoint(checkpointer.path)
    assert (name, content["contract"]) == ("last_checkpoint.pth", METADATA | {"epoch": 1})
    keys = [key for key, _ in optim.model.named_parameters()]
    saved = [weights[key] for weights in (content["model"], content["training"]["average"]["model"]) for key in keys]
    assert all(map(torch.equal, before, saved))
    assert content["run"]["is_over"] and content["run"]["settings"]["seed"] == 3
    assert (content["run"]["constants"], content["run"]["order"]) == ({"seed": 11}, [11, 6])


@pytest.mark.parametrize("images", [0, 8])
def test_a_saved_training_goes_on(tmp_path, monkeypatch, images):
    """Prevents a resumed epoch whose losses, or random numbers, are not those of the whole one."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch)
    train_epoch(checkpointer.optim, checkpointer.schedule, 0)
    checkpointer.save(Progress(1, images), meter_of(3.0) if images else None)
    checkpointer.run_logger.writer.close()
    drawn, expected = torch.rand(1), train_epoch(checkpointer.optim, checkpointer.schedule, 1)

    content = read_checkpoint(checkpointer.path)
    again, _ = make_checkpointer(tmp_path, monkeypatch)
    again.optim.model.load_state_dict(content["model"])
    meter = LossMeter()
    assert again.load(content, meter) == progress_of(content) == Progress(1, images)
    assert torch.equal(torch.rand(1), drawn)
    assert meter.result().losses == ({"loss": 3.0} if images else {})
    assert train_epoch(again.optim, again.schedule, 1) == expected


@pytest.mark.parametrize("order", [(11, 7, 5), (12, 6, 5), (11, 6, 0)])
def test_other_images_begin_the_epoch_again(tmp_path, monkeypatch, capsys, order):
    """Prevents half an epoch of one order and half of another, which leaves images out, without a word."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch, order=(11, 6, 5))
    checkpointer.save(Progress(1, 8), meter_of(3.0))
    checkpointer.run_logger.writer.close()
    again, _ = make_checkpointer(tmp_path, monkeypatch, order=order)
    meter = LossMeter()
    assert again.load(read_checkpoint(checkpointer.path), meter) == Progress(1)
    assert (meter.images, meter.result().losses) == (0, {})
    said = "the training images, how often each is seen, or the seed are others now: the epoch begins again."
    assert capsys.readouterr().out == f"note: {said}\n"


def test_an_older_checkpoint_goes_on_within_its_epoch(tmp_path, monkeypatch, capsys):
    """Prevents an update of this project from beginning epochs again: older files say nothing of repeats."""
    checkpointer, _ = make_checkpointer(tmp_path, monkeypatch, order=(11, 6))
    checkpointer.save(Progress(1, 4), meter_of(3.0))
    checkpointer.run_logger.writer.close()
    again, _ = make_checkpointer(tmp_path, monkeypatch, order=(11, 6, 5))
    assert again.load(read_checkpoint(checkpointer.path), LossMeter()) == Progress(1, 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("done", "images"), [((1,), 12), ((2,), 14), ((), 14)])
def test_what_an_epoch_calls_after_each_step(tmp_path, monkeypatch, done, images):
    """Prevents a checkpoint of another epoch or image: batches of 4 of 14 images, of which 8 were done before; without
    a number all are, as while the epoch is evaluated."""
    checkpointer, clock = make_checkpointer(tmp_path, monkeypatch, order=(11, 14))
    after_step = checkpointer.begin_epoch(phase := Phase(False, 0, 9, 4), Progress(5, 8), meter_of(1.0, 8))
    assert (checkpointer.phase, checkpointer.epoch) == (phase, 5)
    clock[0] += 601.0
    after_step(*(2 + number for number in done))
    checkpointer.run_logger.writer.close()
    run = read_checkpoint(checkpointer.path)["run"]
    assert (run["epoch"], run["images"]) == (5, images)


def test_two_ranks_become_one_and_one_becomes_two():
    """Prevents losses of an epoch that count twice, or half, where a run goes on with other ranks: images
    weigh alike."""
    first, second = meter_of(1.0, 4), meter_of(4.0, 2)
    first.unreadable.append("a.jpg")
    second.truncated.append("b.jpg")
    states = [first.state_dict(), second.state_dict()]
    one = LossMeter()
    one.load_state_dict(meter_state_for(states, 0, 1))
    assert one.result().losses == {"loss": 2.0}
    assert (one.images, one.unreadable, one.truncated) == (6, ["a.jpg"], ["b.jpg"])

    main, other = LossMeter(), LossMeter()
    for rank, meter in enumerate((main, other)):
        meter.load_state_dict(meter_state_for([one.state_dict()], rank, 2))
    assert main.sums.tolist() == [12.0, 6.0] and other.sums.tolist() == [0.0, 0.0]
    assert (main.images, other.images) == (3, 3)
    assert (main.unreadable, other.unreadable, other.truncated) == (["a.jpg"], [], [])
    assert main.parts == other.parts == ["loss"]
