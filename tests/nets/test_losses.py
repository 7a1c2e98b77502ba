import math

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou_loss

from nets import build_criterion, build_model, losses
from nets.losses import (
    IOU_TYPES,
    Criterion,
    LossOptions,
    box_loss,
    class_loss,
    class_targets,
    objectness_loss,
    overlapping,
    resolve_conflicts,
    scale_losses,
)

INF = math.inf

# predicted, target, IoU, then the loss of each type, worked out by hand. In turn: beside each other; other sides, one
# above the other; moved along the diagonal; apart; equal.
LITERAL = [
    ((0, 0, 4, 4), (2, 0, 6, 4), 1 / 3, {"iou": 0.8888889, "ciou": 0.7435897, "siou": 0.7662980}),
    ((0, 0, 4, 2), (1, 1, 3, 5), 1 / 7, {"iou": 0.9795918, "ciou": 0.9821832, "siou": 1.0180370}),
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, {"iou": 0.9795918, "ciou": 0.9682540, "siou": 0.9623035}),
    ((0, 0, 2, 2), (6, 3, 10, 6), 0.0, {"iou": 1.0, "ciou": 1.4504337, "siou": 1.4051156}),
    ((3, 5, 8, 9), (3, 5, 8, 9), 1.0, {"iou": 0.0, "ciou": 0.0, "siou": 0.0}),
]


def random_pairs(count):
    """Predicted and target boxes (count, 4) that overlap more often than not."""
    corners = torch.rand(count, 2, 2) * 40
    target = torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)
    return (target + torch.randn(count, 4) * 2).clamp(max=60) + torch.tensor([0.0, 0.0, 8.0, 8.0]), target


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize(("predicted", "target", "iou", "losses"), LITERAL)
def test_box_loss_literal_values(iou_type, predicted, target, iou, losses):
    """Prevents a wrong constant, exponent or axis in any of the box losses, and another IoU than the plain one."""
    loss, overlap = box_loss(iou_type, torch.tensor(predicted).float(), torch.tensor(target).float())
    assert loss.item() == pytest.approx(losses[iou_type], abs=1e-6)
    assert overlap.item() == pytest.approx(iou, abs=1e-6)


def siou_by_angles(predicted, target):
    """SIoU of two boxes as Gevorgyan writes it: with the angle of the line between the centres."""
    (px1, py1, px2, py2), (tx1, ty1, tx2, ty2) = predicted, target
    overlap = max(min(px2, tx2) - max(px1, tx1), 0) * max(min(py2, ty2) - max(py1, ty1), 0)
    sides = [(px2 - px1, tx2 - tx1), (py2 - py1, ty2 - ty1)]
    iou = overlap / (sides[0][0] * sides[1][0] + sides[0][1] * sides[1][1] - overlap)
    offsets = [(tx1 + tx2 - px1 - px2) / 2, (ty1 + ty2 - py1 - py2) / 2]
    angle = math.asin(abs(offsets[1]) / math.hypot(*offsets))
    gamma = 2 - (1 - 2 * math.sin(angle - math.pi / 4) ** 2)
    enclosing = [max(px2, tx2) - min(px1, tx1), max(py2, ty2) - min(py1, ty1)]
    distance = sum(1 - math.exp(-gamma * (o / e) ** 2) for o, e in zip(offsets, enclosing, strict=True))
    shape = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** 4 for a, b in sides)
    return 1 - iou + (distance + shape) / 2


def test_siou_equals_its_definition():
    """Prevents the shortcut sin(2 * angle) from departing from the paper's angle cost."""
    predicted, target = random_pairs(200)
    expected = [siou_by_angles(*pair) for pair in zip(predicted.tolist(), target.tolist(), strict=True)]
    assert box_loss("siou", predicted, target)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_ciou_agrees_with_torchvision():
    """Prevents a wrong value, and a gradient through the weight of the aspect ratio, which the paper holds constant."""
    predicted, target = random_pairs(200)
    mine, theirs = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
    loss, expected = box_loss("ciou", mine, target)[0], complete_box_iou_loss(theirs, target)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


