"""When a training is saved, what, and how it stops: each epoch, every save_minutes, and where a signal asks."""

import sys
import time
from typing import NamedTuple

import torch

from utils.checkpoint.resume import CHECKPOINT, process
from utils.config.commands import quote_path
from utils.config.constants import to_plain
from utils.io.logger import logger
from utils.runtime.device import random_states, set_random_states
from utils.runtime.distributed import AsyncFlags, broadcast_object, gather_objects, launch_id
from utils.runtime.signals import Stopped
from utils.weights.save import save_content, snapshot

# What an epoch that is under way has brought so far is kept under this name.
METER = "tally"


class Progress(NamedTuple):
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
        """The Progress once so many batches of the epoch are done, which has so many images."""
        new = max(batches - self.batches(batch_size), 0)
        return Progress(self.epoch, min(self.images + new * batch_size, images))


def progress_of(checkpoint):
    """The Progress that a read checkpoint has reached."""
    return Progress(checkpoint["run"]["epoch"], checkpoint["run"]["images"])


class Checkpointer:
    """Writes last_checkpoint.pth into the folder of the run. Every rank has one; that of the main rank writes.

    run_logger: of the run, whose folder is None on the other ranks. optim, schedule: what moves, with state_dict and
    load_state_dict. constants: of train.py, without the command line's. order: what the order of an epoch depends on,
    as order_key gives it. signals: StopSignals.
    """

    def __init__(self, run_logger, runtime, settings, constants, order, signals, optim, schedule):
        self.run_logger, self.runtime, self.signals = run_logger, runtime, signals
        self.optim, self.schedule = optim, schedule
        self.settings, self.constants, self.order = to_plain(vars(settings)), to_plain(constants), order
        self.flags = AsyncFlags(runtime.dist)
        self.interval, self.saved_at = 60 * settings.save_minutes, time.monotonic()
        self.path = run_logger.folder / CHECKPOINT if run_logger.folder else None
        self.phase, self.epoch = None, 0

    def begin_epoch(self, phase, progress, meter):
        """What train_one_epoch calls after each step, with the number of batches done: it saves and stops in time.

        Called without a number it means all batches of the epoch, as while it is evaluated.
        """
        self.phase, self.epoch = phase, progress.epoch

        def after_step(batches=sys.maxsize):
            self.after_step(progress.after(batches, phase.batch_size, self.order[1]), meter)

        return after_step

    def after_step(self, progress, meter):
        """Save and stop where it is time to. All ranks call, equally often. Raises Stopped."""
        is_due = self.path is not None and 0 < self.interval < time.monotonic() - self.saved_at
        if is_due:
            self.saved_at = time.monotonic()  # ranks agree one step late, and shall not save twice
        stops, saves = self.flags(bool(self.signals.name), is_due)
        if stops or saves:
            self.save(progress, meter, stops=stops)
        if stops:
            self._stop(progress)

    def _stop(self, progress):
        """Leave, once all is on disk. Raises Stopped."""
        self.close()
        name = self.signals.name
        cause = "Ctrl-C" if name == "SIGINT" else name or "another process, which was asked to"
        if not self.path:
            # Whoever ends before the main process has saved would make the launcher end that, too.
            broadcast_object(None)
            raise Stopped(f"Stopped by {cause}.", self.signals.name)
        self.run_logger.writer.close()
        broadcast_object(None)
        raise Stopped(
            f"Stopped by {cause} in epoch {progress.epoch + 1}. Nothing is lost, all is in {self.path}; go on with: "
            f"python train.py --resume={quote_path(self.run_logger.folder)}",
            self.signals.name,
        )

    def save(self, progress, meter=None, is_over=False, stops=False):
        """Capture the training and have it written beside it. All ranks call, with the same arguments.

        meter: of the epoch that is not done. Not while one step after the other is no finite number, unless the run
        ends here, is over or stops: what is saved may be where that began.
        """
        # Only by what all ranks know, as a signal to one of them is not: the others would wait for its part.
        if self.optim.bad_in_a_row and not (is_over or stops):
            return
        state = snapshot(meter.state_dict()) if meter else None
        ranks = gather_objects({"random": random_states(self.runtime.device), METER: state})
        self.saved_at = time.monotonic()
        if not self.path:
            return
        if is_over:
            self.run_logger.writer.wait()
            if self.run_logger.writer.failed:
                return  # so that a resumed run does its last epoch again, and writes the weights that are missing
        run = {"settings": self.settings, "constants": self.constants, "launch": launch_id(), "order": self.order}
        run |= {"epoch": progress.epoch, "images": progress.images, "is_over": is_over, "process": process()}
        content = {
            "contract": self.run_logger.metadata | {"epoch": progress.epoch},
            "run": run,
            "log": self.run_logger.state_dict(),
            "ranks": ranks,
            "model": self.optim.model.state_dict(),
            "training": self.optim.state_dict() | {"schedule": self.schedule.state_dict()},
        }
        content = snapshot(content)
        self.run_logger.writer.submit(CHECKPOINT, lambda: save_content(self.path, content))

    def close(self):
        """Leave nothing open between the ranks; all of them call."""
        self.flags.finish()

    def load(self, checkpoint, meter):
        """Put a read checkpoint back, beside the model's weights; meter gets what its epoch has brought.

        Returns the Progress from which the training goes on: an epoch begins again where its order is another now.
        """
        ranks, rank, world_size = checkpoint["ranks"], self.runtime.dist.rank, self.runtime.dist.world_size
        progress = progress_of(checkpoint)
        self.optim.load_state_dict(checkpoint["training"])
        self.schedule.load_state_dict(checkpoint["training"]["schedule"], progress.epoch)
        # On another number of ranks none of the states fits exactly; the sums must be there once.
        is_same = len(ranks) == world_size
        set_random_states(ranks[rank if is_same else 0]["random"], self.runtime.device)
        if not progress.images:
            return progress
        order = checkpoint["run"]["order"]
        if order != self.order[: len(order)]:  # older checkpoints have only the first two
            logger.warning(
                "the training images, how often each is seen, or the seed are others now: the epoch begins again."
            )
            return Progress(progress.epoch)
        states = [entry[METER] for entry in ranks]
        meter.load_state_dict(states[rank] if is_same else meter_state_for(states, rank, world_size))
        return progress


def meter_state_for(states, rank, world_size):
    """What a rank takes over of the meters of another number of ranks: the main one all, others nothing."""
    total = sum(state["sums"] for state in states)
    lists = {key: [path for state in states for path in state[key]] for key in ("unreadable", "cut_off")}
    images = sum(state["images"] for state in states) // world_size
    if rank:
        total, lists = torch.zeros_like(total), {key: [] for key in lists}
    return states[0] | {"sums": total, "images": images} | lists
