import json
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from nets.losses import Criterion
from tests.nets.decoded import unpacked
from tests.tiny_detector import NAMES as TINY_NAMES
from tests.tiny_detector import tiny_detector
from utils.data.annotations import Annotations
from utils.data.loader import Batch
from utils.data.tiles import tiled
from utils.evaluation.evaluate import (
    EvalOptions,
    evaluate,
    evaluate_detector,
    ground_truth,
    join_detections,
    join_images,
    run_network,
)
from utils.evaluation.types import DetectionTable
from utils.image.codec import write_image
from utils.image.letterbox import boxes_to_input, placement
from utils.image.tiles import TileOptions
from utils.inference.base import Boxes
from utils.runtime.device import FLOAT32, Precision, RuntimeContext
from utils.runtime.distributed import DistInfo

RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), FLOAT32)
NAMES = ["cat", "dog"]
INPUT = (64, 64)
NO_BOX = [0.0, 0.0, 1.0, 1.0, -20.0, 0.0, 0.0]


@pytest.fixture
def annotations():
    return three_images()


def three_images():
    """Three images 200 wide and 100 high: two boxes, none, one that is difficult and one that is not."""
    boxes_xyxy = [(20, 20, 120, 80), (130, 10, 190, 90), (0, 0, 50, 50), (100, 20, 200, 100)]
    return Annotations(
        ["a.jpg", "b.jpg", "c.jpg"], [(100, 200)] * 3, [2, 0, 2], boxes_xyxy, [0, 1, 1, 0], [False, False, True, False]
    )


class FakeModel(nn.Module):
    """Finds on each image what it is told to; an image's first pixel is its index."""

    has_nms = True

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, images):
        assert not self.training
        return images[:, 0, 0, 0].tolist()

    def decode(self, raw):
        return unpacked(torch.stack([self.found[index] for index in raw]))


def rows(annotations, shift=0.0):
    """For each image, sure predictions (3, 7) of its boxes, moved right by shift pixels of the image."""
    placed, found = placement((100, 200), INPUT, "topleft"), []
    for index in range(len(annotations)):
        boxes_xyxy = boxes_to_input(annotations.boxes(index) + np.float32([shift, 0, shift, 0]), placed)
        logits = [[10.0, -10.0], [-10.0, 10.0]]
        predictions = [
            [*box_xyxy, 10.0, *logits[label]]
            for box_xyxy, label in zip(boxes_xyxy.tolist(), annotations.labels(index), strict=True)
        ]
        found.append(torch.tensor((predictions + [NO_BOX] * 3)[:3]))
    return found


def batches(annotations, batch_size=2, rank=0, world_size=1):
    """What build_val_loader would give, without files; of several ranks each takes every world_size-th image."""
    placed, part = placement((100, 200), INPUT, "topleft"), list(range(rank, len(annotations), world_size))
    for start in range(0, len(part), batch_size):
        indices = part[start : start + batch_size]
        images = torch.tensor(indices, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, *INPUT)
        yield Batch(images, torch.zeros(len(indices), 16, 5), indices, [placed] * len(indices), [])


def scores_of(annotations, found, **options):
    evaluation = evaluate(FakeModel(found), batches(annotations), annotations, NAMES, RUNTIME, **options)
    assert evaluation.loss is None
    return evaluation.scores


def test_a_perfect_network_scores_one(annotations):
    """Prevents boxes of another image, of input pixels or of another class order from being compared."""
    scores = scores_of(annotations, rows(annotations))
    assert (scores["map50"], scores["AP"], scores["AP50"]) == (1.0, pytest.approx(1.0), pytest.approx(1.0))
    rows_by_class = [(row["name"], row["boxes"], row["map50"]) for row in scores["classes"]]
    assert rows_by_class == [("cat", 2, 1.0), ("dog", 1, 1.0)]
    assert scores["images"] == 3


def test_scores_are_those_of_float32(annotations):
    """Prevents a validation in a training's bfloat16, whose scores tie, or in float16, which overflows early on."""
    types = []

    class Model(FakeModel):
        def forward(self, images):
            types.append(torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype)
            return super().forward(images)

    runtime = RUNTIME._replace(precision=Precision(torch.bfloat16, False, ""))
    run_network(Model(rows(annotations)).eval(), batches(annotations), annotations, runtime)
    assert types == [torch.float32, torch.float32]


