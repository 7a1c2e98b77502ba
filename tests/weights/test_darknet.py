import importlib.util
import struct

import numpy as np
import pytest
import torch
from torch import nn

from nets import build_model
from tests.nets.decoded import packed
from tests.weights.test_read import outputs, random_network
from utils.inference.detector import open_network
from utils.weights.darknet import PREFIXES, SIZES, darknet_state, looks_like_darknet, read_darknet
from utils.weights.load import load_matching
from utils.weights.read import read_weights

# A network, and how many convolutions its prefix holds: those before layers 137 and 29 of the cfg.
CONVOLUTIONS = {"yolov4": (110, 92), "yolov4_tiny": (21, 17)}
RGB_1 = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}


def convolutions(model):
    """[tensors in Darknet's order] of each convolution: bias, or shift, scale, mean, variance; then the kernel.

    A BatchNorm layer is that whose name differs from the convolution's by .bn for .conv.
    """
    layers = dict(model.named_modules())
    found = []
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            norm = layers.get(f"{name.removesuffix('conv')}bn")
            before = [layer.bias] if norm is None else [norm.bias, norm.weight, norm.running_mean, norm.running_var]
            found.append([*before, layer.weight])
    return found


def numbers_of(model, count=None):
    """The numbers of the first convolutions of a network as a Darknet file holds them: float32 (N,)."""
    tensors = [tensor for parts in convolutions(model)[:count] for tensor in parts]
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors]).astype("<f4")


def write(path, numbers, version=(0, 2, 5)):
    """A Darknet file: 64-bit `seen` from version 0.2 on, 32-bit before."""
    with open(path, "wb") as file:
        file.write(struct.pack("<iii", *version))
        file.write(struct.pack("<q" if version[0] * 10 + version[1] >= 2 else "<i", 32_013_312))
        numbers.tofile(file)
    return path


def write_zeros(path, count):
    """A Darknet file of that many zeros, which take no room on the disk."""
    write(path, np.zeros(0, "<f4"))
    with open(path, "r+b") as file:
        file.truncate(20 + 4 * count)
    return path


def shapes_only(name, num_classes):
    with torch.device("meta"):
        return build_model(name, num_classes)


@pytest.fixture(scope="module")
def tiny():
    """yolov4_tiny for 3 classes with random numbers everywhere."""
    model = random_network("yolov4_tiny", 3)
    for name in ("P4", "P5"):
        nn.init.normal_(model.get_submodule(f"yolo_head{name}.1").bias)
    return model


@pytest.fixture(scope="module")
def tiny_path(tiny, tmp_path_factory):
    return write(tmp_path_factory.mktemp("darknet") / "tiny.weights", numbers_of(tiny))


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sizes_are_those_of_the_networks(name, num_classes):
    """Prevents a wrong size, by which a good file is refused or its class count misread."""
    found = convolutions(shapes_only(name, num_classes))
    assert len(found) == CONVOLUTIONS[name][0]
    size, per_class = SIZES[name]
    assert sum(tensor.numel() for parts in found for tensor in parts) == size + num_classes * per_class


@pytest.mark.parametrize(("name", "public"), [("yolov4", "yolov4.conv.137"), ("yolov4_tiny", "yolov4-tiny.conv.29")])
def test_prefixes_end_before_a_convolution(name, public):
    """Prevents the files that most trainings start from from being refused: 92 and 17 convolutions."""
    found = convolutions(shapes_only(name, 80))[: CONVOLUTIONS[name][1]]
    count = sum(tensor.numel() for parts in found for tensor in parts)
    assert count == {"yolov4": 42_509_664, "yolov4_tiny": 4_947_424}[name]
    assert PREFIXES[count] == (name, public)
    assert len(PREFIXES) == 2


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_class_count_follows_from_the_size(tmp_path, name, num_classes):
    """Prevents asking the user for what the file tells."""
    size, per_class = SIZES[name]
    found = read_darknet(write_zeros(tmp_path / "a.weights", size + num_classes * per_class))
    assert (found.model_name, found.num_classes, len(found.numbers)) == (
        name,
        num_classes,
        size + num_classes * per_class,
    )
    assert found.numbers.dtype == np.float32


