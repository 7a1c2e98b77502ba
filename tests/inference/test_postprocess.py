import math
import time

import numpy as np
import pytest
import torch

from nets.base import Decoded
from tests.nets.decoded import decoded_rows, packed, unpacked
from tests.tiny_detector import TinyNetwork, random_pictures, tiny_detector
from utils.image.letterbox import placement
from utils.inference import postprocess
from utils.inference.base import NMSOptions
from utils.inference.postprocess import detect, nms, to_image, top_scores

# Logits of these probabilities.
P90, P75, P50, P01 = math.log(9), math.log(3), 0.0, -math.log(99)
LEFT, RIGHT, FAR = (0, 0, 10, 10), (1, 0, 11, 10), (50, 50, 60, 60)  # LEFT and RIGHT overlap by 90 / 110 = 0.82


def lists(result):
    boxes_xyxy, scores, class_ids = result
    return boxes_xyxy.tolist(), [round(score, 6) for score in scores.tolist()], class_ids.tolist()


def test_two_boxes_of_one_object_become_the_better_one():
    """Prevents an object from being counted twice, and the surer box from being the one that goes."""
    predictions = decoded_rows((RIGHT, P75, P75, P01), (LEFT, P90, P90, P01))
    assert lists(nms(predictions, NMSOptions(0.1, 0.65))[0]) == ([[0, 0, 10, 10]], [0.81], [0])
    both = lists(nms(predictions, NMSOptions(0.1, 0.85))[0])  # above their overlap, both stay
    assert both == ([[0, 0, 10, 10], [1, 0, 11, 10]], [0.81, 0.5625], [0, 0])


def test_boxes_of_different_classes_may_overlap():
    """Prevents the rider from vanishing behind the horse."""
    predictions = decoded_rows((RIGHT, P75, P01, P75), (LEFT, P90, P90, P01))
    assert lists(nms(predictions, NMSOptions(0.1, 0.65))[0]) == (
        [[0, 0, 10, 10], [1, 0, 11, 10]],
        [0.81, 0.5625],
        [0, 1],
    )


@pytest.mark.parametrize("filler", [0, 2000])
def test_a_box_without_bounds_leaves_the_others_as_they_are(filler):
    """Prevents a wild box of a young network from swallowing the digits by which classes are kept apart: then boxes of
    two classes suppress each other, or doubles of one class stay. With many boxes torchvision takes another way."""
    wild, large = (-1e30, -1e30, 1e30, 1e30), 12.0
    rows = [(wild, large), (RIGHT, 2.0), (LEFT, 3.0), (LEFT, 2.5)] + [
        ((i, 900, i + 1, 901), -4.0) for i in range(filler)
    ]
    boxes_xyxy, objectness = (torch.tensor(column) for column in zip(*rows, strict=True))
    logits = torch.full((len(rows), 300), -9.0)
    for row, label in enumerate([299, 298, 298, 297] + [296] * filler):
        logits[row, label] = 9.0
    found = nms(Decoded(boxes_xyxy[None], logits[None], objectness[None]), NMSOptions(0.1, 0.65))[0]
    assert found[0][1:].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10]]
    assert found[2].tolist() == [299, 298, 297]


def test_best_first_and_no_more_than_asked():
    """Prevents a limit that cuts by position instead of by score."""
    rows = [((20 * i, 0, 20 * i + 10, 10), math.log(i + 1), P90, P01) for i in range(5)]
    predictions = decoded_rows(rows[2], rows[0], rows[4], rows[1], rows[3])
    boxes_xyxy, scores, _ = lists(nms(predictions, NMSOptions(0.01, 0.65))[0])
    assert [box[0] for box in boxes_xyxy] == [80, 60, 40, 20, 0]
    assert scores == pytest.approx([0.75, 0.72, 0.675, 0.6, 0.45], abs=1e-6)
    assert [box[0] for box in lists(nms(predictions, NMSOptions(0.01, 0.65, max_boxes=2))[0])[0]] == [80, 60]