def test_a_network_that_finds_nothing_scores_zero(annotations):
    """Prevents a crash, or NaN, in the first epochs."""
    scores = scores_of(annotations, [torch.tensor([NO_BOX] * 3)] * 3)
    assert (scores["map50"], scores["AP"]) == (0.0, 0.0)


def test_a_set_without_boxes_has_no_score():
    """Prevents a score of 0 or 1 where nothing could be found."""
    annotations = Annotations(["a.jpg"], [(100, 200)], [0], [], [])
    scores = scores_of(annotations, [torch.tensor([NO_BOX] * 3)])
    assert math.isnan(scores["map50"]) and math.isnan(scores["AP"])


def test_the_options_reach_the_scores():
    """Prevents thresholds of tools/get_map.py that change nothing: the box overlaps its label by 75 / 125 = 0.6."""
    annotations = Annotations(["a.jpg"], [(100, 200)], [1], [(20, 20, 120, 80)], [0])
    found = rows(annotations, shift=25)
    assert scores_of(annotations, found)["map50"] == 1.0
    assert scores_of(annotations, found, options=EvalOptions(min_overlap=0.7))["map50"] == 0.0
    assert scores_of(annotations, found, options=EvalOptions(confidence=0.99999))["map50"] == 0.0
    double = [torch.cat([found[0], found[0][:1] + torch.tensor([1.0, 0, 1, 0, -1, 0, 0])])]  # overlaps by 0.94
    assert scores_of(annotations, double)["classes"][0]["miss_rate"] < 1e-9
    assert len(run_network(FakeModel(double).eval(), batches(annotations), annotations, RUNTIME)[1].scores) == 1
    for options, count in (({"nms_iou": 0.99}, 2), ({"nms_iou": 0.99, "max_boxes": 1}, 1)):
        kept = run_network(
            FakeModel(double).eval(), batches(annotations), annotations, RUNTIME, options=EvalOptions(**options)
        )[1]
        assert len(kept.scores) == count


class LossOfFirstPixel(Criterion):
    """The mean over images of 1 for image 0, 3 for image 1 and 8 for image 2; in a training 100 more."""

    def forward(self, raw, targets):
        assert len(raw) == len(targets)
        return {"loss": torch.tensor([[1.0, 3.0, 8.0][index] for index in raw]).mean() + 100 * self.training}


def test_the_loss_is_a_mean_over_images(annotations):
    """Prevents a short last batch from counting as much as a full one: (1 + 3 + 8) / 3, not (2 + 8) / 2."""
    model = FakeModel(rows(annotations))
    result = evaluate(model, batches(annotations), annotations, NAMES, RUNTIME, LossOfFirstPixel())
    assert (result.loss, result.scores["map50"], len(result.detections.scores)) == (pytest.approx(4.0), 1.0, 4)


def test_a_loss_of_training_alone_is_left_out(annotations):
    """Prevents validation losses that jump where a training adds a term, as YOLOX adds L1 for its last epochs; and a
    criterion that stays as evaluation needs it."""
    criterion = LossOfFirstPixel().train()
    result = evaluate(FakeModel(rows(annotations)), batches(annotations), annotations, NAMES, RUNTIME, criterion)
    assert result.loss == pytest.approx(4.0) and criterion.training


def test_epochs_between_evaluations_only_take_the_loss(annotations):
    """Prevents the cost of decoding, NMS and scoring in epochs that do not show it."""
    model = FakeModel(None)
    result = evaluate(model, batches(annotations), annotations, NAMES, RUNTIME, LossOfFirstPixel(), scored=False)
    assert result == (pytest.approx(4.0), None, [], None, [])


def test_no_images_no_loss():
    """Prevents a division by zero on an empty loader."""
    annotations = Annotations([], [], [], [], [])
    loss, detections, *_ = run_network(FakeModel([]).eval(), [], annotations, RUNTIME, LossOfFirstPixel())
    assert loss == 0.0
    assert [part.shape for part in detections] == [(0,), (0, 4), (0,), (0,)]


