from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.ops import StochasticDepth

from nets import build_criterion, build_model
from nets.backbones.torchvision import BACKBONES, TorchvisionBackbone
from tests.nets.decoded import packed
from utils.training.freezing import first_blocks, frozen_parameter_names
from utils.training.optim import parameter_groups

CHANNELS = {
    "resnet18": (128, 256, 512),
    "resnet34": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet101": (512, 1024, 2048),
    "mobilenet_v2": (32, 96, 1280),
    "mobilenet_v3_large": (40, 112, 960),
    "efficientnet_b0": (40, 112, 1280),
    "efficientnet_v2_s": (64, 160, 1280),
    "convnext_tiny": (192, 384, 768),
    "convnext_small": (192, 384, 768),
    "swin_t": (192, 384, 768),
    "swin_s": (192, 384, 768),
}


def shapes_only(make, *arguments, **options):
    """A module without memory for its weights."""
    with torch.device("meta"):
        return make(*arguments, **options)


def settings_of(**changes):
    values = {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True, "lr_scale": {}}
    return SimpleNamespace(**values | changes)


def test_the_backbones_on_offer():
    """Prevents a name in train.py's comments from disappearing."""
    assert list(BACKBONES) == list(CHANNELS)


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_have_the_promised_strides_and_channels(name):
    """Prevents a tap one layer too early or late, height and width from being swapped, and channels last."""
    backbone = shapes_only(TorchvisionBackbone, name)
    maps = backbone(torch.zeros(2, 3, 64, 96, device="meta"))
    c3, c4, c5 = CHANNELS[name]
    assert [tuple(level.shape) for level in maps] == [(2, c3, 8, 12), (2, c4, 4, 6), (2, c5, 2, 3)]
    assert (backbone.out_channels, backbone.strides) == ((c3, c4, c5), (8, 16, 32))


@pytest.mark.parametrize("name", CHANNELS)
def test_keys_are_those_of_torchvision(name):
    """Prevents published files from missing their places: all but the classifier is there, with its shape."""
    own = shapes_only(TorchvisionBackbone, name).state_dict()
    whole = shapes_only(get_model, name).state_dict()
    last = ("fc.", "classifier.", "head.", "norm.")
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in whole.items() if not key.startswith(last)
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "swin_t"])
def test_the_last_map_is_what_torchvision_computes(name):
    """Prevents a layer from being left out, or run twice: the same numbers as in torchvision's own network."""
    whole = get_model(name).eval()
    backbone = TorchvisionBackbone(name).eval()
    backbone.load_state_dict(whole.state_dict(), strict=False)
    last, seen = whole.layer4 if name == "resnet18" else whole.features, {}
    last.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole(x)
        maps = backbone(x)
    expected = seen["last"].permute(0, 3, 1, 2) if name == "swin_t" else seen["last"]
    assert torch.equal(maps[-1], expected)


