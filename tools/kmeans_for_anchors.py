"""Anchors for YOLOv4 and YOLOv4-tiny that fit your own boxes, and whether they are worth it.

python tools/kmeans_for_anchors.py --model_name=yolov4_tiny [--train_annotation_path=... "--input_shape=[416,416]" ...]

Data, network and input size are those of train.py's constants as they stand, which can be changed here in the same way
as there. It prints a table, and writes a file for train.py's anchors_path and a picture of the boxes and anchors.

The anchors are medians of groups of boxes, found by k-means with the distance 1 - IoU of width and height (Redmon &
Farhadi 2016, "YOLO9000", section 2, "Dimension Clusters"). Libraries of k-means measure straight lines, under which
large boxes decide everything.
"""

import sys
from pathlib import Path
from textwrap import indent

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

import numpy as np

import nets
from utils.config.cli import run_script
from utils.config.constants import read_constants, require_literals, train_constants
from utils.config.rules import check_values
from utils.data.anchors import best_anchor_iou, shape_iou
from utils.data.augment import MIN_SIDE
from utils.data.quality.checks import box_sizes_at_input
from utils.data.quality.findings import findings_table
from utils.data.sources import read_data_sets
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import counted

# ----------------------------------------------------------------------------------------------------------------------
#   anchors_number    How many anchors; 0 takes three for each map of the network, 9 for yolov4 and 6 for yolov4_tiny.
#                     Pretrained weights of a whole network fit these numbers only.
#   anchors_path      The file to write; the picture gets the same name and .png. The anchors are pixels of the input:
#                     with another input_shape make them anew.
#   overwrite         False: where one of these files exists already, stop and change nothing.
#   seed              The same number always gives the same anchors.
# ----------------------------------------------------------------------------------------------------------------------
anchors_number = 0
anchors_path = "model_data/my_anchors.txt"
overwrite = False
seed = 0

_OF_TRAIN = ("train_annotation_path", "classes_path", "model_name", "input_shape", "tile")

# More of these gain less than 0.001 of mean IoU, and take long.
_RESTARTS, _MOST_ROUNDS, _MOST_BOXES = 10, 100, 20_000
_RECALL_IOU = 0.5
# Below this gain of the mean IoU other anchors change next to nothing, and pretrained weights know the usual ones.
_WORTHWHILE_GAIN = 0.02
_BOXES, _NEW, _USUAL = "#999999", "#0072ce", "#f07800"


def constants():
    """All that the command line takes: the constants above, and train.py's."""
    return read_constants(globals()) | train_constants(_OF_TRAIN)


def check(values):
    """The settings as a namespace. Raises ValueError: parameter, got, expected."""
    require_literals(values, _OF_TRAIN)
    settings = check_values(values)
    anchored = [name for name, (network, _, _) in nets.MODELS.items() if "anchors" in (network.decode_defaults or {})]
    if settings.model_name not in anchored:
        raise UserError(
            f"model_name is {settings.model_name!r}, which has no anchors; expected {' or '.join(anchored)}, as in "
            f"--model_name={anchored[0]}. YOLOX needs none."
        )
    maps = len(usual_rule(settings.model_name)["anchors_mask"])
    if settings.anchors_number < 0 or settings.anchors_number % maps:
        raise UserError(
            f"anchors_number is {settings.anchors_number}; {settings.model_name} has {maps} maps with equally many "
            f"anchors: expected a multiple of {maps}, such as {3 * maps}, or 0 for that."
        )
    if not settings.anchors_path or Path(settings.anchors_path).suffix.lower() == ".png":
        raise UserError(
            f"anchors_path is {settings.anchors_path!r}; expected a text file to write, such as "
            "model_data/my_anchors.txt; the picture lies beside it."
        )
    if not settings.input_shape:
        raise UserError("input_shape is []; expected [height, width] as in training, such as [416, 416].")
    if not settings.overwrite:
        present = [str(path) for path in output_paths(settings) if path.exists()]
        if present:
            raise UserError(
                f"{' and '.join(present)} would be replaced; set anchors_path to another file, or overwrite = True."
            )
    return settings


