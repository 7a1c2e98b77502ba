import numpy as np
import pytest

from utils.image.tiles import TileOptions, join_tiles, tile_grid

OPTIONS, SIZE_HW = TileOptions(100, 0.2), (100, 180)
WHOLE, LEFT, RIGHT = [0, 0, 180, 100], [0, 0, 100, 100], [80, 0, 180, 100]


def test_where_tiles_lie():
    """Prevents a strip of an image that no tile shows, and tiles that an image decoded at an eighth cuts otherwise."""
    assert tile_grid((450, 800), TileOptions(320, 0.2)).tolist() == [
        [0, 0, 800, 450],
        *[[0, 0, 320, 320], [240, 0, 560, 320], [480, 0, 800, 320]],
        *[[0, 136, 320, 450], [240, 136, 560, 450], [480, 136, 800, 450]],
    ]
    assert tile_grid((90, 300), TileOptions(160, 0.0)).tolist() == [[0, 0, 300, 90], [0, 0, 160, 90], [144, 0, 300, 90]]


def test_a_small_image_has_no_tiles():
    """Prevents an image from being looked at twice."""
    assert tile_grid((320, 200), TileOptions(320)).tolist() == [[0, 0, 200, 320]]


@pytest.mark.parametrize(("overlap", "size_hw"), [(0.2, (1000, 333)), (0.5, (257, 640)), (0.9, (300, 301))])
def test_an_object_of_the_overlap_is_whole_in_a_tile(overlap, size_hw):
    """Prevents objects that every tile cuts."""
    tiles, side = tile_grid(size_hw, TileOptions(128, overlap))[1:], int(128 * overlap)
    for x in range(0, size_hw[1] - side, 3):
        for y in range(0, size_hw[0] - side, 7):
            assert ((tiles[:, :2] <= (x, y)) & (tiles[:, 2:] >= (x + side, y + side))).all(axis=1).any()


def joined(*found, nms_iou=0.5):
    """Indices that stay of (box, score, class, tile)."""
    boxes_xyxy, scores, classes, tiles = zip(*found, strict=True)
    arrays = np.float32(boxes_xyxy), np.float32(scores), np.array(classes), np.array(tiles)
    return join_tiles(*arrays, SIZE_HW, OPTIONS, nms_iou).tolist()


def test_an_object_in_two_tiles_is_one():
    """Prevents objects in the overlap from being counted twice; neighbours and other classes stay."""
    assert joined(
        ([82, 10, 98, 30], 0.6, 0, LEFT),
        ([81, 10, 97, 30], 0.7, 0, RIGHT),
        ([82, 10, 98, 30], 0.5, 1, LEFT),
        ([120, 10, 136, 30], 0.9, 0, RIGHT),
    ) == [3, 1, 2]


def test_a_piece_goes_where_its_object_is_whole():
    """Prevents the half of an object from staying, which overlaps the whole one too little for suppression, though its
    score is the higher one."""
    assert joined(([85, 10, 100, 30], 0.9, 0, LEFT), ([85, 10, 125, 30], 0.5, 0, RIGHT)) == [1]
    # At the edge of the image nothing is cut.
    assert joined(([0, 10, 15, 30], 0.9, 0, LEFT), ([0, 10, 40, 30], 0.5, 0, LEFT), nms_iou=0.6) == [0, 1]
    # What is hardly there suppresses nothing.
    assert joined(([85, 10, 100, 30], 0.9, 0, LEFT), ([85, 10, 125, 30], 0.3, 0, RIGHT)) == [0, 1]


def test_the_whole_image_shows_large_objects_alone():
    """Prevents a second, worse box of each small object, and pieces of an object that is larger than the tiles."""
    found = [([20, 10, 38, 28], 0.9, 0, WHOLE), ([20, 10, 160, 90], 0.5, 0, WHOLE)]
    found += [([20, 10, 100, 90], 0.8, 0, LEFT), ([80, 10, 160, 90], 0.8, 0, RIGHT)]
    assert joined(*found) == [1]


def test_the_boxes_of_a_small_image_stay():
    """Prevents the rule for whole images from removing the boxes of one that has no tiles."""
    box, tile = np.float32([[1, 2, 9, 9]]), np.array([[0, 0, 90, 60]])
    assert join_tiles(box, np.float32([0.5]), np.array([0]), tile, (60, 90), OPTIONS, 0.5).tolist() == [0]


def test_nothing_found():
    """Prevents a failure on images without an object."""
    empty = np.zeros((0, 4), np.float32)
    found = join_tiles(empty, np.zeros(0, np.float32), np.zeros(0, np.int64), empty, SIZE_HW, OPTIONS, 0.5)
    assert found.tolist() == []
