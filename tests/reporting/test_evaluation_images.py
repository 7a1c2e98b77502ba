import numpy as np
import torch

from utils.data.annotations import Records
from utils.data.augment import AugmentSettings
from utils.data.loader import build_train_loader
from utils.data.sampling import TrainShapes
from utils.evaluation.evaluate import ground_truth
from utils.evaluation.scores import score_detections
from utils.evaluation.types import Detections
from utils.image.codec import write_image
from utils.reporting.images import evaluation_pictures, first_batches

NAMES = ["红细胞", "cat"]


def records_of(folder, boxes_per_image):
    """Records of two images with so many boxes of class 0 each."""
    for name in ("a.png", "b.png"):
        write_image(str(folder / name), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    count = 2 * boxes_per_image
    paths = [str(folder / "a.png"), str(folder / "b.png")]
    return Records(paths, [(64, 64)] * 2, [boxes_per_image] * 2, [[8, 8, 40, 40]] * count, [0] * count)


def test_batches_are_those_of_the_training(tmp_path):
    """Prevents a picture of other images, or other augmentation, than the network gets in its first epoch."""
    records = records_of(tmp_path, 1)
    settings = AugmentSettings(augment_epochs=5, mosaic=True, mosaic_prob=0.5)
    loader = build_train_loader(records, settings, 3, TrainShapes([(64, 64)]), 1, 0)
    shown, trained = list(first_batches(loader)), list(loader)
    assert len(shown) == len(trained) == 2
    for first, second in zip(shown, trained, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


def pictures(records, detections):
    scores = score_detections(ground_truth(records), detections, NAMES, len(records))
    return evaluation_pictures(records, detections, scores, seed=0)


def test_an_evaluation_leaves_all_its_pictures(tmp_path):
    """Prevents a picture from being forgotten, and a confusion matrix at another threshold than precision and recall:
    0.8 finds both boxes, the false alarm of 0.3 is under it."""
    boxes = np.array([[8, 8, 40, 40], [8, 8, 40, 40], [50, 50, 60, 60]], float)
    detections = Detections(np.array([0, 1, 1]), boxes, np.array([0.9, 0.8, 0.3]), np.array([0, 0, 0]))
    drawn = pictures(records_of(tmp_path, 1), detections)
    curves = {"pr_curve", "f1_curve", "precision_curve", "recall_curve", "class_ap"}
    assert set(drawn) == {"val_pred", "confusion"} | curves
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in drawn.values())
    confusion = drawn["confusion"]
    # One whole cell of the blue of what is right, none of the red of what is wrong.
    assert (confusion == (0, 114, 206)).all(2).sum() > 8000 and not (confusion == (230, 57, 70)).all(2).any()


def test_without_labels_or_detections(tmp_path):
    """Prevents a crash in the first epochs, when nothing is found, and where the validation set has no boxes."""
    nothing = Detections(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert "confusion" in pictures(records_of(tmp_path, 1), nothing)
    assert set(pictures(records_of(tmp_path, 0), nothing)) == {"val_pred"}
