"""The files of one training run: its folder, its weights, and the copies that predict.py finds."""

import math
import re
import shutil
from datetime import datetime
from pathlib import Path

from utils.checkpoint.resume import read_checkpoint
from utils.io.errors import UserError
from utils.io.files import remove_temporaries, replace_file
from utils.io.logger import logger
from utils.io.text import amount, json_text
from utils.weights.save import copy_weights, save_state, snapshot

BEST, LAST = "best_epoch_weights.pth", "last_epoch_weights.pth"
_LOSS = r"(-?\d+\.\d{3}|nan|-?inf)"
_KEPT = re.compile(rf"ep(?P<epoch>\d{{3,}})-loss{_LOSS}-val_loss{_LOSS}\.pth")
# Seconds after which an unfinished file in save_dir belongs to no other training that is just writing it.
_STALE = 3600
# Pictures, TensorBoard and tables of a run.
OTHER_BYTES = 64 * 2**20


def new_run_folder(save_dir):
    """Make save_dir/loss_<date and time>; a second run within the same second gets a suffix. Returns its Path."""
    name = datetime.now().strftime("loss_%Y_%m_%d_%H_%M_%S")
    for suffix in ["", *(f"_{number}" for number in range(2, 100))]:
        folder = Path(save_dir) / (name + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(
                    f"save_dir is {str(save_dir)!r}, which is a file; expected a folder to write to."
                ) from None
        except OSError as error:
            raise UserError(f"save_dir is {str(save_dir)!r}, and no folder can be made in it: {error}.") from error
    raise UserError(f"{save_dir} already holds 99 runs of this second.")


def save_settings(folder, settings):
    """Write the effective configuration, {name: value}, as settings.json."""
    text = json_text(settings, 2)
    path = Path(folder) / "settings.json"
    replace_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


class WeightSaver:
    """Saves the weights of one run: the last, the best, and one every save_period epochs.

    folder: of the run. Copies of best and last go to its parent, so that predict.py and the next training find the
    newest run's under one name. keep_checkpoints: how many of the ep*.pth stay, the newest ones; 0: all. An older one
    goes once the newer is on disk; best and last always stay. writer: the BackgroundWriter. A file for which there was
    no space is written at a later epoch, unless a newer one then takes its place.
    """

    def __init__(self, folder, save_period, keep_checkpoints, writer):
        self.folder, self.save_period = Path(folder), save_period
        self.keep_checkpoints, self.writer = keep_checkpoints, writer
        self.best_score, self.best_epoch = None, None
        self._unwritten = {}

    def save(self, model, metadata, epoch, is_last, loss, val_loss, score):
        """Have written what this epoch deserves, as model and metadata are now.

        epoch: counted from 1. is_last: it is kept under its number too. loss, val_loss: for the file's name. score:
        higher is better, None or NaN where there is none; the best so far becomes best_epoch_weights.pth.
        """
        paths = {"last": [self.folder / LAST, self.folder.parent / LAST]}
        is_scored = score is not None and not math.isnan(score)
        # Until one epoch is scored the newest counts as the best: predict.py must not find the weights of an older run.
        if self.best_score is None or (is_scored and score > self.best_score):
            if is_scored:
                self.best_score, self.best_epoch = float(score), epoch
            paths["best"] = [self.folder / BEST, self.folder.parent / BEST]
        if epoch % self.save_period == 0 or is_last:
            paths["kept"] = [self.folder / f"ep{epoch:03d}-loss{loss:.3f}-val_loss{val_loss:.3f}.pth"]
        content = snapshot((model.state_dict(), metadata))
        self.writer.submit("weights", lambda: self._write(content, paths))

    def has_stalled(self, epoch, patience):
        """Whether the best score is `patience` or more epochs old; patience 0: never."""
        return patience > 0 and self.best_epoch is not None and epoch - self.best_epoch >= patience

    def state_dict(self):
        """What a run that goes on must know, of plain types."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state):
        """Go on where state_dict() stood, in the same folder, and remove what a killed run left unfinished there."""
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        remove_temporaries(self.folder)
        remove_temporaries(self.folder.parent, _STALE)

    def _write(self, content, paths):
        """Write content, (state, metadata), and what could not be written before; in the writer's thread.

        paths: {kind: paths}; of each kind only the newest content counts.
        """
        self._unwritten |= {kind: (content, of_kind) for kind, of_kind in paths.items()}
        written, failure = {}, None
        for kind, ((state, metadata), of_kind) in list(self._unwritten.items()):
            try:
                for path in of_kind:
                    if id(state) in written:
                        copy_weights(written[id(state)], path)
                    else:
                        save_state(path, state, metadata)
                        written[id(state)] = path
                if kind == "kept":
                    self._remove_old(of_kind[0])
                del self._unwritten[kind]
            except OSError as error:
                failure = failure or error  # the others may have room
        if failure:
            raise failure

    def _remove_old(self, newest):
        """Remove the ep*.pth that the one just written replaces: its own epoch's of before, and those too many."""
        names = [(_KEPT.fullmatch(path.name), path) for path in self.folder.glob("ep*.pth") if path != newest]
        kept = sorted((int(match["epoch"]), path) for match, path in names if match)
        epoch = int(_KEPT.fullmatch(newest.name)["epoch"])
        others = [path for number, path in kept if number != epoch]
        surplus = max(0, len(others) + 1 - self.keep_checkpoints) if self.keep_checkpoints else 0
        for path in [*others[:surplus], *(path for number, path in kept if number == epoch)]:
            path.unlink(missing_ok=True)


def check_disk(checkpointer, settings, phases):
    """Check that the checkpoint just written can be read back, and that the disk has room for what is to come.

    What is to come is logged. Raises UserError. Does nothing on ranks that write nothing.
    """
    path, model = checkpointer.path, checkpointer.optim.eval_model
    if not path:
        return
    try:
        checkpointer.run_logger.writer.close()
    except UserError:
        if path.is_file():  # that of an earlier save, from which the run may go on
            raise
    if not path.is_file():
        raise UserError(
            f"save_dir is {settings.save_dir!r}, and {path} could not be written there, as said above; make room and "
            "give the right to write, or choose another save_dir."
        )
    read_checkpoint(path)
    weights_bytes = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    epochs = phases[-1].last - phases[0].first
    kept = -(-epochs // settings.save_period) + 1
    kept = min(kept, settings.keep_checkpoints) if settings.keep_checkpoints else kept
    # Best and last, their copies in save_dir, and a file being written; the old checkpoint goes when the new is whole.
    needed = (kept + 5) * weights_bytes + path.stat().st_size + OTHER_BYTES
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"save_dir is {settings.save_dir!r}, whose disk has {amount(free)} free; this run will write about "
            f"{amount(needed)} ({kept} files ep*.pth of {amount(weights_bytes)} each among them). Free "
            "space, choose another save_dir, raise save_period, or set keep_checkpoints = 3."
        )
    logger.info(
        f"           checkpoint of {amount(path.stat().st_size)}, {amount(needed)} to come, {amount(free)} free\n"
    )
