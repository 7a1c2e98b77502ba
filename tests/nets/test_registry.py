import pytest
import torch

from nets import MODELS, build_criterion, build_model
from nets.losses import LossOptions
from nets.yolov4.loss import AnchorLoss
from nets.yolov4.model import TINY_DECODE_RULE
from nets.yolox.loss import YOLOXLoss


def shapes_only(*arguments, **options):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return build_model(*arguments, **options)


def test_names_of_the_networks():
    """Prevents a name that weight files and READMEs use from disappearing."""
    sizes = [f"yolox_{size}" for size in ("nano", "tiny", "s", "m", "l", "x")]
    assert list(MODELS) == [*sizes, "yolov4_tiny", "yolov4", *(f"dfine_{size}" for size in "nsmlx")]
    assert [shapes_only(name, 1).name for name in MODELS] == list(MODELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolox-nano", r"^model_name is 'yolox-nano'; expected one of .* Did you mean 'yolox_nano'\?$"),
        ("yolov4-tiny", r"^model_name is 'yolov4-tiny'; expected one of .* Did you mean 'yolov4_tiny'\?$"),
        ("resnet", r"^model_name is 'resnet'; expected one of yolox_nano, .*yolov4_tiny, .*dfine_x\.$"),
        ("", r"^model_name is ''; expected one of yolox_nano, .*dfine_x\.$"),
    ],
)
def test_unknown_name_is_an_error_that_names_the_nearest(name, message):
    """Prevents a KeyError from the depths for a typing mistake."""
    with pytest.raises(ValueError, match=message):
        build_model(name, 3)


def test_anchors_for_a_network_without_any_are_an_error():
    """Prevents anchors from being ignored silently when model_name is changed and anchors_path is not."""
    with pytest.raises(ValueError) as caught:
        build_model("yolox_nano", 3, decode_rule={"anchors": [[10, 14]]})
    assert str(caught.value) == "yolox_nano has no anchors: set anchors_path = '' and anchors_mask = []."


@pytest.mark.parametrize("rule", [None, {}])
def test_no_decode_rule_means_the_own_one(rule):
    """Prevents the empty rule of a file without anchors from being taken for a contradiction."""
    assert shapes_only("yolov4_tiny", 3, decode_rule=rule).decode_rule == TINY_DECODE_RULE
    assert shapes_only("yolox_nano", 3, decode_rule=rule).decode_rule == {}


def test_a_partial_decode_rule_takes_the_rest_from_the_network():
    """Prevents own anchors from costing the masks and centre scales, and the defaults from being changed by them."""
    before = {key: list(value) for key, value in TINY_DECODE_RULE.items()}
    anchors = [[number, 2 * number] for number in range(10, 16)]
    model = build_model("yolov4_tiny", 3, decode_rule={"anchors": anchors})
    assert model.decode_rule == {
        "anchors": anchors,
        "anchors_mask": [[3, 4, 5], [1, 2, 3]],
        "scale_x_y": [1.05, 1.05],
    }
    assert model.anchors.tolist() == [[[11, 22], [12, 24], [13, 26]], [[13, 26], [14, 28], [15, 30]]]
    assert before == TINY_DECODE_RULE
    masks = shapes_only("yolov4_tiny", 3, decode_rule={"anchors_mask": [[4, 5], [0, 1]]})
    assert masks.decode_rule == TINY_DECODE_RULE | {"anchors_mask": [[4, 5], [0, 1]]}
    assert masks.raw_channels == 2 * 8


@pytest.mark.parametrize("name", ["yolov4_tiny", "yolov4"])
def test_a_wrong_mask_is_an_error(name):
    """Prevents check_decode_rule from being left out when a network is built by name."""
    with pytest.raises(ValueError, match=r"anchors_mask has 1 lists, and this network [23] maps"):
        shapes_only(name, 3, decode_rule={"anchors_mask": [[0, 1, 2]]})


@pytest.mark.parametrize(
    ("name", "criterion", "iou_type"), [("yolox_nano", YOLOXLoss, "iou"), ("yolov4_tiny", AnchorLoss, "ciou")]
)
def test_each_network_gets_its_own_loss(name, criterion, iou_type):
    """Prevents the loss of another network, and options that never arrive."""
    model = shapes_only(name, 3)
    usual = build_criterion(model)
    assert type(usual) is criterion
    assert (usual.options, usual.iou_type) == (LossOptions(), iou_type)
    options = LossOptions(iou_type="siou", focal_loss=True)
    chosen = build_criterion(model, options)
    assert (chosen.options, chosen.iou_type) == (options, "siou")
    assert list(chosen.parameters()) == list(chosen.buffers()) == []
