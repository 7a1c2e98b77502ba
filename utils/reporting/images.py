"""Which pictures and pages a run draws, and how often."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.loader import Batch, DrawingLoader
from utils.evaluation.curves import Curves, pr_curves
from utils.evaluation.evaluate import ground_truth
from utils.evaluation.matching import confusion_matrix, match_voc
from utils.evaluation.types import GroundTruth
from utils.image.codec import write_image
from utils.io.files import replace_file
from utils.io.logger import logger
from utils.visualize.confusion import confusion_picture
from utils.visualize.curves import curve_pictures
from utils.visualize.images import prediction_picture
from utils.weights.metadata import LEAST_CONFIDENCE, best_confidences, confidence_of

# Of a run's time, for each function that draws: on a tiny data set an epoch is over in a second or two.
MAX_TIME_SHARE = 0.03


class _Frame:
    """What one function has to draw and has drawn."""

    def __init__(self):
        self.step, self.arguments = 0, ()
        self.times, self.next_time, self.is_drawn, self.is_shown = 0, 0.0, False, False


class ImageLogger:
    """Draws pictures as PNG files into a folder and, where there is a writer of TensorBoard, as images there. Pages of
    HTML go into the folder alone.

    A file always shows the newest state. TensorBoard keeps what it gets, so it gets the 1st, 2nd, 4th, 8th, ... and the
    last drawing: the course of the run in a file that stays small.
    """

    def __init__(self, folder, writer=None):
        self.folder, self.writer = Path(folder), writer
        self._frames, self._failed = {}, set()

    def draw(self, step, function, *arguments):
        """Draw function(*arguments), a dict {name: (H, W, 3) uint8 RGB, or the text of a page}, into name.png or
        name.html in the place of an older one.

        step: epoch. Where drawing takes more than MAX_TIME_SHARE of the time, some steps are left out; close() makes up
        for the last. A function that fails says so once, and the run goes on.
        """
        frame = self._frames.setdefault(function, _Frame())
        frame.step, frame.arguments, frame.is_drawn = step, arguments, False
        if time.monotonic() >= frame.next_time:
            self._draw(function, frame)

    def close(self):
        """Draw what was left out. May be called more than once."""
        for function, frame in self._frames.items():
            if not (frame.is_drawn and frame.is_shown):
                self._draw(function, frame, is_last=True)

    def _draw(self, function, frame, is_last=False):
        start = time.monotonic()
        frame.times += 1
        frame.is_drawn, frame.is_shown = True, is_last or frame.times & (frame.times - 1) == 0
        try:
            for name, content in function(*frame.arguments).items():
                self._write(name, content, frame)
        except Exception as error:
            # Whatever it is, hours of training are worth more than a picture.
            if function not in self._failed:
                what = f"{function.__name__} failed: {type(error).__name__}: {error}"
                logger.warning(f"pictures or pages are missing, {what}")
            self._failed.add(function)
        now = time.monotonic()
        frame.next_time = now + (now - start) / MAX_TIME_SHARE

    def _write(self, name, content, frame):
        if isinstance(content, str):
            page = content.encode("utf-8")
            replace_file(self.folder / f"{name}.html", lambda path: path.write_bytes(page))
            return
        write_image(str(self.folder / f"{name}.png"), content)
        if self.writer and frame.is_shown:
            self.writer.add_image(f"pictures/{name}", content, frame.step, dataformats="HWC")


def first_batches(loader) -> Iterator[Batch]:
    """The batches that a loader of build_train_loader would give next, made here one by one, without its workers."""
    for keys in loader.batch_sampler:
        batch = loader.collate_fn([loader.dataset[key] for key in keys])
        yield loader.draw(batch) if isinstance(loader, DrawingLoader) else batch


class Judgement(NamedTuple):
    """What an evaluation is drawn from. truth: GroundTruth. confidences: (C,) from which on a detection of each class
    counts, those of the best F1. matrix: of confusion_matrix. curves: of pr_curves.
    """

    truth: GroundTruth
    confidences: np.ndarray
    matrix: np.ndarray
    curves: Curves


def judge(annotations, detections, scores):
    """The Judgement of an evaluation; arguments as in evaluation_pictures."""
    truth, iou, rows = ground_truth(annotations), scores["iou"], scores["classes"]
    names = [row["name"] for row in rows]
    confidences = np.array(confidence_of({"confidence": best_confidences(scores)}, names))
    matrix = confusion_matrix(truth, detections, len(rows), confidences, iou)
    matches = match_voc(truth, detections, len(rows), iou)
    return Judgement(truth, confidences, matrix, pr_curves(matches, truth, detections, len(rows), len(annotations)))


def evaluation_pictures(annotations, detections, scores, seed):
    """{name: (H, W, 3) uint8 RGB}: predictions on some images, the confusion matrix, and the curves of curve_pictures.

    annotations, detections: of the evaluation. scores: of score_detections. seed: chooses the images. Without a box to
    find there are predictions alone.
    """
    class_names = [row["name"] for row in scores["classes"]]
    judged = judge(annotations, detections, scores)
    pictures = prediction_picture(annotations, detections, class_names, judged.confidences, seed)
    if not any(row["boxes"] for row in scores["classes"]):
        return pictures
    note = (
        f"IoU of {scores['iou']:g} or more; confidence of each class where its F1 is best, {LEAST_CONFIDENCE:g} or more"
    )
    return (
        pictures
        | confusion_picture(judged.matrix, class_names, note)
        | curve_pictures(judged.curves, class_names, [row["map50"] for row in scores["classes"]], scores["iou"])
    )
