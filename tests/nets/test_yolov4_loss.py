import math

import pytest
import torch

from nets import build_criterion, build_model
from nets.losses import IOU_TYPES, LossOptions
from nets.yolov4.loss import BOX_WEIGHT
from tests.nets.test_simota import padded, random_boxes, reference_iou
from tests.nets.test_yolov4_matcher import reference_match

PARTS = ["loss", "box", "obj", "cls", "count"]
# Small enough for plain loops; coarse stride first, as people write it.
RULE = {
    "anchors": [[6, 8], [14, 9], [20, 24], [40, 30]],
    "anchors_mask": [[2, 3], [0, 1]],
    "scale_x_y": [1.2, 1.05],
}
STRIDES = (16, 32)


def small_model(num_classes):
    """YOLOv4-tiny with other anchors; decoding needs no weights."""
    with torch.device("meta"):
        model = build_model("yolov4_tiny", num_classes, decode_rule=RULE)
    model.anchors = torch.tensor([[[6.0, 8], [14, 9]], [[20, 24], [40, 30]]])
    return model


def criterion_for(num_classes, **options):
    return build_criterion(small_model(num_classes), LossOptions(**options))


def raw_maps(batch, num_classes, size_hw=(64, 64), fill=torch.zeros):
    return [fill(batch, 2 * (5 + num_classes), size_hw[0] // stride, size_hw[1] // stride) for stride in STRIDES]


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def cross_entropy(logit, target):
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def reference_box_loss(iou_type, predicted, target):
    """The box losses as their papers write them, for boxes with area."""
    iou = reference_iou(predicted, target)
    (px1, py1, px2, py2), (tx1, ty1, tx2, ty2) = predicted, target
    (pw, ph), (tw, th) = (px2 - px1, py2 - py1), (tx2 - tx1, ty2 - ty1)
    offset_x, offset_y = (tx1 + tx2 - px1 - px2) / 2, (ty1 + ty2 - py1 - py2) / 2
    enclosing_w, enclosing_h = max(px2, tx2) - min(px1, tx1), max(py2, ty2) - min(py1, ty1)
    if iou_type == "iou":
        return 1 - iou**2
    if iou_type == "ciou":
        v = 4 / math.pi**2 * (math.atan(tw / th) - math.atan(pw / ph)) ** 2
        distance = (offset_x**2 + offset_y**2) / (enclosing_w**2 + enclosing_h**2)
        return 1 - iou + distance + (v**2 / (1 - iou + v) if v else 0)
    angle = math.asin(abs(offset_y) / math.hypot(offset_x, offset_y))
    gamma = 1 + 2 * math.sin(angle - math.pi / 4) ** 2
    shares = ((offset_x / enclosing_w) ** 2, (offset_y / enclosing_h) ** 2)
    distance = sum(1 - math.exp(-gamma * share) for share in shares)
    shape = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** 4 for a, b in ((pw, tw), (ph, th)))
    return 1 - iou + (distance + shape) / 2


def reference_objectness(logit, learns, options):
    loss = cross_entropy(logit, float(learns))
    if not options.focal_loss:
        return loss
    right = sigmoid(logit) if learns else 1 - sigmoid(logit)
    return (options.focal_alpha if learns else 1 - options.focal_alpha) * (1 - right) ** options.focal_gamma * loss


def reference_decode(numbers, row, column, stride, scale, anchor):
    """tx, ty, tw, th of one anchor of one cell -> x1, y1, x2, y2."""
    centre_x = (column + sigmoid(numbers[0]) * scale - (scale - 1) / 2) * stride
    centre_y = (row + sigmoid(numbers[1]) * scale - (scale - 1) / 2) * stride
    width, height = anchor[0] * math.exp(numbers[2]), anchor[1] * math.exp(numbers[3])
    return centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2


def reference_loss(raw, targets, options, iou_type):
    """The loss from its definition, one anchor at a time."""
    classes = raw[0].shape[1] // 2 - 5
    map_sizes = [level.shape[-2:] for level in raw]
    anchors = [[RULE["anchors"][number] for number in mask] for mask in RULE["anchors_mask"][::-1]]
    sums = dict.fromkeys(("box", "obj", "cls"), 0.0)
    count = [0, len(targets)]
    for image, owners in enumerate(reference_match(targets, anchors, map_sizes, STRIDES)):
        boxes, prediction = [box for box in targets[image].tolist() if box[4] >= 0], 0
        count[0] += len(owners)
        for number, level in enumerate(raw):
            for row in range(map_sizes[number][0]):
                for column in range(map_sizes[number][1]):
                    for place, anchor in enumerate(anchors[number]):
                        values = level[image, place * (5 + classes) :][: 5 + classes, row, column].tolist()
                        scale = RULE["scale_x_y"][number]
                        box_xyxy = reference_decode(values, row, column, STRIDES[number], scale, anchor)
                        learns = prediction in owners
                        if learns:
                            *target_xyxy, label = targets[image, owners[prediction]].tolist()
                            sums["box"] += BOX_WEIGHT * reference_box_loss(iou_type, box_xyxy, target_xyxy)
                            for index, logit in enumerate(values[5:]):
                                share = (index == label) * (1 - options.label_smoothing)
                                sums["cls"] += cross_entropy(logit, share + options.label_smoothing / classes)
                        if learns or all(reference_iou(box_xyxy, box) <= options.ignore_iou for box in boxes):
                            weight = options.map_weights[number] if options.map_weights else 1
                            sums["obj"] += weight * reference_objectness(values[4], learns, options)
                        prediction += 1
    means = {name: value / max(count) for name, value in sums.items()}
    return {"loss": sum(means.values()), **means, "count": count}


def values(losses):
    return {name: value.tolist() for name, value in losses.items()}


def assert_close(found, expected, rel=1e-4):
    assert set(found) == set(expected)
    for name in found:
        assert found[name] == pytest.approx(expected[name], rel=rel, abs=1e-6), name


OPTIONS = {
    "usual": {},
    "siou": {"iou_type": "siou"},
    "iou": {"iou_type": "iou"},
    "label smoothing": {"label_smoothing": 0.1},
    "focal": {"focal_loss": True, "focal_alpha": 0.3, "focal_gamma": 1.5},
    "no negative is ignored": {"ignore_iou": 1.0},
    "many negatives are ignored": {"ignore_iou": 0.2},
    "map weights": {"map_weights": (4.0, 0.4)},
    "all at once": {
        "iou_type": "siou",
        "label_smoothing": 0.2,
        "focal_loss": True,
        "ignore_iou": 0.3,
        "map_weights": (0.5, 3.0),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("seed", range(2))
def test_random_cases(seed, num_classes, name):
    """Prevents any term from losing its weight, its mask or its divisor, from taking another anchor's box, and any
    option from having no effect."""
    torch.manual_seed(seed)
    raw = [level / 2 for level in raw_maps(3, num_classes, (96, 64), torch.randn)]
    targets = padded(*(random_boxes(count, 96, 64, num_classes) for count in (20, 0, 2)))
    criterion = criterion_for(num_classes, **OPTIONS[name])
    found = values(criterion(raw, targets))
    expected = reference_loss(raw, targets, criterion.options, criterion.options.iou_type or "ciou")
    assert_close(found, expected)
    if name not in ("usual", "no negative is ignored") and not (name == "label smoothing" and num_classes == 1):
        assert found != values(criterion_for(num_classes)(raw, targets))


@pytest.mark.parametrize(("ignore_iou", "ignored"), [(0.1, 5), (0.45, 1), (0.55, 0), (0.7, 0)])
def test_negatives_that_see_a_box_are_ignored(monkeypatch, ignore_iou, ignored):
    """Prevents positives from being ignored, and the limit from being read the wrong way round.

    All raw numbers are 0: each of 160 predictions is its anchor amid its cell and costs ln 2. The box is 32 x 30 around
    48, 49; anchor 40 x 30 around 48, 48 learns it (IoU 0.75). There, 20 x 24 has IoU 0.5; of 14 x 9, four lie within
    the box (0.13); all others overlap it by less than 0.1.
    """
    monkeypatch.setattr("nets.yolov4.matcher.MATCH_IOU", 0.99)
    losses = criterion_for(2, ignore_iou=ignore_iou)(raw_maps(1, 2, (128, 128)), padded([(32, 34, 64, 64, 1)]))
    assert losses["count"].tolist() == [1, 1]
    assert losses["obj"].item() == pytest.approx((160 - ignored) * math.log(2), rel=1e-6)


def hand_made_case():
    """One box 4, 4, 28, 28 of class 1 in a 32 x 32 image, whose one coarse cell predicts it exactly by its anchor 20 x
    24. All other raw numbers are 0: boxes of 6 x 8, 14 x 9 and 40 x 30 pixels, which overlap it by less than 0.7. The
    objectness and class 1 of the one that learns have probability 0.75."""
    raw = raw_maps(1, 2, (32, 32))
    raw[1][0, 2, 0, 0] = math.log(24 / 20)
    raw[1][0, 4:7, 0, 0] = torch.tensor([math.log(3), 0, math.log(3)])
    return raw, padded([(4, 4, 28, 28, 1)])


def test_hand_made_case(monkeypatch):
    """Prevents a change of any weight or target. One positive: objectness 9 ln 2 - ln 0.75 over 10 predictions, class
    ln 2 - ln 0.75, box 0; with that anchor at its own width 20, IoU 480 / 576 and 4 / pi^2 * (atan(5/6) - pi / 4)^2."""
    monkeypatch.setattr("nets.yolov4.matcher.MATCH_IOU", 0.99)
    raw, targets = hand_made_case()
    expected = {"loss": 7.506837, "box": 0.0, "obj": 6.526007, "cls": 0.980829, "count": [1, 1]}
    assert_close(values(criterion_for(2)(raw, targets)), expected)
    raw[1][0, 2, 0, 0] = 0
    v = 4 / math.pi**2 * (math.atan(20 / 24) - math.pi / 4) ** 2
    box = BOX_WEIGHT * (1 / 6 + v**2 / (1 / 6 + v))
    expected |= {"loss": 7.506837 + box, "box": box}
    assert_close(values(criterion_for(2)(raw, targets)), expected)


def test_class_and_objectness_move_no_box():
    """Prevents the terms beside the box loss from pulling boxes to where they cost less."""
    for name in ("cls", "obj"):
        raw, targets = hand_made_case()
        raw = [level.requires_grad_() for level in raw]
        criterion_for(2, ignore_iou=0.2)(raw, targets)[name].backward()
        assert not any(level.grad.unflatten(1, (2, 7))[:, :, :4].any() for level in raw)
        assert any(level.grad.any() for level in raw)


def test_images_without_boxes_teach_objectness_only():
    """Prevents division by zero positives, and background images from being skipped: 40 predictions * ln 2 each."""
    losses = values(criterion_for(2)(raw_maps(2, 2), padded([], [])))
    assert_close(losses, {"loss": 27.725887, "box": 0, "obj": 27.725887, "cls": 0, "count": [0, 2]})
    no_rows = values(criterion_for(2)(raw_maps(2, 2), torch.zeros(2, 0, 5)))
    assert no_rows == losses


def test_padding_rows_change_nothing():
    """Prevents the loss from depending on the other images of a batch through the padding."""
    raw = raw_maps(2, 3, (64, 64), torch.randn)
    targets = padded(random_boxes(4, 64, 64, 3), random_boxes(1, 64, 64, 3))
    longer = torch.cat((targets, padded([], [])[:, :1].expand(-1, 30, -1)), dim=1)
    criterion = criterion_for(3)
    assert_close(values(criterion(raw, longer)), values(criterion(raw, targets)), rel=1e-6)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize(
    ("scale", "boxes"),
    [
        pytest.param(1.0, [(20, 20, 20, 20, 0), (8, 30, 8, 50, 1), (30, 40, 60, 40, 2)], id="boxes without area"),
        pytest.param(1.0, [(64, 64, 64, 64, 0), (0, 0, 0, 0, 1)], id="points in the corners"),
        pytest.param(0.0, [(24, 24, 24, 24, 0), (5, 4, 11, 12, 0)], id="all predictions equal"),
        pytest.param(1e4, [(4, 4, 40, 40, 1), (10, 10, 10, 20, 0)], id="huge logits"),
        pytest.param(1e4, [], id="huge logits, no boxes"),
    ],
)
def test_loss_and_gradient_stay_finite(iou_type, scale, boxes):
    """Prevents one odd box or one wild prediction from turning every weight into NaN."""
    for focal_loss in (False, True):
        raw = [(level * scale).requires_grad_() for level in raw_maps(2, 3, (64, 64), torch.randn)]
        criterion = criterion_for(3, iou_type=iou_type, focal_loss=focal_loss)
        losses = criterion(raw, padded(boxes, []))
        losses["loss"].backward()
        assert all(value.isfinite().all() for value in losses.values())
        assert all(level.grad.isfinite().all() for level in raw)
        assert all(level.grad.abs().sum() > 0 for level in raw)


def test_low_precision_maps_give_float32_losses():
    """Prevents mixed precision from deciding IoU in bfloat16."""
    raw = [level.bfloat16() for level in raw_maps(1, 2, (64, 64), torch.randn)]
    targets = padded([(8, 8, 40, 40, 1)])
    losses = criterion_for(2)(raw, targets)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert values(losses) == values(criterion_for(2)([level.float() for level in raw], targets))


def test_parts_of_a_batch_sum_up_to_it():
    """Prevents four small batches from being another step than one large batch of the same images."""
    raw = raw_maps(3, 3, (64, 64), torch.randn)
    targets = padded(random_boxes(6, 64, 64, 3), [], [])
    criterion = criterion_for(3)
    whole = criterion(raw, targets)
    parts = [criterion([level[i : i + 1] for level in raw], targets[i : i + 1]) for i in range(3)]
    divisor = sum(part["count"] for part in parts).max()
    for name in PARTS[:-1]:
        joined = sum(part[name] * part["count"].max() for part in parts) / divisor
        assert joined.item() == pytest.approx(whole[name].item(), rel=1e-5)


@pytest.mark.parametrize("weights", [(1.0,), (4.0, 1.0, 0.4)])
def test_a_wrong_number_of_map_weights_is_an_error(weights):
    """Prevents weights meant for another network from being cut off silently."""
    with pytest.raises(ValueError) as caught:
        criterion_for(3, map_weights=weights)
    assert str(caught.value) == (
        f"map_weights has {len(weights)} numbers, and yolov4_tiny has 2 maps; give one number for each, fine map "
        "first, or [] for 1."
    )


def test_anchors_are_read_when_they_are_needed():
    """Prevents a model that moves to another device after the criterion was made from leaving the anchors behind."""
    model = small_model(2)
    criterion = build_criterion(model)
    raw, targets = raw_maps(1, 2), padded([(8, 8, 40, 40, 1)])
    model.anchors = model.anchors * 2
    assert values(criterion(raw, targets)) == values(build_criterion(model)(raw, targets))


@pytest.mark.parametrize("options", [{}, {"iou_type": "siou", "focal_loss": True, "label_smoothing": 0.1}])
def test_step_never_waits_for_the_device(monkeypatch, options):
    """Prevents host synchronisation. Tensors on the meta device have shapes but no values, so .item(), nonzero() and
    boolean indexing raise; torch.tensor(list, device="cuda") copies from pageable memory, which waits as well."""
    model = small_model(3)
    model.anchors = model.anchors.to("meta")
    criterion = build_criterion(model, LossOptions(**options))
    targets = padded(random_boxes(4, 64, 64, 3), []).to("meta")
    raw = [level.to("meta").requires_grad_() for level in raw_maps(2, 3)]

    def fail(*_args, **_kwargs):
        raise AssertionError("torch.tensor copies from the host in every step; make it on the device")

    monkeypatch.setattr(torch, "tensor", fail)
    losses = criterion(raw, targets)
    losses["loss"].backward()
    assert [tuple(value.shape) for value in losses.values()] == [(), (), (), (), (2,)]
    assert [level.grad.shape for level in raw] == [level.shape for level in raw]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"iou_type": "siou", "focal_loss": True, "label_smoothing": 0.1}])
def test_step_never_waits_for_the_gpu(options):
    """Prevents what the meta device cannot show: synchronisation inside a CUDA operator."""
    model = small_model(3)
    model.anchors = model.anchors.cuda()
    criterion = build_criterion(model, LossOptions(**options))
    targets = padded(random_boxes(4, 64, 64, 3), []).cuda()
    raw = [level.cuda().requires_grad_() for level in raw_maps(2, 3)]
    criterion(raw, targets)["loss"].backward()  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(raw, targets)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
