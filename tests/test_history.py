import csv
import math

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils import history
from utils.history import History, draw_planned_rates, smooth


def row(epoch, **changes):
    values = {"epoch": epoch, "phase": "unfrozen", "loss": 4.0 / epoch, "loss_box": 1.5, "val_loss": 5.0 / epoch}
    return {**values, "lr": 0.01, "map50": None, "ap": None, "images_per_second": 30.0, "seconds": 2.0, **changes}


def read_rows(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_epoch_is_on_disk_before_the_run_ends(tmp_path):
    """Numbers kept in a buffer until close() are lost when a run crashes."""
    log = History(tmp_path / "run", tensorboard=False)
    log.add_epoch(row(1))
    log.add_epoch(row(2, map50=np.float32(0.5), ap=0.25, loss_l1=0.75))
    rows = read_rows(log.folder)
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert rows[0]["loss"] == "4.0" and rows[0]["map50"] == "" and rows[0]["loss_l1"] == ""
    assert rows[1]["map50"] == "0.5" and rows[1]["ap"] == "0.25" and rows[1]["loss_l1"] == "0.75"
    assert (log.folder / "epoch_loss.txt").read_text() == "4.0\n2.0\n"
    assert (log.folder / "epoch_val_loss.txt").read_text() == "5.0\n2.5\n"
    assert (log.folder / "epoch_map.txt").read_text() == "2 0.5\n"


def test_missing_and_nan_numbers_keep_their_line(tmp_path):
    """A run without val images must not shift epoch_val_loss.txt against the epochs, nor fail when drawing."""
    log = History(tmp_path, tensorboard=False)
    log.add_epoch(row(1, val_loss=None, lr=None))
    log.add_epoch(row(2, val_loss=math.nan, loss=math.nan, map50=math.nan))
    log.close()
    assert (tmp_path / "epoch_val_loss.txt").read_text() == "nan\nnan\n"
    assert (tmp_path / "epoch_map.txt").read_text() == "2 nan\n"
    assert read_rows(tmp_path)[1]["loss"] == "nan"
    assert cv2.imread(str(tmp_path / "epoch_map.png")).shape == (500, 800, 3)


def test_first_row_fixes_the_columns(tmp_path):
    """A key that appears later has no column: dropping it silently would lose it, writing it would break the table."""
    log = History(tmp_path, tensorboard=False)
    log.add_epoch(row(1, loss_box=2.0))
    assert read_rows(tmp_path)[0]["loss_box"] == "2.0"
    with pytest.raises(ValueError, match="no column loss_new"):
        log.add_epoch(row(2, loss_new=1.0))
    assert len(read_rows(tmp_path)) == 1


def test_results_of_another_run_are_never_mixed_in(tmp_path):
    """Two runs in one folder would give one curve with two beginnings."""
    log = History(tmp_path, tensorboard=False)
    log.add_epoch(row(1))
    with pytest.raises(ValueError, match="already holds"):
        History(tmp_path, tensorboard=False)


def test_a_run_without_epochs_closes(tmp_path):
    """A run that fails before its first epoch ends must not fail again while it closes."""
    log = History(tmp_path, tensorboard=False)
    log.close()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_drawn_at_once_then_seldom_and_at_the_end(tmp_path, monkeypatch):
    """Drawing in each epoch of a tiny data set would cost a tenth of the training."""
    drawn = []
    monkeypatch.setattr(history, "_draw_loss", lambda rows, path: drawn.append(("loss", len(rows))))
    monkeypatch.setattr(history, "_draw_map", lambda rows, path: drawn.append(("map", len(rows))))
    log = History(tmp_path, tensorboard=False)
    for epoch in (1, 2, 3):
        log.add_epoch(row(epoch, map50=0.5 if epoch == 2 else None))
    assert drawn == [("loss", 1)]
    log.close()
    log.close()
    assert drawn == [("loss", 1), ("loss", 3), ("map", 3)]


def test_curves_show_both_losses_and_the_unfreezing(tmp_path):
    """A picture without its curves is still a valid PNG, so look for the colours."""
    log = History(tmp_path, tensorboard=False)
    for epoch in range(1, 8):
        log.add_epoch(row(epoch, phase="frozen" if epoch < 4 else "unfrozen", map50=0.1 * epoch, ap=0.05 * epoch))
    log.close()
    for name in ("epoch_loss.png", "epoch_map.png"):
        image_rgb = cv2.imread(str(tmp_path / name))[..., ::-1]
        for colour in ((0x00, 0x72, 0xCE), (0xF0, 0x78, 0x00)):
            assert (abs(image_rgb.astype(int) - colour) < 12).all(2).sum() > 100, (name, colour)
        # The dashed line between epochs 3 and 4 is the one column inside the axes that is dark from bottom to top.
        dark_rows = (image_rgb[50:440, 80:700] < 150).all(2).sum(0)
        assert dark_rows.max() > 180 and abs(int(dark_rows.argmax()) + 80 - 347) < 4


def test_tensorboard_gets_the_scalars(tmp_path):
    """None written as a scalar raises, and an event file without the epoch as step cannot be compared."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = History(tmp_path)
    log.add_epoch(row(1))
    log.add_epoch(row(2, map50=0.5, ap=0.25))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("loss/train", "loss/val", "loss_parts/loss_box", "mAP/0.5", "mAP/0.5_0.95"),
        *("run/lr", "run/images_per_second", "run/seconds"),
    }
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 4.0), (2, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("mAP/0.5")] == [(2, 0.5)]


# Of the first to the fourth curve.
COLOURS = ((0x00, 0x72, 0xCE), (0xF0, 0x78, 0x00), (0x2A, 0x9D, 0x3A), (0x99, 0x99, 0x99))


def pixels(path, colour):
    """How many pixels inside the axes have this colour."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    image_rgb = cv2.imread(str(path))[60:440, 80:700, ::-1].astype(int)
    return int((abs(image_rgb - colour) < 12).all(2).sum())


def my_course(epoch):
    return 1.0


# Four epochs of two points, of which the backbone joins after two.
PROGRESS = [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
GROUPS = {(1.0, 0): ["neck", "head"], (1.0, 2): ["backbone"], (0.1, 0): ["head"], (0.25, 2): ["backbone", "neck"]}
RATES = {
    (1.0, 0): [0.01, 0.02, 0.02, 0.02, 0.02, 0.02, 0.015, 0.01],
    (1.0, 2): [0, 0, 0, 0, 0.005, 0.013, 0.013, 0.005],
    (0.1, 0): [0.001, 0.002, 0.002, 0.002, 0.002, 0.002, 0.0015, 0.001],
    (0.25, 2): [0, 0, 0, 0, 0.00125, 0.005, 0.00375, 0.0025],
}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_group_has_a_curve(tmp_path, count):
    """A picture without its curves is still a valid PNG, so look for the colours of the groups, and of no others."""
    path, groups = tmp_path / "planned_lr.png", dict(list(GROUPS.items())[:count])
    draw_planned_rates(PROGRESS, RATES, groups, "cos", path)
    # Some edges of letters and of the dashed curve are grey, too.
    assert [pixels(path, colour) > 200 for colour in COLOURS] == [number < count for number in range(4)]


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("cos", "planned: cos"),
        ("plateau", "planned: plateau, until the validation loss stalls"),
        (my_course, "planned: my_course"),
    ],
)
def test_the_picture_says_which_curve_is_which(tmp_path, monkeypatch, kind, title):
    """Prevents rates drawn under the name of other layers, without the epoch from which they count, or at the wrong
    epochs."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure.axes[0]))
    draw_planned_rates(PROGRESS, RATES, GROUPS, kind, tmp_path / "planned_lr.png")
    (axes,) = drawn
    curves = {line.get_label(): line for line in axes.get_lines()}
    labels = ["neck, head", "backbone, from epoch 3", "head, x 0.1", "backbone, neck, x 0.25, from epoch 3"]
    assert (axes.get_title(), list(curves)) == (title, labels)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    for label, group in zip(labels, GROUPS, strict=True):
        assert curves[label].get_xdata().tolist() == PROGRESS
        assert curves[label].get_ydata().tolist() == RATES[group]
    lowest, highest = axes.get_ylim()
    assert lowest == 0 and highest > 1.2 * 0.02  # the legend covers no curve


def test_smooth_leaves_out_what_is_no_number():
    """One NaN epoch would otherwise blank its neighbours, and zero padding would bend the ends down."""
    assert smooth([3, 3, 3, 3, 3]).tolist() == [3, 3, 3, 3, 3]
    assert smooth([1, 2, 6, np.nan, 8]).tolist() == [1.5, 3, 4, 7, 8]
    assert smooth([]).tolist() == []
