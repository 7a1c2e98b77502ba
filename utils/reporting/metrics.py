"""What one training run leaves, epoch by epoch: numbers as text, pictures, and both in TensorBoard."""

import csv
import io
import math
import threading
from pathlib import Path

from utils.io.errors import UserError
from utils.io.files import replace_file
from utils.io.logger import logger
from utils.reporting.images import ImageLogger
from utils.visualize.epochs import epoch_pictures

# The columns that people know, in the order in which results.csv shows them.
_COLUMNS = (
    *("epoch", "phase", "loss", "loss_box", "loss_obj", "loss_cls", "loss_l1", "val_loss", "lr"),
    *("map50", "ap", "precision", "recall", "images_per_second", "data_wait", "gpu_memory", "seconds"),
)
# TensorBoard shows tags with the same beginning side by side.
_TAGS = {"loss": "loss/train", "val_loss": "loss/val", "map50": "score/mAP_0.5", "ap": "score/AP_0.5_0.95"}

_TAGS |= {"precision": "score/precision", "recall": "score/recall"}


class MetricsWriter:
    """Writes what happened in each epoch into the folder of the run, at once, so that a crash loses nothing.

    results.csv: a row per epoch; None leaves a cell empty
    epoch_loss.txt, epoch_val_loss.txt: a number per line and epoch ("nan" where there was none)
    epoch_map.txt: a line "epoch mAP@0.5" per evaluated epoch
    epoch_loss.png, epoch_map.png, results.png: curves, see ImageLogger for how often
    TensorBoard events: every number of the row, and the pictures

    Text files are written whole each time: where there was no space they are complete again with a later epoch.
    """

    def __init__(self, folder, tensorboard=True, rows=None):
        """folder: made where missing; ValueError where a new run finds the results of another in it.

        rows: of a run that goes on, those that its MetricsWriter had; all that the files show of later epochs vanishes.
        None for a new run.
        """
        self.folder = Path(folder)
        if rows is None and (self.folder / "results.csv").exists():
            raise UserError(f"{self.folder} already holds the results.csv of a run; choose a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = [dict(row) for row in rows or ()]
        self._columns = _columns(self.rows[0]) if self.rows else ()
        self._writer, self._gallery = None, ImageLogger(self.folder)
        self._is_behind = False
        if rows is not None:
            self._write_text()
        if tensorboard:
            first_step = None if rows is None else self.rows[-1]["epoch"] + 1 if self.rows else 1
            self._try_events(self._open_events, first_step)

    def draw(self, epoch, function, *arguments):
        """Write the pictures that function(*arguments) returns, and show them in TensorBoard; see ImageLogger.draw."""
        self._gallery.draw(epoch, function, *arguments)

    def add_epoch(self, row):
        """Record one epoch.

        row: dict with "epoch" (from 1), "phase" ("frozen" or "unfrozen"), "loss", and any of: loss parts (loss_box,
        loss_obj, ...), val_loss, lr, map50, ap, precision and recall (None in epochs without evaluation),
        images_per_second, data_wait (0..1), gpu_memory (GiB, None without a GPU), seconds, more numbers. The first row
        fixes the columns: the usual ones and its own. Raises ValueError where a later row brings another key.
        """
        self._columns = self._columns or _columns(row)
        unknown = [key for key in row if key not in self._columns]
        if unknown:
            raise UserError(
                f"{self.folder}/results.csv has no column {', '.join(unknown)}; give None in the first row."
            )
        self.rows.append({key: value if isinstance(value, str) else _to_number(value) for key, value in row.items()})
        self._write_text()
        if self._writer:
            self._try_events(self._write_events, self.rows[-1])
        self.draw(row["epoch"], epoch_pictures, self.rows)

    def close(self):
        """Draw the pictures a last time and close the TensorBoard file. May be called more than once."""
        self._gallery.close()
        if self._writer:
            self._try_events(self._writer.close)
            self._writer = self._gallery.writer = None

    def _write_text(self):
        """Write every text file from all rows; what would be empty is removed."""
        scored = [row for row in self.rows if row.get("map50") is not None]
        texts = {"results.csv": _table(self._columns, self.rows) if self.rows else ""}
        for key in ("loss", "val_loss"):
            texts[f"epoch_{key}.txt"] = "".join(f"{_number(row, key)}\n" for row in self.rows)
        texts["epoch_map.txt"] = "".join(f"{row['epoch']} {row['map50']}\n" for row in scored)
        try:
            for name, text in texts.items():
                if text:
                    replace_file(self.folder / name, lambda path, text=text: path.write_bytes(text.encode("utf-8")))
                else:
                    (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            if not self._is_behind:
                logger.warning(
                    f"{error.filename} could not be written: {error.strerror}. A later epoch makes up for it."
                )
            self._is_behind = True
        else:
            self._is_behind = False

    def _open_events(self, first_step):
        # Imported here, like matplotlib: only the rank that writes pays for them.
        from torch.utils.tensorboard import SummaryWriter

        _hush_tensorboard()
        self._writer = self._gallery.writer = SummaryWriter(self.folder, purge_step=first_step)

    def _write_events(self, row):
        for key, value in row.items():
            if key != "epoch" and isinstance(value, int | float):
                tag = _TAGS.get(key) or (key.replace("_", "/", 1) if key.startswith("loss_") else f"run/{key}")
                self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()

    def _try_events(self, function, *arguments):
        """Call a function that writes events. After a failure TensorBoard's file is broken, so no more go there."""
        try:
            function(*arguments)
        except Exception as error:  # a full disk is an error of its own kind where TensorFlow is installed
            self._writer = self._gallery.writer = None
            logger.warning(f"TensorBoard gets no more of this run, its file could not be written: {error}.")


def _columns(row):
    """The columns of results.csv: the usual ones and those of the first row."""
    return (*_COLUMNS, *(key for key in row if key not in _COLUMNS))


def _table(columns, rows):
    """The text of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _hush_tensorboard():
    """Print no trace where TensorBoard's thread ends by an error: the writer raises it again, and then it is said."""
    print_trace = threading.excepthook

    def hook(failure):
        if type(failure.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_trace(failure)

    threading.excepthook = hook


def _to_number(value):
    """A Python int, float or None from any kind of number."""
    return value if value is None or isinstance(value, int) else float(value)


def _number(row, key):
    """The number as a float, NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None else float(value)
