import math

import pytest
import torch

from nets import build_criterion, build_model
from nets.losses import LossOptions
from nets.yolox.loss import BOX_WEIGHT
from nets.yolox.simota import assign
from tests.nets.test_simota import padded, random_boxes, reference_iou
from tests.nets.test_yolov4_loss import assert_close, cross_entropy, reference_box_loss, reference_objectness, values

STRIDES = (8, 16, 32)
PARTS = ["loss", "box", "obj", "cls", "l1", "count"]


def criterion_for(num_classes, **options):
    with torch.device("meta"):  # decoding needs no weights
        model = build_model("yolox_nano", num_classes)
    return build_criterion(model, LossOptions(**options))


def raw_maps(batch, num_classes, size_hw=(32, 32), fill=torch.zeros):
    return [fill(batch, 5 + num_classes, size_hw[0] // stride, size_hw[1] // stride) for stride in STRIDES]


def reference_loss(criterion, raw, targets):
    """The loss from its definition, one cell at a time; which cells learn which box is tested in test_simota.py."""
    decoded = criterion.decode(raw)
    map_sizes = [level.shape[-2:] for level in raw]
    positive, box_index = assign(decoded, targets, map_sizes, STRIDES)
    options, sums = criterion.options, dict.fromkeys(("box", "obj", "cls", "l1"), 0.0)
    for image, level_maps in enumerate(zip(*raw, strict=True)):
        cell = 0
        for stride, level in zip(STRIDES, level_maps, strict=True):
            for row in range(level.shape[1]):
                for column in range(level.shape[2]):
                    dx, dy, log_w, log_h, objectness, *classes = level[:, row, column].tolist()
                    learns = positive[image, cell].item()
                    sums["obj"] += reference_objectness(objectness, learns, options)
                    if learns:
                        x1, y1, x2, y2, label = targets[image, box_index[image, cell]].tolist()
                        box_xyxy = decoded.boxes_xyxy[image, cell].tolist()
                        iou = reference_iou(box_xyxy, (x1, y1, x2, y2))
                        loss = reference_box_loss(options.iou_type or "iou", box_xyxy, (x1, y1, x2, y2))
                        sums["box"] += BOX_WEIGHT * loss
                        for index, logit in enumerate(classes):
                            share = (index == label) * (1 - options.label_smoothing)
                            share += options.label_smoothing / len(classes)
                            sums["cls"] += cross_entropy(logit, share * iou)
                        wanted_dx, wanted_dy = (x1 + x2) / 2 / stride - column, (y1 + y2) / 2 / stride - row
                        wanted_w, wanted_h = (math.log(side / stride + 1e-8) for side in (x2 - x1, y2 - y1))
                        sums["l1"] += abs(dx - wanted_dx) + abs(dy - wanted_dy)
                        sums["l1"] += abs(log_w - wanted_w) + abs(log_h - wanted_h)
                    cell += 1
    count = [positive.sum().item(), len(targets)]
    means = {name: value / max(count) for name, value in sums.items()}
    return {"loss": sum(means.values()), **means, "count": count}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_classes", [1, 3])
def test_random_cases(seed, num_classes):
    """Prevents any term from losing its weight, its mask or its divisor, or from taking another cell's box."""
    torch.manual_seed(seed)
    raw = raw_maps(3, num_classes, (96, 64), torch.randn)
    targets = padded(*(random_boxes(count, 96, 64, num_classes) for count in (6, 0, 2)))
    targets[0, 2, 2:4] = targets[0, 2, :2]
    criterion = criterion_for(num_classes)
    assert_close(values(criterion(raw, targets)), reference_loss(criterion, raw, targets))


@pytest.mark.parametrize(
    "options",
    [{"iou_type": "ciou"}, {"iou_type": "siou"}, {"label_smoothing": 0.1}, {"focal_loss": True, "focal_alpha": 0.4}],
    ids=str,
)
def test_options_have_their_effect(options):
    """Prevents an option of train.py from being ignored by this network, or from changing another term."""
    raw = raw_maps(2, 3, (96, 64), torch.randn)
    targets = padded(random_boxes(6, 96, 64, 3), random_boxes(1, 96, 64, 3))
    criterion = criterion_for(3, **options)
    found, usual = values(criterion(raw, targets)), values(criterion_for(3)(raw, targets))
    assert_close(found, reference_loss(criterion, raw, targets))
    changed = {"iou_type": "box", "label_smoothing": "cls", "focal_loss": "obj"}[next(iter(options))]
    assert {name for name in PARTS if found[name] != usual[name]} == {"loss", changed}


def test_weights_of_maps_are_an_error():
    """Prevents map_weights, which this network has no use for, from being ignored in silence."""
    with pytest.raises(ValueError) as error:
        criterion_for(3, map_weights=(1.0, 1.0, 1.0))
    assert str(error.value) == "map_weights concerns networks with anchors, and yolox_nano has none: set it to []."
    assert criterion_for(3, map_weights=()).options.map_weights == ()


def hand_made_case():
    """One box 4, 4, 12, 12 of class 1; cell (1, 1) at stride 8 predicts 4, 0, 12, 16: IoU 64 / 128 = 0.5. The IoUs of
    all candidates sum to less than 1, so this cell alone is positive. Its objectness and class 1 have probability 0.75.
    """
    raw = raw_maps(1, num_classes=2)
    raw[0][0, :, 1, 1] = torch.tensor([0, 0, 0, math.log(2), math.log(3), 0, math.log(3)])
    return raw, padded([(4, 4, 12, 12, 1)])


def test_hand_made_case():
    """Prevents a change of any weight or target: box 5 * (1 - 0.5 ** 2); objectness 20 ln 2 - ln 0.75 over 21 cells;
    class cross entropy of 0.75 against the IoU 0.5, plus ln 2 of the other class; L1 |ln 2 - ln 1|."""
    raw, targets = hand_made_case()
    parts = {"box": 3.75, "obj": 14.150626, "cls": 1.530135, "l1": 0.693147}
    assert_close(values(criterion_for(2)(raw, targets)), {"loss": sum(parts.values()), **parts, "count": [1, 1]})


def test_class_term_moves_no_box():
    """Prevents the IoU that serves as class target from pulling boxes away to make it easier to reach."""
    raw, targets = hand_made_case()
    raw = [level.requires_grad_() for level in raw]
    criterion_for(2)(raw, targets)["cls"].backward()
    assert raw[0].grad[0, :, 1, 1].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5, 0.25])


