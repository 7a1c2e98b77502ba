import math

import numpy as np
import pytest
import torch

from utils.data.dataset import Batch
from utils.data.letterbox import boxes_to_input, placement
from utils.data.records import Records
from utils.eval.evaluate import evaluate, ground_truth, join_detections, run_network
from utils.infer import ImageDetections

CPU = torch.device("cpu")
NAMES = ["cat", "dog"]
INPUT = (64, 64)
NO_BOX = [0.0, 0.0, 1.0, 1.0, -20.0, 0.0, 0.0]


@pytest.fixture
def records():
    """Three images 200 wide and 100 high: two boxes, none, one that is difficult and one that is not."""
    boxes_xyxy = [(20, 20, 120, 80), (130, 10, 190, 90), (0, 0, 50, 50), (100, 20, 200, 100)]
    return Records(
        ["a.jpg", "b.jpg", "c.jpg"], [(100, 200)] * 3, [2, 0, 2], boxes_xyxy, [0, 1, 1, 0], [False, False, True, False]
    )


class FakeModel:
    """Finds on each image what it is told to; an image's first pixel is its index."""

    def __init__(self, found):
        self.found = found

    def __call__(self, images):
        return images[:, 0, 0, 0].tolist()

    def decode(self, raw):
        return torch.stack([self.found[index] for index in raw])


def rows(records, shift=0.0):
    """For each image, sure predictions (3, 7) of its boxes, moved right by shift pixels of the image."""
    placed, found = placement((100, 200), INPUT, "topleft"), []
    for index in range(len(records)):
        boxes_xyxy = boxes_to_input(records.boxes(index) + np.float32([shift, 0, shift, 0]), placed)
        logits = [[10.0, -10.0], [-10.0, 10.0]]
        predictions = [
            [*box_xyxy, 10.0, *logits[label]]
            for box_xyxy, label in zip(boxes_xyxy.tolist(), records.labels(index), strict=True)
        ]
        found.append(torch.tensor((predictions + [NO_BOX] * 3)[:3]))
    return found


def batches(records, batch_size=2):
    """What build_val_loader would give, without files."""
    placed = placement((100, 200), INPUT, "topleft")
    for start in range(0, len(records), batch_size):
        indices = list(range(start, min(start + batch_size, len(records))))
        images = torch.tensor(indices, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, *INPUT)
        yield Batch(images, torch.zeros(len(indices), 16, 5), indices, [placed] * len(indices), [])


def scores_of(records, found, **options):
    loss, scores, _ = evaluate(FakeModel(found), batches(records), records, NAMES, CPU, torch.float32, **options)
    assert loss is None
    return scores


def test_a_perfect_network_scores_one(records):
    """Prevents boxes of another image, of input pixels or of another class order from being compared."""
    scores = scores_of(records, rows(records))
    assert (scores["map50"], scores["AP"], scores["AP50"]) == (1.0, pytest.approx(1.0), pytest.approx(1.0))
    assert [(row["name"], row["boxes"], row["AP50"]) for row in scores["classes"]] == [("cat", 2, 1.0), ("dog", 1, 1.0)]
    assert scores["images"] == 3


def test_a_network_that_finds_nothing_scores_zero(records):
    """Prevents a crash, or NaN, in the first epochs."""
    scores = scores_of(records, [torch.tensor([NO_BOX] * 3)] * 3)
    assert (scores["map50"], scores["AP"]) == (0.0, 0.0)


def test_a_set_without_boxes_has_no_score():
    """Prevents a score of 0 or 1 where nothing could be found."""
    records = Records(["a.jpg"], [(100, 200)], [0], [], [])
    scores = scores_of(records, [torch.tensor([NO_BOX] * 3)])
    assert math.isnan(scores["map50"]) and math.isnan(scores["AP"])


