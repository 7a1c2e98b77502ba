import math

import pytest
import torch

from nets.yolox.simota import assign
from tests.nets.decoded import packed, unpacked

STRIDES = (8, 16, 32)


def sizes_of_maps(height, width):
    return [(height // stride, width // stride) for stride in STRIDES]


def reference_iou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area_a, area_b = (max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b))
    return overlap / max(area_a + area_b - overlap, 1e-7)


def reference_cost(prediction, label, iou):
    """Cross entropy of sqrt(class * objectness) against the one-hot class, and 3 * -log IoU."""
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in prediction[4:]]
    cost = -3 * math.log(iou + 1e-8)
    for index, probability in enumerate(sigmoid[1:]):
        p = math.sqrt(probability * sigmoid[0])
        cost -= math.log(p if index == label else 1 - p)
    return cost


def reference_assign(decoded, targets, map_sizes):
    """SimOTA from its definition, one box and one cell at a time: for each image the list of N owners, None if free."""
    cells = [
        (row, column, stride)
        for (height, width), stride in zip(map_sizes, STRIDES, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    owners = []
    for predictions, boxes in zip(packed(decoded).tolist(), targets.tolist(), strict=True):
        taken = {}  # cell: (cost, box)
        for box, (x1, y1, x2, y2, label) in enumerate(boxes):
            candidates = []
            for cell, (row, column, stride) in enumerate(cells):
                rows_away = row - math.floor((y1 + y2) / 2 / stride)
                columns_away = column - math.floor((x1 + x2) / 2 / stride)
                if label >= 0 and abs(rows_away) <= 1 and abs(columns_away) <= 1:
                    iou = reference_iou(predictions[cell], (x1, y1, x2, y2))
                    candidates.append((reference_cost(predictions[cell], label, iou), cell, iou))
            k = max(1, int(sum(sorted((iou for _, _, iou in candidates), reverse=True)[:10])))
            for cost, cell, _ in sorted(candidates)[:k]:
                if cell not in taken or cost < taken[cell][0]:
                    taken[cell] = (cost, box)
        owners.append([taken[cell][1] if cell in taken else None for cell in range(len(cells))])
    return owners


def owners_of(assignment):
    """An Assignment in the reference's form."""
    return [
        [box if positive else None for positive, box in zip(positives, boxes, strict=True)]
        for positives, boxes in zip(assignment.positive.tolist(), assignment.box_index.tolist(), strict=True)
    ]


def padded(*images):
    """Lists of (x1, y1, x2, y2, class) per image -> targets (B, G, 5), with one padding row more than needed."""
    targets = torch.zeros(len(images), max(len(boxes) for boxes in images) + 1, 5)
    targets[..., 4] = -1
    for row, boxes in zip(targets, images, strict=True):
        row[: len(boxes)] = torch.tensor(boxes, dtype=torch.float32).view(-1, 5)
    return targets


def random_boxes(count, height, width, num_classes):
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    labels = torch.randint(num_classes, (count, 1)).float()
    return torch.cat((corners.amin(1), corners.amax(1), labels), dim=1).tolist()


def random_predictions(targets, map_sizes, num_classes, noise):
    """Decoded predictions that hit the boxes of their image more or less, so that k takes all values from 1 to 10."""
    cells = sum(height * width for height, width in map_sizes)
    box = torch.randint(targets.shape[1], (len(targets), cells, 1)).expand(-1, -1, 4)
    boxes_xyxy = targets[..., :4].gather(1, box)
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=8).repeat(1, 1, 2)
    boxes_xyxy = boxes_xyxy + torch.randn_like(boxes_xyxy) * noise * sides
    return unpacked(torch.cat((boxes_xyxy, 2 * torch.randn(len(targets), cells, 1 + num_classes)), dim=-1))


def check(targets, size_hw, num_classes, noise=0.1):
    """Compare with the reference on random predictions; returns the owners of the cells."""
    map_sizes = sizes_of_maps(*size_hw)
    decoded = random_predictions(targets, map_sizes, num_classes, noise)
    owners = owners_of(assign(decoded, targets, map_sizes, STRIDES))
    assert owners == reference_assign(decoded, targets, map_sizes)
    return owners


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("size_hw", [(32, 32), (96, 64), (160, 224)])
@pytest.mark.parametrize("seed", range(4))
def test_random_cases(seed, size_hw, num_classes):
    """Prevents any departure of the vectorised assignment from the definition, in images with different box counts."""
    torch.manual_seed(seed)
    images = [random_boxes(count, *size_hw, num_classes) for count in (5, 0, 1, 12)]
    owners = check(padded(*images), size_hw, num_classes, noise=(0.02, 0.1, 0.2, 0.5)[seed])
    assert [any(box is not None for box in image) for image in owners] == [True, False, True, True]


HAND_MADE = {
    "one": [(10, 12, 50, 40, 2)],
    "two in the same cell": [(18, 18, 22, 22, 0), (2, 10, 38, 32, 1)],
    "identical": [(8, 8, 40, 40, 1), (8, 8, 40, 40, 1), (8, 8, 40, 40, 1)],
    "identical but for the class": [(8, 8, 40, 40, 1), (8, 8, 40, 40, 2)],
    "border": [(0, 20, 3, 44, 0), (61, 20, 64, 44, 1), (20, 0, 44, 2, 2), (20, 95, 44, 96, 0)],
    "corners": [(0, 0, 4, 4, 0), (60, 0, 64, 4, 1), (0, 92, 4, 96, 2), (60, 92, 64, 96, 0)],
    "up to x = W": [(0, 0, 64, 96, 0), (16, 8, 64, 24, 1)],
    "on x = W and y = H": [(64, 96, 64, 96, 0), (64, 8, 64, 24, 1), (8, 96, 24, 96, 2)],
    "no area": [(20, 20, 20, 20, 0), (8, 30, 8, 50, 1), (30, 40, 60, 40, 2), (10, 10, 40, 40, 0)],
    "outside the image": [(100, 120, 140, 160, 0), (8, 8, 30, 30, 1)],
}


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_hand_made_cases(name, noise):
    """Prevents cells beyond the border from wrapping to the next row, and boxes that share cells or have no area from
    getting lost or winning twice."""
    owners = check(padded(HAND_MADE[name], []), (96, 64), num_classes=3, noise=noise)
    assert any(box is not None for box in owners[0])
    assert owners[1] == [None] * len(owners[1])


def test_no_boxes():
    """Prevents padding from owning cells."""
    (owners,) = check(padded([]), (64, 64), num_classes=3)
    assert owners == [None] * 84


def test_120_boxes_in_one_image():
    """Prevents conflicts from being resolved in pairs only: here many boxes want the same cells."""
    owners, others = check(
        padded(random_boxes(120, 160, 160, 3), random_boxes(2, 160, 160, 3)), (160, 160), 3, noise=0.3
    )
    assert len(set(owners) - {None}) > 50
    assert set(others) == {None, 0, 1}


def test_padding_rows_in_between():
    """Prevents a box from being numbered by its place among the real boxes instead of its row."""
    targets = padded([(8, 8, 40, 40, 1), (30, 30, 60, 60, 0)], [(10, 10, 30, 30, 2)])
    targets = targets[:, [2, 0, 2, 1]]
    first, second = check(targets, (64, 64), num_classes=3)
    assert set(first) == {None, 1, 3}
    assert set(second) == {None, 1}


def test_at_most_ten_cells_per_box():
    """Prevents dynamic k from summing more than the ten best IoUs: all 27 candidates predict this box exactly."""
    targets = padded([(40, 40, 88, 88, 0)])
    (owners,) = check(targets, (128, 128), num_classes=2, noise=0)
    assert owners.count(0) == 10


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_cheaper_box_gets_the_cell(order):
    """Prevents the first or last of two boxes from winning whatever they cost. One cell predicts class 1 at the boxes'
    place, all others lie elsewhere; k is 1 for both, so both want that cell."""
    decoded = torch.tensor([-100.0, -100.0, -90.0, -90.0, 0.0, 0.0, 0.0]).repeat(1, 21, 1)
    decoded[0, 5] = torch.tensor([4.0, 4.0, 12.0, 12.0, 3.0, -3.0, 3.0])
    targets = padded([(4, 4, 12, 12, order[0]), (4, 4, 12, 12, order[1])])
    positive, box_index = assign(unpacked(decoded), targets, sizes_of_maps(32, 32), STRIDES)
    assert positive.nonzero().tolist() == [[0, 5]]
    assert box_index[0, 5] == order.index(1)


def test_extreme_logits():
    """Prevents log(0) from making all costs infinite or NaN, which would leave the box without any cell."""
    boxes_xyxy = torch.tensor([0.0, 0.0, 32.0, 32.0]).repeat(3, 21, 1)
    logits = torch.tensor([1e4, -1e4, 60.0]).view(3, 1, 1).expand(3, 21, 3)
    targets = padded(*[[(0, 0, 32, 32, 0)]] * 3)
    decoded = unpacked(torch.cat((boxes_xyxy, logits), -1))
    positive, _ = assign(decoded, targets, sizes_of_maps(32, 32), STRIDES)
    assert positive.sum(1).tolist() == [10, 10, 10]
