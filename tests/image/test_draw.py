import numpy as np
import pytest

from utils.image.draw import class_colour, draw_boxes, shortened, text_image, text_width
from utils.visualize.figures import name_box

GREY = np.full((320, 320, 3), 128, np.uint8)


def changed_xyxy(before, after):
    """Smallest rectangle that holds every pixel in which two images differ."""
    ys, xs = np.nonzero((before != after).any(2))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_colours_are_distinct_and_repeat_after_ten():
    """A class that changes its colour from picture to picture, or two classes of one colour, mislead the reader."""
    assert len({class_colour(i) for i in range(10)}) == 10
    assert class_colour(3) == class_colour(13) == (27, 158, 70)


def test_box_is_drawn_where_it_is_in_rgb_and_the_input_is_left_alone():
    """BGR colours, swapped x and y, and drawing into the caller's image are easy slips."""
    image = GREY.copy()
    drawn = draw_boxes(image, [[40, 100, 200, 250]], [0], None, ["dog"])
    assert (image == 128).all()
    assert drawn.shape == (320, 320, 3) and drawn.dtype == np.uint8
    assert tuple(drawn[180, 40]) == tuple(drawn[250, 120]) == (230, 57, 70)
    assert tuple(drawn[180, 120]) == (128, 128, 128)
    # The tab stands right above the box and shows white letters on the colour of the class.
    tab = drawn[84:98, 42:66].reshape(-1, 3)
    assert (tab == (230, 57, 70)).all(1).mean() > 0.4 and (tab > 230).all(1).any()


@pytest.mark.parametrize("size_hw", [(320, 320), (1200, 1600), (40, 500)])
def test_labels_stay_inside_the_picture_at_every_border(size_hw):
    """A label above a box at the top edge, or right of one at the right edge, would be cut off."""
    height, width = size_hw
    image = np.full((height, width, 3), 128, np.uint8)
    for corner in ([-9, -9, 8, 8], [width - 8, -9, width + 9, 8], [width - 8, height - 8, width + 9, height + 9]):
        drawn = draw_boxes(image, [corner], [2], [0.5], ["", "", "红细胞 cell"])
        yellow = (drawn == class_colour(2)).all(2)
        dark = (drawn < 60).all(2)
        assert dark.sum() > 60  # letters
        ys, xs = np.nonzero(dark)
        assert xs.min() > 0 and xs.max() < width - 1 and ys.min() > 0 and ys.max() < height - 1
        assert yellow.sum() > 4 * dark.sum() // 3


def test_chinese_names_are_drawn_as_chinese():
    """Hershey fonts draw a question mark for each Chinese character, so all such names would look alike."""
    pictures = [draw_boxes(GREY, [[40, 100, 200, 250]], [0], None, [name]) for name in ("红细胞", "白细胞", "???")]
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    """Two classes found at one place need two legible names, not one on top of the other."""
    boxes = [[80, 80, 240, 240], [81, 81, 240, 240], [80, 80, 241, 240]]
    together = draw_boxes(GREY, boxes, [0, 1, 3], [0.9, 0.8, 0.7], ["dog", "cat", "", "cow"])
    inks = [(together == class_colour(i)).all(2).sum() for i in (0, 1, 3)]
    tab_area = 17 * 40
    assert min(inks) > 0.5 * tab_area


def test_labels_that_would_hide_others_can_be_left_out():
    """Prevents a heap of unreadable names in small pictures of crowds: all boxes stay, and the names with room."""
    boxes = [[100, 100, 110, 110]] * 30
    few = draw_boxes(GREY, boxes, [0] * 30, None, ["dog"], every_name=False)
    many = draw_boxes(GREY, boxes, [0] * 30, None, ["dog"])
    white = [(image > 230).all(2).sum() for image in (few, many)]
    assert 0 < white[0] <= white[1]
    alone = (draw_boxes(GREY, boxes[:1], [0], None, ["dog"]) > 230).all(2).sum()
    assert white[0] % alone < 0.1 * alone  # whole labels
    apart = [[20, 50, 60, 90], [200, 200, 260, 260]]
    assert (
        draw_boxes(GREY, apart, [0, 1], None, ["dog", "cat"], every_name=False)
        == draw_boxes(GREY, apart, [0, 1], None, ["dog", "cat"])
    ).all()


