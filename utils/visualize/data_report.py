"""Pictures of a data set: some of its images with their boxes, how often each class occurs, how large the boxes are."""

import os

import numpy as np

from utils.data.anchors import best_anchor_iou
from utils.data.quality.checks import THIN_ASPECT
from utils.visualize.figures import TRAIN, VAL, legend_above, new_figure, rendered, style_axes
from utils.visualize.images import image_tile, sheet
from utils.visualize.labels import ANCHOR, draw_class_bars, draw_sizes

# Anchors are matched by boxes with which they share more than this.
GOOD_IOU = 0.5
MOST_CLASSES = 200
TILE = 480


def contact_sheet(samples, class_names):
    """Images with their boxes in a square of tiles, the name of the file under each. Returns (H, W, 3) uint8 RGB.

    samples: [(annotations, index of the image in them, name of the set)], at least one, of images that decode.
    """
    tiles = [
        image_tile(
            annotations, index, (TILE, TILE), (annotations.boxes(index), annotations.labels(index), None), class_names
        )
        for annotations, index, _ in samples
    ]
    captions = [f"{name}: {os.path.basename(annotations.path(index))}" for annotations, index, name in samples]
    return sheet(tiles, captions, int(np.ceil(len(samples) ** 0.5)))


def class_chart(train_counts, val_counts, class_names):
    """Two bars per class, its share of the boxes of train and of val, the frequent first. Returns (H, W, 3) uint8 RGB.

    train_counts, val_counts: (C,) boxes. Shares, so that both sets compare; the numbers stand beside them. No more than
    MOST_CLASSES are shown.
    """
    height = 36 * min(len(class_names), MOST_CLASSES) + 130
    figure = new_figure(1000, height)
    axes = figure.add_axes((0.26, 60 / height, 0.66, 1 - 130 / height))
    draw_class_bars(axes, train_counts, val_counts, class_names, MOST_CLASSES, 235)
    return rendered(figure)


def box_chart(train_sizes_wh, val_sizes_wh, input_shape, anchors_wh, model_name, seed):
    """Widths and heights of boxes as the network sees them, and their aspect ratios. Returns (H, W, 3) uint8 RGB.

    train_sizes_wh, val_sizes_wh: (M, 2) pixels at input_shape (height, width). anchors_wh: (K, 2), [] for none. seed:
    chooses the points where there are too many to draw.
    """
    figure = new_figure(1400, 740)
    figure.suptitle(_anchor_sentence(train_sizes_wh, anchors_wh, model_name), fontsize=12, y=0.97)
    left = figure.add_axes((0.06, 0.09, 0.44, 0.76))
    right = figure.add_axes((0.58, 0.09, 0.39, 0.76))
    draw_sizes(left, train_sizes_wh, val_sizes_wh, input_shape, anchors_wh, seed)
    _draw_ratios(right, train_sizes_wh, val_sizes_wh, anchors_wh)
    return rendered(figure)


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
    style_axes(
        axes,
        xlabel="width : height (left: tall, right: wide; the outermost bars: all beyond)",
        ylabel="share of the set's boxes, %",
    )
    axes.set_ylim(bottom=0)
    legend_above(axes)
