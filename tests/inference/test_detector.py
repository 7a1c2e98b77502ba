import math
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from nets import build_model
from tests.nets.decoded import decoded_rows, packed
from tests.weights.test_read import layout, saved
from utils.image.codec import write_image
from utils.inference import detector as infer
from utils.inference import postprocess
from utils.inference.detector import Detector, check_release, find_weights, open_network
from utils.io.class_names import read_class_names
from utils.weights.download import RELEASES
from utils.weights.metadata import make_metadata
from utils.weights.read import read_weights
from utils.weights.save import save_weights

ROOT = Path(__file__).resolve().parents[2]
TOP_LEFT = {"mode": "topleft", "pad": 114}
# Logits of these probabilities.
P90, P50, P01 = math.log(9), 0.0, -math.log(99)
LEFT, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


@pytest.fixture(scope="module")
def model():
    return build_model("yolox_nano", 2).eval()


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A weight file of this project."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog"], (64, 96), TOP_LEFT, scores={"map50": 0.5}))
    return str(path)


@pytest.fixture(scope="module")
def official(model, tmp_path_factory):
    """A weight file as the official release writes it."""
    path = tmp_path_factory.mktemp("weights") / "yolox_nano.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def test_a_weight_file_says_itself_how_it_is_used(trained, model):
    """Prevents constants in predict.py that must be kept equal to those of the training by hand."""
    detector = Detector(trained)
    assert (detector.model_name, detector.class_names, detector.input_shape) == ("yolox_nano", ["cat", "dog"], (64, 96))
    assert detector.resize_rule == {"mode": "topleft", "pad": 114}
    assert not detector.model.training
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        ours, theirs = detector.model(images), model(images)
    assert all(torch.allclose(first, second, atol=1e-4) for first, second in zip(ours, theirs, strict=True))
    assert Detector(trained, input_shape=[32, 32]).input_shape == (32, 32)
    assert Detector(trained, input_shape=[]).input_shape == (64, 96)
    assert Detector(trained, model_name="yolox_nano", class_names=["cat", "dog"]).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_name": "yolox_s"}, "model_name is 'yolox_s', but .*best.pth was trained with 'yolox_nano'"),
        ({"class_names": ["dog", "cat"]}, r"classes_path is \['dog', 'cat'\], but .* trained with \['cat', 'dog'\]"),
    ],
)
def test_constants_that_contradict_the_file_are_errors(trained, given, message):
    """Prevents a silent choice between the file and the constants, such as names in another order."""
    with pytest.raises(ValueError, match=message):
        Detector(trained, **given)


def test_another_backbone_than_the_files_is_an_error(trained):
    """Prevents the constant from being ignored where a file was trained with the network's own backbone."""
    with pytest.raises(ValueError, match=r"backbone is 'resnet18', but .*best.pth was trained with '': leave it empty"):
        open_network(read_weights(trained), backbone="resnet18")
    assert open_network(read_weights(trained), backbone="")[1]["backbone"] == ""


def test_a_backbone_of_torchvision_opens_from_the_file_alone(tmp_path):
    """Prevents weights with another backbone from being opened as the plain network."""
    model = build_model("yolov4_tiny", 2, backbone="resnet18").eval()
    path = tmp_path / "best.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog"], (64, 64), TOP_LEFT))
    opened, metadata = open_network(read_weights(path))
    assert (metadata["backbone"], opened.backbone_name, opened.training) == ("resnet18", "resnet18", False)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(model(images), opened(images), strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "yolox_nano.pth has 2 classes, whose names it does not say, and classes_path names 0: set classes_path to",
        ),
        ({"model_name": "yolox_nano"}, "yolox_nano.pth has 2 classes, whose names it does not say, and classes_path"),
        ({"class_names": ["cat"]}, "has 2 classes, whose names it does not say, and classes_path names 1: set classes"),
        ({"class_names": ["a", "b", "c"]}, "has 2 classes, whose names it does not say, and classes_path names 3: set"),
        ({"model_name": "yolox_s", "class_names": ["cat", "dog"]}, "model_name is 'yolox_s', but .* with 'yolox_nano'"),
    ],
)
def test_a_foreign_file_needs_its_class_names(official, given, message):
    """Prevents made-up names, and weights in another network, from looking like a detector."""
    with pytest.raises(ValueError, match=message):
        Detector(official, **given)


