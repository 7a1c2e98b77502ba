import numpy as np
import pytest

from tests.yolo_folder import make_yaml, make_yolo
from utils.data.annotations import read_annotations
from utils.data.formats.detect_format import read_raw_annotations

# Boxes at several places of the image; as outlines, most of these numbers would be nothing that encloses the rest.
BOXES = ((0.2, 0.3, 0.2, 0.4), (0.7, 0.6, 0.3, 0.2), (0.5, 0.8, 0.6, 0.3), (0.85, 0.2, 0.1, 0.2))


def lines(extra):
    """A label file of BOXES with more numbers behind each. extra: (cx, cy, w, h) -> text."""
    return "".join(f"0 {' '.join(map(str, box))} {extra(*box)}\n" for box in BOXES)


def boxes_of(annotation_path):
    """The boxes of the first image, as shares, and the kinds of the findings."""
    annotations, findings = read_annotations(annotation_path, ["cat"])
    return annotations.boxes(0) / [100, 50, 100, 50], [finding.kind for finding in findings]


def corners(boxes=BOXES):
    cx, cy, width, height = np.array(boxes).T
    return np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=1)


@pytest.mark.parametrize(
    "extra",
    [
        lambda x, y, w, h: f"{x} {y} {x + w / 3} {y - h / 3}",  # two key points
        lambda x, y, w, h: f"{x} {y} 2 {x + w / 3} {y - h / 3} 1 0 0 0",  # three, the last one not labelled
        lambda x, y, w, h: f"{x} {y} 2 {x + w / 3} {y - h / 3} 1",  # an even number of numbers with visibility
        lambda x, y, w, h: f"{x} {y} 1",  # one with visibility
        lambda x, y, w, h: f"{x - w / 2} {y - h / 2} {x + w / 2} {y - h / 2} {x} {y + h / 2}",  # an outline
        lambda x, y, w, h: "0.9 17",  # confidence and track
        lambda x, y, w, h: "0.9 1",
    ],
)
def test_numbers_behind_a_box_are_left_out(tmp_path, extra):
    """Prevents key points, outlines and tracks behind a box from making another box of it in silence."""
    folder = make_yolo(tmp_path, {"a": lines(extra)})
    found, kinds = boxes_of(folder)
    np.testing.assert_allclose(found, corners(), atol=1e-6)
    assert kinds == ["extra_numbers"]


def test_a_data_yaml_says_how_many_key_points_follow(tmp_path):
    """Prevents key points outside of their boxes, which look like nothing, from being taken for outlines."""
    make_yolo(tmp_path, {"a": lines(lambda *_: "0.01 0.99 0.99 0.01")})
    path = make_yaml(tmp_path, "train: images\nnames: [cat]\nkpt_shape: [2, 2]\n")
    np.testing.assert_allclose(boxes_of(path)[0], corners(), atol=1e-6)