def test_a_crowd_of_candidates_is_cut_to_the_best(monkeypatch):
    """Prevents an NMS whose time explodes with an untrained network, by dropping anything but the worst."""
    monkeypatch.setattr("utils.inference.postprocess.PRE_NMS_TOPK", 2)
    rows = [((20 * i, 0, 20 * i + 10, 10), math.log(i + 1), P90, P01) for i in range(4)]
    boxes_xyxy, _, _ = lists(nms(decoded_rows(rows[1], rows[3], rows[0], rows[2]), NMSOptions(0.01, 0.65))[0])
    assert [box[0] for box in boxes_xyxy] == [60, 40]


def test_the_confidence_counts_objectness_and_class():
    """Prevents a threshold on objectness alone; a box exactly at the threshold stays."""
    predictions = decoded_rows((LEFT, P50, P50, P01))
    assert lists(nms(predictions, NMSOptions(0.25, 0.65))[0]) == ([[0, 0, 10, 10]], [0.25], [0])
    assert lists(nms(predictions, NMSOptions(0.26, 0.65))[0]) == ([], [], [])


def test_each_class_may_have_a_confidence_of_its_own():
    """Prevents one threshold for classes whose scores differ: 0.81 of class 0 is too little, 0.25 of class 1 enough."""
    predictions = decoded_rows((LEFT, P90, P90, P01), (FAR, P50, P01, P50))
    assert lists(nms(predictions, NMSOptions([0.9, 0.25], 0.65))[0]) == ([[50, 50, 60, 60]], [0.25], [1])
    assert lists(nms(predictions, NMSOptions(torch.tensor([0.5, 0.5]), 0.65))[0]) == ([[0, 0, 10, 10]], [0.81], [0])


def test_nothing_in_nothing_out():
    """Prevents a crash on images without objects, and arrays of another shape than the rest expects."""
    options, no_places = NMSOptions(0.5, 0.65), unpacked(torch.zeros(1, 0, 7))
    for choose in (nms, top_scores):
        for predictions in (decoded_rows((LEFT, P01, P01, P01)), no_places):
            boxes_xyxy, scores, class_ids = choose(predictions, options)[0]
            assert (boxes_xyxy.shape, scores.shape, class_ids.shape) == ((0, 4), (0,), (0,))
        assert choose(unpacked(torch.zeros(0, 5, 7)), options) == []
    empty = to_image(nms(no_places, options)[0], placement((10, 20), (64, 64), "topleft"), (10, 20))
    assert (empty.boxes_xyxy.shape, empty.scores.shape, empty.class_ids.shape) == ((0, 4), (0,), (0,))


def test_images_of_a_batch_do_not_mix():
    """Prevents a box of one image from removing that of the next."""
    batch = unpacked(packed(decoded_rows((LEFT, P90, P90, P01), (RIGHT, P75, P75, P01))).transpose(0, 1))
    for choose in (nms, top_scores):
        first, second = choose(batch, NMSOptions(0.1, 0.65))
        assert lists(first) == ([[0, 0, 10, 10]], [0.81], [0])
        assert lists(second) == ([[1, 0, 11, 10]], [0.5625], [0])


def places(*rows):
    """One image's Decoded without objectness, from (box, two class logits) of each place."""
    boxes_xyxy, logits = zip(*rows, strict=True)
    return Decoded(torch.tensor([boxes_xyxy], dtype=torch.float32), torch.tensor([logits]))


def test_without_objectness_the_class_alone_is_the_score():
    """Prevents a failure, or scores of another scale, for detectors that have no objectness."""
    decoded = places((RIGHT, (P75, P01)), (LEFT, (P90, P01)), (FAR, (P01, P50)))
    for options, expected in (
        (NMSOptions(0.1, 0.65), ([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.5], [0, 1])),
        (NMSOptions([0.1, 0.6], 0.85), ([[0, 0, 10, 10], [1, 0, 11, 10]], [0.9, 0.75], [0, 0])),
    ):
        assert lists(nms(decoded, options)[0]) == expected


