import math

import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d

from nets import MODELS, build_model
from nets.blocks import Focus, PixelNormalize, SPPBottleneck
from tests.nets.decoded import packed

MILLIONS = {
    "yolox_nano": 0.912159,
    "yolox_tiny": 5.055855,
    "yolox_s": 8.968255,
    "yolox_m": 25.326495,
    "yolox_l": 54.208895,
    "yolox_x": 99.071455,
}


def shapes_only(model_name, num_classes):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return build_model(model_name, num_classes)


def images_uint8(batch=2, size_hw=(64, 64)):
    return torch.randint(256, (batch, 3, *size_hw), dtype=torch.uint8)


def test_every_size_has_the_published_number_of_parameters():
    """Prevents a wrong depth, width or kernel, which trains well enough to hide."""
    assert list(MILLIONS) == [name for name in MODELS if name.startswith("yolox")]
    counts = {name: sum(p.numel() for p in shapes_only(name, 80).parameters()) / 1e6 for name in MILLIONS}
    assert counts == MILLIONS


@pytest.mark.parametrize("num_classes", [1, 20])
def test_raw_maps_and_decoded_shapes(num_classes):
    """Prevents height and width from being swapped, and maps in descending stride."""
    model = shapes_only("yolox_nano", num_classes)
    raw = model(torch.zeros(2, 3, 96, 64, dtype=torch.uint8, device="meta"))
    channels = 5 + num_classes
    assert [tuple(level.shape) for level in raw] == [(2, channels, 12, 8), (2, channels, 6, 4), (2, channels, 3, 2)]
    assert model.strides == (8, 16, 32)
    decoded = model.decode(raw)
    assert decoded.boxes_xyxy.shape == (2, 96 + 24 + 6, 4)
    assert decoded.class_logits.shape == (2, 96 + 24 + 6, num_classes)
    assert decoded.objectness.shape == (2, 96 + 24 + 6)


