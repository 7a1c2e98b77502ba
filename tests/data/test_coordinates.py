import numpy as np
import pytest
from PIL import Image

from utils.data.quality.coordinates import NUMBERS, in_order, look_like_percent, other_coordinates, turned
from utils.image.codec import read_image

LIMITS = np.tile([640, 480, 640, 480], (40, 1)).astype(float)


def spread(largest=200):
    """40 boxes of 20 to so many pixels all over images of 640 x 480: (M, 4) corners."""
    random = np.random.default_rng(0)
    sizes = random.uniform(20, largest, (40, 2))
    first = random.uniform(0, 1, (40, 2)) * ([640, 480] - sizes)
    return np.concatenate([first, first + sizes], axis=1)


def understood(numbers, written):
    """The corners that a format understands four numbers as."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if written == "xyxy":
        return numbers
    start = first if written == "xywh" else first - second / 2
    return np.concatenate([start, start + second], axis=1)


def numbers_of(boxes_xyxy, kind):
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    start = {"xyxy": boxes_xyxy[:, :2], "xywh": boxes_xyxy[:, :2], "cxcywh": boxes_xyxy[:, :2] + sizes / 2}[kind]
    return np.concatenate([start, boxes_xyxy[:, 2:] if kind == "xyxy" else sizes], axis=1)


@pytest.mark.parametrize("written", list(NUMBERS))
@pytest.mark.parametrize("kind", list(NUMBERS))
def test_each_kind_is_told_from_the_others(kind, written):
    """Prevents boxes at wrong places from being learned because an export wrote corners for sizes, or the reverse."""
    found = other_coordinates(understood(numbers_of(spread(), kind), written), LIMITS, written)
    words = f"{NUMBERS[kind]}, where the format has {NUMBERS[written]}"
    assert found == (("", False) if kind == written else (words, True))


def test_a_corner_for_the_centre_is_doubtful():
    """Prevents boxes that are moved by half their size, few of which leave the image, from being learned untold."""
    found = other_coordinates(understood(numbers_of(spread(largest=60), "xywh"), "cxcywh"), LIMITS, "cxcywh")
    assert found == (f"{NUMBERS['xywh']}, where the format has {NUMBERS['cxcywh']}", False)


def test_shares_for_pixels():
    """Prevents boxes of less than a pixel in the corner of each image from being learned."""
    found = other_coordinates(spread() / LIMITS, LIMITS, "xyxy")
    assert found == ("shares of the image, from 0 to 1, where pixels are expected", True)


def test_a_few_boxes_leave_a_doubt():
    """Prevents a small data set from being refused for a guess, or for a click that drew a box without area."""
    boxes_xyxy = understood(numbers_of(spread(), "xyxy"), "xywh")
    words = f"{NUMBERS['xyxy']}, where the format has {NUMBERS['xywh']}"
    assert other_coordinates(boxes_xyxy[:4], LIMITS[:4], "xywh") == (words, False)
    assert other_coordinates(boxes_xyxy[:5], LIMITS[:5], "xywh") == (words, True)
    clicks = np.array([[9, 9, 9, 30], [5, 6, 5, 6], [5, 6, 9, 6]] * 2, float)
    assert other_coordinates(clicks, LIMITS[:6], "xyxy") == ("", False)


def test_some_boxes_that_reach_out_are_no_other_kind():
    """Prevents a data set from being refused for a few careless boxes."""
    boxes_xyxy = spread()
    boxes_xyxy[:10, 2] += 640
    assert other_coordinates(boxes_xyxy, LIMITS, "xywh") == ("", False)
    assert other_coordinates(np.zeros((0, 4)), np.zeros((0, 4)), "xyxy") == ("", False)


def test_boxes_drawn_from_the_lower_right_are_only_put_in_order():
    """Prevents them from being taken for sizes: both leave the second corner before the first."""
    boxes_xyxy = spread() * 0.5 + [100, 100, 100, 100]
    swapped = boxes_xyxy[:, [2, 3, 0, 1]]
    assert other_coordinates(swapped, LIMITS, "xyxy") == ("", False)
    assert (in_order(swapped) == boxes_xyxy).all()


@pytest.mark.parametrize(
    ("boxes_xyxy", "expected"),
    [
        (spread() / LIMITS * 100, True),
        (spread(), False),
        (spread() / LIMITS * 50, False),
        ((spread() / LIMITS * 100)[:5], False),
    ],
)
def test_percent(boxes_xyxy, expected):
    """Prevents percent from passing as pixels, and a few boxes in a corner from passing as percent."""
    assert look_like_percent(boxes_xyxy, LIMITS[: len(boxes_xyxy)]) is expected


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_as_the_decoder_turns_the_picture(tmp_path, orientation):
    """Prevents boxes from being mirrored or turned the other way: they go where the pixels inside them go."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:15, 10:40] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / "a.jpg")
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    decoded = read_image(path)
    rows, columns = np.nonzero(decoded[..., 0] > 128)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = turned(np.array([[10.0, 5.0, 40.0, 15.0]]), orientation, decoded.shape[:2])
    assert found.tolist() == [expected]