def test_outlines_stay_outlines(tmp_path):
    """Prevents outlines near the middle, whose first numbers happen to be a box around the rest, from being read so."""
    middle = "0 .5 .5 .6 .5 .6 .6 .5 .6"
    others = "0 .9 .9 .95 .9 .95 .95 .9 .95 .88 .92\n0 .1 .1 .2 .1 .2 .2 .1 .2\n0 .7 .1 .9 .1 .9 .3"
    found, kinds = boxes_of(make_yolo(tmp_path, {"a": f"{middle}\n{others}"}))
    expected = [[0.5, 0.5, 0.6, 0.6], [0.88, 0.9, 0.95, 0.95], [0.1, 0.1, 0.2, 0.2], [0.7, 0.1, 0.9, 0.3]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert kinds == []


def test_what_may_be_either_is_refused(tmp_path):
    """Prevents a guess: a line that is as likely an outline as a box with key points is named."""
    folder = make_yolo(tmp_path, {"a": "0 .5 .5 .4 .4 .6 .6 .4 .6"})
    ((kind, _, detail),) = read_raw_annotations(folder).findings
    assert (
        kind == "broken_annotation"
        and "a.txt, line 1: '0 .5 .5 .4 .4 .6 .6 .4 .6' (9 numbers); is it an outline, or" in detail
    )
    with pytest.raises(ValueError, match=r"Name kpt_shape in the data\.yaml"):
        read_annotations(folder, ["cat"])


@pytest.mark.parametrize(("numbers", "unit"), [("50 50 20 20", "percent"), ("320 200 64 48", "pixels")])
def test_other_units_are_named(tmp_path, numbers, unit):
    """Prevents people from searching a file for what is wrong with numbers that are plainly pixels or percent."""
    ((_, _, detail),) = read_raw_annotations(make_yolo(tmp_path, {"a": f"0 {numbers}"})).findings
    assert detail.endswith(f"expected shares of the image, from 0 to 1, and these look like {unit}")


def polygon(corners, radius, centre=(0.5, 0.5), shift=0.0):
    """A regular polygon as numbers, and the box around it."""
    angles = shift + np.arange(corners) * 2 * np.pi / corners
    points = np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return " ".join(f"{value:.5f}" for value in points.ravel()), [*points.min(axis=0), *points.max(axis=0)]


def turned_box(turn, centre=(0.5, 0.5)):
    """A turned box of 0.2 x 0.08 as its four corners, and the box around it."""
    axis, across = np.array([np.cos(turn), np.sin(turn)]) * 0.1, np.array([-np.sin(turn), np.cos(turn)]) * 0.04
    points = np.array(centre) + np.array([axis + across, axis - across, -axis - across, -axis + across])
    return " ".join(f"{value:.5f}" for value in points.ravel()), [*points.min(axis=0), *points.max(axis=0)]


@pytest.mark.parametrize(
    ("outlines", "plain"),
    [
        ([polygon(number, 0.1) for number in range(3, 13)], 0),  # as small as the first numbers' box is large
        ([turned_box(turn) for turn in (0, 0.3, 0.9, 1.4)], 0),
        ([polygon(5, 0.1)], 20),
        ([polygon(3, 0.05, (0.43, 0.43))], 20),
        ([turned_box(0.4)], 0),
        ([polygon(3, 0.05, (x, 0.45), x) for x in np.linspace(0.1, 0.9, 12)], 0),
    ],
)
def test_small_outlines_in_the_middle_stay_outlines(tmp_path, outlines, plain):
    """Prevents outlines from becoming other boxes, or a sound data set from being refused, because what their first
    numbers would be as a box holds the rest; plain boxes beside them show that a box has nothing behind it."""
    lines = "".join(f"0 {numbers}\n" for numbers, _ in outlines) + "0 0.3 0.3 0.2 0.2\n" * plain
    found, kinds = boxes_of(make_yolo(tmp_path, {"a": lines}))
    np.testing.assert_allclose(found[: len(outlines)], [box for _, box in outlines], atol=2e-5)
    assert kinds == []


def test_key_points_outside_of_their_boxes(tmp_path):
    """Prevents boxes with key points from being read as outlines because some points lie outside of their box."""
    folder = make_yolo(tmp_path, {"a": lines(lambda x, y, w, h: f"{x} {y} {x + w} {y} {x} {y - h} {x} {y + h / 3}")})
    found, kinds = boxes_of(folder)
    np.testing.assert_allclose(found, corners(), atol=1e-6)
    assert kinds == ["extra_numbers"]


@pytest.mark.parametrize("named", ["images", "list.txt"])
def test_a_data_yaml_nearby_says_how_many_key_points_follow(tmp_path, named):
    """Prevents a folder or a list from being read otherwise than the data.yaml beside it says."""
    make_yolo(tmp_path, {"a": lines(lambda *_: "0.01 0.99 0.99 0.01")})
    make_yaml(tmp_path, "train: images\nnames: [cat]\nkpt_shape: [2, 2]\n")
    (tmp_path / "list.txt").write_text("images/a.jpg\n")
    np.testing.assert_allclose(boxes_of(str(tmp_path / named))[0], corners(), atol=1e-6)