def test_line_and_text_grow_with_the_image():
    """A one-pixel line and 12-pixel letters on a 1600 px picture cannot be seen."""
    small, large = GREY, np.full((1600, 1600, 3), 128, np.uint8)
    small_xyxy = changed_xyxy(small, draw_boxes(small, [[100, 100, 100, 100]], [0], None, ["dog"]))
    large_xyxy = changed_xyxy(large, draw_boxes(large, [[500, 500, 500, 500]], [0], None, ["dog"]))
    assert large_xyxy[2] - large_xyxy[0] > 2 * (small_xyxy[2] - small_xyxy[0])


def test_a_name_wider_than_the_picture_is_shortened():
    """Small pictures with long class names would get a tab that leaves the picture, or an endless loop."""
    drawn = draw_boxes(GREY[:64, :64], [[5, 30, 50, 60]], [0], [0.25], ["a very long class name"])
    assert drawn.shape == (64, 64, 3)
    assert draw_boxes(GREY[:3, :3], [[0, 0, 2, 2]], [0], [0.25], ["name"]).shape == (3, 3, 3)


def test_no_boxes_leave_the_picture_as_it_is():
    """An image without detections has arrays of length 0, in which maxima and sorts may fail."""
    drawn = draw_boxes(GREY, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), ["dog"])
    assert (drawn == GREY).all() and drawn is not GREY


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 400), (400, 1), (3, 30000), (24, 30)])
def test_extreme_shapes(size_hw):
    """Prevents a crash, or an endless search for room, on panoramas and slivers."""
    height, width = size_hw
    boxes_xyxy = [[0, 0, width, height], [width / 3, 0, width / 2, height], [width, height, width, height]]
    drawn = draw_boxes(
        np.zeros((height, width, 3), np.uint8), boxes_xyxy, [0, 1, 2], [0.9, 0.8, 0.7], ["猫", "dog", "x"]
    )
    assert drawn.shape == (height, width, 3) and drawn.any()


@pytest.mark.parametrize("name", ["红细胞", "dog", "a very long name of a class that nobody has room for"])
def test_names_are_drawn_and_cut(name):
    """Prevents question marks or boxes in the place of Chinese, and names that run out of the picture: the number
    behind the name stays."""
    picture = name_box(name, 150, "0.87").get_data()
    assert picture.shape[2] == 4 and 40 < picture.shape[1] <= 155
    ink = picture[..., 3] > 128
    assert ink.any() and not ink[:, -1].any() and not ink[0].any() and not ink[-1].any()
    other = name_box(name[::-1], 150, "0.87").get_data()
    assert picture.shape != other.shape or (picture != other).any()


def test_a_text_that_is_too_long_loses_its_middle():
    """Prevents two names that differ only at their end, as `left door` and `left door handle`, from looking alike."""
    text = shortened("left front door handle", 100, 13)
    assert text.startswith("left") and text.endswith("dle") and "…" in text and text_width(text, 13) <= 100
    assert shortened("dog", 100, 13) == "dog" and shortened("", 100, 13) == ""
    assert shortened("long", 1, 13) == "l…g"  # nothing is as narrow as that


def test_an_empty_name_has_an_image():
    """Prevents an image of width 0, which OpenCV refuses."""
    image = text_image("", 13)
    assert image.shape == (19, 3, 4) and (image[..., 3] == 0).all()
    assert np.unique(text_image("dog", 13, (230, 57, 70))[..., :3].reshape(-1, 3), axis=0).tolist() == [[230, 57, 70]]