def test_images_without_boxes_teach_objectness_only():
    """Prevents division by zero positives, and background images from being skipped: 21 cells * ln 2 for each of two
    images."""
    losses = values(criterion_for(2)(raw_maps(2, 2), padded([], [])))
    expected = {"loss": 14.556091, "box": 0, "obj": 14.556091, "cls": 0, "l1": 0, "count": [0, 2]}
    assert_close(losses, expected, rel=1e-6)


def test_few_positives_are_divided_by_the_images():
    """Prevents a batch with hardly a box from pushing harder than others: one positive in four images."""
    raw, targets = hand_made_case()
    raw = [level.repeat(4, 1, 1, 1) for level in raw]
    targets = torch.cat((targets, padded([], [], [])[:, :1].expand(-1, targets.shape[1], -1)))
    losses = values(criterion_for(2)(raw, targets))
    assert losses["count"] == [1, 4]
    assert losses["box"] == pytest.approx(3.75 / 4)
    assert losses["cls"] == pytest.approx(1.530135 / 4, rel=1e-5)


def test_padding_rows_change_nothing():
    """Prevents the loss from depending on the other images of a batch through the padding."""
    raw = raw_maps(2, 3, (64, 64), torch.randn)
    targets = padded(random_boxes(4, 64, 64, 3), random_boxes(1, 64, 64, 3))
    longer = torch.cat((targets, padded([], [])[:, :1].expand(-1, 30, -1)), dim=1)
    criterion = criterion_for(3)
    assert values(criterion(raw, targets)) == values(criterion(raw, longer))


@pytest.mark.parametrize(
    ("scale", "boxes"),
    [
        pytest.param(1.0, [(20, 20, 20, 20, 0), (8, 30, 8, 50, 1), (30, 40, 60, 40, 2)], id="boxes without area"),
        pytest.param(1.0, [(64, 64, 64, 64, 0), (0, 0, 0, 0, 1)], id="points in the corners"),
        pytest.param(0.0, [(16, 16, 24, 24, 0)], id="all predictions equal"),
        pytest.param(1e4, [(4, 4, 40, 40, 1), (10, 10, 10, 20, 0)], id="huge logits"),
        pytest.param(1e4, [], id="huge logits, no boxes"),
    ],
)
def test_loss_and_gradient_stay_finite(scale, boxes):
    """Prevents one odd box or one wild prediction from turning every weight into NaN."""
    raw = [(level * scale).requires_grad_() for level in raw_maps(2, 3, (64, 64), torch.randn)]
    losses = criterion_for(3)(raw, padded(boxes, []))
    losses["loss"].backward()
    assert all(value.isfinite().all() for value in losses.values())
    assert all(level.grad.isfinite().all() for level in raw)
    assert all(level.grad.abs().sum() > 0 for level in raw)


def test_low_precision_maps_give_float32_losses():
    """Prevents mixed precision from deciding IoU and L1 in bfloat16."""
    raw = [level.bfloat16() for level in raw_maps(1, 2, (64, 64), torch.randn)]
    losses = criterion_for(2)(raw, padded([(8, 8, 40, 40, 1)]))
    assert list(losses) == PARTS
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert values(losses) == values(criterion_for(2)([level.float() for level in raw], padded([(8, 8, 40, 40, 1)])))


def test_step_never_waits_for_the_device(monkeypatch):
    """Prevents host synchronisation. Tensors on the meta device have shapes but no values, so .item(), nonzero() and
    boolean indexing raise; torch.tensor(list, device="cuda") copies from pageable memory, which waits as well."""
    criterion = criterion_for(3)
    targets = padded(random_boxes(4, 64, 64, 3), []).to("meta")
    raw = [level.to("meta").requires_grad_() for level in raw_maps(2, 3, (64, 64))]

    def fail(*_args, **_kwargs):
        raise AssertionError(
            "torch.tensor copies from the host in every step; make it on the device, as torch.arange does"
        )

    monkeypatch.setattr(torch, "tensor", fail)
    losses = criterion(raw, targets)
    losses["loss"].backward()
    assert [tuple(value.shape) for value in losses.values()] == [(), (), (), (), (), (2,)]
    assert [level.grad.shape for level in raw] == [level.shape for level in raw]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_never_waits_for_the_gpu():
    """Prevents what the meta device cannot show: synchronisation inside a CUDA operator."""
    criterion = criterion_for(3)
    targets = padded(random_boxes(4, 64, 64, 3), []).cuda()
    raw = [level.cuda().requires_grad_() for level in raw_maps(2, 3, (64, 64))]
    criterion(raw, targets)["loss"].backward()  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(raw, targets)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
