"""The numbers of one training run, epoch by epoch: text files, TensorBoard scalars and two curves."""

import csv
import math
import time
from pathlib import Path

import numpy as np

# The columns that people know, in the order in which results.csv shows them.
_COLUMNS = (
    *("epoch", "phase", "loss", "loss_box", "loss_obj", "loss_cls", "loss_l1", "val_loss", "lr", "map50", "ap"),
    *("images_per_second", "data_wait", "seconds"),
)
# TensorBoard shows tags with the same beginning side by side.
_TAGS = {"loss": "loss/train", "val_loss": "loss/val", "map50": "mAP/0.5", "ap": "mAP/0.5_0.95", "lr": "run/lr"}
_SECONDS_BETWEEN_DRAWINGS = 10.0  # both curves cost up to 0.2 s, and an epoch on a tiny data set lasts two or three
_TRAIN, _VAL, _FAINT = "#0072ce", "#f07800", "#999999"


class History:
    """Writes what happened in each epoch into the folder of the run, at once, so that a crash loses nothing.

    results.csv: a row per epoch; None leaves a cell empty
    epoch_loss.txt, epoch_val_loss.txt: a number per line and epoch ("nan" where there was none)
    epoch_map.txt: a line "epoch mAP@0.5" per evaluated epoch
    epoch_loss.png, epoch_map.png: curves, drawn anew every few seconds and at close()
    TensorBoard events: every number of the row
    """

    def __init__(self, folder, tensorboard=True):
        """folder: made where missing; ValueError where it already holds the results of a run."""
        self.folder = Path(folder)
        if (self.folder / "results.csv").exists():
            raise ValueError(f"{self.folder} already holds the results.csv of a run; choose a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = []
        self._columns = ()
        self._last_drawn = -math.inf
        self._drawn_rows = 0
        self._writer = None
        if tensorboard:
            # Imported here, like matplotlib below: only the rank that writes pays for them.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder)

    def add_epoch(self, row):
        """Record one epoch.

        row: dict with "epoch" (from 1), "phase" ("frozen" or "unfrozen"), "loss", and any of: loss parts (loss_box,
        loss_obj, ...), val_loss, lr, map50 and ap (None in epochs without evaluation), images_per_second, data_wait
        (0..1), seconds, more numbers. The first row fixes the columns: the usual ones and its own. Raises ValueError
        where a later row brings another key.
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
        if time.monotonic() - self._last_drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def close(self):
        """Draw the curves a last time and close the TensorBoard file. May be called more than once."""
        if len(self.rows) > self._drawn_rows:
            self._draw()
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
                tag = _TAGS.get(key) or f"{'loss_parts' if key.startswith('loss_') else 'run'}/{key}"
                self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()

    def _draw(self):
        _draw_loss(self.rows, self.folder / "epoch_loss.png")
        if any(row.get("map50") is not None for row in self.rows[self._drawn_rows :]):
            _draw_map(self.rows, self.folder / "epoch_map.png")
        self._drawn_rows = len(self.rows)
        self._last_drawn = time.monotonic()


def smooth(values):
    """Centred moving average of (N,) numbers over about a tenth of them, at least 3; NaN and infinity are left out.

    Returns (N,) float64, NaN only where the whole window holds no number.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    if not len(values):
        return values
    window = np.ones(max(3, len(values) // 10) | 1)  # odd, so that it has a centre
    half = len(window) // 2
    total = np.convolve(np.where(finite, values, 0), window)[half : half + len(values)]
    count = np.convolve(finite.astype(float), window)[half : half + len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _plain(value):
    """A Python int, float or None from any kind of number."""
    return value if value is None or isinstance(value, int) else float(value)


def _number(row, key):
    """The number as a float, NaN where there is none."""
    value = row.get(key)
    return math.nan if value is None else float(value)


def _draw_loss(rows, path):
    figure, axes = _figure("loss", rows)
    epochs = np.array([row["epoch"] for row in rows])
    for key, name, colour in (("loss", "train", _TRAIN), ("val_loss", "val", _VAL)):
        losses = np.array([_number(row, key) for row in rows])
        finite = np.isfinite(losses)
        if not finite.any():
            continue
        label = f"{name}, now {losses[finite][-1]:.3f}"
        if len(rows) >= 5:
            axes.plot(epochs, losses, color=colour, linewidth=0.8, alpha=0.45)
            axes.plot(epochs, smooth(losses), color=colour, linewidth=2.2, label=label)
        else:
            axes.plot(epochs, losses, color=colour, linewidth=2.2, marker="o", markersize=5, label=label)
    train = np.array([_number(row, "loss") for row in rows])
    if np.isfinite(train).any():
        # From scratch the first validation losses can be hundreds: they shall not flatten all that follows.
        lowest, highest = axes.get_ylim()
        axes.set_ylim(lowest if highest < 2 * np.nanmax(train) else 0, min(highest, 1.5 * np.nanmax(train)))
    lr = np.array([_number(row, "lr") for row in rows])
    if np.isfinite(lr).any():
        right = axes.twinx()
        right.plot(epochs, lr, color=_FAINT, linewidth=1.2, linestyle=":")
        right.set_ylim(bottom=0)
        right.set_ylabel("learning rate (dotted)", color=_FAINT)
        right.tick_params(colors=_FAINT)
        right.spines[["top", "left"]].set_visible(False)
    _finish(figure, axes, path)


def _draw_map(rows, path):
    figure, axes = _figure("mean average precision on val", rows)
    for key, name, colour in (("map50", "mAP@0.5", _TRAIN), ("ap", "AP@0.5:0.95", _VAL)):
        points = [(row["epoch"], row[key]) for row in rows if math.isfinite(_number(row, key))]
        if not points:
            continue
        epochs, values = np.array(points, np.float64).T
        best = int(values.argmax())
        label = f"{name}, best {values[best]:.3f} in epoch {epochs[best]:.0f}"
        axes.plot(epochs, values, color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
        axes.plot(epochs[best], values[best], color=colour, marker="*", markersize=15, clip_on=False)
    axes.set_ylim(0, 1)
    _finish(figure, axes, path)


def _figure(label, rows):
    """A figure of its own (no pyplot, nothing global) with the epoch axis and the line where the phases meet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=100)
    figure.subplots_adjust(left=0.09, right=0.9, top=0.93, bottom=0.1)
    axes = figure.add_subplot(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    phases = [row.get("phase") for row in rows]
    if "frozen" in phases and phases[-1] == "unfrozen":
        border = rows[phases.index("unfrozen")]["epoch"] - 0.5
        axes.axvline(border, color="#444444", linewidth=1.2, linestyle="--", label="Freeze_Epoch")
    return figure, axes


def _finish(figure, axes, path):
    if axes.get_legend_handles_labels()[0]:
        # Above the axes, where it covers no curve.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
    figure.savefig(path)


def draw_planned_rates(progress, rates, groups, lr_decay_type, path):
    """Draw the course of the learning rate before the training starts.

    progress, rates: from utils.schedule.planned_rates. groups: {(factor, epoch it trains from): names of parts}.
    """
    figure, axes = _figure("learning rate", [])
    name = getattr(lr_decay_type, "__name__", lr_decay_type)
    axes.set_title(
        f"planned: {name}" + (", until the validation loss stalls" if name == "plateau" else ""), fontsize=10
    )
    styles = ("-", "--", "-.", ":")
    for number, ((factor, joined), parts) in enumerate(groups.items()):
        label = ", ".join(parts) + (f", x {factor:g}" if factor != 1 else "")
        label += f", from epoch {joined + 1}" if joined else ""
        colour = (_TRAIN, _VAL, "#2a9d3a", _FAINT)[number % 4]
        axes.plot(progress, rates[factor, joined], color=colour, linewidth=2, linestyle=styles[number % 4], label=label)
    axes.margins(y=0.3)  # room for the legend above a rate that stays
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.legend(loc="upper right", fontsize=9)
    figure.savefig(path)