DOT, LINE, BOX, FAR = (20, 20, 20, 20), (8, 30, 8, 50), (10, 10, 40, 30), (500, 400, 520, 440)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("predicted", [DOT, LINE, BOX, FAR, (0, 0, 1e6, 1e6), (20, 20, 20.0001, 1e6)])
@pytest.mark.parametrize("target", [DOT, LINE, BOX, (30, 40, 60, 40), (0, 0, 0, 0)])
def test_box_loss_is_finite_for_boxes_without_area(iou_type, predicted, target):
    """Prevents one box without area, or one prediction that has shrunk to a point, from turning weights into NaN."""
    boxes_xyxy = torch.tensor([predicted], dtype=torch.float32, requires_grad=True)
    loss, iou = box_loss(iou_type, boxes_xyxy, torch.tensor([target], dtype=torch.float32))
    loss.sum().backward()
    assert loss.isfinite().all() and iou.isfinite().all()
    assert boxes_xyxy.grad.isfinite().all()


@pytest.mark.parametrize("iou_type", ["ciou", "siou"])
def test_boxes_that_do_not_touch_are_drawn_together(iou_type):
    """Prevents a prediction that misses its box from learning nothing, which is what these losses are for."""
    boxes_xyxy = torch.tensor([[0.0, 0.0, 10.0, 10.0]], requires_grad=True)
    box_loss(iou_type, boxes_xyxy, torch.tensor([[30.0, 0.0, 40.0, 10.0]]))[0].sum().backward()
    assert (boxes_xyxy.grad[0, 0] + boxes_xyxy.grad[0, 2]).item() < -1e-3


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_box_loss_broadcasts(iou_type):
    """Prevents several predictions of one box from needing copies of it, or being compared with another box."""
    predicted, target = random_pairs(6)
    predicted = predicted.view(2, 3, 4)
    target = target[:2, None]
    loss, iou = box_loss(iou_type, predicted, target)
    expected, expected_iou = box_loss(iou_type, predicted, target.expand(-1, 3, -1).contiguous())
    assert loss.shape == iou.shape == (2, 3)
    assert torch.equal(loss, expected) and torch.equal(iou, expected_iou)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_the_returned_overlap_takes_no_gradient(iou_type):
    """Prevents the IoU that serves as class target from pulling boxes away to make it easier to reach."""
    loss, iou = box_loss(iou_type, torch.rand(3, 4, requires_grad=True), torch.rand(3, 4))
    assert loss.requires_grad and not iou.requires_grad


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_box_loss_without_boxes(iou_type):
    """Prevents a batch without boxes from failing or from a NaN sum."""
    loss, iou = box_loss(iou_type, torch.zeros(2, 0, 3, 4), torch.zeros(2, 0, 1, 4))
    assert loss.shape == iou.shape == (2, 0, 3)
    assert loss.sum() == 0


def test_objectness_literal_values():
    """Prevents a wrong side of alpha or a gamma that is not applied. Probabilities 0.75, 0.75, 0.5, 0.1.

    Focal with alpha 0.25, gamma 2: 0.25 * 0.25^2 * -ln 0.75; 0.75 * 0.75^2 * -ln 0.25; 0.25 * 0.5^2 * ln 2;
    0.75 * 0.1^2 * -ln 0.9. With alpha 0.6, gamma 1: 0.6 * 0.25 * ..., 0.4 * 0.75 * ..., 0.6 * 0.5 ..., 0.4 * 0.1 ...
    """
    logits = torch.tensor([math.log(3), math.log(3), 0.0, -math.log(9)])
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0])
    expected = {
        LossOptions(): [0.2876821, 1.3862944, 0.6931472, 0.1053605],
        LossOptions(focal_alpha=0.6, focal_gamma=1.0): [0.2876821, 1.3862944, 0.6931472, 0.1053605],
        LossOptions(focal_loss=True): [0.0044950, 0.5848429, 0.0433217, 0.0007902],
        LossOptions(focal_loss=True, focal_alpha=0.6, focal_gamma=1.0): [0.0431523, 0.4158883, 0.2079442, 0.0042144],
    }
    for options, values in expected.items():
        assert objectness_loss(logits, targets, options).tolist() == pytest.approx(values, abs=1e-6)
    assert objectness_loss(logits[:0], targets[:0], LossOptions(focal_loss=True)).shape == (0,)


