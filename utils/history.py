"""What one training run leaves, epoch by epoch: numbers as text, pictures, and both in TensorBoard."""

import csv
import math
from pathlib import Path

from utils.pictures.epochs import epoch_pictures
from utils.pictures.gallery import Gallery

# The columns that people know, in the order in which results.csv shows them.
_COLUMNS = (
    *("epoch", "phase", "loss", "loss_box", "loss_obj", "loss_cls", "loss_l1", "val_loss", "lr"),
    *("map50", "ap", "precision", "recall", "images_per_second", "data_wait", "gpu_memory", "seconds"),
)
# TensorBoard shows tags with the same beginning side by side.
_TAGS = {"loss": "loss/train", "val_loss": "loss/val", "map50": "score/mAP_0.5", "ap": "score/AP_0.5_0.95"}
_TAGS |= {"precision": "score/precision", "recall": "score/recall"}


class History:
    """Writes what happened in each epoch into the folder of the run, at once, so that a crash loses nothing.

    results.csv: a row per epoch; None leaves a cell empty
    epoch_loss.txt, epoch_val_loss.txt: a number per line and epoch ("nan" where there was none)
    epoch_map.txt: a line "epoch mAP@0.5" per evaluated epoch
    epoch_loss.png, epoch_map.png, results.png: curves, see utils/pictures/gallery.py for how often
    TensorBoard events: every number of the row, and the pictures
    """

    def __init__(self, folder, tensorboard=True):
        """folder: made where missing; ValueError where it already holds the results of a run."""
        self.folder = Path(folder)
        if (self.folder / "results.csv").exists():
            raise ValueError(f"{self.folder} already holds the results.csv of a run; choose a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = []
        self._columns = ()
        self._writer = None
        if tensorboard:
            # Imported here, like matplotlib: only the rank that writes pays for them.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder)
        self._gallery = Gallery(self.folder, self._writer)

    def draw(self, epoch, function, *arguments):
        """Write the pictures that function(*arguments) returns, and show them in TensorBoard; see Gallery.draw."""
        self._gallery.draw(epoch, function, *arguments)

    def add_epoch(self, row):
        """Record one epoch.

        row: dict with "epoch" (from 1), "phase" ("frozen" or "unfrozen"), "loss", and any of: loss parts (loss_box,
        loss_obj, ...), val_loss, lr, map50, ap, precision and recall (None in epochs without evaluation),
        images_per_second, data_wait (0..1), gpu_memory (GiB, None without a GPU), seconds, more numbers. The first row
        fixes the columns: the usual ones and its own. Raises ValueError where a later row brings another key.
        """
        self._columns = self._columns or (*_COLUMNS, *(key for key in row if key not in _COLUMNS))
        unknown = [key for key in row if key not in self._columns]
        if unknown:
            raise ValueError(
                f"{self.folder}/results.csv has no column {', '.join(unknown)}; give None in the first row."
            )
        self.rows.append({key: value if isinstance(value, str) else _plain(value) for key, value in row.items()})
        self._write_text(self.rows[-1])
        if self._writer:
            self._write_events(self.rows[-1])
        self.draw(row["epoch"], epoch_pictures, self.rows)

    def close(self):
        """Draw the pictures a last time and close the TensorBoard file. May be called more than once."""
        self._gallery.close()
        if self._writer:
            self._writer.close()
            self._writer = None

    def _write_text(self, row):
        with open(self.folder / "results.csv", "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            if len(self.rows) == 1:
                writer.writeheader()
            writer.writerow(row)
        for key in ("loss", "val_loss"):
            with open(self.folder / f"epoch_{key}.txt", "a", encoding="utf-8") as file:
                file.write(f"{_number(row, key)}\n")
        if row.get("map50") is not None:
            with open(self.folder / "epoch_map.txt", "a", encoding="utf-8") as file:
                file.write(f"{row['epoch']} {row['map50']}\n")

    def _write_events(self, row):
        for key, value in row.items():
            if key != "epoch" and isinstance(value, int | float):
                tag = _TAGS.get(key) or (key.replace("_", "/", 1) if key.startswith("loss_") else f"run/{key}")
                self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()


def _plain(value):
    """A Python int, float or None from any kind of number."""
    return value if value is None or isinstance(value, int) else float(value)


def _number(row, key):
    """The number as a float, NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None else float(value)