def test_an_unknown_name_is_an_error():
    """Prevents a trace out of torchvision, and a backbone whose maps nobody has looked at."""
    for name in ("resnet999", "vgg16"):
        with pytest.raises(ValueError) as caught:
            TorchvisionBackbone(name)
        message = str(caught.value)
        assert message.startswith(f"backbone is {name!r}; expected '' for the network's own, or one of resnet18, ")
        assert message.endswith("convnext_small, swin_t, swin_s.")


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("model_name", ["yolox_s", "yolov4", "yolov4_tiny"])
def test_every_neck_takes_every_backbone(model_name, name):
    """Prevents channels or strides that do not fit, a head without maps, and a part that Freeze_Train would miss."""
    model = shapes_only(build_model, model_name, 3, backbone=name)
    raw = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8, device="meta"))
    channels, strides = (8, (8, 16, 32)) if model_name == "yolox_s" else (24, (8, 16, 32))
    strides = strides[-2:] if model_name == "yolov4_tiny" else strides
    assert [tuple(level.shape) for level in raw] == [(1, channels, 64 // step, 96 // step) for step in strides]
    assert (model.strides, model.backbone_name, model.name) == (strides, name, model_name)
    backbone = {key for key in model.state_dict() if model.part_of(key) == "backbone"}
    assert len(backbone) == len(model.feature_extractor.state_dict())


def test_pixels_are_those_of_imagenet():
    """Prevents ImageNet weights from being fed BGR 0..255: mid-grey 124, 116, 104 comes out near 0."""
    model = build_model("yolox_nano", 1, backbone="resnet18")
    assert model.normalize.rule == {
        "channels": "RGB",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }
    pixel = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    assert model.normalize(pixel).flatten().tolist() == pytest.approx([0.00557, -0.0049, 0.00819], abs=1e-4)
    rule = {"channels": "RGB", "mean": [0.0] * 3, "std": [255.0] * 3}
    assert shapes_only(build_model, "yolov4_tiny", 1, rule, backbone="resnet18").normalize.rule == rule


def test_the_own_backbone_needs_no_adapters():
    """Prevents keys that official files do not have."""
    assert not any("adapters" in key for key in shapes_only(build_model, "yolox_s", 1).state_dict())
    # resnet18 has the very channels of yolox_s.
    assert not any(
        "adapters" in key for key in shapes_only(build_model, "yolox_s", 1, backbone="resnet18").state_dict()
    )
    model = shapes_only(build_model, "yolox_nano", 1, backbone="resnet50")
    kernels = {
        key: tuple(value.shape) for key, value in model.state_dict().items() if "adapters" in key and value.ndim > 1
    }
    assert kernels == {
        "backbone.adapters.0.conv.weight": (64, 512, 1, 1),
        "backbone.adapters.1.conv.weight": (128, 1024, 1, 1),
        "backbone.adapters.2.conv.weight": (256, 2048, 1, 1),
    }
    assert {model.part_of(key) for key in kernels} == {"neck"}


@pytest.mark.parametrize(
    ("name", "count", "beginnings"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1.", "bn1.")),
        ("resnet18", 2, ("conv1.", "bn1.", "layer1.")),
        ("resnet18", 5, ("",)),
        ("swin_t", 2, ("features.0.", "features.1.")),
        ("mobilenet_v2", 1, ("features.0.",)),
    ],
)
def test_freeze_blocks_counts_the_blocks_of_the_backbone(name, count, beginnings):
    """Prevents freeze_blocks = 1 from freezing the first convolution of a resnet and not its BatchNorm, and block 1
    from meaning block 10 as well."""
    model = shapes_only(build_model, "yolox_nano", 1, backbone=name)
    expected = {
        f"backbone.backbone.{key}"
        for key, _ in model.feature_extractor.named_parameters()
        if beginnings and key.startswith(beginnings)
    }
    assert first_blocks(model, count) == expected
    assert bool(expected) == bool(count)


def test_more_blocks_than_there_are():
    """Prevents a count made for another backbone from passing."""
    with pytest.raises(ValueError) as caught:
        first_blocks(shapes_only(build_model, "yolov4_tiny", 1, backbone="resnet18"), 6)
    assert str(caught.value) == (
        "freeze_blocks is 6, but the backbone of yolov4_tiny has 5 blocks: conv1, layer1, layer2, layer3, layer4."
    )


def test_a_frozen_first_block_keeps_its_statistics():
    """Prevents BatchNorm statistics of a frozen block from drifting with every batch, and others from staying."""
    model = build_model("yolov4_tiny", 1, backbone="resnet18")
    model.train()
    model.freeze(frozen_parameter_names(model, settings_of(freeze_blocks=1), backbone_frozen=False))
    model(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8))
    extractor = model.feature_extractor
    assert not extractor.bn1.training and extractor.training and extractor.layer1[0].bn1.training
    assert not extractor.bn1.running_mean.any()
    assert extractor.layer1[0].bn1.running_mean.any()


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_a_frozen_extractor_computes_the_same_each_time(name):
    """Prevents the random depth and dropout that some backbones train with from disturbing a frozen one, whether or
    not it has BatchNorm; free again it is random again."""
    model = shapes_only(build_model, "yolov4_tiny", 1, backbone=name)
    model.freeze({key for key, _ in model.named_parameters() if model.part_of(key) == "backbone"})
    model.train()
    assert model.training and not model.feature_extractor.training
    depths = [part for part in model.modules() if isinstance(part, StochasticDepth) and part.p > 0]
    assert depths and not any(part.training for part in depths)
    assert all(part.training for part in model.yolo_headP5.modules())
    model.freeze(set())
    assert model.feature_extractor.training and all(part.training for part in depths)
    model.eval()
    assert not any(part.training for part in model.modules())


def test_one_step_moves_all_but_a_frozen_backbone():
    """Prevents a layer under another neck that the loss does not reach, and a frozen backbone that moves."""
    model = build_model("yolox_nano", 2, backbone="resnet18").train()
    targets = torch.tensor([[[16.0, 8, 48, 56, 1]]]).repeat(2, 1, 1)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    for frozen in (False, True):
        names = {key for key, _ in model.named_parameters() if frozen and model.part_of(key) == "backbone"}
        model.freeze(names)
        model.zero_grad()
        before = {key: value.clone() for key, value in model.feature_extractor.state_dict().items()}
        losses = build_criterion(model)(model(images), targets)
        losses["loss"].backward()
        without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
        assert without == names and losses["loss"].isfinite()
        own = model.feature_extractor.state_dict()
        assert all(torch.equal(value, own[key]) for key, value in before.items()) == frozen


def test_no_images():
    """Prevents an empty batch from failing."""
    model = build_model("yolov4_tiny", 2, backbone="resnet18").eval()
    with torch.no_grad():
        decoded = model.decode(model(torch.zeros(0, 3, 64, 64, dtype=torch.uint8)))
    assert packed(decoded).shape == (0, 3 * (16 + 4), 7)


def test_layer_norms_do_not_decay():
    """Prevents weight decay on the scales of LayerNorm, of which backbones such as swin_t consist."""
    backbone = shapes_only(TorchvisionBackbone, "swin_t")
    decaying, other = parameter_groups(backbone, 5e-4, 0)
    assert (decaying["weight_decay"], other["weight_decay"]) == (5e-4, 0)
    norms = [part.weight for part in backbone.modules() if isinstance(part, nn.LayerNorm)]
    assert norms and all(any(norm is parameter for parameter in other["params"]) for norm in norms)
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