def test_a_foreign_file_with_its_class_names(official, model):
    """Prevents official weights from being fed RGB or pixels divided by 255, on which they find little."""
    detector = Detector(official, class_names=["cat", "dog"])
    assert (detector.model_name, detector.class_names) == ("yolox_nano", ["cat", "dog"])
    assert (detector.input_shape, detector.resize_rule) == ((416, 416), {"mode": "topleft", "pad": 114})
    assert detector.model.normalize.rule == {"channels": "BGR", "mean": [0.0] * 3, "std": [1.0] * 3}
    assert detector.source.startswith("official YOLOX release")
    own = detector.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
    flat = Detector(official, class_names=["cat", "dog"], weights_format="flat_yolox")
    assert flat.model.normalize.rule["mean"] == [123.675, 116.28, 103.53]
    assert flat.resize_rule == {"mode": "center", "pad": 128}


def test_names_of_a_file_with_80_classes_may_be_corrected(tmp_path):
    """Prevents COCO's names, which are a guess there, from being forced on a file for 80 other classes, and its class
    rows from being reordered by a name that happens to be in both."""
    model = build_model("yolox_nano", 80)
    path = saved({"model": model.state_dict()}, tmp_path)
    assert Detector(path).class_names[:3] == ["person", "bicycle", "car"]
    names = [f"class {number}" for number in range(79)] + ["person"]
    detector = Detector(path, class_names=names)
    assert detector.class_names == names
    own = detector.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="has 80 classes, whose names it does not say, and classes_path names 2"):
        Detector(path, class_names=["cat", "dog"])


def without(state, beginning):
    return {key: value for key, value in state.items() if not key.startswith(beginning)}


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        (
            lambda state: without(state, "head."),
            {},
            "holds a part of a network, which detects nothing by itself: train",
        ),
        (
            lambda state: without(state, "head."),
            {"class_names": ["cat", "dog"]},
            "does not hold a whole yolox_nano with 2 classes: 153 tensors are missing or of another shape",
        ),
        (
            lambda state: without(state, "head.stems.1.conv"),
            {"class_names": ["cat", "dog"]},
            r"yolox_nano with 2 classes: 1 tensors are missing .* .first: head.stems.1.conv.weight.*class names",
        ),
        (
            lambda state: without(state, "backbone.backbone.stem"),
            {"class_names": ["cat", "dog"]},
            "tensors of a network that is not known here",
        ),
        (
            lambda state: without(state, "backbone.backbone.dark2."),
            {"class_names": ["cat", "dog"]},
            "does not fit yolox_nano: 40 of the backbone's 235 tensors do not",
        ),
    ],
)
def test_a_part_of_a_network_is_no_detector(tmp_path, part, given, message):
    """Prevents boxes out of layers that were never trained."""
    path = saved(part(layout("yolox_nano", 2)), tmp_path)
    with pytest.raises(ValueError, match=message):
        Detector(path, **given)


def test_a_file_whose_names_are_not_those_of_its_tensors(model, tmp_path):
    """Prevents a class that the network never learned from being predicted by rows at random."""
    path = tmp_path / "best.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog", "fish"], (64, 64), TOP_LEFT))
    with pytest.raises(
        ValueError, match="does not hold a whole yolox_nano with 3 classes: 6 tensors are missing or of"
    ):
        Detector(path)


def test_only_a_known_name_is_fetched(tmp_path, monkeypatch):
    """Prevents a request to the network for a mistyped path, and a release in another folder than model_data/."""
    asked = []
    monkeypatch.setattr(infer, "fetch", lambda *arguments: asked.append(arguments) or "fetched.pth")
    assert find_weights("logs/best.pth") == "logs/best.pth"
    assert find_weights("") == "" and asked == []
    monkeypatch.chdir(tmp_path)
    assert find_weights("yolox_nano") == "fetched.pth"
    ((name, folder, verify),) = asked
    assert (name, folder) == ("yolox_nano", ROOT / "model_data")
    with pytest.raises(ValueError, match="it holds yolox_tiny, expected yolox_nano"):
        verify(saved({"model": layout("yolox_tiny", 80)}, tmp_path))
    (tmp_path / "yolox_nano").write_bytes(b"mine")
    assert find_weights("yolox_nano") == "yolox_nano"
    assert len(asked) == 1 and "yolox_nano" in RELEASES


