import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nets import MODELS, build_model
from tools import summary
from utils.config import constants as config

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """The paths of train.py's constants are relative to the project's folder."""
    monkeypatch.chdir(ROOT)


def settings_of(**changes):
    """The tool's settings with train.py as shipped, but for a frozen phase.

    LICENSE stands for a weight file, whose content is not read.
    """
    return summary.check(summary.constants() | {"Freeze_Train": True} | changes)


def traced(name, num_classes, input_shape):
    with torch.device("meta"):
        model = build_model(name, num_classes).eval()
    return model, summary.trace_image(model, input_shape)


@pytest.fixture(scope="module")
def tiny():
    """(network, trace) of an image that is wider than high."""
    return traced("yolov4_tiny", 80, [64, 96])


@pytest.mark.parametrize(
    ("name", "num_classes", "side", "operations", "published", "beside", "tolerance"),
    [
        # The YOLOX paper (tables 3 and 4) also counts BatchNorm, four operations for each number that it puts out, and
        # biases, two: 2 * (2 * 8,382,400 + 301,665) and 2 * (2 * 29,849,600 + 714,000).
        ("yolox_nano", 80, 416, 1_045_106_816, 1.08, 0.034133, 0.005),
        ("yolox_s", 80, 640, 26_685_542_400, 26.8, 0.120826, 0.05),
        # Darknet also counts maxima, 4 * (52 * 52 * 128 + 26 * 26 * 256 + 13 * 13 * 512) in the small one and
        # (5 * 5 + 9 * 9 + 13 * 13) * 13 * 13 * 512 in the large one, and there 8,652,800 sums of shortcuts. Its often
        # quoted 59.563 is of a network for one class.
        ("yolov4_tiny", 80, 416, 6_907_876_352, 6.910, 0.002423, 0.0005),
        ("yolov4", 1, 416, 59_530_571_776, 59.563, 0.032448, 0.0005),
        ("yolov4", 80, 416, 60_104_771_584, 60.1, 0.032448, 0.05),
    ],
)
def test_operations_are_those_published(name, num_classes, side, operations, published, beside, tolerance):
    """Prevents multiply-adds from counting once, and layers that are not counted."""
    _, trace = traced(name, num_classes, [side, side])
    assert trace.operations[""] == operations
    assert trace.operations[""] / 1e9 + beside == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "parameters", "megabytes"),
    [
        # Millions: YOLOX paper. Megabytes: yolov4.weights and yolov4-tiny.weights, 257,717,640 and 24,251,276 bytes.
        ("yolox_nano", "912,159", "3.71 MB as float32, 1.86 MB as float16"),
        ("yolox_s", "8,968,255", "35.97 MB as float32, 17.98 MB as float16"),
        ("yolov4_tiny", "6,056,606", "24.25 MB as float32, 12.13 MB as float16"),
        ("yolov4", "64,363,101", "257.72 MB as float32, 128.86 MB as float16"),
    ],
)
def test_parameters_and_memory_are_those_published(name, parameters, megabytes):
    """Prevents running statistics from counting as parameters, and a file that is larger than it was said to be."""
    text = summary.totals(*traced(name, 80, [32, 32])).splitlines()
    assert text[0] == f"parameters  {parameters}"
    assert text[1] == f"weights     {megabytes}, with the running statistics of BatchNorm"


