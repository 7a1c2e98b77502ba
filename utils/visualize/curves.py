"""Curves of precision and recall, and AP by class, as pictures. Class names may be of any script."""

from pathlib import Path

import numpy as np

from utils.image.codec import write_image
from utils.image.draw import class_colour
from utils.visualize.figures import DARK, TRAIN, name_box, names_on_left, new_figure, rendered, style_axes

# Of more classes than there are colours only those are in colour that need work most.
MAX_NAMED, LOWEST = 10, 5
_FAINT = "#c4c4c4"


def draw_curves(curves, class_names, average_precisions, folder, iou=0.5):
    """Write the pictures of curve_pictures, which has the same arguments, as PNG into a folder."""
    for name, image_rgb in curve_pictures(curves, class_names, average_precisions, iou).items():
        write_image(str(Path(folder) / f"{name}.png"), image_rgb)


def curve_pictures(curves, class_names, average_precisions, iou=0.5):
    """{name: (H, W, 3) uint8 RGB} of pr_curve, f1_curve, precision_curve, recall_curve and class_ap.

    curves: utils.evaluation.curves.Curves. average_precisions: (C,) in [0, 1], NaN for classes without boxes, which are
    left out. iou: of these. Up to MAX_NAMED classes have a colour each, of more the LOWEST by AP. Without any there is
    no picture.
    """
    ap = np.asarray(average_precisions, np.float64)
    shown = np.argsort(-ap, kind="stable")[: np.isfinite(ap).sum()]
    if not len(shown):
        return {}
    measure = f"AP@{iou:g}"
    sure, mean_f1 = curves.confidences, curves.f1_at[shown].mean(0)
    best = int(np.argmax(mean_f1))
    at_best = [
        f"{f1:.3f} at {place:.2f}" if f1 else "0" for f1, place in zip(curves.f1, curves.confidence, strict=True)
    ]
    contents = {
        "pr": (curves.recalls, curves.precision_over_recall, [f"{measure} {value:.3f}" for value in ap]),
        "f1": (sure, curves.f1_at, at_best),
        "precision": (sure, curves.precision_at, [""] * len(ap)),
        "recall": (sure, curves.recall_at, [""] * len(ap)),
    }
    means = {"pr": f"{measure} {ap[shown].mean():.3f}", "f1": f"{mean_f1[best]:.3f} at {sure[best]:.2f}"}
    pictures = {}
    for name, (axis, lines, numbers) in contents.items():
        labels = {number: (class_names[number], numbers[number]) for number in shown}
        axis_labels = ("recall", "precision") if name == "pr" else ("confidence", name.replace("f1", "F1"))
        pictures[f"{name}_curve"] = _line_picture(axis_labels, axis, lines, labels, means.get(name, ""))
    return pictures | {"class_ap": _bar_picture([class_names[number] for number in shown], ap[shown], measure)}


def _line_picture(axis_labels, axis, lines, labels, mean_text):
    """labels: {class: (name, number)} of the classes shown, the highest AP first. mean_text: the number of their
    mean."""
    figure = new_figure(900, 500)
    figure.subplots_adjust(left=0.07, right=0.68, top=0.96, bottom=0.11)
    limits = {"xlim": (axis[0], axis[-1]), "ylim": (0, 1.01)}
    axes = style_axes(figure.add_subplot(), xlabel=axis_labels[0], ylabel=axis_labels[1], **limits)
    has_colours, rows = len(labels) <= MAX_NAMED, []
    others, named = ([], list(labels)) if has_colours else (list(labels)[:-LOWEST], list(labels)[-LOWEST:])
    axes.plot(axis, lines[others].T, color=_FAINT, linewidth=0.8)
    for place, number in enumerate(named):
        # Of many classes two may share a colour, so those named here take colours by their place.
        colour = tuple(np.array(class_colour(number if has_colours else place)) / 255)
        axes.plot(axis, lines[number], color=colour, linewidth=1.8)
        rows.append((colour, *labels[number]))
    if others:
        rows.insert(0, (_FAINT, f"{len(others)} other classes", ""))
    if len(labels) > 1:
        mean = np.ma.masked_invalid(lines[list(labels)]).mean(0).filled(np.nan)
        axes.plot(axis, mean, color=DARK, linewidth=3)
        rows.insert(0, (DARK, "mean", mean_text))
    _add_legend(axes, rows)
    return rendered(figure)


def _add_legend(axes, rows):
    """rows: (colour, name, number), to the right of the axes."""
    from matplotlib.lines import Line2D
    from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, VPacker

    packed = []
    for colour, name, number in rows:
        sample = DrawingArea(18, 8)
        sample.add_artist(Line2D([0, 18], [4, 4], color=colour, linewidth=3))
        packed.append(HPacker(children=[sample, name_box(name, 235, number)], pad=0, sep=6, align="center"))
    legend = VPacker(children=packed, pad=0, sep=4)
    place = {"bbox_to_anchor": (1.01, 1), "bbox_transform": axes.transAxes, "frameon": False}
    axes.add_artist(AnchoredOffsetbox("upper left", child=legend, **place))


def _bar_picture(names, values, measure):
    height = 20 * len(names) + 100
    figure = new_figure(900, height)
    figure.subplots_adjust(left=0.26, right=0.92, top=1 - 25 / height, bottom=55 / height)
    axes = style_axes(figure.add_subplot(), xlabel=measure, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axes.barh(range(len(names)), values, color=TRAIN, height=0.7)
    for place, value in enumerate(values):
        axes.text(value + 0.005, place, f"{value:.3f}", va="center", fontsize=9)
    names_on_left(axes, names, 215)
    return rendered(figure)
