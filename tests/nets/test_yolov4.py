import copy

import pytest
import torch

from nets import build_criterion, build_model
from tests.nets.decoded import packed

NUMBERS = {"yolov4": 64_429_405, "yolov4_tiny": 6_062_814}


def shapes_only(name, num_classes):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return build_model(name, num_classes)


@pytest.fixture(scope="module")
def yolov4():
    """One network for all tests that need numbers but change none."""
    return build_model("yolov4", 2).eval()


@pytest.mark.parametrize("name", NUMBERS)
def test_as_many_numbers_as_in_a_darknet_file(name):
    """Prevents a wrong depth, width or kernel, which trains well enough to hide."""
    state = shapes_only(name, 80).state_dict()
    assert sum(value.numel() for key, value in state.items() if "num_batches" not in key) == NUMBERS[name]


@pytest.mark.parametrize("num_classes", [1, 20])
@pytest.mark.parametrize(
    ("name", "strides", "shapes"),
    [("yolov4", (8, 16, 32), [(12, 8), (6, 4), (3, 2)]), ("yolov4_tiny", (16, 32), [(6, 4), (3, 2)])],
)
def test_raw_maps_and_decoded_shapes(name, strides, shapes, num_classes):
    """Prevents height and width from being swapped, and maps in descending stride."""
    model = shapes_only(name, num_classes)
    raw = model(torch.zeros(2, 3, 96, 64, dtype=torch.uint8, device="meta"))
    assert [tuple(level.shape) for level in raw] == [(2, 3 * (5 + num_classes), *shape) for shape in shapes]
    assert model.strides == strides
    decoded, places = model.decode(raw), 3 * sum(height * width for height, width in shapes)
    assert decoded.boxes_xyxy.shape == (2, places, 4)
    assert decoded.class_logits.shape == (2, places, num_classes)
    assert decoded.objectness.shape == (2, places)


def chain(name, length):
    return [f"{name}.{number}" for number in range(length)]


# The convolutions of the widely used PyTorch weights, in the order of the file. A head's last one has no BatchNorm.
PUBLIC = {
    "yolov4": [
        "backbone.conv1",
        *(
            f"backbone.stages.{stage}.{part}"
            for stage, blocks in enumerate((1, 2, 8, 8, 4))
            for part in (
                *("downsample_conv", "split_conv0", "split_conv1"),
                *(f"blocks_conv.{block}.block.{number}" for block in range(blocks) for number in (0, 1)),
                *(f"blocks_conv.{blocks}", "concat_conv"),
            )
        ),
        *(*chain("conv1", 3), *chain("conv2", 3)),
        *("upsample1.upsample.0", "conv_for_P4", *chain("make_five_conv1", 5)),
        *("upsample2.upsample.0", "conv_for_P3", *chain("make_five_conv2", 5), *chain("yolo_head3", 2)),
        *("down_sample1", *chain("make_five_conv3", 5), *chain("yolo_head2", 2)),
        *("down_sample2", *chain("make_five_conv4", 5), *chain("yolo_head1", 2)),
    ],
    "yolov4_tiny": [
        *("backbone.conv1", "backbone.conv2"),
        *(f"backbone.resblock_body{body}.conv{number}" for body in (1, 2, 3) for number in (1, 2, 3, 4)),
        *("backbone.conv3", "conv_for_P5", *chain("yolo_headP5", 2)),
        *("upsample.upsample.0", *chain("yolo_headP4", 2)),
    ],
}