def test_class_targets_literal_values():
    """Prevents smoothing that takes more from the true class than it gives to all, and padding (-1), or what a gather
    left over, from being an index error."""
    classes = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    assert class_targets(classes, 3, 0.0).tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    smooth = class_targets(torch.tensor([1.0]), 4, 0.2)
    assert smooth[0].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])
    assert class_targets(torch.tensor([0.0]), 1, 0.2)[0].tolist() == pytest.approx([1.0])
    assert class_targets(torch.zeros(2, 0), 3, 0.1).shape == (2, 0, 3)
    assert smooth.dtype == torch.float32


def test_class_loss_literal_values():
    """Prevents a mean over classes in the place of the sum: -ln 0.75 - ln 0.25 + ln 2, for soft targets as well."""
    logits = torch.tensor([math.log(3), math.log(3), 0.0]).expand(2, 3)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    assert class_loss(logits, targets).tolist() == pytest.approx([2.3671236, 2.3671236], abs=1e-6)
    assert class_loss(logits[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize(("positives", "images", "divisor"), [(5, 2, 5), (1, 4, 4), (0, 3, 3), (2, 2, 2), (0, 1, 1)])
def test_scale_losses_literal_values(positives, images, divisor):
    """Prevents division by zero, and a batch with hardly a box from pushing harder than the others."""
    mask = torch.zeros(images, 10, dtype=torch.bool)
    mask.view(-1)[torch.randperm(images * 10)[:positives]] = True
    losses = scale_losses({"box": torch.tensor(6.0), "obj": torch.tensor(3.0), "cls": torch.tensor(0.0)}, mask)
    assert list(losses) == ["loss", "box", "obj", "cls", "count"]
    assert losses["count"].tolist() == [positives, images]
    values = [losses[part].item() for part in ("loss", "box", "obj", "cls")]
    assert values == pytest.approx([9 / divisor, 6 / divisor, 3 / divisor, 0])
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_parts_of_a_batch_sum_up_to_it():
    """Prevents an accumulated step from differing from the step of the whole batch: counts tell how to undo the scale.

    The first part has more positives than images, the second fewer: no average of the two is the right one.
    """
    masks = [torch.zeros(2, 10, dtype=torch.bool), torch.zeros(4, 10, dtype=torch.bool)]
    masks[0][0, :7] = True
    masks[1][3, 5] = True
    sums = [
        {"box": torch.tensor(3.5), "obj": torch.tensor(9.0)},
        {"box": torch.tensor(0.25), "obj": torch.tensor(20.0)},
    ]
    parts = [scale_losses(part, mask) for part, mask in zip(sums, masks, strict=True)]
    whole = scale_losses({"box": torch.tensor(3.75), "obj": torch.tensor(29.0)}, torch.cat(masks))
    divisor = sum(part["count"] for part in parts).max()
    for name in ("loss", "box", "obj"):
        joined = sum(part[name] * part["count"].max() for part in parts) / divisor
        assert joined.item() == pytest.approx(whole[name].item())
    assert whole["count"].tolist() == [8, 6]
    assert whole["box"].item() == pytest.approx(3.75 / 8)


@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.5, 0.7])
def test_overlapping_agrees_with_torchvision(min_iou):
    """Prevents a wrong threshold in the form without a quotient, and padding from hiding negatives."""
    pairs = [random_pairs(30) for _ in range(2)]
    predicted = torch.stack([pair[0] for pair in pairs])
    targets = torch.full((2, 12, 5), -1.0)
    for image, count in enumerate((12, 5)):
        targets[image, :, :4] = pairs[image][1][:12]
        targets[image, :count, 4] = 1
    expected = torch.stack(
        [(box_iou(predicted[i], targets[i, :count, :4]) > min_iou).any(1) for i, count in enumerate((12, 5))]
    )
    assert torch.equal(overlapping(predicted, targets, min_iou), expected)
    assert 0 < expected.sum() < expected.numel()


