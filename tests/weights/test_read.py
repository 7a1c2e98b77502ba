import ast
import pickle
import traceback
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from nets import build_model
from tests.nets.decoded import packed
from utils.inference.detector import open_network
from utils.weights.read import foreign_metadata, read_weights, unwrap

ROOT = Path(__file__).resolve().parents[2]
BGR = {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
RGB_1 = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
RGB_IMAGENET = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
TOP_LEFT, CENTRED = {"mode": "topleft", "pad": 114}, {"mode": "center", "pad": 128}


def random_network(name, num_classes, **options):
    """A network in eval mode, BatchNorm statistics of which are not those of a fresh one either."""
    model = build_model(name, num_classes, **options)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
    return model.eval()


@torch.no_grad()
def outputs(model):
    """What a network says of one fixed image."""
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return packed(model.decode(model(images)))


def layout(name, num_classes):
    """The state dict of a network with zeros that take no room in a file."""
    with torch.device("meta"):
        state = build_model(name, num_classes).state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def without_prefix(state, prefix):
    """The tensors of a backbone alone, as files of backbones name them."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def saved(content, folder, name="weights.pth"):
    path = folder / name
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def nano():
    return random_network("yolox_nano", 80)


FOREIGN = [
    ("yolox_nano", "model", "", BGR, TOP_LEFT, {}, [416, 416]),
    ("yolox_tiny", "model", "", BGR, TOP_LEFT, {}, [416, 416]),
    ("yolox_s", "model", "", BGR, TOP_LEFT, {}, [640, 640]),
    ("yolox_x", "model", "", BGR, TOP_LEFT, {}, [640, 640]),
    ("yolox_nano", "model", "yolox_rgb", RGB_IMAGENET, TOP_LEFT, {}, [416, 416]),
    ("yolox_nano", "model", "flat_yolox", RGB_IMAGENET, CENTRED, {}, [416, 416]),
    ("yolox_nano", "", "", RGB_IMAGENET, CENTRED, {}, [416, 416]),
    ("yolox_m", "", "", RGB_IMAGENET, CENTRED, {}, [640, 640]),
    ("yolox_nano", "", "yolox", BGR, TOP_LEFT, {}, [416, 416]),
    ("yolov4", "", "", RGB_1, CENTRED, {"decode_rule": {"scale_x_y": [1.0, 1.0, 1.0]}}, [608, 608]),
    ("yolov4_tiny", "", "", RGB_1, CENTRED, {"decode_rule": {"scale_x_y": [1.0, 1.0]}}, [416, 416]),
    ("yolov4_tiny", "", "darknet", RGB_1, {"mode": "stretch", "pad": 128}, {}, [416, 416]),
]


@pytest.mark.parametrize(("model_name", "wrapper", "weights_format", "pixels", "resize", "decoding", "shape"), FOREIGN)
def test_foreign_weights_get_the_metadata_of_their_format(
    tmp_path, model_name, wrapper, weights_format, pixels, resize, decoding, shape
):
    """Prevents public weights from being fed pixels, sizes or padding that they were not trained with, which costs
    nothing but accuracy."""
    state = layout(model_name, 80)
    weights = read_weights(saved({wrapper: state} if wrapper else state, tmp_path), weights_format)
    names = weights.metadata.pop("class_names")
    rules = {"pixel_rule": pixels, "resize_rule": resize} | decoding
    about = {"model_name": model_name, "backbone": "", "input_shape": shape, "num_classes": 80}
    assert weights.metadata == rules | about
    assert (len(names), names[0], names[2], names[79]) == (80, "person", "car", "toothbrush")
    assert list(weights.state) == list(state)
    assert (weights.path, weights.is_backbone, weights.numbers) == (str(tmp_path / "weights.pth"), False, None)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("model_name", ["yolox_nano", "yolov4_tiny", "yolov4"])
def test_names_of_other_classes_are_not_guessed(tmp_path, model_name, num_classes):
    """Prevents the detections of a network with three classes from being called person, bicycle and car."""
    metadata = read_weights(saved(layout(model_name, num_classes), tmp_path)).metadata
    assert (metadata["num_classes"], "class_names" in metadata) == (num_classes, False)


@pytest.mark.parametrize(
    ("model_name", "prefix", "pixels", "first"),
    [
        ("yolox_nano", "backbone.backbone.", RGB_IMAGENET, "stem.conv.conv.weight"),
        ("yolov4", "backbone.", RGB_1, "conv1.conv.weight"),
        ("yolov4_tiny", "backbone.", RGB_1, "conv1.conv.weight"),
    ],
)
def test_a_backbone_alone_is_recognised(tmp_path, model_name, prefix, pixels, first):
    """Prevents files of a backbone, whose keys lack the prefix, from being refused or taken for a whole network."""
    weights = read_weights(saved(without_prefix(layout(model_name, 1), prefix), tmp_path))
    assert weights.is_backbone and next(iter(weights.state)) == first
    assert (weights.metadata["model_name"], weights.metadata["pixel_rule"]) == (model_name, pixels)
    assert "num_classes" not in weights.metadata and "class_names" not in weights.metadata


def test_a_backbone_of_torchvision_says_its_pixels_and_no_network(tmp_path):
    """Prevents a resnet file from being refused, and from naming a network that it can stand in any of."""
    with torch.device("meta"):
        state = {key: torch.zeros(()).expand(value.shape) for key, value in resnet18().state_dict().items()}
    weights = read_weights(saved(state, tmp_path))
    assert weights.metadata == {"pixel_rule": RGB_IMAGENET, "resize_rule": TOP_LEFT}
    assert weights.is_backbone
    assert weights.source == "torchvision backbone: RGB pixels with ImageNet's mean and deviation"


@pytest.mark.parametrize(
    ("wrapper", "source", "others"),
    [
        (
            "model",
            "official YOLOX release: BGR pixels 0-255, image top-left, padding 114",
            "'yolox_rgb' or 'flat_yolox'",
        ),
        (
            "",
            "flat state dict of YOLOX: RGB pixels with ImageNet's mean and deviation, image centred, padding 128",
            "'yolox' or 'yolox_rgb'",
        ),
    ],
)
def test_what_was_recognised_is_said_and_how_to_correct_it(tmp_path, wrapper, source, others):
    """Prevents the rules that a format cannot tell from being a silent guess: the words name the constant."""
    state = layout("yolox_nano", 3)
    path = saved({wrapper: state} if wrapper else state, tmp_path)
    assert read_weights(path).source == f"{source} (if it was trained otherwise, set weights_format to {others})"
    told = read_weights(path, "yolox_rgb").source
    assert told.startswith("YOLOX release before 0.1.1: RGB") and "weights_format" not in told


def test_numbers_come_through_every_format(nano, tmp_path):
    """Prevents tensors in a wrong place, and rules that are read but not used: outputs equal those of a network into
    which torch itself loaded the tensors."""
    state = nano.state_dict()
    for content, rule in (({"model": state}, BGR), (state, RGB_IMAGENET)):
        expected = build_model("yolox_nano", 80, pixel_rule=rule).eval()
        expected.load_state_dict(state)
        model, _ = open_network(read_weights(saved(content, tmp_path)))
        assert torch.equal(outputs(model), outputs(expected))
    tiny = random_network("yolov4_tiny", 80, decode_rule={"scale_x_y": [1.0, 1.0]})
    model, _ = open_network(read_weights(saved(tiny.state_dict(), tmp_path)))
    assert torch.equal(outputs(model), outputs(tiny))
    # A centre that is pushed as far as it goes lies on the border of its cell of 16 pixels, and not beyond.
    raw = [torch.full((1, 255, 1, 1), 50.0), torch.zeros(1, 255, 0, 0)]
    x1, _, x2, _ = model.decode(raw).boxes_xyxy[0, 0].double().tolist()
    assert (x1 + x2) / 2 == pytest.approx(16, abs=1e-2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"net": state, "acc": 0.5},
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"model_state_dict": state},
        lambda state: {"ema": state},
        lambda state: {"ema": {"module": state, "decay": 0.9998}},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {"model": {"depth": 0.33}, "net": state},
        lambda state: {"state_dict": state, "best_ap": torch.tensor(0.3)},
        lambda state: OrderedDict(model=OrderedDict(state)),
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.{key}": value for key, value in state.items()} | {"epoch": torch.tensor(3)},
        lambda state: {"epoch": 3, "lr": 0.01, "names": ["a"], "note": None, 7: torch.zeros(1)} | state,
        lambda state: {key: nn.Parameter(value) for key, value in state.items() if value.is_floating_point()},
    ],
)
def test_wrapped_state_dicts(nano, tmp_path, wrap):
    """Prevents weights from being refused because a training script saved them with other things, or from a wrapper."""
    state = nano.state_dict()
    weights = read_weights(saved(wrap(state), tmp_path))
    assert weights.metadata["model_name"] == "yolox_nano"
    model, _ = open_network(weights)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if value.is_floating_point())


def test_only_the_first_key_of_a_release_makes_it_official(tmp_path):
    """Prevents any wrapped YOLOX from being fed as the official release: only {"model": ...} is one."""
    state = layout("yolox_nano", 80)
    for content, channels in (
        ({"model": state}, "BGR"),
        ({"model": {"state_dict": state}}, "BGR"),
        ({"state_dict": state}, "RGB"),
        ({"ema": {"model": state}}, "RGB"),
    ):
        assert read_weights(saved(content, tmp_path)).metadata["pixel_rule"]["channels"] == channels


def test_unwrap_finds_nothing_where_nothing_is():
    """Prevents a trace for content that is no dict, and names that are no text."""
    for content in ({}, [], None, 3, torch.zeros(1), {"model": {}}, {"model": [1]}, {"a": 1}, {0: torch.zeros(1)}):
        assert unwrap(content) == ({}, "")
    state, wrapper = unwrap({"net": {"module.a": torch.ones(1), "b": 3}})
    assert (list(state), wrapper) == (["a"], "net")


def test_half_precision(nano, tmp_path):
    """Prevents a network of mixed precisions: the numbers are the rounded ones, and computing goes on in float32."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in nano.state_dict().items()}
    model, _ = open_network(read_weights(saved({"model": half}, tmp_path)))
    expected = build_model("yolox_nano", 80).eval()
    expected.load_state_dict({key: value.to(expected.state_dict()[key].dtype) for key, value in half.items()})
    assert torch.equal(outputs(model), outputs(expected))
    assert not torch.equal(outputs(model), outputs(nano))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_weights_saved_on_a_gpu(nano, tmp_path, monkeypatch):
    """Prevents a file from a machine with a GPU from failing on one without: its tensors are marked as cuda:0."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = saved({"model": nano.state_dict()}, tmp_path)
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    state = read_weights(path).state
    assert {value.device.type for value in state.values()} == {"cpu"}
    assert all(torch.equal(state[key], value) for key, value in nano.state_dict().items())


def refused(path, weights_format=""):
    """The message of a file that cannot be read; it and all that stands behind it advise nobody to run code."""
    with pytest.raises(ValueError) as caught:
        read_weights(path, weights_format)
    assert (
        "weights_only" not in "".join(traceback.format_exception(caught.value, chain=True)).partition("ValueError")[2]
    )
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty: the download or copy was broken off"),
        (b"<!DOCTYPE html><html><body>404: Not Found</body></html>", "is a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"<!-- login --><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 7\n", "is a Git LFS pointer, not the"),
        (b"Not found\n", "cannot be read as weights: it is damaged"),
        (b'{"message": "Not Found"}', "cannot be read as weights: it is damaged"),
        (b"one,two\n" * 1000, "cannot be read as weights: it is damaged"),
        (bytes(range(256)), "cannot be read as weights: it is damaged"),
        (b"PK\x03\x04" + bytes(100), "is cut off: "),
        (b"\x80\x02", "cannot be read as weights: it is damaged"),
    ],
)
def test_what_is_no_weight_file_is_named_for_what_it_is(tmp_path, content, found):
    """Prevents a trace where a download ended as an empty file, an error page or a pointer."""
    path = tmp_path / "download.pth"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path} {found}")
    assert "Fetch it again." in message or "fetch it again." in message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_half_a_file_is_named(tmp_path, nano, share, zipped):
    """Prevents a trace, or half of the weights, after an interrupted download."""
    path = tmp_path / "half.pth"
    torch.save({"model": nano.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    found = "is cut off: the download or copy was broken off" if zipped else "cannot be read as weights: it is damaged"
    assert refused(path).startswith(f"{path} {found}")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_code_in_a_weight_file_does_not_run(tmp_path, kind):
    """Prevents a downloaded weight file from running commands on the user's machine."""
    path, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    else:
        torch.save({"model": Evil(trace)}, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(path)
    assert message.startswith(f"{path} cannot be read as weights: it holds more than tensors")
    assert message.endswith("where its class lives, save its state_dict() and use that file.")
    assert not trace.exists()
    pickle.loads(path.read_bytes()) if kind == "bare pickle" else torch.load(path, weights_only=False)
    assert trace.exists()  # the file is what it claims to be


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_a_whole_pickled_model_is_named(tmp_path, wrap):
    """Prevents a riddle: torch.save(model) needs the class, which is code, so the message says what to save instead."""
    message = refused(saved(wrap(nn.Sequential(nn.Linear(1, 1))), tmp_path))
    assert "a whole pickled model, which is code and is not run here" in message
    assert "save its state_dict()" in message


@pytest.mark.parametrize(
    "content", [{}, [], {"model": {}}, {"model": [1, 2]}, {"model": {"epoch": 3}}, {0: torch.ones(1)}]
)
def test_a_file_without_tensors_is_named(tmp_path, content):
    """Prevents a file of another kind from being loaded as a network without tensors."""
    assert "holds no tensors by name; expected weights, that is, a state dict." in refused(saved(content, tmp_path))


def test_an_unknown_network_is_named(tmp_path):
    """Prevents a training from scratch with weights of YOLOv5 in hand: what is known, and what was found."""
    path = saved({"model.0.conv.weight": torch.zeros(3), "model.0.bn.bias": torch.zeros(1)}, tmp_path)
    assert refused(path) == (
        f"{path} holds 2 tensors of a network that is not known here (the first: model.0.conv.weight, "
        "model.0.bn.bias); expected weights of YOLOX, YOLOv4, YOLOv4-tiny or D-FINE, or a backbone of "
        "torchvision."
    )


def test_a_missing_file_is_named(tmp_path):
    """Prevents a trace for a mistyped path, and for a folder."""
    for path, what in ((tmp_path / "none.pth", "does not exist"), (tmp_path, "is a folder")):
        assert refused(path).startswith(f"The weight file {str(path)!r} {what} ")


@pytest.mark.parametrize(
    ("model_name", "weights_format", "expected"),
    [
        ("yolox_nano", "flat_yolov4", "which can follow 'yolox' or 'yolox_rgb' or 'flat_yolox'; set it so, or to ''"),
        ("yolox_nano", "darknet", "but {path} holds yolox_nano, which"),
        ("yolov4_tiny", "flat_yolox", "but {path} holds yolov4_tiny, which can follow 'flat_yolov4' or 'darknet'"),
    ],
)
def test_a_format_that_does_not_fit_is_an_error(tmp_path, model_name, weights_format, expected):
    """Prevents a forgotten constant from feeding the next weights with the rules of the last."""
    path = saved(layout(model_name, 3), tmp_path)
    message = refused(path, weights_format)
    assert message.startswith(f"weights_format is {weights_format!r}, but ")
    assert expected.format(path=path) in message


def test_our_files_take_no_format(tmp_path):
    """Prevents a constant from overruling what a file says of itself."""
    metadata = {"format": 1, "model_name": "yolox_nano", "class_names": ["a"], "input_shape": [64, 64]}
    metadata |= {"resize_rule": TOP_LEFT, "pixel_rule": BGR}
    path = saved({"model": layout("yolox_nano", 1), "contract": metadata}, tmp_path)
    assert read_weights(path).metadata == metadata
    assert read_weights(path).source == "yolox_nano, 1 class, written by this project"
    message = refused(path, "yolox")
    assert message.startswith(f"weights_format is 'yolox', but {path} says itself how it is used ({{'channels': 'BGR'")
    assert message.endswith("set weights_format = ''.")


METADATA = {"format": 1, "model_name": "yolox_nano", "backbone": "", "class_names": ["a"], "input_shape": [64, 64]}
METADATA |= {"resize_rule": TOP_LEFT, "pixel_rule": BGR, "decode_rule": {}}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model_name": ["a"]}, "model_name = ['a'], which makes no sense"),
        ({"class_names": None}, "class_names = None, which makes no sense"),
        ({"class_names": [1, 2]}, "class_names = [1, 2], which makes no sense"),
        ({"input_shape": [64, -64]}, "input_shape = [64, -64], which"),
        ({"resize_rule": {}}, "resize_rule = {}, which"),
        ({"resize_rule": {"mode": "topleft", "pad": 300}}, "which makes no sense"),
        ({"pixel_rule": {"channels": "RGB", "mean": [0.0] * 3, "std": [0.0] * 3}}, "which makes no sense"),
        ({"pixel_rule": {"channels": "GBR", "mean": [0.0] * 3, "std": [1.0] * 3}}, "which makes no sense"),
        ({"confidence": [0.5]}, "confidence = [0.5], which makes no sense"),
        ({"confidence": {"a": 1.5}}, "confidence = {'a': 1.5}, which makes no sense"),
        ({"confidence": {"a": float("nan")}}, "confidence = {'a': nan}, which makes no sense"),
        ({"confidence": {1: 0.5}}, "confidence = {1: 0.5}, which makes no sense"),
        ({"format": 2}, "is written in format 2, and this project reads 1"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(tmp_path, change, found):
    """Prevents damaged, forged or newer metadata from ending in a trace, or in boxes that are silently wrong."""
    assert read_weights(saved({"model": layout("yolox_nano", 1), "contract": METADATA}, tmp_path)).metadata == METADATA
    path = saved({"model": layout("yolox_nano", 1), "contract": METADATA | change}, tmp_path)
    assert found in refused(path)


@pytest.mark.parametrize("metadata", [{"model_name": "yolox_s"}, {}, None, "text"])
def test_half_of_the_metadata_is_refused(tmp_path, metadata):
    """Prevents a file of ours with damaged metadata from passing as an official release with other pixels."""
    path = saved({"model": layout("yolox_nano", 80), "contract": metadata}, tmp_path)
    assert "its metadata, which say how the weights are used, lack " in refused(path)


def test_numbers_of_numpy_beside_the_tensors_are_read(tmp_path):
    """Prevents checkpoints of the official trainer, which hold the best AP as numpy's float, from being refused."""
    content = {"model": layout("yolox_nano", 80), "best_ap": np.float64(0.3), "curr_ap": np.float32(0.2)}
    assert read_weights(saved(content, tmp_path)).metadata["model_name"] == "yolox_nano"


def test_code_behind_a_number_of_numpy_does_not_run(tmp_path):
    """Prevents the few names of numpy that are allowed from opening a way to run code."""
    trace = tmp_path / "it_ran"
    scalar = np.array(0.0)[()].__reduce__()[0]

    class Hidden:
        def __reduce__(self):
            return scalar, (np.dtype("O"), Evil(trace))

    message = refused(saved({"model": {"a": torch.ones(1)}, "best_ap": Hidden()}, tmp_path))
    assert "which is code and is not run here" in message
    assert not trace.exists()


def test_a_file_that_holds_itself_ends(tmp_path):
    """Prevents endless unwrapping."""
    content = {"epoch": 1}
    content["model"] = content
    assert "holds no tensors by name" in refused(saved(content, tmp_path))


def test_a_tensor_of_another_shape_is_no_network(tmp_path):
    """Prevents a trace for keys that look familiar and hold something else."""
    state = {"backbone.backbone.stem.conv.conv.weight": torch.ones(16), "head.cls_preds.0.weight": torch.ones(())}
    assert "a network that is not known here" in refused(saved({"model": state}, tmp_path))


def test_metadata_of_nothing():
    """Prevents class names, a size or a network from being made up where the file holds none."""
    assert foreign_metadata("torchvision", "", None) == {"pixel_rule": RGB_IMAGENET, "resize_rule": TOP_LEFT}


def calls_of(source):
    """The calls in a Python source: (dotted name, {keyword: value as text})."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_loads_without_weights_only():
    """Prevents a fall-back that runs the code of a downloaded file, wherever it is added."""
    programs = [ROOT / "train.py", ROOT / "predict.py"]
    files = programs + [
        path for name in ("nets", "utils", "tools", "benchmarks") for path in (ROOT / name).rglob("*.py")
    ]
    loads = {"torch.load": 0, "get_state_dict": 0}
    for path in files:
        source = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in source.replace(" ", ""), path
        for name, keywords in calls_of(source):
            assert not name.startswith(("pickle.", "joblib.", "torch.hub.load")), (path, name)
            assert keywords.get("allow_pickle") in (None, "False"), (path, name)
            for loader in loads:
                if name.endswith(loader):
                    loads[loader] += 1
                    assert keywords.get("weights_only") == "True", (path, name)
    assert loads == {"torch.load": 1, "get_state_dict": 1}
    assert list(calls_of("a.torch.load(x, weights_only=f())")) == [("a.torch.load", {"weights_only": "f()"}), ("f", {})]


def test_the_official_file_is_recognised(real_data):
    """Prevents state-dict keys or rules that differ from the public weights."""
    weights = read_weights(real_data / "weights/yolox_nano_coco.pth")
    assert (weights.metadata["model_name"], weights.metadata["num_classes"]) == ("yolox_nano", 80)
    assert (weights.metadata["pixel_rule"], weights.metadata["resize_rule"]) == (BGR, TOP_LEFT)
    model, metadata = open_network(weights)
    assert len(weights.state) == len(model.state_dict()) == 642
    assert metadata["class_names"][0] == "person"
