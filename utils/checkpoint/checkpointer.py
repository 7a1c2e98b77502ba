"""When a training is saved, and how it stops: each epoch, every save_minutes, and where a signal asks."""

import time
from typing import NamedTuple

import torch

from utils.checkpoint.resume import CHECKPOINT, process, quoted
from utils.config.cli import plain
from utils.runtime.device import random_states, set_random_states
from utils.runtime.distributed import Agreement, from_main, gathered, launch_id
from utils.runtime.signals import Stopped
from utils.training.engine import Tally
from utils.training.optim import restore
from utils.weights.save import save_content, snapshot


class Keeper:
    """Writes last_checkpoint.pth into the folder of the run. Every rank has one; the main one has a RunLog and writes.

    state: a TrainingState. order: what the order of an epoch depends on, plain. constants: of train.py, without
    the command line's. signals: StopSignals.
    """

    def __init__(self, state, log, settings, constants, order, place, signals):
        self.state, self.log, self.place, self.signals = state, log, place, signals
        self.settings, self.constants, self.order = plain(vars(settings)), plain(constants), order
        self.agreement = Agreement(place.ranks)
        self.interval, self.saved_at = 60 * settings.save_minutes, time.monotonic()
        self.path = log.folder / CHECKPOINT if log else None

    def after_step(self, position, tally):
        """Save and stop where it is time to. All ranks call, equally often. Raises Stopped."""
        is_due = self.log is not None and 0 < self.interval < time.monotonic() - self.saved_at
        if is_due:
            self.saved_at = time.monotonic()  # ranks agree one step late, and shall not save twice
        stops, saves = self.agreement(bool(self.signals.name), is_due)
        if stops or saves:
            self.save(position, tally)
        if stops:
            self.stop(position)

    def stop(self, position):
        """Leave, once all is on disk. Raises Stopped."""
        self.close()
        cause = self.signals.name or "another process, which was asked to"
        if not self.log:
            # Whoever ends before the main process has saved would make the launcher end that, too.
            from_main(None)
            raise Stopped(f"Stopped by {cause}.", self.signals.name)
        self.log.saver.close()
        from_main(None)
        raise Stopped(
            f"Stopped by {cause} in epoch {position.epoch + 1}. Nothing is lost, all is in {self.path}; go on with: "
            f"python train.py --resume={quoted(self.log.folder)}",
            self.signals.name,
        )

    def save(self, position, tally=None, is_over=False):
        """Capture the training and have it written beside it. tally: of the epoch that is not done.

        Not while one step after the other is no finite number: what is saved may be where that began.
        """
        if self.state.stepper.bad_in_a_row and not self.signals.name:
            return
        device = self.place.device
        own = {"random": random_states(device), "tally": snapshot(tally.state()) if tally else None}
        ranks = gathered(own)
        self.saved_at = time.monotonic()
        if not self.log:
            return
        if is_over:
            self.log.saver.wait()
            if self.log.saver.failed:
                return  # so that a resumed run does its last epoch again, and writes the weights that are missing
        model, training = self.state.captured()
        run = {"settings": self.settings, "constants": self.constants, "launch": launch_id(), "order": self.order}
        run |= {"epoch": position.epoch, "images": position.images, "is_over": is_over, "process": process()}
        contract = self.log.contract | {"epoch": position.epoch}
        content = {"contract": contract, "run": run, "log": self.log.progress(), "ranks": ranks}
        content = snapshot(content | {"model": model, "training": training})
        self.log.saver.submit(CHECKPOINT, lambda: save_content(self.path, content))

    def close(self):
        """Leave nothing open between the ranks; all of them call."""
        self.agreement.finish()

    def restore(self, content):
        """Put a read checkpoint back, beside the model's weights. Returns (Position, Tally or None)."""
        run, ranks, rank = content["run"], content["ranks"], self.place.ranks.rank
        position = position_of(content)
        self.state.restore(content["training"], position)
        # On another number of ranks none of the states fits exactly; the sums must be there once.
        is_same = len(ranks) == self.place.ranks.world_size
        set_random_states(ranks[rank if is_same else 0]["random"], self.place.device)
        if run["order"] != self.order and position.images:
            self.place.say("note: the training images or seed are others now: the epoch begins again.")
            return Position(run["epoch"]), None
        if not position.images:
            return position, None
        tallies = [entry["tally"] for entry in ranks]
        return position, Tally(tallies[rank] if is_same else share_of(tallies, rank, self.place.ranks.world_size))


def share_of(tallies, rank, world_size):
    """What a rank takes over of the states of Tallies of another number of ranks: the main one all, others nothing."""
    total = sum(tally["sums"] for tally in tallies)
    lists = {key: [path for tally in tallies for path in tally[key]] for key in ("unreadable", "cut_off")}
    images = sum(tally["images"] for tally in tallies) // world_size
    if rank:
        total, lists = torch.zeros_like(total), {key: [] for key in lists}
    return tallies[0] | {"sums": total, "images": images} | lists


class Position(NamedTuple):
    """How far a training is: whole epochs done, and images of the next one, those of all ranks together."""

    epoch: int
    images: int = 0

    def has_begun(self, phase):
        """Whether at least a step of a phase is done."""
        return (phase.first, 0) < self

    def batches(self, batch_size):
        """How many batches of the epoch are done."""
        return -(-self.images // batch_size)

    def after(self, batches, batch_size, images):
        """The Position once so many batches of the epoch are done, which has so many images."""
        new = max(batches - self.batches(batch_size), 0)
        return Position(self.epoch, min(self.images + new * batch_size, images))


def position_of(content):
    """The Position that a checkpoint's content has reached."""
    return Position(content["run"]["epoch"], content["run"]["images"])


class TrainingState:
    """Everything that moves while training. schedule: a Schedule; stepper: a Stepper, which holds the rest."""

    def __init__(self, stepper, schedule):
        self.stepper, self.schedule = stepper, schedule

    def captured(self):
        """(state dict of the model, all else), referring to what still moves."""
        stepper = self.stepper
        training = {"optimizer": stepper.optimizer.state_dict(), "scaler": stepper.scaler.state_dict()}
        training |= {"schedule": self.schedule.state(), "bad_in_a_row": stepper.bad_in_a_row}
        training["average"] = stepper.ema.state() if stepper.ema else None
        return stepper.model.state_dict(), training

    def restore(self, training, position):
        """Put back what captured() gave, beside the model's weights."""
        restore(self.stepper.optimizer, training["optimizer"])
        if training["scaler"]:  # empty where the training ran in another precision
            self.stepper.scaler.load_state_dict(training["scaler"])
        self.stepper.bad_in_a_row = training["bad_in_a_row"]
        self.schedule.go_to(position.epoch, training["schedule"])
        if self.stepper.ema and training["average"]:
            self.stepper.ema.restore(training["average"])
        elif self.stepper.ema:
            self.stepper.ema.model.load_state_dict(self.stepper.model.state_dict())