@pytest.mark.parametrize("version", [(0, 2, 5), (0, 3, 0), (1, 0, 0), (0, 1, 0), (0, 0, 9)])
def test_the_header_is_as_long_as_its_version_says(tmp_path, tiny, version):
    """Prevents numbers that are all shifted by one: `seen` has 64 bits from version 0.2 on, 32 bits before."""
    numbers = numbers_of(tiny)
    path = write(tmp_path / "a.weights", numbers, version)
    assert path.stat().st_size == 4 * len(numbers) + (16 if version in ((0, 1, 0), (0, 0, 9)) else 20)
    assert np.array_equal(read_darknet(path).numbers, numbers)
    assert read_weights(path).metadata["num_classes"] == 3


def test_a_whole_file_computes_what_its_network_did(tiny, tiny_path):
    """Prevents tensors in a wrong place: every number of the file, and nothing else, decides the outputs."""
    weights = read_weights(tiny_path)
    model, _ = open_network(weights, class_names=["a", "b", "c"])
    assert torch.equal(outputs(model), outputs(tiny))
    assert weights.source == (
        "Darknet file of yolov4_tiny, 3 classes; Darknet's rules: RGB pixels 0-1, image stretched, the usual anchors"
    )
    assert (weights.state, weights.is_backbone) == ({}, False)


@pytest.mark.parametrize(
    ("name", "shape", "scales"), [("yolov4", [608, 608], [1.2, 1.1, 1.05]), ("yolov4_tiny", [416, 416], [1.05, 1.05])]
)
def test_the_metadata_of_a_darknet_file(tmp_path, name, shape, scales):
    """Prevents Darknet's weights from being fed BGR or padded images, or decoded without its scale of centres."""
    size, per_class = SIZES[name]
    metadata = read_weights(write_zeros(tmp_path / "a.weights", size + 80 * per_class)).metadata
    names = metadata.pop("class_names")
    assert (len(names), names[0], names[79]) == (80, "person", "toothbrush")
    assert metadata == {
        "pixel_rule": RGB_1,
        "resize_rule": {"mode": "stretch", "pad": 128},
        "model_name": name,
        "backbone": "",
        "input_shape": shape,
        "num_classes": 80,
    }
    assert shapes_only(name, 80).decode_rule["scale_x_y"] == scales


