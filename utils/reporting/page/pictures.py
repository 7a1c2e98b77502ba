"""The pictures of a run's page: the worst ones of validation, with boxes that lie on them, and labels to look at."""

import base64
import contextlib
from os.path import basename
from typing import NamedTuple

import numpy as np

from utils.evaluation.label_suspects import LOWEST_CONFIDENCE, find_suspects, row_of
from utils.evaluation.matching import sure_detections
from utils.evaluation.mistakes import KINDS, find_mistakes, worst_images
from utils.io.errors import UserError
from utils.visualize.images import jpeg_bytes, small_jpeg
from utils.visualize.suspects import suspect_tile

# The page has to be opened on a phone: 20 pictures take 4 MB at most.
MOST_PICTURES, SIDE, MOST_BYTES = 20, 640, 150_000
# Boxes of a picture, mistakes first.
MOST_BOXES = 150
# A detector below this mAP suspects mostly what it does not know itself.
MOST_SUSPECTS, LOWEST_SUSPICION, GOOD_MAP = 12, 0.5, 0.7


class Box(NamedTuple):
    """place: left, top, width, height in % of the picture; source: "label" or "found"; verdict: as in Mistakes;
    name: of the class; score: as text, "" of a label."""

    place: tuple
    source: str
    verdict: str
    name: str
    score: str


class Picture(NamedTuple):
    """name: of the file; uri: the picture itself; counts: {kind of mistake: how many} of those that occur; boxes: those
    that are shown; more: how many are not."""

    name: str
    uri: str
    counts: dict
    boxes: list
    more: int


def worst_pictures(annotations, detections, judged, class_names, iou):
    """([Picture], the worst first; {verdict: how many} of all images). judged: a Judgement; iou: from which a box is
    right."""
    mistakes = find_mistakes(judged.truth, detections, len(class_names), judged.confidences, iou)
    counts = mistakes.of_images(judged.truth, detections, len(annotations))
    totals = dict(zip(KINDS, counts.sum(0).tolist(), strict=True))
    totals |= {"right": int((mistakes.labels == "right").sum()), "labelled": int((~judged.truth.difficult).sum())}
    pictures = []
    for index in worst_images(counts, MOST_PICTURES):
        boxes = _boxes(annotations, index, detections, mistakes, class_names)
        of_kinds = {kind: count for kind, count in zip(KINDS, counts[index].tolist(), strict=True) if count}
        uri = jpeg_uri(small_jpeg(annotations, index, SIDE, MOST_BYTES))
        name = basename(annotations.path(index))
        pictures.append(Picture(name, uri, of_kinds, boxes[:MOST_BOXES], max(0, len(boxes) - MOST_BOXES)))
    return pictures, totals


def label_suspects(annotations, detections, truth, scores, class_names):
    """[(row of row_of, address of its picture)] of the labels that are most probably wrong; [] of a poor detector."""
    if not scores["map50"] >= GOOD_MAP:
        return []
    detections, _ = sure_detections(detections, LOWEST_CONFIDENCE, len(class_names))
    suspects = find_suspects(truth, detections, len(class_names), LOWEST_SUSPICION)[:MOST_SUSPECTS]
    shown = []
    for row in (row_of(item, truth, detections, annotations, class_names) for item in suspects):
        with contextlib.suppress(OSError, UserError):  # an image that cannot be read any more
            shown.append((row | {"image": basename(row["image"])}, jpeg_uri(jpeg_bytes(suspect_tile(row), 82))))
    return shown


def jpeg_uri(content):
    """The bytes of a JPEG as an address that a page can show by itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def _boxes(annotations, index, detections, mistakes, class_names):
    """All Boxes of an image, mistakes first, then what was found, the surest first."""
    height, width = annotations.sizes_hw[index].tolist()
    start, stop = annotations.offsets[index : index + 2]
    rows = np.flatnonzero((detections.image_ids == index) & (mistakes.detections != ""))
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]

    def box(xyxy, source, verdict, class_id, score=""):
        x1, y1, x2, y2 = (np.asarray(xyxy, float) / (width, height, width, height) * 100).clip(0, 100).round(2).tolist()
        return Box((x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)), source, str(verdict), class_names[class_id], score)

    found = [
        box(
            detections.boxes_xyxy[row],
            "found",
            mistakes.detections[row],
            detections.classes[row],
            f"{detections.scores[row]:.2f}",
        )
        for row in rows
    ]
    labelled = [
        box(annotations.boxes_xyxy[row], "label", mistakes.labels[row], annotations.classes[row])
        for row in range(start, stop)
    ]
    return sorted([*labelled, *found], key=lambda item: item.verdict in ("right", "ignored"))