def test_overlapping_takes_few_images_at_a_time(monkeypatch):
    """Prevents tables of all predictions and boxes of a batch, which took 2 GiB for 500 boxes an image, and parts that
    come back in another order."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 40, 2, generator=random) * 20
    predicted = torch.cat((corner, corner + 8), -1)
    targets = torch.cat((predicted[:, :6], torch.zeros(5, 6, 1)), -1)
    whole, sizes, part = overlapping(predicted, targets, 0.5), [], losses._overlapping
    monkeypatch.setattr(losses, "MAX_OVERLAPS", 40 * 6 * 2 + 1)
    monkeypatch.setattr(losses, "_overlapping", lambda *given: sizes.append(len(given[0])) or part(*given))
    assert torch.equal(overlapping(predicted, targets, 0.5), whole) and 0 < whole.sum() < whole.numel()
    assert sizes == [2, 2, 1]


def test_overlapping_odd_boxes():
    """Prevents boxes without area from hiding negatives, and an overlap of just the limit from counting as more."""
    targets = torch.tensor([[[0.0, 0, 4, 4, 0], [9, 9, 9, 9, 0], [20, 20, 24, 24, -1]]])
    predicted = torch.tensor([[[0.0, 0, 4, 2], [9, 9, 9, 9], [20, 20, 24, 24], [0, 0, 4, 2.1], [6, 6, 2, 2]]])
    assert overlapping(predicted, targets, 0.5).tolist() == [[False, False, False, True, False]]
    before = predicted.clone()
    overlapping(predicted, targets, 0.5)
    assert torch.equal(predicted, before)
    assert overlapping(predicted, targets[:, :0], 0.5).tolist() == [[False] * 5]


def test_a_criterion_asks_for_no_further_inputs():
    """Prevents a training step from handing YOLO's networks anything beside the images."""
    assert Criterion().extra_inputs(torch.zeros(2, 3, 5), torch.zeros(2, 3, 8, 8)) == ()
    with torch.device("meta"):
        criteria = [build_criterion(build_model(name, 2)) for name in ("yolox_nano", "yolov4_tiny")]
    assert all(isinstance(criterion, Criterion) for criterion in criteria)
    assert [criterion.extra_inputs(torch.zeros(2, 3, 5), torch.zeros(2, 3, 8, 8)) for criterion in criteria] == [(), ()]


def resolve(cost, cells, num_cells):
    """The result for one image as two plain lists."""
    cost, cells = torch.tensor(cost), torch.tensor(cells)
    positive, box_index = resolve_conflicts(cost[None], cells[None], num_cells)
    return positive[0].tolist(), box_index[0].tolist()


def test_resolve_conflicts_literal_values():
    """Prevents a cell from going to the dearer box, and cells that nobody wants from learning something.

    Cell 1 is wanted by boxes 0 (cost 2) and 1 (cost 1), cell 3 by all three at cost 5, cell 4 by nobody.
    """
    cost = [[2.0, 5.0, INF], [1.0, 5.0, 0.5], [INF, 5.0, INF]]
    cells = [[1, 3, 4], [1, 3, 0], [1, 3, 4]]
    positive, box_index = resolve(cost, cells, 6)
    assert positive == [True, True, False, True, False, False]
    assert box_index == [1, 1, 0, 0, 0, 0]


def test_first_of_equals_wins_in_any_order_of_cells():
    """Prevents equal boxes from sharing a cell, or from winning by the order in which cells are listed."""
    assert resolve([[3.0, 3.0], [3.0, 3.0]], [[2, 0], [0, 2]], 3) == ([True, False, True], [0, 0, 0])
    assert resolve([[INF, 3.0], [3.0, 3.0]], [[2, 0], [0, 2]], 3) == ([True, False, True], [0, 0, 1])


def test_negative_costs_are_compared_with_their_sign():
    """Prevents costs of minus an overlap from being compared by size alone: -0.75 is cheaper than -0.5."""
    assert resolve([[-0.5], [-0.75]], [[0], [0]], 1) == ([True], [1])


def test_cells_of_two_images_are_apart():
    """Prevents a box of one image from winning the same cell of another image."""
    cost = torch.tensor([[[1.0], [INF]], [[INF], [2.0]]])
    positive, box_index = resolve_conflicts(cost, torch.ones(2, 2, 1, dtype=torch.int64), 2)
    assert positive.tolist() == [[False, True], [False, True]]
    assert box_index.tolist() == [[0, 0], [0, 1]]


def test_no_cell_is_wanted():
    """Prevents images without boxes, or with padding only, from giving cells an owner or an error."""
    assert resolve([[INF, INF]], [[0, 1]], 3) == ([False] * 3, [0] * 3)
    positive, box_index = resolve_conflicts(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4, dtype=torch.int64), 3)
    assert positive.tolist() == [[False] * 3] * 2
    assert box_index.tolist() == [[0] * 3] * 2