def test_the_whole_output(capsys):
    """Prevents columns that do not align, blocks out of order, height taken for width, and a phase too few."""
    settings = settings_of(
        model_name="yolov4_tiny",
        num_classes=80,
        input_shape=[64, 96],
        model_path="LICENSE",
        freeze_blocks=2,
        freeze_layers=["yolo_headP4.1"],
        freeze_whole_run=False,
    )
    summary.main(settings)
    assert (
        capsys.readouterr().out
        == """
yolov4_tiny, 80 classes, one image of 64x96 (height x width)

layer                      kind         output              parameters  GFLOPs  epochs 1-10  epochs 11-100
backbone                                                     3,629,728   0.182
  backbone.conv1           DarknetConv  32x32x48                   928   0.003  frozen       trains
  backbone.conv2           DarknetConv  64x16x24                18,560   0.014  frozen       trains
  backbone.resblock_body1  TinyStage    64x16x24, 128x8x12      59,776   0.046  trains       trains
  backbone.resblock_body2  TinyStage    128x8x12, 256x4x6      238,336   0.046  trains       trains
  backbone.resblock_body3  TinyStage    256x4x6, 512x2x3       951,808   0.046  trains       trains
  backbone.conv3           DarknetConv  512x2x3              2,360,320   0.028  trains       trains
neck                                                           164,608   0.002
  conv_for_P5              DarknetConv  256x2x3                131,584   0.002  trains       trains
  upsample                 Upsample     128x4x6                 33,024  <0.001  trains       trains
head                                                         2,262,270   0.061
  yolo_headP4              Sequential   255x4x6                950,783   0.046  partly       trains
  yolo_headP5              Sequential   255x2x3              1,311,487   0.016  trains       trains

parameters  6,056,606
weights     24.25 MB as float32, 12.13 MB as float16, with the running statistics of BatchNorm
GFLOPs      0.245 for one image: two operations per multiply-add; convolutions and matrix products alone

part      parameters  epochs 1-10                        epochs 11-100
backbone  3,629,728   3,610,240 at 1.0e-03, rest frozen  all at 5.0e-04
neck      164,608     all at 1.0e-03                     all at 5.0e-04
head      2,262,270   2,196,735 at 1.0e-03, rest frozen  all at 5.0e-04
"""
    )


def test_many_maps_of_a_layer_are_counted():
    """Prevents lines of 150 characters: D-FINE's decoder returns ten maps."""
    maps = [torch.zeros(1, 3, side, side) for side in (8, 4, 2, 1)]
    assert [summary._shape(maps[:count]) for count in (0, 3, 4)] == ["", "3x8x8, 3x4x4, 3x2x2", "3x8x8, 3x4x4, +2"]


def test_every_layer(tiny):
    """Prevents --layers=True from counting what lies inside a layer twice, and weights of a kernel turned round."""
    settings = settings_of(model_name="yolov4_tiny", layers=True)
    rows = summary.layer_table(*tiny, settings, []).splitlines()
    # 19 convolutions with BatchNorm and 2 without, three parts and the headings.
    assert len(rows) == 2 * 19 + 2 + 3 + 1
    assert [row.split() for row in rows[1:5]] == [
        ["backbone", "3,629,728", "0.182"],
        ["backbone.conv1.conv", "Conv2d", "3x3/2", "32x32x48", "864", "0.003"],
        ["backbone.conv1.bn", "BatchNorm2d", "32x32x48", "64"],
        ["backbone.conv2.conv", "Conv2d", "3x3/2", "64x16x24", "18,432", "0.014"],
    ]
    assert rows[-1].split() == ["yolo_headP5.1", "Conv2d", "1x1", "255x2x3", "130,815", "0.002"]


@pytest.mark.parametrize("name", MODELS)
def test_rows_add_up_to_the_whole(name):
    """Prevents blocks and layers that have no row, or two."""
    model, trace = traced(name, 3, [64, 32])
    for names, only_own in ((list(summary.blocks(model, trace)), False), (summary.own_layers(model), True)):
        assert len(set(names)) == len(names) >= 10
        sizes = [summary.size_of(model, name, only_own) for name in names]
        assert sum(sizes) == summary.size_of(model, "") and min(sizes) > 0
        counts = [summary.operations_in(model, trace, name, only_own) for name in names]
        assert sum(counts) == trace.operations[""] and min(counts) >= 0


class Borrowing(nn.Module):
    """Computes with a layer's weights without running it; on 4 pixels these are 2 * 4 * 3 * 5 operations."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 5)
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, pixels):
        return nn.functional.linear(pixels, self.inner.weight, self.inner.bias) + self.shift


class Unusual(nn.Module):
    """A list of layers that never runs itself, one layer after the other, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.list = nn.ModuleList([Borrowing(), nn.Linear(5, 2)])

    def forward(self, images):
        return self.list[1](self.list[0](images.float().flatten(2).transpose(1, 2)))


def test_layers_that_do_not_run_themselves():
    """Prevents operations that vanish, or an error, where a layer's weights are used by the layer around it."""
    with torch.device("meta"):
        model = Unusual()
    trace = summary.trace_image(model, [2, 2])
    assert list(summary.blocks(model, trace)) == ["unused", "list.0", "list.1"]
    assert summary.own_layers(model) == ["unused", "list.0", "list.0.inner", "list.1"]
    # 2 * 4 pixels * 3 * 5, then 2 * 4 * 5 * 2.
    assert trace.operations[""] == 200
    names = ("list", "list.0", "list.0.inner", "list.1", "unused")
    assert [summary.operations_in(model, trace, name) for name in names] == [200, 120, 0, 80, 0]
    assert [summary.operations_in(model, trace, name, True) for name in names] == [0, 120, 0, 80, 0]
    assert [summary.size_of(model, name) for name in ("", "unused", "list.0")] == [43, 6, 25]
    assert [summary.size_of(model, name, True) for name in ("list.0", "list.0.inner")] == [5, 20]


