import errno
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from nets import build_model
from utils.io.files import remove_temporaries, replace_file
from utils.weights import save as save_module
from utils.weights.metadata import make_metadata
from utils.weights.read import read_weights
from utils.weights.save import copy_weights, save_content, save_state, save_weights, snapshot

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
    save_weights(path, model, make_metadata(model, NAMES, (320, 416), TOP_LEFT, **ABOUT))
    return path


def test_the_metadata_say_all_that_use_needs(model):
    """Prevents weights that are used with other pixels, sizes or classes than they were trained with."""
    assert make_metadata(model, NAMES, (320, 416), TOP_LEFT, epoch=5) == {
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
    metadata = make_metadata(model, ["fish"], (64, 64), TOP_LEFT)
    assert (metadata["model_name"], metadata["backbone"], metadata["strides"]) == ("yolov4_tiny", "resnet18", [16, 32])
    assert metadata["pixel_rule"]["mean"] == [123.675, 116.28, 103.53]


def test_a_network_with_anchors_carries_them(tmp_path):
    """Prevents weights that are decoded with other anchors than they learned, and a file that needs code to be read."""
    rule = {"anchors": [[5.0, 6.0], [90.0, 100.5]], "anchors_mask": [[1], [0]]}
    path = tmp_path / "tiny.pth"
    with torch.device("meta"):
        layout = build_model("yolov4_tiny", 3, decode_rule=rule)
    metadata = make_metadata(layout, NAMES, (64, 64), TOP_LEFT)
    save_weights(path, nn.Linear(1, 1), metadata)
    read = read_weights(path).metadata
    assert read["decode_rule"] == rule | {"scale_x_y": [1.05, 1.05]}
    assert (read["strides"], read["pixel_rule"]["std"]) == ([16, 32], [255.0, 255.0, 255.0])


def test_metadata_may_hold_every_kind_of_setting(tmp_path):
    """Prevents settings, infinity among them, that torch.load(weights_only=True) refuses after hours of training."""
    settings = {"clip_norm_type": float("inf"), "lr_scale": {"backbone": 0.1}, "lr_milestones": [], "Min_lr": None}
    metadata = make_metadata(build_model("yolox_nano", 3), NAMES, (64, 64), TOP_LEFT, settings=settings)
    save_weights(tmp_path / "a.pth", nn.Linear(1, 1), metadata)
    assert read_weights(tmp_path / "a.pth").metadata["settings"] == settings


def test_what_is_written_is_what_is_read(model, weights_path):
    """Prevents rounded weights, lost BatchNorm statistics, and files that need code to be read."""
    weights = read_weights(weights_path)
    own = model.state_dict()
    assert list(weights.state) == list(own)
    assert all(torch.equal(value, own[key]) and value.dtype == own[key].dtype for key, value in weights.state.items())
    assert weights.metadata == make_metadata(
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

    def fills_the_disk(_content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module.torch, "save", fills_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, small, {})
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path / "best.pth", small, {})
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_failed_copy_leaves_the_old_file(tmp_path, weights_path):
    """Prevents half a copy at the place where predict.py looks."""
    target = tmp_path / "best.pth"
    copy_weights(weights_path, target)
    assert target.read_bytes() == weights_path.read_bytes()
    with pytest.raises(FileNotFoundError):
        copy_weights(tmp_path / "none.pth", target)
    assert target.read_bytes() == weights_path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 4096, 500_000])
def test_a_full_disk_is_an_os_error_that_names_the_file(small_disk, room):
    """Prevents torch's RuntimeError, "unexpected pos 640 vs 598", in place of what people understand."""
    path = small_disk / "last.pth"
    save_content(path, {"epoch": 1})
    (small_disk / "fill").write_bytes(bytes(2**20 - room - 8192))
    with pytest.raises(OSError) as error:
        save_content(path, {"epoch": 2, "weight": torch.zeros(10**6)})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert sorted(path.name for path in small_disk.iterdir()) == ["fill", "last.pth"]
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_a_full_disk_is_seen_by_a_copy(small_disk, tmp_path):
    """Prevents an error that names the file which was only read."""
    (tmp_path / "big").write_bytes(bytes(2**21))
    with pytest.raises(OSError) as error:
        copy_weights(tmp_path / "big", small_disk / "copy.pth")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(small_disk / "copy.pth"))
    assert list(small_disk.iterdir()) == []


def test_torch_saying_a_write_failed_is_an_os_error(tmp_path, monkeypatch):
    """Prevents the end of a training where torch keeps the cause to itself; other errors stay what they are."""

    def fails(message):
        def save(_content, _file):
            raise RuntimeError(message)

        monkeypatch.setattr(save_module.torch, "save", save)
        save_content(tmp_path / "a.pth", {})

    with pytest.raises(OSError) as error:
        fails("PytorchStreamWriter failed writing file data/0: file write failed")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a.pth"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        fails("CUDA error: an illegal memory access")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    """Prevents the temporary name, of which nobody knows, in what people read."""
    with pytest.raises(FileNotFoundError) as error:
        save_content(tmp_path / "none" / "a.pth", {})
    assert error.value.filename == str(tmp_path / "none" / "a.pth")


def test_any_content_is_read_back(tmp_path):
    """Prevents a state of training that cannot be read without running code."""
    content = {"epoch": 3, "rates": [0.1, None], "state": {0: {"step": torch.tensor(2.0)}}, "name": ("MT", 1)}
    save_content(tmp_path / "a.pth", content)
    assert torch.load(tmp_path / "a.pth", weights_only=True) == content
    save_content(tmp_path / "a.pth", {})
    assert torch.load(tmp_path / "a.pth", weights_only=True) == {}


def test_a_snapshot_does_not_change_with_its_source():
    """Prevents a file with half of one step and half of the next: it is written while training goes on."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    source = {"state": {"weight": weight}, "rates": [1, (2, 3.5)], "names": ["fish"], "none": None}
    kept = snapshot(source)
    with torch.no_grad():
        weight.fill_(9)
    source["names"].append("key")
    assert kept["state"]["weight"].tolist() == [1, 2] and not kept["state"]["weight"].requires_grad
    assert (kept["rates"], kept["names"], kept["none"]) == ([1, (2, 3.5)], ["fish"], None)
    assert snapshot({}) == {}


def replace_for_ever(path):
    for letter in b"ab" * 10**6:
        replace_file(path, lambda temporary, letter=letter: temporary.write_bytes(bytes([letter]) * 300_000))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_killed_process_leaves_whole_files(tmp_path):
    """Prevents half a file, and temporary ones that fill the disk, where a run is killed while it writes."""
    path = tmp_path / "a"
    replace_file(path, lambda temporary: temporary.write_bytes(b"a" * 300_000))
    for delay in (0.01, 0.013, 0.02, 0.031, 0.05):
        process = multiprocessing.get_context("fork").Process(target=replace_for_ever, args=(path,))
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        assert path.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_own_old_temporaries_are_removed(tmp_path):
    """Prevents the loss of people's files, and of one that another training in the same folder is just writing."""
    for name in ("a.pth.12.tmp", "b.pth.7.tmp", "mine.tmp", "c.pth"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "a.pth.12.tmp", (1, 1))
    remove_temporaries(tmp_path, older_than=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pth.7.tmp", "c.pth", "mine.tmp"]
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "mine.tmp"]
