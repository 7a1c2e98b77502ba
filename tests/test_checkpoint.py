from pathlib import Path

import pytest
import torch
from torch import nn

from nets import build_model
from utils import checkpoint
from utils.checkpoint import (
    YOLOX_RESIZE,
    copy_weights,
    describe_fit,
    load_matching,
    make_contract,
    read_weights,
    save_weights,
)

ABOUT = {"epoch": 5, "scores": {"map50": 0.5, "ap": None}}
NAMES = ["fish", "key", "叶"]


@pytest.fixture(scope="module")
def model():
    return build_model("yolox_nano", 3)


@pytest.fixture(scope="module")
def weights_path(model, tmp_path_factory):
    """A weight file of this project for three classes."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    save_weights(path, model, make_contract(model, NAMES, (320, 416), YOLOX_RESIZE, **ABOUT))
    return path


def test_the_contract_says_all_that_use_needs(model):
    """Prevents weights that are used with other pixels, sizes or classes than they were trained with."""
    assert make_contract(model, NAMES, (320, 416), YOLOX_RESIZE, epoch=5) == {
        "format": 1,
        "model_name": "yolox_nano",
        "class_names": ["fish", "key", "叶"],
        "input_shape": [320, 416],
        "resize_rule": {"mode": "topleft", "pad": 114},
        "pixel_rule": {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "decode_rule": {},
        "strides": [8, 16, 32],
        "epoch": 5,
    }


def test_a_network_with_anchors_carries_them(tmp_path):
    """Prevents weights that are decoded with other anchors than they learned, and a file that needs code to be read."""
    rule = {"anchors": [[5.0, 6.0], [90.0, 100.5]], "anchors_mask": [[1], [0]]}
    path = tmp_path / "tiny.pth"
    with torch.device("meta"):
        layout = build_model("yolov4_tiny", 3, decode_rule=rule)
    contract = make_contract(layout, NAMES, (64, 64), YOLOX_RESIZE)
    save_weights(path, nn.Linear(1, 1), contract)
    read = read_weights(path).contract
    assert read["decode_rule"] == rule | {"scale_x_y": [1.05, 1.05]}
    assert (read["strides"], read["pixel_rule"]["std"]) == ([16, 32], [255.0, 255.0, 255.0])


def test_a_contract_may_hold_every_kind_of_setting(tmp_path):
    """Prevents settings, infinity among them, that torch.load(weights_only=True) refuses after hours of training."""
    settings = {"clip_norm_type": float("inf"), "lr_scale": {"backbone": 0.1}, "lr_milestones": [], "Min_lr": None}
    contract = make_contract(build_model("yolox_nano", 3), NAMES, (64, 64), YOLOX_RESIZE, settings=settings)
    save_weights(tmp_path / "a.pth", nn.Linear(1, 1), contract)
    assert read_weights(tmp_path / "a.pth").contract["settings"] == settings


def test_what_is_written_is_what_is_read(model, weights_path):
    """Prevents rounded weights, lost BatchNorm statistics, and files that need code to be read."""
    weights = read_weights(weights_path)
    own = model.state_dict()
    assert list(weights.state) == list(own)
    assert all(torch.equal(value, own[key]) and value.dtype == own[key].dtype for key, value in weights.state.items())
    assert weights.contract == make_contract(
        model, NAMES, (320, 416), YOLOX_RESIZE, epoch=5, scores={"map50": 0.5, "ap": None}
    )
    assert weights.source == "yolox_nano, 3 classes, written by this project"
    assert weights.path == str(weights_path)
    assert torch.load(weights_path, weights_only=True)["contract"]["class_names"] == NAMES


def test_all_tensors_load_into_the_same_network(model, weights_path):
    """Prevents a start from noise where the user believes in trained weights."""
    other = build_model("yolox_nano", 3)
    fit = load_matching(other, read_weights(weights_path))
    assert (len(fit.loaded), fit.missing, fit.unused) == (642, [], [])
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())
    assert describe_fit(fit, 642) == "642 of 642 tensors loaded"


def test_another_class_count_replaces_only_the_class_predictions(weights_path):
    """Prevents a fine-tuning that throws away more of the pretrained weights than it must."""
    other = build_model("yolox_nano", 5)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    weights = read_weights(weights_path)
    fit = load_matching(other, weights)
    fresh = [f"head.cls_preds.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")]
    assert fit.missing == fresh
    assert (len(fit.loaded), fit.unused) == (636, [])
    for key, value in other.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else weights.state[key])
    assert describe_fit(fit, 642) == (
        "636 of 642 tensors loaded; fresh, because missing or of another shape: " + ", ".join(fresh)
    )


def test_an_official_release_has_no_contract(model, tmp_path):
    """Prevents refusing the public weights, whose file holds {'model': state dict} and perhaps an optimiser."""
    path = tmp_path / "yolox_nano.pth"
    torch.save({"model": model.state_dict(), "start_epoch": 300, "optimizer": {"state": {}}}, path)
    weights = read_weights(path)
    assert (weights.contract, weights.source) == (
        {},
        "weights without a contract, pixels as the network's official release expects them",
    )
    assert len(weights.state) == 642


def test_a_file_with_unknown_tensors_says_so(model, weights_path):
    """Prevents a file that fits only in part from looking whole."""
    weights = read_weights(weights_path)
    weights.state["mask_head.weight"] = torch.zeros(1)
    del weights.state["head.obj_preds.0.bias"]
    fit = load_matching(build_model("yolox_nano", 3), weights)
    assert (fit.missing, fit.unused) == (["head.obj_preds.0.bias"], ["mask_head.weight"])
    assert describe_fit(fit, 642) == (
        "641 of 642 tensors loaded; fresh, because missing or of another shape: head.obj_preds.0.bias; "
        "1 tensors of the file have no place"
    )


def test_weights_of_another_network_are_refused_and_change_nothing(weights_path):
    """Prevents a training that silently starts from noise, with a few tensors that fit by chance."""
    other = build_model("yolox_tiny", 3)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_matching(other, read_weights(weights_path))
    message = str(error.value)
    assert f"{weights_path} (yolox_nano, 3 classes, written by this project) does not fit yolox_tiny" in message
    assert "53 of 462 tensors match" in message
    assert "187 of the backbone's 210 do not" in message
    assert "Set model_name" in message
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_lost_backbone_tensor_is_refused(weights_path):
    """Prevents a damaged backbone from passing because most of it fits."""
    weights = read_weights(weights_path)
    del weights.state["backbone.backbone.stem.conv.bn.running_var"]
    with pytest.raises(ValueError, match=r"641 of 642 tensors match, and 1 of the backbone's \d+ do not"):
        load_matching(build_model("yolox_nano", 3), weights)


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


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_weight_file_does_not_run(tmp_path, zipped):
    """Prevents a downloaded weight file from running commands on the user's machine."""
    path, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    torch.save({"model": Evil(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil.pth cannot be read as a weight file"):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file is what it claims to be


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 7\n",
        b"Not found\n",
        b"hello",
        bytes(range(256)),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content):
    """Prevents a trace where a download ended as an empty file, an error page or a pointer."""
    path = tmp_path / "download.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"download.pth cannot be read as a weight file .* fetch it again"):
        read_weights(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_half_a_file_is_named(tmp_path, weights_path, share):
    """Prevents a trace, or half of the weights, after an interrupted download."""
    path = tmp_path / "half.pth"
    content = weights_path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"half.pth cannot be read as a weight file"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"model": {}},
        {"model": [1, 2]},
        {"model": {"epoch": 3}},
        {"state_dict": {"a": torch.zeros(1)}},
        {"a": torch.zeros(1)},
        torch.zeros(3),
    ],
)
def test_a_file_without_known_weights_is_named(tmp_path, content):
    """Prevents a file of another kind from being loaded as a network without tensors."""
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other.pth holds no weights that are known here"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path):
    """Prevents a trace for a mistyped path, and for a folder."""
    with pytest.raises(ValueError, match=r"There is no weight file .*none.pth"):
        read_weights(str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="There is no weight file"):
        read_weights(str(tmp_path))


def test_the_official_file_loads_whole(real_data):
    """Prevents state-dict keys that differ from the public weights."""
    weights = read_weights(real_data / "weights/yolox_nano_coco.pth")
    fit = load_matching(build_model("yolox_nano", 80), weights)
    assert (len(fit.loaded), fit.missing, fit.unused) == (642, [], [])
    fit = load_matching(build_model("yolox_nano", 3), weights)
    assert (len(fit.loaded), len(fit.missing), fit.unused) == (636, 6, [])
