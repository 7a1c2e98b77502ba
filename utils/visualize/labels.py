"""What is labelled: how often each class occurs, how large the boxes are for the network, where they lie."""

import numpy as np

from utils.data.quality.checks import TINY_SIDE, box_sizes_at_input, class_counts
from utils.io.text import counted
from utils.visualize.figures import GREY, TRAIN, VAL, legend_above, names_on_left, new_figure, rendered, style_axes

ANCHOR = "#d1003f"
MOST_POINTS = 20_000
_MOST_CLASSES, _LEAST_ROWS = 20, 6


def label_picture(train_annotations, val_annotations, class_names, input_shape, tile=0):
    """{"labels": (H, W, 3) uint8 RGB}: classes, sizes and positions of the boxes; of many classes the most frequent.

    input_shape: (height, width) of the network, in whose pixels sizes are given. tile: as in TileOptions.
    """
    sets = (train_annotations, val_annotations)
    figure = new_figure(1750, 620)
    bars, sizes, centres = (figure.add_axes((left, 0.11, 0.255, 0.72)) for left in (0.105, 0.405, 0.7))
    counts = [class_counts(annotations, len(class_names)) for annotations in sets]
    draw_class_bars(bars, *counts, class_names, _MOST_CLASSES, 165)
    # Few classes would get bars as thick as a fist.
    bars.set_ylim(max(min(len(class_names), _MOST_CLASSES), _LEAST_ROWS) - 0.4, -0.6)
    draw_sizes(sizes, *(box_sizes_at_input(annotations, input_shape, tile) for annotations in sets), input_shape)
    _draw_centres(centres, train_annotations)
    titles = "how often each class occurs", "how large the boxes are for the network", "where the boxes of train lie"
    for axes, title in zip((bars, sizes, centres), titles, strict=True):
        axes.set_title(title, fontsize=13, pad=30)
    return {"labels": rendered(figure)}


def draw_class_bars(axes, train_counts, val_counts, class_names, most, name_width):
    """Two bars per class, its share of the boxes of train and of val, the frequent first.

    train_counts, val_counts: (C,) boxes. Shares, so that both sets compare; the numbers stand beside them. most: of
    classes shown. name_width: pixels that names may take to the left of the axes.
    """
    order = np.argsort(-train_counts - val_counts, kind="stable")[:most]
    for counts, name, colour, shift in ((train_counts, "train", TRAIN, -0.2), (val_counts, "val", VAL, 0.2)):
        shares = 100 * counts[order] / max(counts.sum(), 1)
        label = f"{name}: {counted(counts.sum(), 'box', ',')}"
        bars = axes.barh(np.arange(len(order)) + shift, shares, height=0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{count:,}" for count in counts[order]], padding=3, fontsize=8, color=colour)
    left_out = f" (the {len(order)} largest of {len(class_names)} classes)" if len(order) < len(class_names) else ""
    style_axes(axes, ylim=(len(order) - 0.4, -0.6), xlim=(0, 1.1 * max(axes.get_xlim()[1], 1)))
    axes.set_xlabel(f"share of all boxes of the set, %{left_out}")
    names_on_left(axes, [class_names[number] for number in order], name_width)
    legend_above(axes)


def draw_sizes(axes, train_sizes_wh, val_sizes_wh, input_shape, anchors_wh=(), seed=0):
    """Boxes as points, width by height on equal logarithmic axes, and what is too small to be found.

    train_sizes_wh, val_sizes_wh: (M, 2) pixels of an input of input_shape (height, width). anchors_wh: (K, 2). seed:
    chooses the points where there are too many to draw.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    random = np.random.default_rng(seed)
    lowest, highest = TINY_SIDE / 2, 1.25 * max(*input_shape, *np.ravel(anchors_wh))
    for sizes_wh, name, colour in ((train_sizes_wh, "train", TRAIN), (val_sizes_wh, "val", VAL)):
        shown = sizes_wh
        if len(sizes_wh) > MOST_POINTS:
            shown = random.choice(sizes_wh, MOST_POINTS, replace=False)
        alpha = float(np.clip(25 / max(len(shown), 1) ** 0.5, 0.1, 0.7))
        axes.scatter(*np.maximum(shown, lowest).T, s=9, color=colour, alpha=alpha, linewidths=0, label=name)
    axes.axvspan(lowest, TINY_SIDE, color=GREY, alpha=0.3, linewidth=0, label=f"under {TINY_SIDE:g} pixels: too small")
    axes.axhspan(lowest, TINY_SIDE, color=GREY, alpha=0.3, linewidth=0)
    if len(anchors_wh):
        axes.scatter(*np.transpose(anchors_wh), s=90, marker="X", color=ANCHOR, edgecolors="white", label="anchors")
    style_axes(axes, xscale="log", yscale="log", xlim=(lowest, highest), ylim=(lowest, highest), aspect="equal")
    axes.set(xlabel=f"width, pixels at {input_shape[0]}x{input_shape[1]}", ylabel="height, pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([number for number in 2.0 ** np.arange(12) if number <= highest]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    legend_above(axes)


def _draw_centres(axes, annotations):
    from matplotlib.ticker import MaxNLocator

    sizes_wh = np.repeat(annotations.sizes_hw[:, ::-1], np.diff(annotations.offsets), 0)
    centres = (annotations.boxes_xyxy[:, :2] + annotations.boxes_xyxy[:, 2:]) / 2 / np.maximum(sizes_wh, 1)
    # About two boxes per cell, were they spread evenly.
    cells = int(np.clip((len(centres) / 2) ** 0.5, 8, 32))
    edges = np.linspace(0, 1, cells + 1)
    counts = np.histogram2d(*centres.clip(0, 1).T[::-1], (edges, edges))[0]
    picture = axes.imshow(counts, "magma_r", extent=(0, 1, 1, 0), vmin=0, vmax=max(counts.max(), 1), aspect="auto")
    axes.set_xticks((0, 0.5, 1), ("left", "middle", "right"))
    axes.set_yticks((0, 0.5, 1), ("top", "middle", "bottom"))
    left, bottom, width, height = axes.get_position().bounds
    scale = axes.figure.add_axes((left + width + 0.008, bottom, 0.009, height))
    axes.figure.colorbar(picture, cax=scale, ticks=MaxNLocator(integer=True), label="boxes with their centre here")