def test_a_download_must_be_whole(tmp_path):
    """Prevents a broken or wrong download from being kept: each tensor in its place, of its shape, and finite."""
    state = dict(layout("yolox_nano", 80))
    check_release("yolox_nano", saved({"model": state}, tmp_path))
    lost = without(state, "head.obj_preds.0.bias")
    with pytest.raises(ValueError, match="1 tensors are missing"):
        check_release("yolox_nano", saved({"model": lost}, tmp_path))
    with pytest.raises(ValueError, match="no finite numbers"):
        check_release(
            "yolox_nano", saved({"model": state | {"head.obj_preds.0.bias": torch.full((1,), math.nan)}}, tmp_path)
        )
    path = tmp_path / "page.pth"
    path.write_bytes(b"<html>Log in</html>")
    with pytest.raises(ValueError, match="is a web page"):
        check_release("yolox_nano", path)


@pytest.mark.parametrize("name", RELEASES)
def test_a_download_must_be_what_its_name_says(tmp_path, name):
    """Prevents another size, or a backbone, from being kept under the name of a release; and a release from being
    refused because its name is spelt otherwise than that of its network."""
    network = {"yolov4.conv.137": "yolov4", "yolov4-tiny.conv.29": "yolov4_tiny"}.get(name, name)
    network = re.sub("(dfine_.)_.*", r"\1", network)
    other = "yolox_tiny" if network == "yolox_nano" else "yolox_nano"
    with pytest.raises(ValueError, match=f"^it holds {other}, expected {network}$"):
        check_release(name, saved({"model": layout(other, 80)}, tmp_path))
    backbone = {"layer1.0.conv1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=f"^it holds a backbone, expected {network}$"):
        check_release(name, saved(backbone, tmp_path))


def test_a_downloaded_prefix_must_be_whole(tmp_path):
    """Prevents yolov4-tiny.conv.29, which holds no classes, from being refused, or accepted with numbers that are
    none."""
    path = tmp_path / "yolov4-tiny.conv.29"
    header = struct.pack("<iiiQ", 0, 2, 5, 0)
    path.write_bytes(header + bytes(4 * 4_947_424))
    check_release(path.name, path)
    path.write_bytes(header + struct.pack("<f", math.nan) + bytes(4 * 4_947_423))
    with pytest.raises(ValueError, match=r"no finite numbers .1 tensors, first: backbone.conv1.bn.bias"):
        check_release(path.name, path)


def test_a_network_with_anchors_reads_them_from_its_file(tmp_path):
    """Prevents weights trained with the user's anchors from being decoded with the usual ones: with raw maps of zeros
    each box is its anchor, around the middle of a cell."""
    rule = {"anchors": [[10, 20], [30, 40]], "anchors_mask": [[1], [0]]}
    model = build_model("yolov4_tiny", 2, decode_rule=rule)
    path = tmp_path / "tiny.pth"
    save_weights(path, model, make_metadata(model, ["cat", "dog"], (32, 32), TOP_LEFT))
    detector = Detector(path)
    assert detector.model_name == "yolov4_tiny"
    boxes_xyxy = detector.model.decode([torch.zeros(1, 7, 2, 2), torch.zeros(1, 7, 1, 1)]).boxes_xyxy[0]
    assert boxes_xyxy[0].tolist() == pytest.approx([3, -2, 13, 18])  # stride 16, the middle of the cell at 8
    assert boxes_xyxy[4].tolist() == pytest.approx([1, -4, 31, 36])  # stride 32, at 16
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        ours, theirs = detector.model(images), model.eval()(images)
    assert all(torch.allclose(first, second, atol=1e-4) for first, second in zip(ours, theirs, strict=True))


def test_detections_are_in_pixels_of_the_image(trained, tmp_path):
    """Prevents boxes in pixels of the input: a 200 x 100 image shown at 0.48 of its size in a 96 x 64 input."""
    detector = Detector(trained)
    detector.model.decode = lambda raw: decoded_rows(((24, 9.6, 72, 38.4), P90, P01, P90), (FAR, P50, P50, P01))
    image_rgb = np.zeros((100, 200, 3), np.uint8)
    path = str(tmp_path / "图.png")
    write_image(path, image_rgb)
    for image in (image_rgb, path):
        found = detector(image, confidence=0.5)
        assert found.boxes_xyxy.tolist() == [pytest.approx([50, 20, 150, 80], abs=1e-3)]
        assert (found.scores.tolist(), found.class_ids.tolist()) == ([pytest.approx(0.81)], [1])
    assert len(detector(image_rgb, confidence=0.2).scores) == 2
    assert len(detector(image_rgb, confidence=0.2, max_boxes=1).scores) == 1
    assert len(detector(image_rgb, confidence=0.9).scores) == 0


def test_the_file_knows_the_confidence_of_each_class(model, tmp_path):
    """Prevents the confidences of the best F1, which training measured, from being stored but not used; and those of a
    file without them from being anything but 0.5."""
    path = tmp_path / "best.pth"
    metadata = make_metadata(model, ["cat", "dog"], (64, 96), TOP_LEFT, confidence={"dog": 0.2})
    save_weights(path, model, metadata)
    detector = Detector(path)
    assert detector.confidences == [0.5, 0.2]
    detector.model.decode = lambda raw: decoded_rows((LEFT, P50, P90, P01), (FAR, P50, P01, P50))
    image_rgb = np.zeros((64, 96, 3), np.uint8)
    assert detector(image_rgb).class_ids.tolist() == [1]
    assert detector(image_rgb, confidence=[0.4, 0.3]).class_ids.tolist() == [0]
    assert detector(image_rgb, confidence=0.2).class_ids.tolist() == [0, 1]


def test_an_unreadable_image_is_named(trained, tmp_path):
    """Prevents an empty result for a path that holds no image."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.jpg cannot be decoded"):
        Detector(trained)(str(path))


def test_the_official_weights_find_two_buses(real_data):
    """Prevents wrong pixels, sizes or decoding, each of which the tests on drawn numbers could share.

    Two buses stand in the picture; COCO's annotations give their boxes, x1, y1, x2, y2.
    """
    labelled_xyxy = [[45.67, 5.41, 572.63, 469.34], [565.21, 252.07, 640.0, 394.46]]
    names = read_class_names(str(ROOT / "model_data/coco_classes.txt"))
    detector = Detector(real_data / "weights/yolox_nano_coco.pth")
    assert (detector.class_names, detector.input_shape) == (names, (416, 416))
    found = detector(str(real_data / "data/coco_tiny/val2017/000000359937.jpg"), confidence=0.5)
    assert [names[class_id] for class_id in found.class_ids] == ["bus", "bus"]
    assert found.scores.tolist() == pytest.approx([0.965, 0.779], abs=0.02)
    assert np.abs(found.boxes_xyxy - labelled_xyxy).max() < 15


def test_anything_but_the_weights_may_be_on_another_device(trained, tmp_path, monkeypatch):
    """Prevents a file that was saved on a GPU from opening there only."""
    content = torch.load(trained, weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    torch.save(content, tmp_path / "gpu.pth")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pth", weights_only=True)
    assert Detector(tmp_path / "gpu.pth").class_names == ["cat", "dog"]


def test_paths_arrays_lists_and_channels_give_the_same(trained, tmp_path):
    """Prevents one way into the detector from seeing other pixels than another."""
    detector = Detector(trained)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8))
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images, strict=True):
        write_image(str(path), image)
    expected = detector(images, 0.001, batch_size=2)
    assert min(len(item.scores) for item in expected) > 5
    reversed_images = [image[..., ::-1] for image in images]
    for given, channels in ((paths, "BGR"), ([str(path) for path in paths], "RGB"), (reversed_images, "BGR")):
        found = detector(given, 0.001, channels=channels, batch_size=2)
        assert all(map(np.array_equal, sum(found, ()), sum(expected, ())))
    single = detector(images[2], 0.001)  # the last batch of three by twos is one image
    assert all(map(np.array_equal, single, expected[2]))
    assert single.names.tolist() == [["cat", "dog"][number] for number in single.class_ids]


def test_several_threads_may_detect_at_once(trained):
    """Prevents results of one thread in those of another."""
    detector = Detector(trained)
    images = list(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8))
    expected = [detector(image, 0.001) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda image: detector(image, 0.001), images)
            for one, other in zip(found, expected, strict=True):
                assert one.class_ids.tolist() == other.class_ids.tolist()
                assert np.abs(one.boxes_xyxy - other.boxes_xyxy).max() < 1e-3


def with_statistics(model):
    """The model with BatchNorm statistics as a training leaves them: without, BatchNorm does next to nothing."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.7, 1.3)
            torch.nn.init.uniform_(part.bias, -0.3, 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "backbone", "count"),
    [
        ("yolox_nano", "", 104),
        ("yolov4_tiny", "", 19),
        ("yolov4_tiny", "resnet50", 57),
        ("yolov4_tiny", "mobilenet_v2", 56),
    ],
)
def test_folded_batchnorm_computes_the_same(name, backbone, count):
    """Prevents a BatchNorm that is folded into the wrong convolution, or forgotten: none is left."""
    model = with_statistics(build_model(name, 2, backbone=backbone))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = packed(model.decode(model(images)))
        norms = sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
        infer.fold_batchnorm(model)
        found = packed(model.decode(model(images)))
    assert (norms, sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())) == (count, 0)
    assert (found[..., 4:].sigmoid() - expected[..., 4:].sigmoid()).abs().max() < 1e-4
    assert torch.allclose(found[..., :4], expected[..., :4], rtol=1e-3, atol=1e-2)