def test_nothing_to_show(tiny):
    """Prevents an error for a network without layers, and columns of phases that do not exist."""
    with torch.device("meta"):
        model = nn.Flatten()
    trace = summary.trace_image(model, [2, 2])
    assert list(summary.blocks(model, trace)) == summary.own_layers(model) == []
    assert trace.operations == {"": 0}
    assert "epochs" not in summary.layer_table(*tiny, settings_of(model_name="yolov4_tiny"), [])


def test_the_network_is_that_of_the_constants():
    """Prevents a summary of another network than the one that train.py would build, and memory for its weights."""
    model = summary.make_model(settings_of(model_name="yolov4_tiny", anchors_mask=[[2, 3], [0, 1]]))
    assert model.num_classes == 3  # of the sample
    assert model.yolo_headP4[1].out_channels == 2 * (5 + 3)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"} and not model.training


@pytest.mark.parametrize(
    ("changes", "is_noted"),
    [({"model_path": ""}, True), ({"model_path": "LICENSE"}, False), ({"Freeze_Train": False}, False)],
)
def test_freezing_that_does_not_happen_is_explained(capsys, changes, is_noted):
    """Prevents a table without a frozen phase that leaves the user to wonder why."""
    summary.main(settings_of(**changes))
    assert ("\nnote: Freeze_Train freezes nothing here: without weights" in capsys.readouterr().out) == is_noted


def test_the_command_takes_its_constants_and_those_of_train(capsys, monkeypatch):
    """Prevents constants that cannot be changed for one look, and 60 others that do not matter here."""
    arguments = ["--model_name=yolov4_tiny", "--num_classes=80", "--input_shape=[416,416]", "--freeze_layers=['neck']"]
    monkeypatch.setattr(sys, "argv", ["summary.py", *arguments])
    monkeypatch.delenv("RANK", raising=False)
    runpy.run_path("tools/summary.py", run_name="__main__")
    printed = capsys.readouterr().out
    assert "* num_classes          80\n" in printed and "  Freeze_Train         False\n" in printed
    assert "mosaic" not in printed
    assert "\nGFLOPs      6.908 for one image" in printed
    assert "\nneck      164,608     frozen\n" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": -1}, "num_classes is -1; expected 1 or more, or 0 to count classes_path."),
        ({"input_shape": [100, 100]}, "input_shape is [100, 100]; expected [height, width], both multiples of 32"),
        ({"train_only": ["head"], "freeze_blocks": 1}, "train_only says what trains, freeze_layers and freeze_blocks"),
        ({"UnFreeze_Epoch": 5, "Init_Epoch": 5}, "UnFreeze_Epoch is 5 and Init_Epoch is 5, so no epoch is left"),
    ],
)
def test_mistakes_are_named_as_by_train(changes, message):
    """Prevents a summary of settings that train.py refuses."""
    with pytest.raises(ValueError) as error:
        settings_of(**changes)
    assert str(error.value).startswith(message)


def test_a_constant_that_train_computes(monkeypatch, tmp_path):
    """Prevents a computed constant from being taken for None, and Min_lr = None from being taken for computed."""
    text = (ROOT / "train.py").read_text(encoding="utf-8")
    assert text.count("\nFreeze_Epoch = 10\n") == text.count("\nMin_lr = None\n") == 1
    path = tmp_path / "train.py"
    path.write_text(text.replace("\nFreeze_Epoch = 10\n", "\nFreeze_Epoch = 5 * 2\n"), encoding="utf-8")
    monkeypatch.setattr(config, "TRAIN", path)
    monkeypatch.setattr(summary, "TRAIN", path)
    with pytest.raises(ValueError) as error:
        settings_of()
    assert str(error.value) == (
        f"{path} computes Freeze_Epoch, and it is not run here; give its value, as in --Freeze_Epoch=..."
    )
    settings = settings_of(Freeze_Epoch=7)
    assert (settings.Freeze_Epoch, settings.Min_lr) == (7, None)