def main(settings):
    """Find the anchors, write their file and picture, print what they change. Raises ValueError for too few boxes."""
    sizes_wh = read_sizes(settings)
    rule = usual_rule(settings.model_name)
    used = {number for mask in rule["anchors_mask"] for number in mask}
    usual_wh = np.array([rule["anchors"][number] for number in sorted(used)])
    maps = len(rule["anchors_mask"])
    if len(sizes_wh) > _MOST_BOXES:
        logger.info(f"  note: {_MOST_BOXES} boxes, drawn at random, decide on the anchors; all are counted below.")
    new_wh = find_anchors(sizes_wh, settings.anchors_number or 3 * maps, settings.seed)
    masks = np.arange(len(new_wh)).reshape(maps, -1)[::-1].tolist()

    text_path, picture_path = output_paths(settings)
    text_path.parent.mkdir(parents=True, exist_ok=True)
    text_path.write_text(", ".join(f"{width:g},{height:g}" for width, height in new_wh) + "\n", encoding="utf-8")
    draw(sizes_wh, usual_wh, new_wh, picture_path)
    logger.info(f"\n{anchor_table(sizes_wh, new_wh)}\n\n{comparison(sizes_wh, usual_wh, new_wh)}\n")
    logger.info(f"wrote {text_path} and {picture_path}\n{advice(sizes_wh, usual_wh, new_wh, masks, settings)}")


def usual_rule(model_name):
    """{"anchors": [[width, height], ...], "anchors_mask": the numbers of each map's, coarse map first} of a network."""
    return nets.MODELS[model_name][0].decode_defaults


def output_paths(settings):
    """The file of anchors and the picture."""
    path = Path(settings.anchors_path)
    return path, path.with_suffix(".png")


def read_sizes(settings):
    """(M, 2) width and height of the boxes that training learns, in pixels of the input, or of its tiles, to a
    tenth."""
    _, sets = read_data_sets({"train": settings.train_annotation_path}, settings.classes_path)
    annotations, findings, _ = sets["train"]
    if findings:
        logger.info(indent(findings_table(findings), "  "))
    sizes_wh = box_sizes_at_input(annotations, settings.input_shape, settings.tile)
    is_learned = (sizes_wh >= MIN_SIDE).all(axis=1)
    if small := (~is_learned).sum():
        height, width = settings.input_shape
        logger.info(
            f"  note: {counted(small, 'box')} with a side below {MIN_SIDE:g} pixels at {height}x{width}, which "
            "training drops, left out here."
        )
    return sizes_wh[is_learned].round(1)


def find_anchors(sizes_wh, count, seed):
    """The anchors (count, 2) with the highest mean IoU to the boxes, small ones first, to a tenth of a pixel.

    sizes_wh: (M, 2) width and height; of more than _MOST_BOXES so many are drawn. Several starts are tried, as k-means
    finds the best one near its start. Raises ValueError where there are fewer different boxes than anchors.
    """
    rng, different_wh = np.random.default_rng(seed), np.unique(sizes_wh, axis=0)
    if len(different_wh) < count:
        raise UserError(
            f"The training data have boxes of {len(different_wh)} different sizes; expected at least as many as there "
            f"are anchors, {count}. Keep the network's own anchors (anchors_path = ''), or label more images."
        )
    if len(sizes_wh) > _MOST_BOXES:
        sizes_wh = rng.choice(sizes_wh, _MOST_BOXES, replace=False)
        if len(np.unique(sizes_wh, axis=0)) < count:  # nearly all boxes have the same few sizes
            sizes_wh = np.concatenate([sizes_wh, different_wh])
    results = [move_anchors(sizes_wh, first_anchors(sizes_wh, count, rng)) for _ in range(_RESTARTS)]
    best = max(results, key=lambda anchors_wh: best_anchor_iou(sizes_wh, anchors_wh).mean()).round(1)
    return best[best.prod(axis=1).argsort(kind="stable")]


def first_anchors(sizes_wh, count, rng):
    """Boxes (count, 2) to begin with, far from each other: each is drawn by its distance 1 - IoU to those before it.

    Source: Arthur & Vassilvitskii 2007, "k-means++", section 2.2. There distances are squared, as in what it minimises.
    """
    anchors_wh = rng.choice(sizes_wh, 1)
    while len(anchors_wh) < count:
        distance = 1 - best_anchor_iou(sizes_wh, anchors_wh)
        anchors_wh = np.concatenate([anchors_wh, rng.choice(sizes_wh, 1, p=distance / distance.sum())])
    return anchors_wh