def test_fuse_reaches_the_network(trained):
    """Prevents an option that changes nothing, and one that is on when nobody asked."""
    has_norms = [
        any(isinstance(part, torch.nn.BatchNorm2d) for part in Detector(trained, **options).model.modules())
        for options in ({}, {"fuse": True})
    ]
    assert has_norms == [True, False]


@pytest.mark.parametrize(("given", "environment", "threads"), [(0, None, 3), (2, "4", 2), (0, "4", 4), (0, "", 3)])
def test_threads(trained, monkeypatch, given, environment, threads):
    """Prevents a constant or a variable that changes nothing, and a detector that undoes what the program has set."""
    before = torch.get_num_threads()
    monkeypatch.delenv("TORCH_THREAD_NUM", raising=False)
    if environment is not None:
        monkeypatch.setenv("TORCH_THREAD_NUM", environment)
    try:
        torch.set_num_threads(3)
        Detector(trained, cpu_threads=given)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "changes", [{"cpu_threads": -1}, {"tta_scales": []}, {"tta_scales": [9]}, {"input_shape": (60, 60)}]
)
def test_arguments_out_of_range(trained, changes):
    """Prevents a sentence on another constant, and a trace out of the depths of torch."""
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} is .+; expected "):
        Detector(trained, **changes)


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_a_wrong_number_of_threads_in_the_environment(monkeypatch, text):
    """Prevents a trace of int(), and a variable that is passed over."""
    monkeypatch.setenv("TORCH_THREAD_NUM", text)
    with pytest.raises(ValueError, match=f"TORCH_THREAD_NUM is '{text}'; expected a number of threads, such as 2"):
        infer.choose_threads(0)


def test_augmentation_is_off_unless_asked_for(trained):
    """Prevents get_map and training from looking in a mirror, and options that change nothing."""
    assert not isinstance(Detector(trained).model, postprocess.TestTimeAugmentation)
    assert not isinstance(Detector(trained, tta_scales=[1.0]).model, postprocess.TestTimeAugmentation)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    plain = Detector(trained)(image, 0.0, 1.0, max_boxes=10**6)
    for options, factor in (({"tta_flip": True}, 2), ({"tta_scales": [1.0, 0.67]}, 1 + 32 * 64 / (64 * 96))):
        more = Detector(trained, **options)(image, 0.0, 1.0, max_boxes=10**6)
        assert len(more.scores) == round(len(plain.scores) * factor)
