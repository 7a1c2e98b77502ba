"""The files of one training run: its folder, its weights, and the copies that predict.py finds."""

import json
import math
from datetime import datetime
from pathlib import Path

from utils.checkpoint import copy_weights, save_weights

BEST, LAST = "best_epoch_weights.pth", "last_epoch_weights.pth"


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
                raise ValueError(
                    f"save_dir is {str(save_dir)!r}, which is a file; expected a folder to write to."
                ) from None
        except OSError as error:
            raise ValueError(f"save_dir is {str(save_dir)!r}, and no folder can be made in it: {error}.") from error
    raise ValueError(f"{save_dir} already holds 99 runs of this second.")


def save_settings(folder, settings):
    """Write the effective configuration, {name: value}, as settings.json."""
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (Path(folder) / "settings.json").write_text(text + "\n", encoding="utf-8")


class WeightFiles:
    """Saves the weights of one run: the last, the best, and one every save_period epochs.

    folder: of the run. Copies of best and last go to its parent, so that predict.py and the next training find the
    newest run's under one name.
    """

    def __init__(self, folder, save_period):
        self.folder, self.save_period = Path(folder), save_period
        self.best_score, self.best_epoch = None, None

    def save(self, model, contract, epoch, is_last, loss, val_loss, score):
        """Write what this epoch deserves.

        epoch: counted from 1. is_last: it is kept under its number too. loss, val_loss: for the file's name. score:
        higher is better, None or NaN where there is none; the best so far becomes best_epoch_weights.pth.
        """
        self._save_and_copy(LAST, model, contract)
        is_scored = score is not None and not math.isnan(score)
        # Until one epoch is scored the newest counts as the best: predict.py must not find the weights of an older run.
        if self.best_score is None or (is_scored and score > self.best_score):
            if is_scored:
                self.best_score, self.best_epoch = score, epoch
            self._save_and_copy(BEST, model, contract)
        if epoch % self.save_period == 0 or is_last:
            copy_weights(self.folder / LAST, self.folder / f"ep{epoch:03d}-loss{loss:.3f}-val_loss{val_loss:.3f}.pth")

    def has_stalled(self, epoch, patience):
        """Whether the best score is `patience` or more epochs old; patience 0: never."""
        return patience > 0 and self.best_epoch is not None and epoch - self.best_epoch >= patience

    def _save_and_copy(self, name, model, contract):
        save_weights(self.folder / name, model, contract)
        copy_weights(self.folder / name, self.folder.parent / name)