@pytest.mark.parametrize(("rank", "world_size", "expected"), [(0, 1, 2), (0, 2, 1), (1, 2, 1)])
def test_every_rank_pauses_equally_often(annotations, monkeypatch, rank, world_size, expected):
    """Prevents a signal in the evaluation that is heard too late, and ranks with an image more than others, which then
    wait for an answer that nobody gives: of three images in batches of two, or of one each, rank 0 has one more."""
    monkeypatch.setattr("utils.evaluation.evaluate.gather_objects", lambda value: None)
    monkeypatch.setattr("utils.evaluation.evaluate.DistInfo.is_main", False)
    pauses = []
    run_network(
        FakeModel(rows(annotations)).eval(),
        batches(annotations, 2 if world_size == 1 else 1, rank, world_size),
        annotations,
        RUNTIME._replace(dist=DistInfo(rank, rank, world_size)),
        LossOfFirstPixel(),
        detects=False,
        after_batch=lambda: pauses.append(1),
    )
    assert len(pauses) == expected


def test_images_that_lack_their_end_are_named(annotations):
    """Prevents scores on half an image without a word."""
    loader = [batch._replace(truncated=["b.jpg"] if 1 in batch.indices else []) for batch in batches(annotations)]
    result = evaluate(FakeModel(rows(annotations)), loader, annotations, NAMES, RUNTIME)
    assert (result.truncated, result.unreadable) == (["b.jpg"], [])


def test_ground_truth_is_flat(annotations):
    """Prevents boxes that change their image where an image has none, and a lost difficult flag."""
    truth = ground_truth(annotations)
    assert truth.image_ids.tolist() == [0, 0, 2, 2]
    assert truth.boxes_xyxy.tolist() == [[20, 20, 120, 80], [130, 10, 190, 90], [0, 0, 50, 50], [100, 20, 200, 100]]
    assert truth.classes.tolist() == [0, 1, 1, 0]
    assert truth.difficult.tolist() == [False, False, True, False]
    empty = ground_truth(Annotations([], [], [], [], []))
    assert [part.shape for part in empty[:4]] == [(0,), (0, 4), (0,), (0,)]


def test_detections_are_joined_in_order():
    """Prevents boxes under the id of another image, arrays of another type for images without boxes, and equal scores
    that rank by the order in which ranks brought their images."""
    first = Boxes(np.array([[0, 0, 1, 1]], np.float32), np.array([0.5], np.float32), np.array([1], np.int64))
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    pair = Boxes(np.ones((2, 4), np.float32), np.array([0.9, 0.8], np.float32), np.array([0, 0], np.int64))
    joined = join_detections([(4, first), (0, none), (2, pair)])
    assert joined.image_ids.tolist() == [2, 2, 4]
    assert joined.boxes_xyxy.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert joined.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert joined.classes.tolist() == [0, 0, 1]
    for detections in (join_detections([]), join_detections([(0, none)])):
        assert [part.shape for part in detections] == [(0,), (0, 4), (0,), (0,)]
        assert [part.dtype for part in detections] == [np.int64, np.float32, np.float32, np.int64]


def test_an_image_that_comes_twice_or_never_is_noticed(annotations):
    """Prevents sharded loaders that pad their parts: an image counted twice changes every score."""
    model = FakeModel(rows(annotations)).eval()
    for brought in ([*batches(annotations), *batches(annotations)], list(batches(annotations))[:1]):
        with pytest.raises(AssertionError, match="each image"):
            run_network(model, brought, annotations, RUNTIME)


def test_a_detector_is_evaluated_in_its_own_size_and_classes(tmp_path):
    """Prevents tools/get_map.py from evaluating in another size or resize rule than the detector's, and boxes in pixels
    of the input: what the detector itself finds is labelled, so that all of it is right."""
    detector, pixels = tiny_detector((64, 96)), np.random.default_rng(0)
    paths, sizes_hw = [str(tmp_path / f"{number}.png") for number in range(3)], [(50, 70), (120, 90), (64, 96)]
    for path, size_hw in zip(paths, sizes_hw, strict=True):
        write_image(path, pixels.integers(0, 256, (*size_hw, 3), np.uint8))
    found = detector(paths, confidence=0.3, nms_iou=0.5)
    assert min(len(item.scores) for item in found) > 0
    boxes_xyxy, scores, classes, _ = (np.concatenate(column) for column in zip(*found, strict=True))
    annotations = Annotations(paths, sizes_hw, [len(item.scores) for item in found], boxes_xyxy, classes)
    options = EvalOptions(confidence=0.3, nms_iou=0.5)
    for num_workers in (0, 1):
        evaluation = evaluate_detector(detector, annotations, 2, num_workers, options)
        assert evaluation.loss is None and evaluation.scores["map50"] == 1.0
        assert [row["name"] for row in evaluation.scores["classes"]] == TINY_NAMES
        assert evaluation.detections.boxes_xyxy == pytest.approx(boxes_xyxy, abs=1e-3)
        assert evaluation.detections.scores == pytest.approx(scores, abs=1e-6)