def test_top_scores_literal_values():
    """Prevents boxes that overlap from being dropped, a second class of one place from being lost, and a place from
    being taken for another: all four scores of two places, 0.9 and 0.75, 0.5 and 0.01."""
    decoded = places((LEFT, (P90, P75)), (RIGHT, (P01, P50)))
    left, right = [0, 0, 10, 10], [1, 0, 11, 10]
    for options, expected in (
        (NMSOptions(0.1, 0.1), ([left, left, right], [0.9, 0.75, 0.5], [0, 1, 1])),
        (NMSOptions(0.0, 0.1), ([left, left, right, right], [0.9, 0.75, 0.5, 0.01], [0, 1, 1, 0])),
        (NMSOptions(0.1, 0.1, max_boxes=2), ([left, left], [0.9, 0.75], [0, 1])),
        (NMSOptions([0.95, 0.6], 0.1), ([left], [0.75], [1])),
    ):
        assert lists(top_scores(decoded, options)[0]) == expected


def test_top_scores_count_objectness_where_there_is_one():
    """Prevents objectness from being passed over for networks that have it but need no NMS; 0.9 * 0.9 and 0.5 * 0.9."""
    decoded = decoded_rows((RIGHT, P50, P90, P01), (LEFT, P90, P01, P90))
    assert lists(top_scores(decoded, NMSOptions(0.1))[0]) == ([[0, 0, 10, 10], [1, 0, 11, 10]], [0.81, 0.45], [1, 0])


class WithoutNMS(TinyNetwork):
    """TinyNetwork as a detector whose places each learn an object of their own: no objectness, no NMS."""

    has_nms = False

    def decode(self, raw):
        return super().decode(raw)._replace(objectness=None)


def test_the_network_says_whether_nms_chooses_its_boxes():
    """Prevents NMS on a detector whose boxes may overlap, and its absence where several places name one object."""
    raw = torch.randn(2, 8, 3, 4)
    for model, choose in ((TinyNetwork(), nms), (WithoutNMS(), top_scores)):
        options = NMSOptions(0.3, 0.1, 7)
        for found, expected in zip(detect(model, [raw], options), choose(model.decode([raw]), options), strict=True):
            assert lists(found) == lists(expected) and len(found[1]) > 1
    assert len(detect(TinyNetwork(), [raw], options)[0][1]) < len(detect(WithoutNMS(), [raw], options)[0][1])


def test_a_detector_without_nms_and_objectness():
    """Prevents a Detector that works with YOLO's networks alone: boxes lie in the picture, each place may have
    several classes, and neither the limit of overlap nor another picture of the batch changes anything."""
    detector, pictures = tiny_detector(), random_pictures(3)
    detector.model = WithoutNMS().eval()
    found = detector(pictures, confidence=0.0, nms_iou=0.0, max_boxes=36)
    assert [len(item.scores) for item in found] == [36, 36, 36]  # 3 x 4 cells, 3 classes
    for item, image in zip(found, pictures, strict=True):
        height, width = image.shape[:2]
        assert (item.boxes_xyxy >= 0).all() and (item.boxes_xyxy <= (width, height, width, height)).all()
        assert (np.diff(item.scores) <= 0).all() and sorted(item.class_ids.tolist()) == [0] * 12 + [1] * 12 + [2] * 12
        alone = detector(image, confidence=0.0, nms_iou=1.0, max_boxes=5)
        assert alone.scores == pytest.approx(item.scores[:5], abs=1e-6)


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