@pytest.mark.parametrize(("name", "convolutions"), [("yolov4", 110), ("yolov4_tiny", 21)])
def test_keys_are_those_of_the_public_weights(name, convolutions):
    """Prevents a renamed or moved layer, with which public files no longer load, or load by order into wrong places."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = []
    for part in PUBLIC[name]:
        if part.startswith("yolo_head") and part.endswith(".1"):
            expected += [f"{part}.weight", f"{part}.bias"]
        else:
            expected += [f"{part}.conv.weight", *(f"{part}.bn.{key}" for key in norm)]
    assert list(shapes_only(name, 3).state_dict()) == expected
    assert len(PUBLIC[name]) == convolutions


@pytest.mark.parametrize("name", NUMBERS)
def test_class_count_changes_only_the_last_layers(name):
    """Prevents weights for other classes from losing more than the tensors that must be new."""
    coco, own = (shapes_only(name, count).state_dict() for count in (80, 3))
    assert list(coco) == list(own)
    different = {key for key in coco if coco[key].shape != own[key].shape}
    heads = {"yolov4": ("head1", "head2", "head3"), "yolov4_tiny": ("headP4", "headP5")}[name]
    assert different == {f"yolo_{head}.1.{kind}" for head in heads for kind in ("weight", "bias")}


def seen_by(model, features, *parts):
    """What model.predict(features) puts into each of these parts, and what comes out of it."""
    seen = {}

    def watch(name):
        return lambda _part, inputs, output: seen.update({name: (inputs[0], output)})

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in parts]
    with torch.no_grad():
        model.predict(features)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("joined", "first", "second"),
    [
        ("make_five_conv1", "conv_for_P4", "upsample1"),
        ("make_five_conv2", "conv_for_P3", "upsample2"),
        ("make_five_conv3", "down_sample1", "make_five_conv1"),
        ("make_five_conv4", "down_sample2", "conv2"),
    ],
)
def test_the_neck_joins_maps_in_darknet_order(yolov4, joined, first, second):
    """Prevents a concatenation the other way round: the weights load, and nothing is detected."""
    features = [torch.randn(1, 256, 8, 4), torch.randn(1, 512, 4, 2), torch.randn(1, 1024, 2, 1)]
    seen = seen_by(yolov4, features, joined, first, second)
    assert torch.equal(seen[joined][0], torch.cat((seen[first][1], seen[second][1]), dim=1))


def test_pyramid_pooling_in_darknet_order(yolov4):
    """Prevents the order of YOLOX (5, 9, 13 after the map itself), with which Darknet weights detect nothing."""
    features = [torch.randn(1, 256, 64, 56), torch.randn(1, 512, 32, 28), torch.randn(1, 1024, 16, 14)]
    seen = seen_by(yolov4, features, "conv1", "conv2")
    x = seen["conv1"][1]
    pooled = [torch.nn.functional.max_pool2d(x, kernel, 1, kernel // 2) for kernel in (13, 9, 5)]
    assert torch.equal(seen["conv2"][0], torch.cat((*pooled, x), dim=1))


def test_the_tiny_neck_joins_maps_in_darknet_order():
    """Prevents the map of the backbone from coming before the one of the coarser stride."""
    model = build_model("yolov4_tiny", 2).eval()
    c4 = torch.randn(1, 256, 4, 2)
    seen = seen_by(model, [c4, torch.randn(1, 512, 2, 1)], "yolo_headP4", "upsample")
    assert torch.equal(seen["yolo_headP4"][0], torch.cat((seen["upsample"][1], c4), dim=1))


def test_upsampling_repeats_cells(yolov4):
    """Prevents interpolated maps, which Darknet's weights have never seen."""
    upsample = yolov4.upsample2.upsample[1]
    assert upsample(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


@pytest.mark.parametrize(("name", "heads"), [("yolov4", (1, 2, 3)), ("yolov4_tiny", ("P4", "P5"))])
def test_untrained_heads_start_at_their_priors(request, name, heads):
    """Prevents short trainings from being spent on biases: anchors as they are, objects 1 %, two classes 1/4 each."""
    model = request.getfixturevalue("yolov4") if name == "yolov4" else build_model(name, 2)
    for number in heads:
        bias = model.get_submodule(f"yolo_head{number}.1").bias.detach().view(3, 7)
        assert bias[:, :4].tolist() == [[0, 0, 0, 0]] * 3
        for anchor in bias[:, 4:].sigmoid().tolist():
            assert anchor == pytest.approx([0.01, 0.25, 0.25])


def test_pixels_are_rgb_between_0_and_1(yolov4):
    """Prevents the pixel rule of YOLOX, with which public weights of YOLOv4 detect nothing."""
    pixel = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    for model in (yolov4, build_model("yolov4_tiny", 1)):
        assert model.normalize(pixel).flatten().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("name", NUMBERS)
def test_own_pixel_rule_replaces_the_usual_one(name):
    """Prevents a rule read from a weight file from being ignored."""
    rule = {"channels": "BGR", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    with torch.device("meta"):
        assert build_model(name, 1, pixel_rule=rule).normalize.rule == rule


def targets_of_one_box(size):
    """One box of class 1 in the middle of the image, and a padding row."""
    return torch.tensor([[[0.25 * size, 0.125 * size, 0.75 * size, 0.875 * size, 1], [0, 0, 0, 0, -1]]])


def test_yolov4_takes_a_step(yolov4):
    """Prevents a layer that the loss does not reach, and gradients that are not finite."""
    model = copy.deepcopy(yolov4).train()
    raw = model(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8))
    losses = build_criterion(model)(raw, targets_of_one_box(64).repeat(2, 1, 1))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_yolov4_tiny_learns():
    """Prevents a loss that pulls the network elsewhere than to its boxes: it learns one image by heart."""
    model = build_model("yolov4_tiny", 2).train()
    criterion = build_criterion(model)
    images, targets = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), targets_of_one_box(64).repeat(2, 1, 1)
    images[:, :, 8:56, 16:48] = torch.randint(256, (48, 32), dtype=torch.uint8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=30)
    history = []
    for _ in range(30):
        losses = criterion(model(images), targets)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
        history.append([losses[part].item() for part in ("loss", "box", "obj", "cls")])
    assert all(last < 0.3 * first for first, last in zip(history[0], history[-1], strict=True)), history
    with torch.no_grad():
        best = max(packed(model.decode(model(images)))[0].tolist(), key=lambda prediction: prediction[4])
    assert best[:4] == pytest.approx([16, 8, 48, 56], abs=6)
    assert best[4] > 0 and best[6] > best[5]


def test_no_images():
    """Prevents an empty batch from failing."""
    model = build_model("yolov4_tiny", 2).eval()
    with torch.no_grad():
        decoded = model.decode(model(torch.zeros(0, 3, 64, 64, dtype=torch.uint8)))
    assert packed(decoded).shape == (0, 3 * (16 + 4), 7)
