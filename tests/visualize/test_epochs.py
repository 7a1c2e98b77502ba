import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.visualize.epochs import draw_lr_preview, epoch_pictures, smooth

BLUE, ORANGE, GREEN, RED = (0x00, 0x72, 0xCE), (0xF0, 0x78, 0x00), (0x2A, 0x9D, 0x3A), (0xD1, 0x00, 0x3F)


def rows_of(count, **changes):
    row = {"phase": "unfrozen", "loss": 3.0, "loss_box": 2.0, "loss_obj": 0.5, "loss_cls": 0.5, "val_loss": 2.5}
    row |= {"lr": 0.01, "map50": None, "ap": None, "precision": None, "recall": None}
    return [{"epoch": epoch, **row, **changes} for epoch in range(1, count + 1)]


def shown(image_rgb, colour):
    return int((abs(image_rgb.astype(int) - colour) < 12).all(2).sum())


def test_curves_show_both_losses_their_parts_and_the_unfreezing():
    """A picture without its curves is still a picture, so look for the colours."""
    rows = rows_of(7, map50=0.5, ap=0.25, precision=0.75, recall=0.5)
    for row in rows:
        row["phase"], row["loss"] = ("frozen" if row["epoch"] < 4 else "unfrozen"), 4 - row["epoch"] / 3
    pictures = epoch_pictures(rows)
    assert list(pictures) == ["epoch_loss", "epoch_map", "results"]
    loss, scores = pictures["epoch_loss"], pictures["epoch_map"]
    assert loss.shape == scores.shape == (450, 1500, 3)
    assert (pictures["results"] == np.concatenate([loss, scores])).all()
    loss_panel, parts_panel, rate_panel = loss[:, :500], loss[:, 510:990], loss[:, 1010:]
    assert [shown(loss_panel, colour) > 300 for colour in (BLUE, ORANGE, GREEN)] == [True, True, False]
    assert [shown(parts_panel, colour) > 300 for colour in (BLUE, ORANGE, GREEN)] == [
        True,
        False,
        True,
    ]  # two are equal
    assert [shown(rate_panel, colour) > 300 for colour in (BLUE, ORANGE, GREEN)] == [True, False, False]
    for panel in (scores[:, :745], scores[:, 755:]):
        assert shown(panel, BLUE) > 300 and shown(panel, ORANGE) > 300
    # The dashed line between epochs 3 and 4 is the one column inside the axes that is dark from bottom to top.
    dark_rows = (loss_panel[60:390, 70:480] < 110).all(2).sum(0)
    assert dark_rows.max() > 150 and abs(int(dark_rows.argmax()) + 70 - 243) < 5


def test_only_the_losses_are_smoothed(monkeypatch):
    """Prevents a learning rate that steps, or a part that sets in late, from being drawn as a ramp."""
    rows = rows_of(40)
    for row in rows[20:]:
        row["lr"], row["loss_box"] = 0.001, 1.0
    drawn = []
    monkeypatch.setattr("utils.visualize.epochs.rendered", lambda figure: drawn.append(figure) or np.zeros((1, 1, 3)))
    epoch_pictures(rows)
    _, parts, rate = drawn[0].axes
    assert parts.get_lines()[0].get_ydata().tolist() == [2.0] * 20 + [1.0] * 20
    assert rate.get_lines()[0].get_ydata().tolist() == [0.01] * 20 + [0.001] * 20


@pytest.mark.parametrize(("count", "scored", "ticks"), [(1, 1, [1, 2]), (2, 2, [1, 2]), (4, 4, [1, 2, 3, 4])])
def test_axes_have_whole_epochs_from_the_first_on(monkeypatch, count, scored, ticks):
    """Prevents an epoch 1.925, and an axis that begins where the scores do."""
    rows, drawn = rows_of(count), []
    rows[scored - 1] |= {"map50": 0.5, "ap": 0.25, "precision": 0.75, "recall": 0.5}
    monkeypatch.setattr("utils.visualize.epochs.rendered", lambda figure: drawn.append(figure) or np.zeros((1, 1, 3)))
    epoch_pictures(rows)
    for axes in (axes for figure in drawn for axes in figure.axes):
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == ticks


@pytest.mark.parametrize("changes", [{}, {"loss": np.nan, "val_loss": np.inf}, {"val_loss": None, "lr": None}])
def test_epochs_without_numbers_are_drawn_all_the_same(changes):
    """Prevents a crash before the first evaluation, without a validation set, and after a loss that is no number."""
    assert list(epoch_pictures(rows_of(1, **changes))) == ["epoch_loss", "results"]
    rows = rows_of(2, **changes, map50=np.nan)
    assert epoch_pictures(rows)["results"].shape == (900, 1500, 3)


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
    draw_lr_preview(PROGRESS, RATES, groups, "cos", path)
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
    draw_lr_preview(PROGRESS, RATES, GROUPS, kind, tmp_path / "planned_lr.png")
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