def evaluate_part(rank, world_size, port, folder):
    """One rank of a distributed evaluation; writes down what it knows in the end."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    annotations = three_images()
    loader = [batch._replace(unreadable=[f"{rank}.jpg"]) for batch in batches(annotations, 1, rank, world_size)]
    model = FakeModel(rows(annotations, shift=10))
    model.register_buffer("mean", torch.full((2,), 1.0 + rank))
    runtime = RUNTIME._replace(dist=DistInfo(rank, rank, world_size))
    result = evaluate(model, loader, annotations, NAMES, runtime, LossOfFirstPixel())
    assert model.mean.tolist() == [1, 1]  # all ranks evaluate the same network
    dist.destroy_process_group()
    detections = result.detections and [column.tolist() for column in result.detections]
    values = [result.loss, result.scores, result.unreadable, detections]
    (folder / f"{rank}.json").write_text(json.dumps(values), encoding="utf-8")


def test_two_ranks_score_what_one_scores(annotations, tmp_path):
    """Prevents images that no rank or several ranks count, a loss of one part alone, and ranks that wait for ever.

    Rank 0 has images 0 and 2, in two batches, rank 1 image 1 in one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=evaluate_part, args=(rank, 2, port, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        rank.kill()
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert other == [pytest.approx(4.0), None, [], None]
    model = FakeModel(rows(annotations, shift=10))
    alone = evaluate(model, batches(annotations), annotations, NAMES, RUNTIME, LossOfFirstPixel())
    assert main[0] == alone.loss == pytest.approx(4.0)
    assert main[1]["classes"][0]["map50"] == alone.scores["classes"][0]["map50"] and main[1]["AP"] == alone.scores["AP"]
    assert main[2] == ["0.jpg", "0.jpg", "1.jpg"]
    assert main[3] == [column.tolist() for column in alone.detections]


def test_what_tiles_show_counts_in_their_image(annotations):
    """Prevents scores of tiles in the place of images, and boxes that are shifted against what is labelled."""
    entries = tiled(annotations, TileOptions(104, 0.0))  # of each image the whole, 0..104 and 96..200
    boxes = [np.float32([box]) for box in ([20, 20, 120, 80], [20, 20, 104, 80], [34, 10, 94, 90], [4, 20, 104, 100])]
    found = [
        (entry, Boxes(box_xyxy, np.float32([0.9]), np.array([label])))
        for entry, box_xyxy, label in zip((0, 1, 2, 8), boxes, (0, 0, 1, 0), strict=True)
    ]
    table = join_images(join_detections(found), entries, EvalOptions())
    assert table.image_ids.tolist() == [0, 0, 2]
    assert table.boxes_xyxy.tolist() == [[20, 20, 120, 80], [130, 10, 190, 90], [100, 20, 200, 100]]
    assert table.classes.tolist() == [0, 1, 0]
    assert len(join_images(join_detections([]), entries, EvalOptions()).scores) == 0


def test_tiles_are_joined_in_the_order_of_the_images(annotations):
    """Prevents boxes of several images from being joined as one's: rows are found by bounds, as a search for each of
    10,000 images in 30 million rows took 465 s."""
    entries = tiled(annotations, TileOptions(104, 0.0))
    box = Boxes(np.float32([[4, 20, 104, 100]]), np.float32([0.9]), np.array([0]))
    table = join_detections([(entry, box) for entry in range(len(entries.images))])
    assert sorted(set(join_images(table, entries, EvalOptions()).image_ids.tolist())) == [0, 1, 2]
    with pytest.raises(AssertionError, match="in the order of the images"):
        join_images(DetectionTable(*(column[::-1] for column in table)), entries, EvalOptions())
