import numpy as np

from tests.evaluation.tables import random_set
from utils.evaluation.curves import pr_curves
from utils.evaluation.matching import match_voc
from utils.image.codec import read_image
from utils.image.draw import class_colour
from utils.visualize.curves import draw_curves

NAMES = ("class_ap.png", "f1_curve.png", "pr_curve.png", "precision_curve.png", "recall_curve.png")


def draw(folder, class_names, average_precisions, **options):
    count = len(class_names)
    ground_truth, detections = random_set(0, classes=count)
    matches = match_voc(ground_truth, detections, count)
    draw_curves(
        pr_curves(matches, ground_truth, detections, count, 6), class_names, average_precisions, folder, **options
    )
    return {path.name: read_image(str(path)) for path in sorted(folder.iterdir())}


def shows(image_rgb, colour):
    return bool((image_rgb == np.array(colour)).all(-1).any())


def test_few_classes_have_a_colour_each(tmp_path):
    """Prevents curves that cannot be told apart, and a class without boxes among them."""
    pictures = draw(tmp_path, ["红细胞", "dog", "cat"], [0.5, np.nan, 0.7])
    assert tuple(pictures) == NAMES
    for name in NAMES[1:]:
        assert pictures[name].shape == (500, 900, 3)
        assert [shows(pictures[name], class_colour(number)) for number in range(3)] == [True, False, True]


def test_the_ap_of_one_iou_says_which(tmp_path, monkeypatch):
    """Prevents the AP of one IoU from being taken for the AP of the table, which is the mean of ten."""
    drawn = []
    monkeypatch.setattr("utils.visualize.curves.style_axes", lambda axes, **words: drawn.append(words) or axes)
    draw(tmp_path, ["dog"], [0.5])
    draw(tmp_path, ["dog"], [0.5], iou=0.75)
    assert [words["xlabel"] for words in drawn if words["xlabel"].startswith("AP")] == ["AP@0.5", "AP@0.75"]


def test_many_classes_stay_legible(tmp_path):
    """Prevents 80 names in a legend, and 80 bars on the height of ten: the lowest five have a colour and a name."""
    pictures = draw(tmp_path, [f"class {number}" for number in range(80)], np.linspace(0.9, 0.1, 80))
    assert pictures["class_ap.png"].shape == (1700, 900, 3)
    curves = pictures["pr_curve.png"]
    assert shows(curves, (0xC4,) * 3) and shows(curves, class_colour(4)) and not shows(curves, class_colour(5))


def test_nothing_to_draw_draws_nothing(tmp_path):
    """Prevents a crash, or empty axes, where no class has boxes."""
    assert draw(tmp_path, ["a", "b"], [np.nan, np.nan]) == {}
