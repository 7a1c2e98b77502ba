import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nets import build_model
from utils import infer
from utils.checkpoint import YOLOX_RESIZE, make_contract, save_weights
from utils.data.annotations import read_class_names
from utils.data.letterbox import placement, write_image
from utils.infer import Detector, suppress, to_image

ROOT = Path(__file__).resolve().parents[1]
# Logits of these probabilities.
P90, P75, P50, P01 = math.log(9), math.log(3), 0.0, -math.log(99)
LEFT, RIGHT, FAR = (0, 0, 10, 10), (1, 0, 11, 10), (50, 50, 60, 60)  # LEFT and RIGHT overlap by 90 / 110 = 0.82


def decoded(*rows):
    """One image's predictions of two classes: (box, objectness logit, class logits)."""
    return torch.tensor([[*box, objectness, *classes] for box, objectness, *classes in rows]).view(1, -1, 7)


def lists(result):
    boxes_xyxy, scores, class_ids = result
    return boxes_xyxy.tolist(), [round(score, 6) for score in scores.tolist()], class_ids.tolist()


def test_two_boxes_of_one_object_become_the_better_one():
    """Prevents an object from being counted twice, and the surer box from being the one that goes."""
    predictions = decoded((RIGHT, P75, P75, P01), (LEFT, P90, P90, P01))
    assert lists(suppress(predictions, 0.1, 0.65)[0]) == ([[0, 0, 10, 10]], [0.81], [0])
    both = lists(suppress(predictions, 0.1, 0.85)[0])  # above their overlap, both stay
    assert both == ([[0, 0, 10, 10], [1, 0, 11, 10]], [0.81, 0.5625], [0, 0])


def test_boxes_of_different_classes_do_not_suppress_each_other():
    """Prevents the rider from vanishing behind the horse."""
    predictions = decoded((RIGHT, P75, P01, P75), (LEFT, P90, P90, P01))
    assert lists(suppress(predictions, 0.1, 0.65)[0]) == (
        [[0, 0, 10, 10], [1, 0, 11, 10]],
        [0.81, 0.5625],
        [0, 1],
    )


def test_best_first_and_no_more_than_asked():
    """Prevents a limit that cuts by position instead of by score."""
    rows = [((20 * i, 0, 20 * i + 10, 10), math.log(i + 1), P90, P01) for i in range(5)]
    predictions = decoded(rows[2], rows[0], rows[4], rows[1], rows[3])
    boxes_xyxy, scores, _ = lists(suppress(predictions, 0.01, 0.65)[0])
    assert [box[0] for box in boxes_xyxy] == [80, 60, 40, 20, 0]
    assert scores == pytest.approx([0.75, 0.72, 0.675, 0.6, 0.45], abs=1e-6)
    assert [box[0] for box in lists(suppress(predictions, 0.01, 0.65, max_boxes=2)[0])[0]] == [80, 60]


def test_a_crowd_of_candidates_is_cut_to_the_best(monkeypatch):
    """Prevents a suppression whose time explodes with an untrained network, by dropping anything but the worst."""
    monkeypatch.setattr(infer, "MAX_CANDIDATES", 2)
    rows = [((20 * i, 0, 20 * i + 10, 10), math.log(i + 1), P90, P01) for i in range(4)]
    boxes_xyxy, _, _ = lists(suppress(decoded(rows[1], rows[3], rows[0], rows[2]), 0.01, 0.65)[0])
    assert [box[0] for box in boxes_xyxy] == [60, 40]


def test_the_confidence_counts_objectness_and_class():
    """Prevents a threshold on objectness alone; a box exactly at the threshold stays."""
    predictions = decoded((LEFT, P50, P50, P01))
    assert lists(suppress(predictions, 0.25, 0.65)[0]) == ([[0, 0, 10, 10]], [0.25], [0])
    assert lists(suppress(predictions, 0.26, 0.65)[0]) == ([], [], [])


def test_nothing_in_nothing_out():
    """Prevents a crash on images without objects, and arrays of another shape than the rest expects."""
    for predictions in (decoded((LEFT, P01, P01, P01)), torch.zeros(1, 0, 7)):
        boxes_xyxy, scores, class_ids = suppress(predictions, 0.5, 0.65)[0]
        assert (boxes_xyxy.shape, scores.shape, class_ids.shape) == ((0, 4), (0,), (0,))
    assert suppress(torch.zeros(0, 5, 7), 0.5, 0.65) == []
    empty = to_image(suppress(torch.zeros(1, 0, 7), 0.5, 0.65)[0], placement((10, 20), (64, 64), "topleft"), (10, 20))
    assert (empty.boxes_xyxy.shape, empty.scores.shape, empty.class_ids.shape) == ((0, 4), (0,), (0,))


def test_images_of_a_batch_do_not_mix():
    """Prevents a box of one image from suppressing that of the next."""
    batch = torch.cat([decoded((LEFT, P90, P90, P01)), decoded((RIGHT, P75, P75, P01))])
    first, second = suppress(batch, 0.1, 0.65)
    assert lists(first) == ([[0, 0, 10, 10]], [0.81], [0])
    assert lists(second) == ([[1, 0, 11, 10]], [0.5625], [0])