def move_anchors(sizes_wh, anchors_wh):
    """Move anchors (K, 2) to the medians of the boxes that they serve, over and over, and return them.

    It ends when no box changes its anchor, or after _MOST_ROUNDS. An anchor that serves no box moves to the box that is
    served worst. Medians rather than means, because they reach a higher mean IoU: a few huge boxes do not pull them.
    """
    served_by = None
    for _ in range(_MOST_ROUNDS):
        iou = shape_iou(sizes_wh, anchors_wh)
        before, served_by = served_by, iou.argmax(axis=1)
        if np.array_equal(before, served_by):
            break
        worst = sizes_wh[iou.max(axis=1).argmin()]
        groups = [sizes_wh[served_by == number] for number in range(len(anchors_wh))]
        anchors_wh = np.stack([np.median(group, axis=0) if len(group) else worst for group in groups])
    return anchors_wh


def anchor_table(sizes_wh, anchors_wh):
    """How many boxes each anchor serves, and how well. Returns text."""
    iou = shape_iou(sizes_wh, anchors_wh)
    served_by, best = iou.argmax(axis=1), iou.max(axis=1)
    lines = ["anchor   width  height   boxes  share  mean IoU"]
    for number, (width, height) in enumerate(anchors_wh):
        served = best[served_by == number]
        mean = f"{served.mean():.3f}" if len(served) else "-"
        share = f"{len(served) / len(best):.1%}"
        lines.append(f"{number:>6}  {width:>6.1f}  {height:>6.1f}  {len(served):>6}  {share:>5}  {mean:>8}")
    return "\n".join(lines)


def comparison(sizes_wh, usual_wh, new_wh):
    """Recall and mean IoU of the network's usual anchors and of the new ones. Returns text."""
    lines = [f"{'':<24}recall (IoU above {_RECALL_IOU})  mean IoU"]
    for name, anchors_wh in (("the network's usual", usual_wh), ("new", new_wh)):
        iou = best_anchor_iou(sizes_wh, anchors_wh)
        recall = (iou > _RECALL_IOU).mean()
        lines.append(f"{f'{name}, {len(anchors_wh)}':<24}{recall:>23.3f}  {iou.mean():>8.3f}")
    return "\n".join(lines)


def advice(sizes_wh, usual_wh, new_wh, masks, settings):
    """What to write into train.py, or that it is not worth it. Returns text."""
    gain = best_anchor_iou(sizes_wh, new_wh).mean() - best_anchor_iou(sizes_wh, usual_wh).mean()
    height, width = settings.input_shape
    lines = f'    anchors_path = "{Path(settings.anchors_path).as_posix()}"\n    anchors_mask = {masks}'
    network = f"{settings.model_name} at {height}x{width}"
    if gain < _WORTHWHILE_GAIN:
        return (
            f"The mean IoU gains {gain:.3f}, which is too little to bother: keep the network's own anchors, with "
            f"anchors_path = '' and anchors_mask = []. To try the new ones all the same, for {network}:\n{lines}"
        )
    return (
        f"The mean IoU gains {gain:.3f}. A better fit is not yet a higher mAP: pretrained weights of a whole network "
        "have learned the usual anchors, so compare a short training with each. Put into train.py, for "
        f"{network}:\n{lines}"
    )


def draw(sizes_wh, usual_wh, new_wh, path):
    """A picture of all boxes, width by height, with both sets of anchors."""
    # Imported here: the rest of this file does without it. No pyplot, so that no screen is needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 8), dpi=100)
    figure.subplots_adjust(left=0.09, right=0.96, top=0.93, bottom=0.08)
    axes = figure.add_subplot(xlabel="width in pixels of the input", ylabel="height in pixels of the input")
    everything = np.concatenate([sizes_wh, usual_wh, new_wh])
    limits = everything.min() / 1.3, everything.max() * 1.3
    # Equal steps are equal factors, as they are for the IoU.
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    ticks = [tick for power in (1, 10, 100, 1000) for tick in (power, 2 * power, 5 * power)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.scatter(
        *sizes_wh.T, s=10, color=_BOXES, alpha=0.5, linewidths=0, label=counted(len(sizes_wh), "box"), zorder=2
    )
    for name, anchors_wh, colour, marker in (("usual", usual_wh, _USUAL, "D"), ("new", new_wh, _NEW, "s")):
        mean = best_anchor_iou(sizes_wh, anchors_wh).mean()
        label = f"{name} anchors, mean IoU {mean:.3f}"
        axes.scatter(*anchors_wh.T, s=70, color=colour, marker=marker, edgecolors="white", label=label, zorder=3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    run_script(main, constants(), check)
