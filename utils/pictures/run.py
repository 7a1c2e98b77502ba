"""The pictures that a training draws after an evaluation, and the batches that it draws before."""

from collections.abc import Iterator

import numpy as np

from utils.data.dataset import Batch
from utils.eval.curves import draw_from
from utils.eval.evaluate import ground_truth
from utils.eval.plots import curve_pictures
from utils.eval.voc import voc_outcome
from utils.pictures.confusion import confusion_matrix, confusion_picture
from utils.pictures.images import prediction_picture
from utils.weights.contract import best_confidences, confidence_of


def first_batches(loader) -> Iterator[Batch]:
    """The batches that a loader of build_train_loader would give next, made here one by one, without its workers."""
    for keys in loader.batch_sampler:
        yield loader.collate_fn([loader.dataset[key] for key in keys])


def evaluation_pictures(records, detections, scores, seed):
    """{name: (H, W, 3) uint8 RGB}: predictions on some images, the confusion matrix, and the curves of curve_pictures.

    records, detections: of the evaluation. scores: of score_detections. seed: chooses the images. Where a number is
    needed from which on detections count, it is the confidence of the best F1 of their class. Without a box to find
    there are predictions alone.
    """
    rows = scores["classes"]
    class_names = [row["name"] for row in rows]
    confidences = np.array(confidence_of({"confidence": best_confidences(scores)}, class_names))
    pictures = prediction_picture(records, detections, class_names, confidences, seed)
    if not any(row["boxes"] for row in rows):
        return pictures
    truth, iou = ground_truth(records), scores["iou"]
    matrix = confusion_matrix(truth, detections, len(rows), confidences, iou)
    note = f"IoU of {iou:g} or more; confidence of each class where its F1 is best"
    curves = draw_from(voc_outcome(truth, detections, len(rows), iou), truth, detections, len(rows), len(records))
    return (
        pictures
        | confusion_picture(matrix, class_names, note)
        | curve_pictures(curves, class_names, [row["map50"] for row in rows])
    )
