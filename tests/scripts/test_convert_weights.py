import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from nets import build_model
from tests.scripts.programs import run_here
from tests.weights.test_darknet import CONVOLUTIONS, numbers_of, write
from tests.weights.test_read import outputs, random_network, saved, without_prefix
from tools import convert_weights
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.image.codec import write_image
from utils.inference.detector import Detector, open_network
from utils.io.errors import UserError
from utils.weights.load import load_matching
from utils.weights.metadata import make_metadata
from utils.weights.read import read_weights
from utils.weights.save import save_weights

BGR = {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
RGB_1 = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
RGB_IMAGENET = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
TOP_LEFT = {"mode": "topleft", "pad": 114}
TINY_ANCHORS = {
    "anchors": [[10, 14], [23, 27], [37, 58], [81, 82], [135, 169], [344, 319]],
    "anchors_mask": [[3, 4, 5], [1, 2, 3]],
}


@pytest.fixture(scope="module")
def nano():
    return random_network("yolox_nano", 80)


@pytest.fixture(scope="module")
def tiny():
    return random_network("yolov4_tiny", 80)


@pytest.fixture(scope="module")
def sources(nano, tiny, tmp_path_factory):
    """One file of each whole format: {name: path}."""
    folder = tmp_path_factory.mktemp("sources")
    own = random_network("yolox_nano", 2, backbone="resnet18")
    about = {"epoch": 7, "scores": {"map50": 0.5, "ap": None}, "settings": {"seed": 11}}
    save_weights(folder / "ours.pth", own, make_metadata(own, ["cat", "dog"], (64, 96), TOP_LEFT, **about))
    half = {key: value.half() if value.is_floating_point() else value for key, value in nano.state_dict().items()}
    return {
        "ours": folder / "ours.pth",
        "official": saved({"model": nano.state_dict()}, folder, "official.pth"),
        "flat_yolox": saved(nano.state_dict(), folder, "flat_yolox.pth"),
        "half": saved({"state_dict": half}, folder, "half.pth"),
        "flat_tiny": saved(tiny.state_dict(), folder, "flat_tiny.pth"),
        "darknet": write(folder / "yolov4-tiny.weights", numbers_of(tiny)),
    }


def convert(source, target, **constants):
    """Run the tool as its command line does, in this process."""
    constants |= {"source": str(source), "target": str(target)}
    convert_weights.main(check_values(read_constants(vars(convert_weights)) | constants))
    return target


WHOLE = {
    "ours": ("yolox_nano", "resnet18", RGB_IMAGENET, TOP_LEFT, [64, 96], {}),
    "official": ("yolox_nano", "", BGR, TOP_LEFT, [416, 416], {}),
    "flat_yolox": ("yolox_nano", "", RGB_IMAGENET, {"mode": "center", "pad": 128}, [416, 416], {}),
    "half": ("yolox_nano", "", RGB_IMAGENET, {"mode": "center", "pad": 128}, [416, 416], {}),
    "flat_tiny": (
        *("yolov4_tiny", "", RGB_1, {"mode": "center", "pad": 128}, [416, 416]),
        TINY_ANCHORS | {"scale_x_y": [1.0, 1.0]},
    ),
    "darknet": (
        *("yolov4_tiny", "", RGB_1, {"mode": "stretch", "pad": 128}, [416, 416]),
        TINY_ANCHORS | {"scale_x_y": [1.05, 1.05]},
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_converted_file_computes_the_same_and_says_how_it_is_used(sources, tmp_path, name):
    """Prevents conversion from rounding, reordering or losing anything: outputs are equal bit for bit, and the new
    file names all that use needs by itself."""
    target = convert(sources[name], tmp_path / "out.pth")
    before, _ = open_network(read_weights(sources[name]))
    after, metadata = open_network(read_weights(target))
    assert torch.equal(outputs(before), outputs(after))
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    assert (
        *(metadata["model_name"], metadata["backbone"], metadata["pixel_rule"], metadata["resize_rule"]),
        *(metadata["input_shape"], metadata["decode_rule"]),
    ) == WHOLE[name]
    assert metadata["format"] == 1
    assert metadata["strides"] == ([16, 32] if metadata["model_name"] == "yolov4_tiny" else [8, 16, 32])
    names = metadata["class_names"]
    assert (
        names == ["cat", "dog"] if name == "ours" else (len(names), names[0], names[79]) == (80, "person", "toothbrush")
    )
    assert read_weights(target).source == f"{metadata['model_name']}, {len(names)} classes, written by this project"


def test_what_a_training_wrote_stays(sources, tmp_path):
    """Prevents the settings and scores of a run from being lost."""
    metadata = read_weights(convert(sources["ours"], tmp_path / "out.pth")).metadata
    assert (metadata["epoch"], metadata["scores"]) == (7, {"map50": 0.5, "ap": None})
    assert metadata["settings"] == {"seed": 11}


@pytest.mark.parametrize("name", ["official", "flat_yolox", "flat_tiny", "darknet"])
def test_a_detector_finds_the_same_boxes_in_both_files(sources, tmp_path, name):
    """Prevents a converted file from being used with another resize, size or class order than its source."""
    image_rgb = np.random.default_rng(5).integers(0, 256, (60, 100, 3), np.uint8)
    target = convert(sources[name], tmp_path / "out.pth")
    detectors = [Detector(path, input_shape=(64, 64)) for path in (sources[name], target)]
    assert detectors[0].resize_rule == detectors[1].resize_rule
    assert detectors[0].class_names == detectors[1].class_names
    first, second = (detector(image_rgb, confidence=0.0, max_boxes=50) for detector in detectors)
    assert len(first.scores) > 20 and np.ptp(first.scores) > 0
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


def test_converting_twice_changes_nothing(sources, tmp_path):
    """Prevents a file of ours from being read by the rules of its origin a second time."""
    once = convert(sources["darknet"], tmp_path / "once.pth")
    twice = convert(once, tmp_path / "twice.pth")
    first, second = read_weights(once), read_weights(twice)
    assert first.metadata == second.metadata
    assert all(torch.equal(value, second.state[key]) for key, value in first.state.items())
    assert len(first.state) == len(second.state)


@pytest.mark.parametrize("kind", ["backbone", "prefix"])
def test_a_part_of_a_network_stays_a_part(nano, tiny, tmp_path, kind):
    """Prevents fresh numbers in neck and head from passing for trained ones, and a part from being taken for a
    detector."""
    if kind == "backbone":
        model_name, prefix = "yolox_nano", "backbone.backbone."
        source = saved(without_prefix(nano.state_dict(), prefix), tmp_path, "backbone.pth")
        expected = {key: value for key, value in nano.state_dict().items() if key.startswith(prefix)}
    else:
        model_name = "yolov4_tiny"
        source = write(tmp_path / "prefix", numbers_of(tiny, CONVOLUTIONS[model_name][1]))
        fresh = ("yolo_headP5.1.", "upsample.", "yolo_headP4.")
        expected = {
            key: value
            for key, value in tiny.state_dict().items()
            if not key.startswith(fresh) and not key.endswith("num_batches_tracked")
        }
    weights = read_weights(convert(source, tmp_path / "out.pth"))
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(value, weights.state[key]) for key, value in expected.items())
    assert (weights.metadata["class_names"], weights.metadata["model_name"]) == ([], model_name)
    with pytest.raises(ValueError, match="holds a part of a network, which detects nothing by itself: train with it"):
        Detector(tmp_path / "out.pth")
    result = load_matching(build_model(model_name, 3), weights, ["a", "b", "c"])
    assert (set(result.loaded), result.by_class, result.unexpected_keys) == (set(expected), {}, [])


def test_classes_of_ones_own(tmp_path):
    """Prevents a file for unknown classes from getting COCO's names, or none."""
    source = saved(random_network("yolox_nano", 2).state_dict(), tmp_path)
    with pytest.raises(ValueError) as caught:
        convert(source, tmp_path / "out.pth")
    assert str(caught.value) == (
        f"{source} has 2 classes, whose names it does not say, and classes_path names 0: set classes_path to a text "
        "file with the 2 names, in the order of its training."
    )
    assert not (tmp_path / "out.pth").exists()
    (tmp_path / "classes.txt").write_text("fish\n叶\n", encoding="utf-8")
    target = convert(source, tmp_path / "out.pth", classes_path=str(tmp_path / "classes.txt"))
    assert read_weights(target).metadata["class_names"] == ["fish", "叶"]


def test_the_format_can_be_told(sources, tmp_path):
    """Prevents an old release from being converted with the rules of the new one."""
    target = convert(sources["official"], tmp_path / "out.pth", weights_format="yolox_rgb")
    assert read_weights(target).metadata["pixel_rule"] == RGB_IMAGENET
    with pytest.raises(ValueError, match=r"weights_format is 'darknet', but .* holds yolox_nano"):
        convert(sources["official"], tmp_path / "other.pth", weights_format="darknet")


def test_an_existing_file_is_not_replaced(sources, tmp_path):
    """Prevents the words IN and OUT in the wrong order from destroying the weights."""
    before = sources["official"].read_bytes()
    with pytest.raises(ValueError, match=r"official.pth exists already; remove it, or give another name"):
        convert(sources["flat_yolox"], sources["official"])
    with pytest.raises(ValueError, match="exists already"):
        convert(sources["official"], sources["official"])
    assert sources["official"].read_bytes() == before
    with pytest.raises(ValueError, match=r"The folder of .*none.out.pth does not exist; make it"):
        convert(sources["official"], tmp_path / "none" / "out.pth")


@pytest.mark.parametrize("name", ["out.onnx", "out.pt", "out"])
def test_only_pth_files_are_written(sources, tmp_path, name):
    """Prevents a file of torch under the name of another kind, which no program for that kind can read."""
    with pytest.raises(
        UserError, match=r"does not end in \.pth, .* `python predict\.py --mode=export_onnx` writes ONNX"
    ):
        convert(sources["official"], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("", ""), ("a.pth", "")])
def test_both_files_must_be_named(words):
    """Prevents a riddle where a word is missing."""
    with pytest.raises(ValueError, match=r"Give two files: python tools/convert_weights.py IN OUT"):
        convert(*words)


def test_a_backbone_of_torchvision_needs_no_conversion(tmp_path):
    """Prevents a file without a network from being written as one of ours."""
    source = saved(resnet18().state_dict(), tmp_path)
    with pytest.raises(ValueError, match="is a backbone of torchvision, which is used as it is: start from it"):
        convert(source, tmp_path / "out.pth")


def test_from_the_command_line_to_boxes(sources, tmp_path):
    """Prevents words that are not understood, and a file that predict.py and get_map.py cannot use by itself: the tool
    takes bare words, and neither of the others is told anything but the file."""
    target = tmp_path / "converted.pth"
    finished = run_here("tools/convert_weights.py", sources["darknet"], target)
    assert finished.status == 0, finished.error
    assert f"saved {target}: yolov4_tiny, 118 tensors, 80 classes" in finished.said
    finished = run_here("tools/convert_weights.py", sources["darknet"], target)
    assert (finished.status, finished.error) == (
        1,
        f"Error: {target} exists already; remove it, or give another name.\n",
    )

    write_image(str(tmp_path / "a.png"), np.random.default_rng(5).integers(0, 256, (60, 100, 3), np.uint8))
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.png'} 10,10,50,40,0\n")
    common = (f"--model_path={target}", "--input_shape=[64,64]", "--Cuda=False")
    pictures = f"--image={tmp_path / 'a.png'}", f"--dir_save_path={tmp_path / 'img_out'}"
    finished = run_here("predict.py", *common, *pictures)
    assert finished.status == 0, finished.error
    assert (tmp_path / "img_out/a.png").is_file()
    finished = run_here(
        *("tools/get_map.py", *common, f"--annotation_path={tmp_path / 'list.txt'}"),
        f"--map_out_path={tmp_path / 'map_out'}",
    )
    assert finished.status == 0, finished.error
    assert "1 image, 1 box" in finished.said
    assert (tmp_path / "map_out/results.json").is_file()