def test_backbone_interface():
    """Prevents a backbone from announcing other channels than it gives."""
    backbone = shapes_only("yolox_s", 3).feature_extractor
    features = backbone(torch.zeros(1, 3, 64, 96, device="meta"))
    assert [tuple(f.shape) for f in features] == [(1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    assert backbone.out_channels == (128, 256, 512)
    assert backbone.strides == (8, 16, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_literal_values(dtype):
    """Prevents a wrong cell order, stride or half-cell shift; looks at row 3, column 1 at stride 16."""
    model = shapes_only("yolox_nano", 2)
    raw = [torch.zeros(1, 7, 64 // stride, 32 // stride, dtype=dtype) for stride in (8, 16, 32)]
    raw[1][0, :, 3, 1] = torch.tensor([0.25, -0.5, math.log(2), math.log(3), 1.5, -1, 2])
    assert {part.dtype for part in model.decode(raw)} == {torch.float32}
    decoded = packed(model.decode(raw))
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    assert decoded[0, 32 + 3 * 2 + 1].tolist() == pytest.approx([4, 16, 36, 64, 1.5, -1, 2], abs=tolerance)
    assert decoded[0, 1].tolist() == [4, -4, 12, 4, 0, 0, 0]
    assert decoded[0, -1].tolist() == [-16, 16, 16, 48, 0, 0, 0]


def test_decode_bounds_wild_sizes():
    """Prevents exp of a wild logit from overflowing to infinity, and the loss with it: exp(7) * 32 pixels at most."""
    raw = [torch.full((1, 6, 32 // stride, 32 // stride), 1000.0) for stride in (8, 16, 32)]
    boxes_xyxy = shapes_only("yolox_nano", 1).decode(raw).boxes_xyxy[0]
    assert (boxes_xyxy[-1, 2] - boxes_xyxy[-1, 0]).item() == pytest.approx(math.exp(7) * 32, rel=1e-4)
    assert boxes_xyxy.isfinite().all()


def test_batchnorm_has_the_settings_of_the_official_weights():
    """Prevents torch's defaults (eps 1e-5, momentum 0.1), with which the published weights lose accuracy."""
    for name in ("yolox_nano", "yolox_s"):
        layers = [layer for layer in shapes_only(name, 3).modules() if isinstance(layer, nn.BatchNorm2d)]
        assert len(layers) > 50
        assert {(layer.eps, layer.momentum) for layer in layers} == {(1e-3, 0.03)}


def test_untrained_head_starts_at_its_priors():
    """Prevents negatives that swamp the first steps, and short trainings spent on biases: objects 0.01, each of three
    classes 1/6, sides of four cells."""
    head = build_model("yolox_nano", 3).head
    for level in range(3):
        assert head.obj_preds[level].bias.sigmoid().tolist() == pytest.approx([0.01])
        assert head.cls_preds[level].bias.sigmoid().tolist() == pytest.approx([1 / 6] * 3)
        assert head.reg_preds[level].bias[2:].exp().tolist() == pytest.approx([4.0, 4.0])


def input_of(module, whole, x):
    """What reaches `module` when `whole` runs on x."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    whole(x)
    handle.remove()
    return seen[0]


def test_focus_takes_patches_in_the_official_order():
    """Prevents left-right before top-bottom: such a model loads the published weights and detects nothing."""
    focus = Focus(1, 4)
    folded = input_of(focus.conv, focus, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).repeat(2, 1, 2, 2))
    assert folded[0, :, 0, 0].tolist() == [1, 3, 2, 4]


def test_chained_pools_equal_the_official_kernels():
    """Prevents wrong borders or order where 9x9 and 13x13 maxima are made of 5x5 ones."""
    block = SPPBottleneck(4, 4)
    pooled = input_of(block.conv2, block, torch.randn(2, 4, 11, 7))
    x = pooled[:, :2]
    expected = [x, *(max_pool2d(x, kernel, stride=1, padding=kernel // 2) for kernel in (5, 9, 13))]
    assert torch.equal(pooled, torch.cat(expected, dim=1))


def test_pixel_normalize_literal_values():
    """Prevents RGB fed to BGR weights, and mean and std being applied in the other channel order."""
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    identity = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    scaled = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 4.0]}
    results = [
        PixelNormalize({"channels": channels, **rule})(pixel)
        for channels in ("RGB", "BGR")
        for rule in (identity, scaled)
    ]
    assert [result.flatten().tolist() for result in results] == [
        [10, 20, 30],
        [9, 9, 6.75],
        [30, 20, 10],
        [29, 9, 1.75],
    ]
    assert {result.dtype for result in results} == {torch.float32}


def test_an_unknown_channel_order_is_an_error():
    """Prevents a misspelt rule from being taken silently for RGB."""
    with pytest.raises(ValueError, match="channels is 'rgb'"):
        PixelNormalize({"channels": "rgb", "mean": [0, 0, 0], "std": [1, 1, 1]})


def test_own_pixel_rule_replaces_the_official_one():
    """Prevents a rule read from a weight file from being ignored."""
    rule = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
    assert build_model("yolox_nano", 1, rule).normalize.rule == rule
    assert build_model("yolox_nano", 1).normalize.rule["channels"] == "BGR"


def test_uint8_channels_last_input():
    """Prevents the normalisation from undoing channels_last, and another result for another memory format."""
    model = build_model("yolox_nano", 2).eval()
    images = images_uint8()
    channels_last = images.to(memory_format=torch.channels_last)
    assert model.normalize(channels_last).is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(images.float())
        raw = model.to(memory_format=torch.channels_last)(channels_last)
    for level, other in zip(raw, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


def test_class_count_changes_only_the_class_predictions():
    """Prevents weights for other classes from losing more than the tensors that must be new."""
    coco, own = (shapes_only("yolox_nano", count).state_dict() for count in (80, 3))
    assert list(coco) == list(own)
    different = {key for key in coco if coco[key].shape != own[key].shape}
    assert different == {f"head.cls_preds.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")}


def test_official_weights_load(real_data):
    """Prevents any key, its order or its shape from departing from the official release."""
    state = torch.load(real_data / "weights/yolox_nano_coco.pth", map_location="cpu", weights_only=True)["model"]
    model = build_model("yolox_nano", 80)
    assert len(state) == 642
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        decoded = model.eval().decode(model(images_uint8(1)))
    assert packed(decoded).isfinite().all()