@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_numbers_of_each_convolution_reach_it(name, num_classes):
    """Prevents an order of layers other than Darknet's: convolution i of the file is full of the number i, its
    variances are -i. The network has other classes than the file."""
    parts = convolutions(shapes_only(name, num_classes))
    numbers = np.concatenate(
        [
            np.full(tensor.numel(), -number if part == 3 else number, np.float32)
            for number, tensors in enumerate(parts, 1)
            for part, tensor in enumerate(tensors)
        ]
    )
    model = shapes_only(name, 5)
    state = darknet_state(model, numbers, num_classes)
    assert set(state) == {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    assert {value.dtype for value in state.values()} == {torch.float32}
    kernels = [value for key, value in state.items() if value.ndim == 4]
    found = [(kernel.amin().item(), kernel.amax().item()) for kernel in kernels]
    assert found == [(number, number) for number in range(1, len(parts) + 1)]
    variances = [value for key, value in state.items() if key.endswith("running_var")]
    with_norm = [-number for number, tensors in enumerate(parts, 1) if len(tensors) == 5]
    assert [variance.unique().tolist() for variance in variances] == [[number] for number in with_norm]
    rows = 3 * (5 + num_classes)
    assert [len(value) for key, value in state.items() if ".1.bias" in key] == [rows] * len(model.strides)


def test_a_prefix_loads_exactly_its_convolutions(tiny, tmp_path):
    """Prevents a prefix from being refused as truncated, from losing the neck and head that it holds, and from
    touching what it does not hold."""
    tiny_count = CONVOLUTIONS["yolov4_tiny"][1]
    path = write(tmp_path / "yolov4-tiny.conv.29", numbers_of(tiny, tiny_count))
    weights = read_weights(path)
    assert "num_classes" not in weights.metadata and "class_names" not in weights.metadata
    assert weights.source.startswith("Darknet file of yolov4_tiny, its first layers; ")
    model = build_model("yolov4_tiny", 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = load_matching(model, weights, ["a"] * 7)
    assert (result.by_class, result.unexpected_keys, len(result.loaded)) == ({}, [], 5 * tiny_count)
    own, parts = model.state_dict(), ("yolo_headP5.1.", "upsample.", "yolo_headP4.")
    for key, value in tiny.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            expected = before[key] if key.startswith(parts) else value
            assert torch.equal(own[key], expected), key
            assert (key in result.missing_keys) == key.startswith(parts)
    assert set(result.missing_keys.values()) == {"not in the file"}


@pytest.mark.parametrize("change", [-1, 1, -2310 * 3 - 5, 2310 // 2, -(10**6)])
def test_a_file_that_is_too_short_or_too_long_is_an_error(tmp_path, change):
    """Prevents half a download, whose last layers would be noise, and says what was expected and got."""
    count = 6_062_814 + change
    path = write_zeros(tmp_path / "yolov4-tiny.weights", count)
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    assert str(caught.value) == (
        f"{path} looks like a Darknet file and holds {count:,} numbers, which fits no network known here; expected "
        "64,429,405 for yolov4 with 80 classes, 6,062,814 for yolov4_tiny with 80 classes, 42,509,664 for "
        "yolov4.conv.137, 4,947,424 for yolov4-tiny.conv.29. It is incomplete, too long, or of another network: fetch "
        "it again."
    )


@pytest.mark.parametrize(("size", "got"), [(20, "0"), (21, "0.25"), (20 + 4 * 6_062_814 + 2, "6,062,814.50")])
def test_a_file_that_ends_within_a_number_is_an_error(tmp_path, size, got):
    """Prevents the last bytes from being cut off silently, and a bare header from passing."""
    path = write_zeros(tmp_path / "a.weights", 0)
    with open(path, "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=f"looks like a Darknet file and holds {got} numbers, which fits no network"):
        read_weights(path)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_classes_at_all_fit_no_network(tmp_path, name):
    """Prevents a file cut off at the number that a network without classes would have from passing as one."""
    path = write_zeros(tmp_path / "a.weights", SIZES[name][0])
    with pytest.raises(ValueError, match="fits no network known here"):
        read_weights(path)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (struct.pack("<iiiQ", 0, 2, 5, 32_013_312), True),
        (struct.pack("<iiii", 0, 1, 0, 100), True),
        (struct.pack("<iiiQ", 1, 0, 0, 0), True),
        (struct.pack("<iiiQ", 10, 0, 0, 0), False),
        (struct.pack("<iiiQ", 0, 100, 0, 0), False),
        (struct.pack("<iiiQ", 0, -1, 0, 0), False),
        (struct.pack("<iiiQ", 0, 2, 1000, 0), False),
        (struct.pack("<iii", 0, 2, 5), False),
        (b"plain text of some length", False),
        (bytes(range(1, 30)), False),
        (b"", False),
    ],
)
def test_the_header_tells(start, expected):
    """Prevents text and pickles from being read as numbers, and a Darknet file from being read as a pickle."""
    assert looks_like_darknet(start) is expected


def test_numbers_for_another_network_are_errors():
    """Prevents a network from being filled with the numbers of another as far as they go."""
    model = shapes_only("yolov4_tiny", 3)
    with pytest.raises(ValueError) as caught:
        darknet_state(model, np.zeros(100, np.float32), 3)
    # 4 * 32 numbers of the first BatchNorm: the fourth of its tensors does not fit any more.
    assert str(caught.value) == (
        "the file ends within backbone.conv1.bn.running_var of yolov4_tiny: it holds 100 numbers, and 128 are needed "
        "up to there."
    )
    with pytest.raises(ValueError, match=r"ends within backbone.conv1.bn.weight of yolov4_tiny: it holds 32 numbers"):
        darknet_state(model, np.zeros(32, np.float32), 3)
    count = 5_878_014 + 3 * 2310
    with pytest.raises(ValueError) as caught:
        darknet_state(model, np.zeros(count + 1, np.float32), 3)
    assert str(caught.value) == "the file holds 5,884,945 numbers, and yolov4_tiny takes 5,884,944."
    assert len(darknet_state(model, np.zeros(count, np.float32), 3)) == 19 * 5 + 2 * 2
    assert darknet_state(model, np.zeros(0, np.float32), 3) == {}


def test_a_darknet_file_into_another_network_is_refused(tiny_path):
    """Prevents the kernels of one network from being poured into the layers of another, by order alone."""
    weights = read_weights(tiny_path)
    with pytest.raises(ValueError) as caught:
        load_matching(build_model("yolov4_tiny", 3, backbone="resnet18"), weights, ["a", "b", "c"])
    message = str(caught.value)
    assert message.startswith(f"{tiny_path} (Darknet file of yolov4_tiny, 3 classes; ")
    assert "does not fit yolov4_tiny: the file " in message
    with pytest.raises(ValueError, match=r"model_name is 'yolov4', but .*tiny.weights was trained with 'yolov4_tiny'"):
        open_network(weights, model_name="yolov4", class_names=["a", "b", "c"])


@pytest.mark.parametrize("weights_format", ["flat_yolov4", "yolox"])
def test_other_rules_for_a_darknet_file_are_an_error(tiny_path, weights_format):
    """Prevents the rules of another format from being laid over a file that is sure of its own."""
    with pytest.raises(
        ValueError, match=f"weights_format is '{weights_format}', but .* is a Darknet file: set it to ''"
    ):
        read_weights(tiny_path, weights_format)
    assert read_weights(tiny_path, "darknet").metadata["model_name"] == "yolov4_tiny"


@pytest.fixture
def oracle(real_data):
    """(module, folder): the script that writes random Darknet files, and the folder with what another engine found."""
    folder = real_data / "oracles/darknet"
    spec = importlib.util.spec_from_file_location("make_weights", folder / "make_weights.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script, folder


def make(oracle, monkeypatch, path, file, *arguments):
    """Run the script as the command line does: a random Darknet file for a cfg."""
    script, folder = oracle
    command = ["make_weights.py", str(folder / f"{file}.cfg"), str(path), "--seed", "1", *arguments]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    return path


@pytest.fixture
def scratch(tmp_path):
    """A path for a file of up to a quarter of a gigabyte; removed at once."""
    path = tmp_path / "made.weights"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "file", "heads"),
    [
        ("yolov4_tiny", "yolov4-tiny", ("yolo_37", "yolo_30")),
        ("yolov4", "yolov4", ("yolo_139", "yolo_150", "yolo_161")),
    ],
)
def test_boxes_are_those_of_an_independent_engine(oracle, monkeypatch, scratch, name, file, heads):
    """Prevents any departure from Darknet in the file's layout, layers, activations, epsilon, order of maps and
    anchors, or decoding: another program computed these boxes, objectness and classes from the same file and pixels."""
    weights = read_weights(make(oracle, monkeypatch, scratch, file))
    model, metadata = open_network(weights)
    assert (metadata["model_name"], metadata["num_classes"]) == (name, 80)
    pixels = np.random.default_rng(123).integers(0, 256, (416, 416, 3), dtype=np.uint8)
    with torch.no_grad():
        raw = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        maps = packed(model.decode(raw))[0].split([3 * level.shape[2] * level.shape[3] for level in raw])
    with np.load(oracle[1] / f"{file}_seed1.npz") as expected:
        for head, decoded in zip(heads, maps, strict=True):
            decoded, rows = decoded[expected[f"{head}_rows"]].numpy(), expected[head]
            sides = decoded[:, 2:4] - decoded[:, :2]
            boxes_cxcywh = np.concatenate((decoded[:, :2] + sides / 2, sides), axis=1) / 416
            probabilities = 1 / (1 + np.exp(-decoded[:, 4:]))
            classes = probabilities[:, 1:] * probabilities[:, :1]
            # The engine sets class scores up to 0.2 to 0; which side a score at 0.2 falls on is a matter of rounding.
            decided = np.abs(classes - 0.2) > 1e-4
            classes[classes <= 0.2] = 0
            assert len(rows) == 300
            np.testing.assert_allclose(boxes_cxcywh, rows[:, :4], rtol=0, atol=1e-4)
            np.testing.assert_allclose(probabilities[:, 0], rows[:, 4], rtol=0, atol=1e-4)
            np.testing.assert_allclose(classes[decided], rows[:, 5:][decided], rtol=0, atol=1e-4)
            assert (rows[:, 5:] > 0).any()


@pytest.mark.parametrize(("name", "file", "cutoff"), [("yolov4_tiny", "yolov4-tiny", 29), ("yolov4", "yolov4", 137)])
def test_the_cut_off_counts_layers(oracle, monkeypatch, scratch, name, file, cutoff):
    """Prevents a cut-off of 137 or 29 convolutions: the file holds the first 92 or 17 of the whole one, number by
    number, as the same seed writes the same numbers."""
    part = read_weights(make(oracle, monkeypatch, scratch, file, "--cutoff", str(cutoff)))
    assert (part.metadata["model_name"], "num_classes" in part.metadata) == (name, False)
    whole = read_weights(make(oracle, monkeypatch, scratch, file))
    assert np.array_equal(part.numbers, whole.numbers[: len(part.numbers)])
    model = shapes_only(name, 80)
    first, everything = darknet_state(model, part.numbers, None), darknet_state(model, whole.numbers, 80)
    assert list(first) == list(everything)[: 5 * CONVOLUTIONS[name][1]]
    assert all(torch.equal(value, everything[key]) for key, value in first.items())