@pytest.mark.parametrize(
    ("mode", "box_xyxy"),
    [("topleft", (16, 6.4, 48, 25.6)), ("center", (16, 22.4, 48, 41.6)), ("stretch", (16, 12.8, 48, 51.2))],
)
def test_boxes_go_back_to_the_image(mode, box_xyxy):
    """Prevents boxes that are drawn beside their objects: a 200 x 100 image in a 64 x 64 input."""
    placed = placement((100, 200), (64, 64), mode)
    found = to_image((torch.tensor([box_xyxy]), torch.tensor([0.5]), torch.tensor([1])), placed, (100, 200))
    assert found.boxes_xyxy[0].tolist() == pytest.approx([50, 20, 150, 80], abs=1e-3)
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)


def test_boxes_end_at_the_image():
    """Prevents boxes that reach into the padding."""
    placed = placement((100, 200), (64, 64), "topleft")
    found = to_image((torch.tensor([[-5.0, 10, 70, 60]]), torch.ones(1), torch.zeros(1)), placed, (100, 200))
    assert found.boxes_xyxy.tolist() == [[0, 31.25, 200, 100]]


@pytest.fixture(scope="module")
def model():
    return build_model("yolox_nano", 2).eval()


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A weight file of this project."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    save_weights(path, model, make_contract(model, ["cat", "dog"], (64, 96), YOLOX_RESIZE, scores={"map50": 0.5}))
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "official release and does not say its model_name"),
        ({"class_names": ["cat", "dog"]}, "official release and does not say its model_name"),
        ({"model_name": "yolox_nano"}, "official release and does not say its class_names"),
        ({"model_name": "yolox_nano", "class_names": ["cat"]}, "does not fit yolox_nano with 1 classes: 6 tensors"),
        ({"model_name": "yolox_s", "class_names": ["cat", "dog"]}, "does not fit yolox_s"),
        ({"model_name": "yolov9", "class_names": ["cat", "dog"]}, "model_name is 'yolov9'; expected one of"),
    ],
)
def test_an_official_file_needs_model_and_classes(official, given, message):
    """Prevents random class predictions, and weights in another network, from looking like a detector."""
    with pytest.raises(ValueError, match=message):
        Detector(official, **given)


def test_an_official_file_with_model_and_classes(official):
    """Prevents official weights from being fed RGB or pixels divided by 255, on which they find little."""
    detector = Detector(official, model_name="yolox_nano", class_names=["cat", "dog"])
    assert (detector.input_shape, detector.resize_rule) == ((416, 416), {"mode": "topleft", "pad": 114})
    assert detector.model.normalize.rule == {"channels": "BGR", "mean": [0.0] * 3, "std": [1.0] * 3}


def test_a_network_with_anchors_reads_them_from_its_file(tmp_path):
    """Prevents weights trained with the user's anchors from being decoded with the usual ones: with raw maps of zeros
    each box is its anchor, around the middle of a cell."""
    rule = {"anchors": [[10, 20], [30, 40]], "anchors_mask": [[1], [0]]}
    model = build_model("yolov4_tiny", 2, decode_rule=rule)
    path = tmp_path / "tiny.pth"
    save_weights(path, model, make_contract(model, ["cat", "dog"], (32, 32), YOLOX_RESIZE))
    detector = Detector(path)
    assert detector.model_name == "yolov4_tiny"
    boxes_xyxy = detector.model.decode([torch.zeros(1, 7, 2, 2), torch.zeros(1, 7, 1, 1)])[0, :, :4]
    assert boxes_xyxy[0].tolist() == pytest.approx([3, -2, 13, 18])  # stride 16, the middle of the cell at 8
    assert boxes_xyxy[4].tolist() == pytest.approx([1, -4, 31, 36])  # stride 32, at 16
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        ours, theirs = detector.model(images), model.eval()(images)
    assert all(torch.allclose(first, second, atol=1e-4) for first, second in zip(ours, theirs, strict=True))


def test_detections_are_in_pixels_of_the_image(trained, tmp_path):
    """Prevents boxes in pixels of the input: a 200 x 100 image shown at 0.48 of its size in a 96 x 64 input."""
    detector = Detector(trained)
    detector.model.decode = lambda raw: decoded(((24, 9.6, 72, 38.4), P90, P01, P90), (FAR, P50, P50, P01))
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
    detector = Detector(
        real_data / "weights/yolox_nano_coco.pth", model_name="yolox_nano", class_names=names, input_shape=(416, 416)
    )
    found = detector(str(real_data / "data/coco_tiny/val2017/000000359937.jpg"), confidence=0.5)
    assert [names[class_id] for class_id in found.class_ids] == ["bus", "bus"]
    assert found.scores.tolist() == pytest.approx([0.965, 0.779], abs=0.02)
    assert np.abs(found.boxes_xyxy - labelled_xyxy).max() < 15
