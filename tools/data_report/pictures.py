"""Pictures of a data set: some of its images with their boxes, how often each class occurs, how large the boxes are."""

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from utils.anchors import best_anchor_iou
from utils.data.checks import THIN_ASPECT, TINY_SIDE
from utils.data.letterbox import PAD, read_image, resize_into
from utils.draw import draw_boxes
from utils.opencv import cv2

TRAIN, VAL, ANCHOR, GREY = "#0072ce", "#f07800", "#d1003f", "#777777"
# Anchors are matched by boxes with which they share more than this.
GOOD_IOU = 0.5
MOST_POINTS, MOST_CLASSES = 20_000, 200
TILE, CAPTION, GAP = 480, 28, 8
# matplotlib's fonts know no Chinese; this one comes inside OpenCV.
FONT = cv2.FontFace("sans")


def contact_sheet(samples, class_names):
    """Images with their boxes in a square of tiles, the name of the file under each. Returns (H, W, 3) uint8 RGB.

    samples: [(records, index of the image in them, name of the set)], at least one, of images that decode.
    """
    columns = int(np.ceil(len(samples) ** 0.5))
    rows = -(-len(samples) // columns)
    step_y, step_x = TILE + CAPTION + GAP, TILE + GAP
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), 255, np.uint8)
    for number, (records, index, set_name) in enumerate(samples):
        top, left = GAP + number // columns * step_y, GAP + number % columns * step_x
        sheet[top : top + TILE, left : left + TILE] = PAD
        tile = _drawn(records, index, class_names)
        y, x = top + (TILE - tile.shape[0]) // 2, left + (TILE - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        caption = f"{set_name}: {os.path.basename(records.path(index))}"
        _write(sheet, _fitted(caption, TILE, 16), (left, top + TILE + 20), 16)
    return sheet


def _drawn(records, index, class_names):
    """One image with its boxes, as large as a tile holds."""
    image_rgb = read_image(records.path(index))
    scale = TILE / max(image_rgb.shape[:2])
    tile = np.empty((*(max(1, round(side * scale)) for side in image_rgb.shape[:2]), 3), np.uint8)
    resize_into(tile, image_rgb)
    return draw_boxes(tile, records.boxes(index) * scale, records.labels(index), None, class_names)


def class_chart(train_counts, val_counts, class_names):
    """Two bars per class, its share of the boxes of train and of val, the frequent first. Returns (H, W, 3) uint8 RGB.

    train_counts, val_counts: (C,) boxes. Shares, so that both sets compare; the numbers stand beside them. No more than
    MOST_CLASSES are shown.
    """
    order = np.argsort(-train_counts - val_counts, kind="stable")[:MOST_CLASSES]
    height = 0.36 * len(order) + 1.3
    figure = Figure(figsize=(10, height), dpi=100)
    axes = figure.add_axes((0.26, 0.6 / height, 0.66, 1 - 1.3 / height))
    for counts, name, colour, shift in ((train_counts, "train", TRAIN, -0.2), (val_counts, "val", VAL, 0.2)):
        shares = 100 * counts[order] / max(counts.sum(), 1)
        label = f"{name}: {counts.sum():,} boxes"
        bars = axes.barh(np.arange(len(order)) + shift, shares, height=0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{count:,}" for count in counts[order]], padding=3, fontsize=8, color=colour)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlim(0, 1.1 * max(axes.get_xlim()[1], 1))
    left_out = f"; the {len(order)} largest of {len(class_names)} classes" if len(order) < len(class_names) else ""
    axes.set_xlabel(f"share of all boxes of the set, % (beside the bars: how many{left_out})")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=10)
    image = _rendered(figure)
    for row, class_id in enumerate(order):
        x, y = axes.transData.transform((0, row))
        text = _fitted(class_names[class_id], 235, 15)
        _write(image, text, (round(x) - 10 - _width(text, 15), round(image.shape[0] - y) + 5), 15)
    return image


def box_chart(train_sizes_wh, val_sizes_wh, input_shape, anchors_wh, model_name, seed):
    """Widths and heights of boxes as the network sees them, and their aspect ratios. Returns (H, W, 3) uint8 RGB.

    train_sizes_wh, val_sizes_wh: (M, 2) pixels at input_shape (height, width). anchors_wh: (K, 2), [] for none. seed:
    chooses the points where there are too many to draw.
    """
    figure = Figure(figsize=(14, 7.4), dpi=100)
    figure.suptitle(_anchor_sentence(train_sizes_wh, anchors_wh, model_name), fontsize=12, y=0.97)
    left = figure.add_axes((0.06, 0.09, 0.44, 0.76))
    right = figure.add_axes((0.58, 0.09, 0.39, 0.76))
    _scatter_sizes(left, train_sizes_wh, val_sizes_wh, input_shape, anchors_wh, np.random.default_rng(seed))
    _draw_ratios(right, train_sizes_wh, val_sizes_wh, anchors_wh)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=9)
    return _rendered(figure)


