import math
from pathlib import Path

import pytest
import torch

from nets import build_model
from nets.base import MAX_LOG_SIZE
from nets.yolov4.anchors import AnchorNetwork, check_decode_rule
from nets.yolov4.model import DECODE_RULE, TINY_DECODE_RULE
from tests.nets.decoded import packed

MODEL_DATA = Path(__file__).parents[2] / "model_data"
# Two maps of stride 8 and 16 with two anchors each, coarse stride first in the mask.
RULE = {
    "anchors": [[4, 6], [10, 8], [20, 30], [40, 24]],
    "anchors_mask": [[2, 3], [0, 1]],
    "scale_x_y": [1.0, 1.2],
}
PIXEL_RULE = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}


def network(num_classes=2, **changes):
    return AnchorNetwork(num_classes, PIXEL_RULE, RULE | changes, strides=(8, 16))


def raw_maps(model, size_hw=(32, 48), batch=1):
    return [torch.zeros(batch, model.raw_channels, size_hw[0] // s, size_hw[1] // s) for s in model.strides]


@pytest.mark.parametrize(("rule", "file"), [(DECODE_RULE, "yolo_anchors"), (TINY_DECODE_RULE, "yolo_tiny_anchors")])
def test_own_anchors_are_those_of_the_files(rule, file):
    """Prevents a network built without anchors_path from differing from one built with the file."""
    numbers = [int(number) for number in (MODEL_DATA / f"{file}.txt").read_text(encoding="utf-8").split(",")]
    assert rule["anchors"] == [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def test_published_decode_constants():
    """Prevents a change of the anchors or centre scales that the public weights were trained with."""
    assert DECODE_RULE["anchors"] == [
        *([12, 16], [19, 36], [40, 28]),
        *([36, 75], [76, 55], [72, 146]),
        *([142, 110], [192, 243], [459, 401]),
    ]
    assert TINY_DECODE_RULE["anchors"] == [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]]
    assert DECODE_RULE["anchors_mask"] == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert TINY_DECODE_RULE["anchors_mask"] == [[3, 4, 5], [1, 2, 3]]
    assert (DECODE_RULE["scale_x_y"], TINY_DECODE_RULE["scale_x_y"]) == ([1.2, 1.1, 1.05], [1.05, 1.05])


def test_masks_are_turned_round_once():
    """Prevents the finest map from getting the largest anchors, which trains, and finds hardly anything."""
    assert network().anchors.tolist() == [[[4, 6], [10, 8]], [[20, 30], [40, 24]]]
    with torch.device("meta"):
        models = [build_model(name, 1) for name in ("yolov4", "yolov4_tiny")]
    assert [model.strides for model in models] == [(8, 16, 32), (16, 32)]
    assert [tuple(model.anchors.shape) for model in models] == [(3, 3, 2), (2, 3, 2)]
    tiny = build_model("yolov4_tiny", 1).anchors.tolist()
    assert tiny == [[[23, 27], [37, 58], [81, 82]], [[81, 82], [135, 169], [344, 319]]]


def test_anchors_are_no_weights():
    """Prevents anchors in the state dict, whose keys belong to the public weights, and a rule that the file lacks."""
    model = network()
    assert "anchors" not in model.state_dict()
    assert model.decode_rule == RULE
    assert model.raw_channels == 14


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            [[0, 1, 2, 3]],
            "anchors_mask has 1 lists, and this network 2 maps; give one list of anchor numbers for each map, coarse "
            "stride first, or leave anchors_path and anchors_mask empty for the network's own.",
        ),
        ([], "anchors_mask has 0 lists, and this network 2 maps; "),
        (
            [[2, 3], [1]],
            "anchors_mask is [[2, 3], [1]]; every list must have the same number of anchors, at least one.",
        ),
        ([[], []], "anchors_mask is [[], []]; every list must have the same number of anchors, at least one."),
        (
            [[2, 4], [0, 1]],
            "anchors_mask names anchor 4, but there are only 4 anchors, counted from 0; correct anchors_mask or the "
            "file of anchors_path.",
        ),
        ([[2, 3], [-1, 1]], "anchors_mask names anchor -1, but there are only 4 anchors, counted from 0; "),
    ],
)
def test_masks_that_do_not_fit_are_errors(masks, message):
    """Prevents an index error from the depths, and a mask of -1 that silently takes the last anchor."""
    with pytest.raises(ValueError) as caught:
        check_decode_rule(RULE | {"anchors_mask": masks}, 2)
    assert str(caught.value).startswith(message)
    with pytest.raises(ValueError, match="anchors_mask"):
        network(anchors_mask=masks)


