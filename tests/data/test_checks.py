import os

import numpy as np
import pytest

from utils.data.annotations import Annotations
from utils.data.quality.checks import box_sizes_at_input, class_counts, duplicates, quick_findings, same_boxes
from utils.data.quality.findings import Finding

NAMES = ["cat", "dog"]


def annotations_of(*images, size_hw=(100, 200), difficult=None):
    """Annotations of (path, [(class, x1, y1, x2, y2), ...]) for each image."""
    rows = np.array([row for _, boxes in images for row in boxes], np.float64).reshape(-1, 5)
    paths, counts = [path for path, _ in images], [len(boxes) for _, boxes in images]
    return Annotations(paths, [size_hw] * len(images), counts, rows[:, 1:], rows[:, 0], difficult)


def many(count, class_id=0):
    """So many boxes of a class, all different."""
    places = [(10 * (number % 16), number // 16) for number in range(count)]
    return [(class_id, x, y, x + 20, y + 30 + 5 * class_id) for x, y in places]


def found(train, val, kind, names=NAMES, input_shape=(100, 200)):
    return [finding for finding in quick_findings(train, val, names, input_shape) if finding.kind == kind]


FINE = [*many(10), *many(10, 1)]
TRAIN, VAL = annotations_of(("t.jpg", FINE)), annotations_of(("v.jpg", [(0, 0, 0, 50, 50), (1, 0, 0, 60, 60)]))


def test_sound_data_have_no_findings():
    """Prevents warnings that cry wolf."""
    assert quick_findings(TRAIN, VAL, NAMES, (100, 200)) == []


def test_no_images_at_all():
    """Prevents a crash on empty annotations, and a training without anything to learn from."""
    nothing = annotations_of()
    assert quick_findings(nothing, nothing, NAMES, (100, 200)) == [
        Finding("no_boxes_at_all", "", "0 training images, no box"),
        Finding("no_val_boxes", "", "0 validation images, no box that counts"),
    ]
    assert box_sizes_at_input(nothing, (100, 200)).shape == (0, 2)
    assert duplicates(nothing).tolist() == []


def test_an_image_in_both_sets():
    """Prevents scores on images that were learned by heart, also where one list spells the path otherwise."""
    absolute = annotations_of((os.path.abspath("t.jpg"), [(0, 0, 0, 50, 50), (1, 0, 0, 60, 60)]))
    expected = [Finding("leaked_image", os.path.abspath("t.jpg"), "same as t.jpg, other boxes")]
    assert found(TRAIN, absolute, "leaked_image") == expected
    assert found(VAL, VAL, "leaked_image") == [Finding("leaked_image", "v.jpg", "same boxes")]


def test_an_image_twice_in_a_set():
    """Prevents two annotations of one image that contradict each other from passing as two images."""
    boxes = [(0, 1, 2, 30, 40), (1, 5, 6, 70, 80)]
    train = annotations_of(("t.jpg", FINE), ("a.jpg", boxes), ("./a.jpg", boxes[::-1]), ("a.jpg", boxes[:1]))
    assert found(train, VAL, "repeated_image") == [Finding("repeated_image", "./a.jpg", "same as a.jpg, same boxes")]
    assert found(train, VAL, "conflicting_labels") == [Finding("conflicting_labels", "a.jpg", "other boxes")]


def test_same_boxes_look_at_classes_and_coordinates():
    """Prevents another class, or another place, from passing as the same label."""
    annotations = annotations_of(
        ("a", [(0, 1, 2, 3, 4)]),
        ("b", [(1, 1, 2, 3, 4)]),
        ("c", [(0, 1, 2, 3, 5)]),
        ("d", []),
        ("e", [(0, 1, 2, 3, 4)]),
    )
    assert [same_boxes(annotations, 0, annotations, index) for index in range(5)] == [True, False, False, False, True]
    assert same_boxes(annotations, 3, annotations, 3)


def test_classes_that_cannot_be_learned_or_scored():
    """Prevents a training that ends before someone notices that a class has no boxes, or the validation set none."""
    only_dogs = annotations_of(("t.jpg", many(10, 1)))
    assert found(only_dogs, VAL, "class_without_boxes") == [
        Finding("class_without_boxes", "", "cat: 0 in training, 1 in validation")
    ]
    only_cats = annotations_of(("v.jpg", [(0, 0, 0, 50, 50)]))
    assert found(TRAIN, only_cats, "class_not_validated") == [
        Finding("class_not_validated", "", "dog: 10 in training, 0 in validation")
    ]
    assert found(TRAIN, annotations_of(("v.jpg", [])), "class_not_validated") == []


def test_boxes_marked_difficult_are_nothing_to_validate_on():
    """Prevents a validation set whose boxes all are ignored."""
    hard = annotations_of(("v.jpg", [(0, 0, 0, 50, 50)]), difficult=[True])
    assert class_counts(hard, 2).tolist() == [1, 0]
    assert class_counts(hard, 2, scored=True).tolist() == [0, 0]
    assert found(TRAIN, hard, "no_val_boxes") == [
        Finding("no_val_boxes", "", "1 validation images, no box that counts")
    ]
    assert found(TRAIN, hard, "difficult_box") == [
        Finding("difficult_box", "v.jpg", "cat 0,0,50,50 (50.0 x 50.0 at 100x200)")
    ]


@pytest.mark.parametrize(
    ("cats", "dogs", "expected"),
    [
        (10, 9, ["dog: only 9 (under 10)"]),
        (10, 10, []),
        (1600, 15, ["dog: only 15 (under 1% of the largest class, 1600)"]),
        (1600, 16, []),
        (1600, 100, []),
    ],
)
def test_rare_classes(cats, dogs, expected):
    """Prevents silence about a class that drowns, and noise about one that is merely smaller."""
    train = annotations_of(("t.jpg", many(cats) + many(dogs, 1)))
    assert [finding.detail for finding in found(train, VAL, "rare_class")] == expected


def test_duplicate_boxes():
    """Prevents objects that were drawn twice from being learned twice; other objects close by are none."""
    boxes = [
        (0, 10, 10, 110, 60),  # 0
        (1, 12, 10, 110, 60),  # 98 % of box 0, under another name
        (0, 10, 10, 110, 60),  # box 0 again
        (0, 20, 10, 110, 60),  # 90 % of box 0
        (0, 9, 10, 9.5, 90),  # begins between the others, a sliver
    ]
    train = annotations_of(("a.jpg", boxes), ("b.jpg", boxes[:1]))
    assert duplicates(train).tolist() == [-1, 0, 0, -1, -1, -1]
    assert found(train, VAL, "duplicate_box") == [
        Finding("duplicate_box", "a.jpg", "dog 12,10,110,60 (98.0 x 50.0 at 100x200); also labelled cat"),
        Finding("duplicate_box", "a.jpg", "cat 10,10,110,60 (100.0 x 50.0 at 100x200)"),
    ]


def test_duplicates_are_those_of_comparing_all_pairs():
    """Prevents the search along sorted left edges from losing pairs."""
    rng = np.random.default_rng(0)
    top_left = rng.integers(0, 4, (300, 2)) * 1.0
    boxes_xyxy = np.hstack([top_left, top_left + rng.integers(60, 64, (300, 2))])
    train = Annotations(["a", "b", "c"], [(100, 100)] * 3, [100, 0, 200], boxes_xyxy, np.zeros(300))
    expected = []
    for second, (x1, y1, x2, y2) in enumerate(boxes_xyxy.tolist()):
        covers = []
        for first, (u1, v1, u2, v2) in enumerate(boxes_xyxy[:second].tolist()):
            overlap = (min(x2, u2) - max(x1, u1)) * (min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
            covers.append(overlap > 0.95 * union and (first < 100) == (second < 100))
        expected.append(any(covers))
    result = duplicates(train)
    assert (result >= 0).tolist() == expected
    assert 100 < sum(expected) < 298
    assert all(earlier < row for row, earlier in enumerate(result.tolist()))


def test_tiny_and_thin_boxes_are_measured_as_the_network_sees_them():
    """Prevents boxes that vanish in a small input from being waved through because the photograph is large."""
    boxes = [(0, 0, 0, 40, 19), (0, 0, 0, 40, 20), (1, 0, 0, 410, 20), (1, 0, 0, 400, 20)]
    train = annotations_of(("t.jpg", FINE), ("big.jpg", boxes), size_hw=(500, 1000))
    assert box_sizes_at_input(train, (100, 200))[-4].tolist() == pytest.approx([8, 3.8])
    tiny = [finding for finding in found(train, VAL, "tiny_box") if finding.image == "big.jpg"]
    assert tiny == [Finding("tiny_box", "big.jpg", "cat 0,0,40,19 (8.0 x 3.8 at 100x200)")]
    assert found(train, VAL, "thin_box") == [Finding("thin_box", "big.jpg", "dog 0,0,410,20 (82.0 x 4.0 at 100x200)")]


def test_many_small_boxes():
    """Prevents an evening on objects that are a few pixels wide in the input, though tiles, or a larger input, would
    show them: a quarter of 10 x 10 pixels at half the size has 5."""
    boxes = [(0, 0, 0, side, side) for side in (10, 10, 40, 40)]
    train = annotations_of(("t.jpg", boxes), size_hw=(200, 400))
    words = "50% of 4 in training; three quarters have 16 pixels with tile = 32, or with input_shape = [320, 640]"
    assert found(train, VAL, "small_boxes", input_shape=(100, 200)) == [Finding("small_boxes", "", words)]
    assert found(train, VAL, "small_boxes", input_shape=(200, 400)) == []
    tiles = quick_findings(train, VAL, NAMES, (100, 200), tile=100)
    assert "small_boxes" not in [finding.kind for finding in tiles]
    (finding,) = found(train, VAL, "small_boxes", input_shape=(32, 64))
    assert finding.detail == "100% of 4 in training; three quarters have 16 pixels with input_shape = [320, 640]"
    assert found(annotations_of(), VAL, "small_boxes") == []


def test_the_advice_for_small_boxes_keeps_its_word():
    """Prevents a tile that is too large where the input is not square, and an input that no network is trained with."""
    boxes = [(0, 0, 0, side, side) for side in range(8, 108)]
    train = annotations_of(("t.jpg", boxes), size_hw=(3000, 4000))
    words = "100% of 100 in training; three quarters have 16 pixels with tile = 512"
    assert found(train, VAL, "small_boxes", input_shape=(256, 448)) == [Finding("small_boxes", "", words)]
    assert (box_sizes_at_input(train, (256, 448), 512).prod(axis=1) >= 16**2).mean() == 0.76
    assert (box_sizes_at_input(train, (256, 448), 544).prod(axis=1) >= 16**2).mean() < 0.75


def test_classes_of_difficult_boxes_alone():
    """Prevents the advice to check the files where keep_difficult leaves all boxes out, or all of a class."""
    hard = annotations_of(("t.jpg", many(12)), difficult=[True] * 12)
    assert found(hard, VAL, "only_difficult") == [
        Finding("only_difficult", "", "12 boxes, which keep_difficult = False leaves out")
    ]
    assert found(hard, VAL, "no_boxes_at_all") == []
    half = annotations_of(("t.jpg", many(12)), ("u.jpg", many(12, 1)), difficult=[True] * 12 + [False] * 12)
    words = "cat: 0 in training, 1 in validation; 12 are marked difficult, or crowds: keep_difficult = True learns them"
    assert found(half, VAL, "class_without_boxes") == [Finding("class_without_boxes", "", words)]


def test_boxes_that_training_drops_are_told_from_tiny_ones():
    """Prevents `learns it, mostly in vain` from standing for boxes that augmentation drops."""
    train = annotations_of(("t.jpg", [(0, 0, 0, 1.9, 50), (0, 0, 0, 2, 50)]))
    assert [len(found(train, VAL, kind)) for kind in ("vanishing_box", "tiny_box")] == [1, 1]
