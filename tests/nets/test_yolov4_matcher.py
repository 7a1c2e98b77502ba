import pytest
import torch

from nets.yolov4 import matcher as anchor_match
from nets.yolov4.matcher import MATCH_IOU, match
from tests.nets.test_simota import padded, random_boxes

STRIDES = (8, 16)
# Ascending stride; the last anchor of the fine map is the first of the coarse one, as in YOLOv4-tiny.
ANCHORS = [[[6, 8], [14, 9], [20, 24]], [[20, 24], [40, 30], [30, 60]]]


def sizes_of_maps(height, width):
    return [(height // stride, width // stride) for stride in STRIDES]


def reference_shape_iou(box, anchor):
    """IoU of a box x1, y1, x2, y2 and an anchor, both moved to the origin."""
    width, height = max(box[2] - box[0], 0), max(box[3] - box[1], 0)
    overlap = min(width, anchor[0]) * min(height, anchor[1])
    return overlap / (width * height + anchor[0] * anchor[1] - overlap)


def reference_match(targets, anchors, map_sizes, strides):
    """The rule one image, box and anchor at a time: for each image {prediction: box}."""
    images = []
    for boxes in targets.tolist():
        owners = {}  # prediction: (shape IoU, box)
        for box, (x1, y1, x2, y2, label) in enumerate(boxes):
            if label < 0:
                continue
            ious = [reference_shape_iou((x1, y1, x2, y2), anchor) for level in anchors for anchor in level]
            number, first = 0, 0
            for level, (height, width), stride in zip(anchors, map_sizes, strides, strict=True):
                column = min(max(int((x1 + x2) / 2 // stride), 0), width - 1)
                row = min(max(int((y1 + y2) / 2 // stride), 0), height - 1)
                for place in range(len(level)):
                    prediction = first + (row * width + column) * len(level) + place
                    chosen = number == ious.index(max(ious)) or ious[number] > MATCH_IOU
                    if chosen and (prediction not in owners or ious[number] > owners[prediction][0]):
                        owners[prediction] = (ious[number], box)
                    number += 1
                first += height * width * len(level)
        images.append({prediction: box for prediction, (_, box) in owners.items()})
    return images


def owners_of(matches):
    """Matches in the reference's form; no prediction may be claimed twice."""
    images = []
    for predictions, learns, positive in zip(*matches, strict=True):
        claims = [
            (prediction, box)
            for box, (row, flags) in enumerate(zip(predictions.tolist(), learns.tolist(), strict=True))
            for prediction, flag in zip(row, flags, strict=True)
            if flag
        ]
        owners = dict(claims)
        assert len(owners) == len(claims)
        assert sorted(owners) == positive.nonzero().flatten().tolist()
        images.append(owners)
    return images


def check(targets, size_hw):
    """Compare with the reference; returns for each image {prediction: box}."""
    map_sizes = sizes_of_maps(*size_hw)
    matches = match(targets, torch.tensor(ANCHORS, dtype=torch.float32), map_sizes, STRIDES)
    assert matches.positive.shape == (len(targets), 3 * sum(height * width for height, width in map_sizes))
    owners = owners_of(matches)
    assert owners == reference_match(targets, ANCHORS, map_sizes, STRIDES)
    return owners


def on_quarter_pixels(targets):
    """Coordinates with exact sums and halves, which also lie on cell borders now and then."""
    targets[..., :4] = (targets[..., :4] * 4).round() / 4
    return targets


@pytest.mark.parametrize("size_hw", [(32, 32), (96, 64), (160, 224)])
@pytest.mark.parametrize("seed", range(6))
def test_random_cases(seed, size_hw):
    """Prevents any departure of the vectorised matching from its definition, in images with different box counts."""
    torch.manual_seed(seed)
    targets = on_quarter_pixels(padded(*(random_boxes(count, *size_hw, 3) for count in (6, 0, 1, 25))))
    owners = check(targets, size_hw)
    assert [bool(image) for image in owners] == [True, False, True, True]


def test_crowded_image():
    """Prevents conflicts from being resolved in pairs only: 200 boxes of an anchor's size want 16 + 4 cells."""
    centres = torch.rand(200, 2) * 32
    sides = torch.tensor([[14.0, 9.0], [20.0, 24.0]])[torch.randint(2, (200,))] + torch.rand(200, 2) * 4
    boxes = torch.cat((centres - sides / 2, centres + sides / 2, torch.zeros(200, 1)), dim=1)
    (owners,) = check(on_quarter_pixels(boxes[None]), (32, 32))
    assert len(owners) > 30
    assert len(set(owners.values())) < 100


HAND_MADE = {
    "one": [(10, 12, 50, 40, 2)],
    "two in the same cell, other shapes": [(8, 8, 14, 16, 0), (2, 0, 22, 24, 1)],
    "two in the same cell, one shape fits better": [(9, 8, 16, 16, 0), (9, 8, 15, 16, 1)],
    "identical": [(8, 8, 40, 40, 1), (8, 8, 40, 40, 1), (8, 8, 40, 40, 1)],
    "centre on a cell border": [(10, 8, 22, 24, 0), (26, 24, 38, 40, 1)],
    "centre on x = W and y = H": [(60, 90, 68, 102, 0), (64, 50, 64, 50, 1), (60, 0, 68, 8, 2)],
    "no area": [(20, 20, 20, 20, 0), (8, 30, 8, 50, 1), (30, 40, 60, 40, 2)],
    "outside the image": [(100, 120, 140, 160, 0), (-60, -40, -20, -10, 1)],
    "as large as the image": [(0, 0, 64, 96, 0)],
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_cases(name):
    """Prevents boxes that share cells, have no area or lie on a border from getting lost, or being learned in a cell
    of the next row or map."""
    owners = check(padded(HAND_MADE[name], []), (96, 64))
    assert owners[1] == {}
    if name == "two in the same cell, one shape fits better":
        assert owners[0][(1 * 8 + 1) * 3] == 1
    else:
        assert set(owners[0].values()) == ({0} if name == "identical" else set(range(len(HAND_MADE[name]))))


def test_literal_positions():
    """Prevents a swapped row and column, and positions that forget the anchors or the finer map.

    The box has the shape of the anchor 40 x 30 and its centre in row 5, column 2 of 12 x 8 cells, row 2, column 1 of
    6 x 4. All other anchors overlap it by 0.4 (20 x 24), 0.43 (30 x 60), 0.04 and 0.105.
    """
    targets = padded([(0, 27, 40, 57, 1)])
    predictions, _, _ = match(targets, torch.tensor(ANCHORS).float(), sizes_of_maps(96, 64), STRIDES)
    fine, coarse = (5 * 8 + 2) * 3, 12 * 8 * 3 + (2 * 4 + 1) * 3
    assert predictions[0, 0].tolist() == [fine, fine + 1, fine + 2, coarse, coarse + 1, coarse + 2]
    (owners,) = check(targets, (96, 64))
    assert owners[coarse + 1] == 0


@pytest.mark.parametrize(
    ("threshold", "expected"), [(1.0, [4]), (0.42, [4, 5]), (0.38, [2, 3, 4, 5]), (0.0, [0, 1, 2, 3, 4, 5])]
)
def test_further_anchors_by_overlap(monkeypatch, threshold, expected):
    """Prevents the best anchor alone, or all anchors, from learning whatever MATCH_IOU says; the box is 40 x 30."""
    monkeypatch.setattr(anchor_match, "MATCH_IOU", threshold)
    _, learns, _ = match(padded([(0, 27, 40, 57, 1)]), torch.tensor(ANCHORS).float(), sizes_of_maps(96, 64), STRIDES)
    assert learns[0, 0].nonzero().flatten().tolist() == expected


def test_a_box_of_no_likely_shape_is_learned_all_the_same():
    """Prevents boxes that no anchor fits from being forgotten: 2 x 60 overlaps none by more than 0.07."""
    (owners,) = check(padded([(20, 10, 22, 70, 0)]), (96, 64))
    assert len(owners) == 1


def test_of_equal_anchors_the_finer_map_learns_a_dot():
    """Prevents a box without area from being learned by an anchor at random: all overlap it by 0, the first wins."""
    (owners,) = check(padded([(20, 20, 20, 20, 0)]), (96, 64))
    assert owners == {(2 * 8 + 2) * 3: 0}


def test_padding_rows_in_between():
    """Prevents a box from being numbered by its place among the real boxes instead of its row."""
    targets = padded([(8, 8, 40, 40, 1), (30, 30, 60, 60, 0)], [(10, 10, 30, 30, 2)])
    first, second = check(targets[:, [2, 0, 2, 1]], (64, 64))
    assert set(first.values()) == {1, 3}
    assert set(second.values()) == {1}


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_no_boxes(rows):
    """Prevents padding from owning predictions, also where no image of a batch has a box."""
    targets = torch.zeros(2, rows, 5)
    targets[..., 4] = -1
    assert check(targets, (64, 64)) == [{}, {}]
