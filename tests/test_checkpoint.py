from pathlib import Path

import pytest
import torch
from torch import nn

from nets import build_model
from utils import checkpoint
from utils.checkpoint import copy_weights, make_contract, save_state, save_weights
from utils.weights.read import read_weights

TOP_LEFT = {"mode": "topleft", "pad": 114}
ABOUT = {"epoch": 5, "scores": {"map50": 0.5, "ap": None}}
NAMES = ["fish", "key", "叶"]


@pytest.fixture(scope="module")
def model():
    return build_model("yolox_nano", 3)


@pytest.fixture(scope="module")
def weights_path(model, tmp_path_factory):
    """A weight file of this project for three classes."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    save_weights(path, model, make_contract(model, NAMES, (320, 416), TOP_LEFT, **ABOUT))
    return path


def test_the_contract_says_all_that_use_needs(model):
    """Prevents weights that are used with other pixels, sizes or classes than they were trained with."""
    assert make_contract(model, NAMES, (320, 416), TOP_LEFT, epoch=5) == {
        "format": 1,
        "model_name": "yolox_nano",
        "backbone": "",
        "class_names": ["fish", "key", "叶"],
        "input_shape": [320, 416],
        "resize_rule": {"mode": "topleft", "pad": 114},
        "pixel_rule": {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "decode_rule": {},
        "strides": [8, 16, 32],
        "epoch": 5,
    }


def test_another_backbone_is_named():
    """Prevents a file that opens with the network's own backbone, into which none of its tensors fit."""
    with torch.device("meta"):
        model = build_model("yolov4_tiny", 1, backbone="resnet18")
    contract = make_contract(model, ["fish"], (64, 64), TOP_LEFT)
    assert (contract["model_name"], contract["backbone"], contract["strides"]) == ("yolov4_tiny", "resnet18", [16, 32])
    assert contract["pixel_rule"]["mean"] == [123.675, 116.28, 103.53]


def test_a_network_with_anchors_carries_them(tmp_path):
    """Prevents weights that are decoded with other anchors than they learned, and a file that needs code to be read."""
    rule = {"anchors": [[5.0, 6.0], [90.0, 100.5]], "anchors_mask": [[1], [0]]}
    path = tmp_path / "tiny.pth"
    with torch.device("meta"):
        layout = build_model("yolov4_tiny", 3, decode_rule=rule)
    contract = make_contract(layout, NAMES, (64, 64), TOP_LEFT)
    save_weights(path, nn.Linear(1, 1), contract)
    read = read_weights(path).contract
    assert read["decode_rule"] == rule | {"scale_x_y": [1.05, 1.05]}
    assert (read["strides"], read["pixel_rule"]["std"]) == ([16, 32], [255.0, 255.0, 255.0])


def test_a_contract_may_hold_every_kind_of_setting(tmp_path):
    """Prevents settings, infinity among them, that torch.load(weights_only=True) refuses after hours of training."""
    settings = {"clip_norm_type": float("inf"), "lr_scale": {"backbone": 0.1}, "lr_milestones": [], "Min_lr": None}
    contract = make_contract(build_model("yolox_nano", 3), NAMES, (64, 64), TOP_LEFT, settings=settings)
    save_weights(tmp_path / "a.pth", nn.Linear(1, 1), contract)
    assert read_weights(tmp_path / "a.pth").contract["settings"] == settings


def test_what_is_written_is_what_is_read(model, weights_path):
    """Prevents rounded weights, lost BatchNorm statistics, and files that need code to be read."""
    weights = read_weights(weights_path)
    own = model.state_dict()
    assert list(weights.state) == list(own)
    assert all(torch.equal(value, own[key]) and value.dtype == own[key].dtype for key, value in weights.state.items())
    assert weights.contract == make_contract(
        model, NAMES, (320, 416), TOP_LEFT, epoch=5, scores={"map50": 0.5, "ap": None}
    )
    assert weights.source == "yolox_nano, 3 classes, written by this project"
    assert weights.path == str(weights_path)
    assert torch.load(weights_path, weights_only=True)["contract"]["class_names"] == NAMES


def test_tensors_are_written_as_they_are(tmp_path):
    """Prevents tensors that still hang on a graph, and a file of no tensors from failing."""
    weight = nn.Parameter(torch.tensor([1.5, 2.5]))
    save_state(tmp_path / "a.pth", {"weight": 2 * weight}, {"format": 1})
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert (content["model"]["weight"].tolist(), content["contract"]) == ([3, 5], {"format": 1})
    assert not content["model"]["weight"].requires_grad
    save_state(tmp_path / "b.pth", {}, {})
    assert torch.load(tmp_path / "b.pth", weights_only=True) == {"model": {}, "contract": {}}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Prevents a full disk from turning the best weights so far into half a file."""
    path, small = tmp_path / "last.pth", nn.Linear(1, 1)
    save_weights(path, small, {})
    before = path.read_bytes()

    def fills_the_disk(_content, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fills_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, small, {})
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path / "best.pth", small, {})
    assert not (tmp_path / "best.pth").exists()


def test_a_failed_copy_leaves_the_old_file(tmp_path, weights_path):
    """Prevents half a copy at the place where predict.py looks."""
    target = tmp_path / "best.pth"
    copy_weights(weights_path, target)
    assert target.read_bytes() == weights_path.read_bytes()
    with pytest.raises(FileNotFoundError):
        copy_weights(tmp_path / "none.pth", target)
    assert target.read_bytes() == weights_path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]
