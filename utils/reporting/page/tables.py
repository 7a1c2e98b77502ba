"""What the page of a run shows as tables and diagrams: numbers laid out, without words."""

from typing import NamedTuple

import numpy as np

from utils.config.constants import to_plain, train_constants
from utils.config.optimizers import fill_in
from utils.visualize.charts import line_chart
from utils.visualize.epochs import epoch_range, numbers_of

# Constants that everybody wants to know of a run, whether they were changed or not.
ALWAYS_SHOWN = (
    *("model_name", "model_path", "train_annotation_path", "val_annotation_path", "input_shape"),
    *("UnFreeze_Epoch", "Unfreeze_batch_size"),
)
MOST_CLASSES = 40  # of the confusion matrix, those with the most boxes
MOST_CURVES = 8  # of precision over recall, those with the lowest AP


class Confusion(NamedTuple):
    """rows: [(name, boxes, [(count, share of the row)])]; columns: names; without the names of background and missed,
    which are last. left_out: how many classes are not shown."""

    rows: list
    columns: list
    left_out: int


def confusion_table(matrix, class_names):
    """A Confusion of (C + 1, C + 1) counts, of confusion_matrix."""
    count = len(class_names)
    shown = np.sort(np.argsort(-matrix[:count].sum(1), kind="stable")[:MOST_CLASSES])
    places = [*shown, count]
    names = [class_names[number] for number in shown]
    rows = []
    for name, place in zip([*names, ""], places, strict=True):
        total = int(matrix[place].sum())
        cells = [(int(matrix[place, column]), matrix[place, column] / max(total, 1)) for column in places]
        rows.append((name, total, cells))
    return Confusion(rows, names, count - len(shown))


def epoch_charts(rows):
    """{name: Chart or None} over the epochs: loss, parts (of the training loss), scores, precision, lr.

    rows: of MetricsWriter.
    """
    parts = [key for key in (rows[0] if rows else ()) if key.startswith("loss_")]
    columns = {
        "loss": ("loss", "val_loss"),
        "parts": parts,
        "scores": ("map50", "ap"),
        "precision": ("precision", "recall"),
        "lr": ("lr",),
    }
    if not rows:
        return dict.fromkeys(columns)
    charts = {}
    for name, keys in columns.items():
        series = [_series(rows, key) for key in keys]
        limits = (0, 1) if name in ("scores", "precision") else (0, _highest_loss(rows) if name == "loss" else None)
        charts[name] = line_chart(series, limits, epoch_range(rows), whole_x=True)
    return charts


def pr_chart(curves, scores):
    """The Chart of precision over recall: a line for each class, of many those with the lowest AP, and their mean.

    curves: Curves. Returns (Chart or None, how many classes are left out).
    """
    ap = np.array([row["map50"] for row in scores["classes"]], np.float64)
    with_boxes = np.argsort(np.where(np.isfinite(ap), ap, np.inf), kind="stable")[: np.isfinite(ap).sum()]
    lines = curves.precision_over_recall
    series = [
        (scores["classes"][number]["name"], f"{ap[number]:.3f}", curves.recalls, lines[number])
        for number in with_boxes[:MOST_CURVES]
    ]
    if len(with_boxes) > 1:
        mean = np.nan_to_num(lines[with_boxes]).mean(0)
        series.insert(0, ("", f"{ap[with_boxes].mean():.3f}", curves.recalls, mean))
    return line_chart(series, (0, 1), (0, 1)), max(0, len(with_boxes) - MOST_CURVES)


def settings_rows(settings):
    """[(name, value, value in train.py, whether they differ)] of all constants, as text.

    What is in the place of a None of train.py, and suits, is no difference.
    """
    values = to_plain(vars(settings)) | {"resume": settings.resume or False}
    defaults = train_constants(values)
    left_open = [name for name, default in defaults.items() if default is None]
    expected = defaults | {name: fill_in(values | dict.fromkeys(left_open))[name] for name in left_open}
    return [(name, repr(value), repr(defaults[name]), value != expected[name]) for name, value in values.items()]


def _series(rows, key):
    values = numbers_of(rows, key)
    known = values[np.isfinite(values)]
    return key.removeprefix("loss_"), f"{known[-1]:.3g}" if len(known) else "", numbers_of(rows, "epoch"), values


def _highest_loss(rows):
    """The upper end of the axis: validation losses from scratch can begin with hundreds, and would flatten the rest."""
    train, val = numbers_of(rows, "loss"), numbers_of(rows, "val_loss")
    if not np.isfinite(train).any():
        return None
    highest = np.max(train[np.isfinite(train)])
    return float(min(1.5 * highest, np.max(val[np.isfinite(val)], initial=highest)))