def anchor_recall(sizes_wh, anchors_wh):
    """Share of (M, 2) boxes whose best anchor has an IoU over GOOD_IOU with them, and the mean of the best IoUs."""
    best = best_anchor_iou(sizes_wh, anchors_wh)
    return float((best > GOOD_IOU).mean()), float(best.mean())


def _anchor_sentence(sizes_wh, anchors_wh, model_name):
    if not len(anchors_wh):
        return f"{model_name} has no anchors: it learns any size that is not tiny"
    if not len(sizes_wh):
        return f"the {len(anchors_wh)} anchors of {model_name}"
    recall, mean_iou = anchor_recall(sizes_wh, anchors_wh)
    return (
        f"the {len(anchors_wh)} anchors of {model_name}: {recall:.1%} of the training boxes have one with an IoU over "
        f"{GOOD_IOU:g} (recall); mean best IoU {mean_iou:.2f}"
    )


def _scatter_sizes(axes, train_sizes_wh, val_sizes_wh, input_shape, anchors_wh, random):
    lowest, highest = TINY_SIDE / 2, 1.25 * max(*input_shape, *np.ravel(anchors_wh))
    for sizes_wh, name, colour in ((train_sizes_wh, "train", TRAIN), (val_sizes_wh, "val", VAL)):
        shown = sizes_wh
        if len(sizes_wh) > MOST_POINTS:
            shown = random.choice(sizes_wh, MOST_POINTS, replace=False)
        alpha = float(np.clip(25 / max(len(shown), 1) ** 0.5, 0.1, 0.7))
        axes.scatter(*np.maximum(shown, lowest).T, s=9, color=colour, alpha=alpha, linewidths=0, label=name)
    axes.axvspan(lowest, TINY_SIDE, color=GREY, alpha=0.2, linewidth=0, label=f"under {TINY_SIDE:g} pixels: too small")
    axes.axhspan(lowest, TINY_SIDE, color=GREY, alpha=0.2, linewidth=0)
    if len(anchors_wh):
        axes.scatter(*np.transpose(anchors_wh), s=90, marker="X", color=ANCHOR, edgecolors="white", label="anchors")
    axes.set(xscale="log", yscale="log", xlim=(lowest, highest), ylim=(lowest, highest), aspect="equal")
    axes.set(xlabel=f"width, pixels at {input_shape[0]}x{input_shape[1]}", ylabel="height, pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([number for number in 2.0 ** np.arange(12) if number <= highest]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _draw_ratios(axes, train_sizes_wh, val_sizes_wh, anchors_wh):
    limit = np.log2(THIN_ASPECT) + 0.5
    for sizes_wh, name, colour in ((train_sizes_wh, "train", TRAIN), (val_sizes_wh, "val", VAL)):
        ratios = np.log2(np.maximum(sizes_wh, 1e-3)).clip(-20, 20)
        ratios = (ratios[:, 0] - ratios[:, 1]).clip(-limit, limit)
        weights = np.full(len(ratios), 100 / max(len(ratios), 1))
        style = {"alpha": 0.35} if name == "train" else {"histtype": "step", "linewidth": 1.8}
        axes.hist(ratios, np.linspace(-limit, limit, 42), weights=weights, color=colour, label=name, **style)
    for number, (width, height) in enumerate(anchors_wh):
        label = "anchors" if number == 0 else None
        axes.axvline(np.log2(width / height), color=ANCHOR, linewidth=0.8, linestyle="--", alpha=0.7, label=label)
    ticks = {-4: "1:16", -3: "1:8", -2: "1:4", -1: "1:2", 0: "1:1", 1: "2:1", 2: "4:1", 3: "8:1", 4: "16:1"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_ylim(bottom=0)
    axes.set(
        xlabel="width : height (left: tall, right: wide; the outermost bars: all beyond)",
        ylabel="share of the set's boxes, %",
    )


def _rendered(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _write(image, text, origin, size):
    """Write a line of black text, any script, on an image; origin: (x, y) of the left end of its base line."""
    cv2.putText(image, text, origin, (30, 30, 30), FONT, size, 400, wrap=(0, 1 << 15))


def _width(text, size):
    return cv2.getTextSize((0, 0), text, (0, 0), FONT, size, 400)[2]


def _fitted(text, width, size):
    """The text, shortened in the middle where it is wider than so many pixels."""
    kept = len(text)
    shown = text
    while _width(shown, size) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown
