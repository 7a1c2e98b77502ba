from types import SimpleNamespace

import pytest
import torch

from tests.checkpoint.test_resume import CONTRACT, CPU, parts_of, train_epoch
from utils.checkpoint import checkpointer as module
from utils.checkpoint.checkpointer import Keeper, Position, share_of
from utils.checkpoint.resume import read_checkpoint
from utils.checkpoint.writer import Saver
from utils.runtime.device import Place, Precision
from utils.runtime.distributed import Ranks
from utils.runtime.signals import Stopped
from utils.training.engine import Tally


def make_keeper(folder, monkeypatch, minutes=10.0, is_main=True, order=(11, 6), said=None):
    """A Keeper of a small training, the clock that it reads, and the training's state."""
    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    progress = {"rows": [], "files": {}, "told": []}
    log = SimpleNamespace(
        folder=folder, contract=CONTRACT | {"epoch": 9}, saver=Saver(print), progress=lambda: progress
    )
    place = Place(CPU, Ranks(), Precision(torch.float32, False, ""), (said if said is not None else []).append)
    settings = SimpleNamespace(save_minutes=minutes, seed=3)
    _, state = parts_of(ema=True)
    signals = SimpleNamespace(name="")
    keeper = Keeper(state, log if is_main else None, settings, {"seed": 11}, list(order), place, signals)
    return keeper, clock, state


def tally_of(loss, images=4):
    tally = Tally()
    tally.add({"loss": torch.tensor(loss), "count": torch.ones(2)}, images)
    return tally


def test_it_saves_when_it_is_time_to(tmp_path, monkeypatch):
    """Prevents long epochs of which nothing is saved, and a save with every step."""
    keeper, clock, _ = make_keeper(tmp_path, monkeypatch, minutes=2.0)
    keeper.after_step(Position(0, 4), tally_of(1.0))
    clock[0] += 119.0
    keeper.after_step(Position(0, 8), tally_of(1.0))
    keeper.log.saver.wait()
    assert not keeper.path.exists()
    clock[0] += 2.0
    keeper.after_step(Position(0, 12), tally_of(1.0))
    clock[0] += 119.0
    keeper.after_step(Position(0, 16), tally_of(1.0))
    keeper.log.saver.close()
    assert read_checkpoint(keeper.path)["run"]["images"] == 12


def test_nothing_is_saved_while_no_step_is_possible(tmp_path, monkeypatch):
    """Prevents the last good checkpoint from giving way to weights that lead to NaN at once; a signal still saves."""
    keeper, _, state = make_keeper(tmp_path, monkeypatch)
    state.stepper.bad_in_a_row = 1
    keeper.save(Position(1))
    keeper.log.saver.wait()
    assert not keeper.path.exists()
    keeper.signals.name = "SIGTERM"
    keeper.save(Position(1))
    keeper.log.saver.close()
    assert read_checkpoint(keeper.path)["run"]["epoch"] == 1


def test_a_run_is_not_over_while_its_weights_are_not_on_disk(tmp_path, monkeypatch):
    """Prevents a run that cannot be resumed, though its last weights found no room."""
    keeper, _, _ = make_keeper(tmp_path, monkeypatch)

    def write():
        raise OSError(28, "No space left on device", "best.pth")

    keeper.log.saver.submit("weights", write)
    keeper.save(Position(2), is_over=True)
    assert not keeper.path.exists()
    with pytest.raises(ValueError, match=r"best\.pth"):
        keeper.log.saver.close()


def test_zero_minutes_save_at_the_ends_of_epochs_only(tmp_path, monkeypatch):
    """Prevents save_minutes = 0 from meaning with every step."""
    keeper, clock, _ = make_keeper(tmp_path, monkeypatch, minutes=0)
    clock[0] += 1e6
    keeper.after_step(Position(0, 4), tally_of(1.0))
    keeper.log.saver.close()
    assert not keeper.path.exists()


def test_a_signal_saves_and_stops(tmp_path, monkeypatch):
    """Prevents steps that are lost at the end of a cluster's time, and a run of which nobody knows how to go on."""
    keeper, _, _ = make_keeper(tmp_path, monkeypatch)
    keeper.signals.name = "SIGTERM"
    with pytest.raises(Stopped) as stop:
        keeper.after_step(Position(2, 8), tally_of(1.0))
    assert stop.value.exit_status == 143
    assert str(stop.value) == (
        f"Stopped by SIGTERM in epoch 3. Nothing is lost, all is in {tmp_path / 'last_checkpoint.pth'}; go on with: "
        f"python train.py --resume={tmp_path}"
    )
    run = read_checkpoint(tmp_path / "last_checkpoint.pth")["run"]
    assert (run["epoch"], run["images"], run["is_over"]) == (2, 8, False)


def test_a_stop_that_could_not_save_says_so(tmp_path, monkeypatch, capsys):
    """Prevents the sentence that nothing is lost where the disk was full."""
    keeper, _, _ = make_keeper(tmp_path / "gone", monkeypatch)
    keeper.signals.name = "SIGINT"
    with pytest.raises(ValueError, match="could not be written to the end"):
        keeper.after_step(Position(0, 4), tally_of(1.0))
    assert "could not be written: No such file or directory" in capsys.readouterr().out


def test_other_ranks_stop_too_and_write_nothing(tmp_path, monkeypatch):
    """Prevents a rank that trains on alone, or writes over the main one's file."""
    keeper, clock, _ = make_keeper(tmp_path, monkeypatch, is_main=False)
    clock[0] += 1e6
    keeper.after_step(Position(0, 4), tally_of(1.0))
    monkeypatch.setattr(module.Agreement, "__call__", lambda self, *wanted: (True, False))
    with pytest.raises(Stopped) as stop:
        keeper.after_step(Position(0, 8), tally_of(1.0))
    assert (str(stop.value), stop.value.exit_status) == ("Stopped by another process, which was asked to.", 143)
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_as_it_was_then(tmp_path, monkeypatch):
    """Prevents a file that mixes two steps because it is written while the training goes on."""
    keeper, _, state = make_keeper(tmp_path, monkeypatch)
    jobs = []
    keeper.log.saver = SimpleNamespace(submit=lambda *job: jobs.append(job), wait=lambda: None, failed=[])
    train_epoch(state.stepper.model, state, 0)
    before = [value.clone() for value in (*state.stepper.model.parameters(), *state.stepper.ema.model.parameters())]
    keeper.save(Position(1), is_over=True)
    train_epoch(state.stepper.model, state, 1)
    ((name, write),) = jobs
    write()
    content = read_checkpoint(keeper.path)
    assert (name, content["contract"]) == ("last_checkpoint.pth", CONTRACT | {"epoch": 1})
    keys = [key for key, _ in state.stepper.model.named_parameters()]
    saved = [weights[key] for weights in (content["model"], content["training"]["average"]["model"]) for key in keys]
    assert all(map(torch.equal, before, saved))
    assert content["run"]["is_over"] and content["run"]["settings"]["seed"] == 3
    assert (content["run"]["constants"], content["run"]["order"]) == ({"seed": 11}, [11, 6])


@pytest.mark.parametrize("images", [0, 8])
def test_a_saved_training_goes_on(tmp_path, monkeypatch, images):
    """Prevents a resumed epoch whose losses, or random numbers, are not those of the whole one."""
    keeper, _, state = make_keeper(tmp_path, monkeypatch)
    train_epoch(state.stepper.model, state, 0)
    keeper.save(Position(1, images), tally_of(3.0) if images else None)
    keeper.log.saver.close()
    drawn, expected = torch.rand(1), train_epoch(state.stepper.model, state, 1)

    content = read_checkpoint(keeper.path)
    again, _, state = make_keeper(tmp_path, monkeypatch)
    state.stepper.model.load_state_dict(content["model"])
    position, tally = again.restore(content)
    assert torch.equal(torch.rand(1), drawn)
    assert position == Position(1, images)
    assert tally.result().losses == {"loss": 3.0} if images else tally is None
    assert train_epoch(state.stepper.model, state, 1) == expected


def test_other_images_begin_the_epoch_again(tmp_path, monkeypatch):
    """Prevents half an epoch of one order and half of another, which leaves images out, without a word."""
    keeper, _, _ = make_keeper(tmp_path, monkeypatch)
    keeper.save(Position(1, 8), tally_of(3.0))
    keeper.log.saver.close()
    said = []
    again, _, _ = make_keeper(tmp_path, monkeypatch, order=(11, 7), said=said)
    assert again.restore(read_checkpoint(keeper.path)) == (Position(1), None)
    assert said == ["note: the training images or seed are others now: the epoch begins again."]


def test_two_ranks_become_one_and_one_becomes_two():
    """Prevents losses of an epoch that count twice, or half, where a run goes on with other ranks: images
    weigh alike."""
    first, second = tally_of(1.0, 4), tally_of(4.0, 2)
    first.unreadable.append("a.jpg")
    second.cut_off.append("b.jpg")
    states = [first.state(), second.state()]
    one = Tally(share_of(states, 0, 1))
    assert one.result().losses == {"loss": 2.0}
    assert (one.images, one.unreadable, one.cut_off) == (6, ["a.jpg"], ["b.jpg"])

    main, other = (Tally(share_of([one.state()], rank, 2)) for rank in (0, 1))
    assert main.sums.tolist() == [12.0, 6.0] and other.sums.tolist() == [0.0, 0.0]
    assert (main.images, other.images) == (3, 3)
    assert (main.unreadable, other.unreadable, other.cut_off) == (["a.jpg"], [], [])
    assert main.parts == other.parts == ["loss"]