class Pointing(torch.nn.Module):
    """Finds one box, around the brightest column and row of an image, 8 pixels to each side, above and below."""

    num_classes = 2

    def forward(self, images):
        assert images.shape[-1] % 32 == images.shape[-2] % 32 == 0
        return images.float().sum(1)

    def decode(self, raw):
        y, x = raw.sum(2).argmax(1).float() + 0.5, raw.sum(1).argmax(1).float() + 0.5
        ones = torch.ones_like(x)
        return unpacked(torch.stack((x - 8, y - 4, x + 8, y + 4, 2 * ones, 3 * ones, ones), 1)[:, None])


def test_views_come_back_to_one_place():
    """Prevents boxes of a mirrored or larger view from lying elsewhere than those of the plain one: a spot at (72.5,
    40.5) of 96 x 64 pixels."""
    image = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    image[..., 40, 72] = 255
    views = postprocess.TestTimeAugmentation(Pointing(), True, [1.0, 1.4])  # 64 x 96 becomes 96 x 128
    decoded = packed(views.decode(views(image)))
    assert decoded.shape == (1, 4, 7)
    assert decoded[0, :, 4:].tolist() == [[2, 3, 1]] * 4
    centres = (decoded[0, :, :2] + decoded[0, :, 2:4]) / 2
    assert (centres - torch.tensor([72.5, 40.5])).abs().max() < 0.6
    assert decoded[0, :2, :4].tolist() == [[64.5, 36.5, 80.5, 44.5]] * 2
    sides = decoded[0, 2:, 2:4] - decoded[0, 2:, :2]
    assert sides.tolist() == [[pytest.approx(16 * 96 / 128), pytest.approx(8 * 64 / 96)]] * 2


def test_no_boxes_in_any_view():
    """Prevents a failure where a batch or a map is empty."""
    views = postprocess.TestTimeAugmentation(Pointing(), True, [1.0])
    assert packed(views.decode(views(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)))).shape == (0, 2, 7)


class PointingWithoutNMS(Pointing):
    """Pointing as a detector without objectness whose boxes need no NMS."""

    has_nms = False

    def decode(self, raw):
        return super().decode(raw)._replace(objectness=None)


def test_views_of_a_network_without_nms_need_it():
    """Prevents one object from being found once in each view, and a failure where there is no objectness to join."""
    image = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    image[0, :, 40, 72] = image[1, :, 20, 10] = 255
    views = postprocess.TestTimeAugmentation(PointingWithoutNMS(), True, [1.0, 1.4])
    decoded = views.decode(views(image))
    assert decoded.objectness is None
    assert decoded.class_logits.tolist() == [[[3, 1]] * 4] * 2
    expected = packed(postprocess.TestTimeAugmentation(Pointing(), True, [1.0, 1.4]).decode(views(image)))[..., :4]
    assert torch.equal(decoded.boxes_xyxy, expected)
    for (x, y), (boxes_xyxy, scores, class_ids) in zip(
        ((72.5, 40.5), (10.5, 20.5)), detect(views, views(image), NMSOptions(0.5, 0.4)), strict=True
    ):
        assert boxes_xyxy.tolist() == [pytest.approx([x - 8, y - 4, x + 8, y + 4], abs=2)]
        assert (scores.tolist(), class_ids.tolist()) == ([pytest.approx(0.952574)], [0])


def test_nms_of_8400_boxes_is_fast():
    """Prevents an NMS that sorts what it need not, or compares boxes of different classes: an untrained network
    at a low confidence would hold up its validation."""
    top_left, sides = torch.rand(8400, 2) * 600, torch.rand(8400, 2) * 60 + 4
    logits = torch.randn(8400, 80) * 2
    predictions = torch.cat((top_left, top_left + sides, torch.full((8400, 1), 4.0), logits), 1)[None]
    predictions = unpacked(predictions)
    assert (predictions.objectness[0].sigmoid() * logits.max(1).values.sigmoid() >= 0.01).all()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        nms(predictions, NMSOptions(0.01, 0.65, 1000))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