def test_the_options_reach_the_scores():
    """Prevents thresholds of tools/get_map.py that change nothing: the box overlaps its label by 75 / 125 = 0.6."""
    records = Records(["a.jpg"], [(100, 200)], [1], [(20, 20, 120, 80)], [0])
    found = rows(records, shift=25)
    assert scores_of(records, found)["map50"] == 1.0
    assert scores_of(records, found, min_overlap=0.7)["map50"] == 0.0
    assert scores_of(records, found, confidence=0.99999)["map50"] == 0.0
    double = [torch.cat([found[0], found[0][:1] + torch.tensor([1.0, 0, 1, 0, -1, 0, 0])])]  # overlaps by 0.94
    assert scores_of(records, double)["classes"][0]["precision"] == 1.0
    assert scores_of(records, double, nms_iou=0.99)["classes"][0]["precision"] == 0.5


def loss_of_first_pixel(raw, targets):
    """The mean over images of 1 for image 0, 3 for image 1 and 8 for image 2."""
    assert len(raw) == len(targets)
    return {"loss": torch.tensor([[1.0, 3.0, 8.0][index] for index in raw]).mean()}


def test_the_loss_is_a_mean_over_images(records):
    """Prevents a short last batch from counting as much as a full one: (1 + 3 + 8) / 3, not (2 + 8) / 2."""
    model = FakeModel(rows(records))
    loss, scores, _ = evaluate(model, batches(records), records, NAMES, CPU, torch.float32, loss_of_first_pixel)
    assert (loss, scores["map50"]) == (pytest.approx(4.0), 1.0)


def test_epochs_between_evaluations_only_take_the_loss(records):
    """Prevents the cost of decoding, suppression and scoring in epochs that do not show it."""
    model = FakeModel(None)
    result = evaluate(model, batches(records), records, NAMES, CPU, torch.float32, loss_of_first_pixel, scored=False)
    assert result == (pytest.approx(4.0), None, [])


def test_no_images_no_loss():
    """Prevents a division by zero on an empty loader."""
    records = Records([], [], [], [], [])
    loss, detections, _ = run_network(FakeModel([]), [], records, CPU, torch.float32, loss_of_first_pixel)
    assert loss == 0.0
    assert [part.shape for part in detections] == [(0,), (0, 4), (0,), (0,)]


def test_ground_truth_is_flat(records):
    """Prevents boxes that change their image where an image has none, and a lost difficult flag."""
    truth = ground_truth(records)
    assert truth.image_ids.tolist() == [0, 0, 2, 2]
    assert truth.boxes_xyxy.tolist() == [[20, 20, 120, 80], [130, 10, 190, 90], [0, 0, 50, 50], [100, 20, 200, 100]]
    assert truth.classes.tolist() == [0, 1, 1, 0]
    assert truth.difficult.tolist() == [False, False, True, False]
    empty = ground_truth(Records([], [], [], [], []))
    assert [part.shape for part in empty] == [(0,), (0, 4), (0,), (0,)]


def test_detections_are_joined_in_order():
    """Prevents boxes under the id of another image, and arrays of another type for images without boxes."""
    first = ImageDetections(np.array([[0, 0, 1, 1]], np.float32), np.array([0.5], np.float32), np.array([1], np.int64))
    none = ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    pair = ImageDetections(np.ones((2, 4), np.float32), np.array([0.9, 0.8], np.float32), np.array([0, 0], np.int64))
    joined = join_detections([(4, first), (0, none), (2, pair)])
    assert joined.image_ids.tolist() == [4, 2, 2]
    assert joined.boxes_xyxy.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert joined.scores.tolist() == pytest.approx([0.5, 0.9, 0.8])
    assert joined.classes.tolist() == [1, 0, 0]
    for detections in (join_detections([]), join_detections([(0, none)])):
        assert [part.shape for part in detections] == [(0,), (0, 4), (0,), (0,)]
        assert [part.dtype for part in detections] == [np.int64, np.float32, np.float32, np.int64]
