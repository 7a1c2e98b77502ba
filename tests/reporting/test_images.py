import numpy as np
import pytest
import torch

from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.loader import build_train_loader
from utils.data.sampling import MultiScale
from utils.evaluation.evaluate import ground_truth
from utils.evaluation.scores import score_detections
from utils.evaluation.types import DetectionTable
from utils.image.codec import read_image, write_image
from utils.reporting import images as module
from utils.reporting.images import ImageLogger, evaluation_pictures, first_batches

NAMES = ["红细胞", "cat"]


class Writer:
    """Stands for TensorBoard: remembers (tag, step, grey value)."""

    def __init__(self):
        self.images = []

    def add_image(self, tag, image, step, dataformats):
        assert dataformats == "HWC"
        self.images.append((tag, step, int(image[0, 0, 0])))


@pytest.fixture
def clock(monkeypatch):
    """The time that an ImageLogger sees, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def grey(value):
    return {"grey": np.full((4, 5, 3), value, np.uint8)}


def test_the_file_shows_the_newest_and_tensorboard_some_of_all(tmp_path):
    """Prevents event files of gigabytes after hundreds of evaluations, and a last picture that nobody sees."""
    writer = Writer()
    image_logger = ImageLogger(tmp_path, writer)
    for step in range(1, 12):
        image_logger.draw(step, grey, step)
        image_logger._frames[grey].next_time = 0.0
        assert read_image(str(tmp_path / "grey.png"))[0, 0].tolist() == [step] * 3
    assert writer.images == [("pictures/grey", step, step) for step in (1, 2, 4, 8)]
    image_logger.close()
    image_logger.close()
    assert writer.images[4:] == [("pictures/grey", 11, 11)]


def test_slow_pictures_are_drawn_seldom(tmp_path, clock):
    """Prevents a tiny data set from waiting for its pictures longer than for its training."""
    drawn = []

    def slow(step):
        drawn.append(step)
        clock[0] += 3.0
        return grey(step)

    image_logger = ImageLogger(tmp_path)
    for step in range(1, 201):
        clock[0] += 1.0
        image_logger.draw(step, slow, step)
    assert drawn == [1, 101]  # 3 of 100 seconds
    image_logger.close()
    assert drawn == [1, 101, 200] and read_image(str(tmp_path / "grey.png"))[0, 0, 0] == 200


def test_a_failure_is_said_once_and_stops_nothing(tmp_path, capsys):
    """Prevents hours of training from being lost to a font, a full disk or a bug of a picture."""

    def broken():
        raise RuntimeError("no font")

    image_logger = ImageLogger(tmp_path)
    for step in (1, 2):
        image_logger.draw(step, broken)
        image_logger._frames[broken].next_time = 0.0
    image_logger.draw(2, grey, 7)
    image_logger.close()
    assert capsys.readouterr().out == "note: pictures or pages are missing, broken failed: RuntimeError: no font\n"
    assert [path.name for path in tmp_path.iterdir()] == ["grey.png"]


def test_a_page_is_there_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    """Prevents half a page after a full disk, and TensorBoard from getting text for an image; the old page stays."""
    writer = Writer()
    image_logger = ImageLogger(tmp_path, writer)
    image_logger.draw(1, lambda: {"report": "图 1"})

    def full(_path, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "write_bytes", full)
    image_logger.draw(2, lambda: {"report": "图 2"})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and writer.images == []
    assert (tmp_path / "report.html").read_text("utf-8") == "图 1"
    assert "No space left on device: '" in capsys.readouterr().out


def test_nothing_to_draw_closes(tmp_path):
    """Prevents a run that fails early from failing again at its end."""
    ImageLogger(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def annotations_of(folder, boxes_per_image):
    """Annotations of two images with so many boxes of class 0 each."""
    for name in ("a.png", "b.png"):
        write_image(str(folder / name), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    count = 2 * boxes_per_image
    paths = [str(folder / "a.png"), str(folder / "b.png")]
    return Annotations(paths, [(64, 64)] * 2, [boxes_per_image] * 2, [[8, 8, 40, 40]] * count, [0] * count)


def test_batches_are_those_of_the_training(tmp_path):
    """Prevents a picture of other images, or other augmentation, than the network gets in its first epoch."""
    annotations = annotations_of(tmp_path, 1)
    augment = AugmentOptions(augment_epochs=5, mosaic=True, mosaic_prob=0.5)
    loader = build_train_loader(annotations, augment, 3, MultiScale([(64, 64)]), 1)
    shown, trained = list(first_batches(loader)), list(loader)
    assert len(shown) == len(trained) == 2
    for first, second in zip(shown, trained, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


def pictures(annotations, detections):
    scores = score_detections(ground_truth(annotations), detections, NAMES, len(annotations))
    return evaluation_pictures(annotations, detections, scores, seed=0)


def test_an_evaluation_leaves_all_its_pictures(tmp_path):
    """Prevents a picture from being forgotten, and a confusion matrix at another threshold than precision and recall:
    0.8 finds both boxes, the false alarm of 0.3 is under it."""
    boxes = np.array([[8, 8, 40, 40], [8, 8, 40, 40], [50, 50, 60, 60]], float)
    detections = DetectionTable(np.array([0, 1, 1]), boxes, np.array([0.9, 0.8, 0.3]), np.array([0, 0, 0]))
    drawn = pictures(annotations_of(tmp_path, 1), detections)
    curves = {"pr_curve", "f1_curve", "precision_curve", "recall_curve", "class_ap"}
    assert set(drawn) == {"val_pred", "confusion"} | curves
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in drawn.values())
    confusion = drawn["confusion"]
    # One whole cell of the blue of what is right, none of the red of what is wrong.
    assert (confusion == (0, 114, 206)).all(2).sum() > 8000 and not (confusion == (230, 57, 70)).all(2).any()


def test_without_labels_or_detections(tmp_path):
    """Prevents a crash in the first epochs, when nothing is found, and where the validation set has no boxes."""
    nothing = DetectionTable(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert "confusion" in pictures(annotations_of(tmp_path, 1), nothing)
    assert set(pictures(annotations_of(tmp_path, 0), nothing)) == {"val_pred"}
