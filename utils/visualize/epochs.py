"""The numbers of a run over its epochs, and the planned learning rate, as pictures."""

import math
from itertools import cycle

import numpy as np

from utils.visualize.figures import GREY, TRAIN, VAL, new_figure, rendered, style_axes

_GREEN, _VIOLET, _RED = "#2a9d3a", "#9d4edd", "#d1003f"
_COLOURS = (TRAIN, VAL, _GREEN, _VIOLET, _RED, GREY)


def epoch_pictures(rows):
    """{name: (H, W, 3) uint8 RGB} of epoch_loss, of epoch_map where an epoch was evaluated, and of both as results.

    rows: as in MetricsWriter.add_epoch; at least one.
    """
    parts = [(key, key.removeprefix("loss_")) for key in rows[0] if key.startswith("loss_")]
    loss, part, rate = _row_of_axes(rows, ("loss", "parts of the training loss", "learning rate, end of the epoch"))
    _draw_losses(loss, rows)
    _draw_lines(part, rows, parts)
    _draw_lines(rate, rows, [("lr", "now")])
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:g}")
    pictures = {"epoch_loss": rendered(loss.figure)}
    if any(row.get("map50") is not None for row in rows):
        mean, best = _row_of_axes(rows, ("mean average precision on val", "precision and recall on val"))
        _draw_scores(mean, rows, [("map50", "mAP@0.5"), ("ap", "AP@0.5:0.95")])
        _draw_scores(best, rows, [("precision", "precision"), ("recall", "recall")])
        pictures["epoch_map"] = rendered(mean.figure)
    return pictures | {"results": np.concatenate(list(pictures.values()))}


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


def _row_of_axes(rows, titles):
    """A figure with axes side by side, one for each title, and in each the line where the phases meet."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(1500, 450)
    figure.subplots_adjust(left=0.04, right=0.985, top=0.87, bottom=0.12, wspace=0.15)
    phases = [row.get("phase") for row in rows]
    all_axes = figure.subplots(1, len(titles))
    for axes, title in zip(all_axes, titles, strict=True):
        style_axes(axes, xlabel="epoch")
        axes.set_title(title, fontsize=12, pad=18)
        first, last = epoch_range(rows)
        axes.set_xlim(first - 0.03 * (last - first), last + 0.03 * (last - first))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if "frozen" in phases and phases[-1] == "unfrozen":
            border = rows[phases.index("unfrozen")]["epoch"] - 0.5
            axes.axvline(border, color="#444444", linewidth=1.2, linestyle="--")
            above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 9}
            axes.annotate("Freeze_Epoch", (border, 1.01), **above)
    return all_axes


def epoch_range(rows):
    """(first, last) epoch of an axis, never the same: of the whole run, as scores may begin late or be a single one."""
    first = rows[0]["epoch"]
    return first, max(rows[-1]["epoch"], first + 1)


def numbers_of(rows, key):
    """(N,) float64, NaN where a row has no number."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in rows], np.float64)


def _draw_losses(axes, rows):
    _draw_lines(axes, rows, [("loss", "train"), ("val_loss", "val")], is_smoothed=len(rows) >= 5)
    train = numbers_of(rows, "loss")
    if np.isfinite(train).any():
        # From scratch the first validation losses can be hundreds: they shall not flatten all that follows.
        lowest, highest = axes.get_ylim()
        axes.set_ylim(lowest if highest < 2 * np.nanmax(train) else 0, min(highest, 1.5 * np.nanmax(train)))


def _draw_lines(axes, rows, keys, is_smoothed=False):
    """A line per (key, name), smoothed over the numbers themselves or not; keys without a number are left out."""
    marker = {"marker": "o", "markersize": 5} if len(rows) < 5 else {}
    for epochs, values, name, colour in _lines(rows, keys):
        label = f"{name} {values[-1]:.3g}"
        if is_smoothed:
            axes.plot(epochs, values, color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(epochs, smooth(values) if is_smoothed else values, color=colour, linewidth=2.2, label=label, **marker)
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, highest + 0.08 * len(keys) * (highest - lowest))  # room for the legend
    _add_legend(axes, "upper right")


def _draw_scores(axes, rows, keys):
    """A line per (key, name) through the epochs that have the number, with a star where it is best."""
    for epochs, values, name, colour in _lines(rows, keys):
        best = int(values.argmax())
        label = f"{name}, best {values[best]:.3f} in epoch {epochs[best]:.0f}"
        axes.plot(epochs, values, color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
        axes.plot(epochs[best], values[best], color=colour, marker="*", markersize=15, clip_on=False)
    axes.set_ylim(0, 1)
    _add_legend(axes, "lower right")


def _lines(rows, keys):
    """(epochs, values, name, colour) of each (key, name) that has numbers, NaN and infinity left out."""
    for (key, name), colour in zip(keys, cycle(_COLOURS)):
        values = numbers_of(rows, key)
        finite = np.isfinite(values)
        if finite.any():
            yield numbers_of(rows, "epoch")[finite], values[finite], name, colour


def _add_legend(axes, place):
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place, fontsize=10, framealpha=0.85, edgecolor="none")


def draw_lr_preview(progress, rates, groups, lr_decay_type, path):
    """Draw the course of the learning rate before the training starts.

    progress, rates: from utils.training.lr_schedule.preview_lr. groups: {(factor, epoch it trains from): names of
    parts}.
    """
    figure = new_figure(800, 500)
    figure.subplots_adjust(left=0.09, right=0.96, top=0.93, bottom=0.1)
    axes = style_axes(figure.add_subplot(), xlabel="epoch", ylabel="learning rate")
    name = getattr(lr_decay_type, "__name__", lr_decay_type)
    axes.set_title(
        f"planned: {name}" + (", until the validation loss stalls" if name == "plateau" else ""), fontsize=10
    )
    styles = ("-", "--", "-.", ":")
    for number, ((factor, joined), parts) in enumerate(groups.items()):
        label = ", ".join(parts) + (f", x {factor:g}" if factor != 1 else "")
        label += f", from epoch {joined + 1}" if joined else ""
        colour = (TRAIN, VAL, _GREEN, GREY)[number % 4]
        axes.plot(progress, rates[factor, joined], color=colour, linewidth=2, linestyle=styles[number % 4], label=label)
    axes.margins(y=0.3)  # room for the legend above a rate that stays
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.legend(loc="upper right", fontsize=9)
    figure.savefig(path)