def test_decode_literal_values():
    """Prevents a wrong stride, a scale that does not move the centre by half of its surplus, swapped sides, and any
    other order of predictions than maps, cells row by row, anchors."""
    model = network()
    fine, coarse = raw_maps(model)  # 4 x 6 and 2 x 3 cells
    # Stride 8, row 3, column 1, second anchor (10, 8): centre (1.75, 3.25) * 8, sides 20 x 24.
    fine[0, 7:, 3, 1] = torch.tensor([math.log(3), -math.log(3), math.log(2), math.log(3), 1.5, -1, 2])
    # Stride 16, scale 1.2, row 1, column 2, first anchor (20, 30): 0.75 * 1.2 - 0.1 = 0.8, 0.25 * 1.2 - 0.1 = 0.2.
    coarse[0, :7, 1, 2] = torch.tensor([math.log(3), -math.log(3), math.log(0.5), 0, -3, 4, 5])
    decoded = packed(model.decode([fine, coarse]))
    assert decoded.shape == (1, 24 * 2 + 6 * 2, 7)
    changed = [(3 * 6 + 1) * 2 + 1, 48 + (1 * 3 + 2) * 2]
    assert decoded[0, changed[0]].tolist() == pytest.approx([4, 14, 24, 38, 1.5, -1, 2], abs=1e-4)
    assert decoded[0, changed[1]].tolist() == pytest.approx([39.8, 4.2, 49.8, 34.2, -3, 4, 5], abs=1e-4)
    # Zeros mean the anchor in the middle of its cell, whatever the scale: all four corners of the order.
    expected = {
        0: [2, 1, 6, 7],
        1: [-1, 0, 9, 8],
        2: [10, 1, 14, 7],
        12: [2, 9, 6, 15],
        48: [-2, -7, 18, 23],
        59: [20, 12, 60, 36],
    }
    for position, box_xyxy in expected.items():
        assert decoded[0, position].tolist() == pytest.approx([*box_xyxy, 0, 0, 0], abs=1e-4)


@pytest.mark.parametrize(("level", "low", "high"), [(0, 0.0, 8.0), (1, -1.6, 17.6)])
def test_scale_says_how_far_a_centre_may_leave_its_cell(level, low, high):
    """Prevents centres on a cell border from being out of reach: scale 1.2 allows a tenth of a cell on each side."""
    model = network()
    raw = raw_maps(model)
    raw[level][0, 0, 0, 0], raw[level][0, 1, 0, 0] = -100.0, 100.0
    x1, y1, x2, y2 = model.decode(raw).boxes_xyxy[0, 48 * level].tolist()
    assert [(x1 + x2) / 2, (y1 + y2) / 2] == pytest.approx([low, high], abs=1e-5)


def test_decode_bounds_wild_sizes():
    """Prevents exp of a wild logit from overflowing to infinity, and the loss with it."""
    model = network()
    boxes_xyxy = model.decode([level + 1000.0 for level in raw_maps(model)]).boxes_xyxy
    sides = (boxes_xyxy[0, -1, 2:] - boxes_xyxy[0, -1, :2]).tolist()
    assert sides == pytest.approx([math.exp(MAX_LOG_SIZE) * 40, math.exp(MAX_LOG_SIZE) * 24], rel=1e-5)
    assert boxes_xyxy.isfinite().all()
    boxes_xyxy = model.decode([level - 1000.0 for level in raw_maps(model)]).boxes_xyxy
    assert torch.equal(boxes_xyxy[..., :2], boxes_xyxy[..., 2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_maps_give_float32_boxes(dtype):
    """Prevents mixed precision from rounding boxes of hundreds of pixels to whole ones."""
    model = network()
    raw = [torch.randn_like(level).to(dtype) for level in raw_maps(model)]
    decoded = model.decode(raw)
    assert {part.dtype for part in decoded} == {torch.float32}
    assert torch.equal(packed(decoded), packed(model.decode([level.float() for level in raw])))


def test_no_images():
    """Prevents an empty batch from failing in decode."""
    model = network()
    assert packed(model.decode(raw_maps(model, batch=0))).shape == (0, 60, 7)


def test_a_scale_is_missing():
    """Prevents a rule with too few scales from failing in the depths of decode."""
    with pytest.raises(ValueError, match=r"scale_x_y has 1 numbers, and this network 2 maps"):
        network(scale_x_y=[1.05])
