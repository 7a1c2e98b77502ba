import pytest
import torch
from torchvision.models import get_model

from nets import MODELS, build_model
from nets.backbones.torchvision import BACKBONES
from utils.config.rules import WEIGHTS_FORMATS
from utils.weights.formats import FITTING, FORMATS, Recognised, choose_format, recognise


def shapes_only(make, *arguments):
    """The state dict of a network without memory for its weights."""
    with torch.device("meta"):
        return make(*arguments).state_dict()


@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("model_name", MODELS)
def test_networks_are_recognised_by_their_tensors(model_name, num_classes):
    """Prevents a size of YOLOX from being taken for another, and a wrong class count."""
    family = next(family for family in ("yolox", "yolov4", "dfine") if model_name.startswith(family))
    recognised = recognise(shapes_only(build_model, model_name, num_classes))
    assert recognised == Recognised(family, model_name, False, num_classes)


@pytest.mark.parametrize("model_name", [name for name in MODELS if not name.startswith("dfine")])
def test_backbones_alone_are_recognised(model_name):
    """Prevents a backbone without its prefix from being unknown, and one with it from losing it twice."""
    family, prefix = ("yolox", "backbone.backbone.") if model_name.startswith("yolox") else ("yolov4", "backbone.")
    whole = shapes_only(build_model, model_name, 3)
    part = {key: value for key, value in whole.items() if key.startswith(prefix)}
    assert recognise(part) == Recognised(family, model_name, False, None)
    bare = {key.removeprefix(prefix): value for key, value in part.items()}
    assert recognise(bare) == Recognised(family, model_name, True, None)


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [("dfine_n", ""), ("dfine_s", ""), ("dfine_m", "dfine_m"), ("dfine_l", "dfine_l"), ("dfine_x", "dfine_x")],
)
def test_backbones_of_dfine_are_recognised(model_name, expected):
    """Prevents the published HGNetV2 files from being unknown: n and s have one and the same."""
    whole = shapes_only(build_model, model_name, 3)
    part = {key: value for key, value in whole.items() if key.startswith("backbone.")}
    assert recognise(part) == Recognised("dfine", expected, False, None)
    bare = {key.removeprefix("backbone."): value for key, value in part.items()}
    assert recognise(bare) == Recognised("dfine", expected, True, None)


@pytest.mark.parametrize("name", BACKBONES)
def test_torchvision_is_recognised(name):
    """Prevents a downloaded file of one of the backbones on offer from being unknown."""
    assert recognise(shapes_only(get_model, name)) == Recognised("torchvision", "", True, None)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"model.0.conv.weight": torch.zeros(32, 3, 6, 6)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"stem.conv.conv.weight": torch.zeros(20, 12, 3, 3)},  # no YOLOX is that wide
        {"stem.conv.conv.weight": torch.zeros(16)},
        {"head.cls_preds.0.weight": torch.zeros(80, 64, 1, 1)},
    ],
)
def test_anything_else_is_unknown(state):
    """Prevents tensors of another network from being loaded by resemblance."""
    assert recognise(state) is None


def test_the_rules_of_every_format():
    """Prevents a changed number, which costs accuracy and raises no error. Mean and deviation are ImageNet's, 0.485,
    0.456, 0.406 and 0.229, 0.224, 0.225, times 255."""
    imagenet = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    pixels = ("RGB", [0, 0, 0], [255, 255, 255])
    assert {
        name: (*rules.pixel_rule.values(), *rules.resize_rule.values(), rules.scale_x_y)
        for name, rules in FORMATS.items()
    } == {
        "yolox": ("BGR", [0, 0, 0], [1, 1, 1], "topleft", 114, None),
        "yolox_rgb": (*imagenet, "topleft", 114, None),
        "flat_yolox": (*imagenet, "center", 128, None),
        "flat_yolov4": (*pixels, "center", 128, 1.0),
        "darknet": (*pixels, "stretch", 128, None),
        "dfine": (*pixels, "stretch", 0, None),
        "deim": (*pixels, "stretch", 0, None),
        "torchvision": (*imagenet, "topleft", 114, None),
    }
    assert pytest.approx(imagenet[1]) == [0.485 * 255, 0.456 * 255, 0.406 * 255]
    assert pytest.approx(imagenet[2]) == [0.229 * 255, 0.224 * 255, 0.225 * 255]


def test_the_constant_knows_all_formats():
    """Prevents a format that train.py refuses, or accepts and nobody knows."""
    assert ("", *FORMATS) == WEIGHTS_FORMATS
    assert {name for fitting in FITTING.values() for name in fitting} == set(FORMATS)


@pytest.mark.parametrize(
    ("family", "wrapper", "weights_format", "expected"),
    [
        ("yolox", "model", "", "yolox"),
        ("yolox", "", "", "flat_yolox"),
        ("yolox", "state_dict", "", "flat_yolox"),
        ("yolox", "ema", "", "flat_yolox"),
        ("yolox", "", "yolox", "yolox"),
        ("yolox", "model", "flat_yolox", "flat_yolox"),
        ("yolox", "model", "yolox_rgb", "yolox_rgb"),
        ("yolov4", "", "", "flat_yolov4"),
        ("yolov4", "model", "", "flat_yolov4"),
        ("yolov4", "", "darknet", "darknet"),
        ("torchvision", "", "", "torchvision"),
        ("torchvision", "model", "torchvision", "torchvision"),
    ],
)
def test_the_format_follows_from_content_or_constant(family, wrapper, weights_format, expected):
    """Prevents the constant from being ignored, and a release from being taken for a flat file or the reverse."""
    assert choose_format(Recognised(family, "a_name", False, 3), wrapper, weights_format, "a.pth") == expected


def test_a_format_of_another_network_is_an_error():
    """Prevents rules of YOLOX from being applied to a resnet."""
    with pytest.raises(ValueError) as caught:
        choose_format(Recognised("torchvision", "", True, None), "", "yolox", "resnet18.pth")
    assert str(caught.value) == (
        "weights_format is 'yolox', but resnet18.pth holds a backbone, which can follow 'torchvision'; set it so, or "
        "to '' to let the file decide."
    )
