"""Find labels that are probably wrong: where a trained detector and the labels contradict each other, the surest first.

python tools/label_suspects.py [--model_path=... --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/train.txt ...]

It writes two files into save_dir, and changes none of yours:

    suspects.csv        a row for each suspect, the most probable error first
    suspects.jpg        the first of them as pictures: what is labelled there, and what was found

A suspect is a question to a person, no answer: the detector errs as well, and the more the worse it is. Images that it
learned from may be asked about too, as single wrong labels among many are hardly learned by heart.

The idea, and three of the four kinds, are those of Tkachenko et al. 2023, "ObjectLab: Automated Diagnosis of Mislabeled
Images in Object Detection Data", section 3; the scores are ours.
"""

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.threads  # noqa: F401 # isort: skip
import numpy as np

from utils.config.cli import read_constants, run_script
from utils.config.rules import check_values
from utils.data.annotations import read_annotations
from utils.data.quality.findings import findings_table
from utils.evaluation.evaluate import EvalOptions, evaluate_detector, ground_truth
from utils.evaluation.matching import same_class_pairs
from utils.image.codec import read_image, write_image
from utils.inference.detector import open_detector
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.visualize.images import boxes_tile, sheet

# ----------------------------------------------------------------------------------------------------------------------
#   model_path        Weights that training wrote, on these images or on others with the same classes.
#   annotation_path   Which labels to look at, in any of the formats that train.py reads; several with commas between
#                     them. Of a data.yaml both parts are looked at.
#   save_dir          The folder for both files; those of an earlier run are replaced.
#   lowest_score      Suspects below this score, from 0 to 1, are left out.
#   num_pictures      How many of the first suspects suspects.jpg shows.
#   classes_path      Only for files that do not say their classes and have others than COCO's 80.
#   model_name        '' lets the file say it; a name has to agree with the file.
#   weights_format    As in train.py; '' lets the file's content decide.
#   input_shape       [height, width] that the network sees, multiples of 32; [] takes the size of the training.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
# ----------------------------------------------------------------------------------------------------------------------
model_path = "logs/best_epoch_weights.pth"
annotation_path = "VOCdevkit/Sample/ImageSets/Main/train.txt,VOCdevkit/Sample/ImageSets/Main/val.txt"
save_dir = "logs/label_suspects"
lowest_score = 0.5
num_pictures = 40
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
batch_size = 16
num_workers = 0
Cuda = True

# IoU: boxes below NEAR have nothing to do with each other, from SAME on they are of one object, and from TIGHT on their
# places agree: the boxes of a good detector reach 0.8 to 0.95.
_NEAR, _SAME, _TIGHT = 0.1, 0.5, 0.75
# Detections of a lower score do not even say that a label was found.
_LOWEST_CONFIDENCE = 0.05
# What stands against a suspicion before anything is known, in units of a detection's score: it keeps a detection of
# 0.05 that nothing contradicts from being as suspicious as one of 0.9.
_DOUBT = 0.1
_KINDS = {
    "no label": "found, and not labelled",
    "not found": "labelled, and nothing found there",
    "other class": "labelled as another class than found",
    "loose box": "labelled with another place or size than found",
}
_CSV_COLUMNS = (
    *("rank", "score", "kind", "image", "label", "label_x1", "label_y1", "label_x2", "label_y2"),
    *("found", "confidence", "found_x1", "found_y1", "found_x2", "found_y2", "iou"),
)
# suspects.jpg: pixels of a tile, tiles in a row, and how many times the longer side of the boxes a tile shows.
_TILE, _TILES_IN_ROW, _CONTEXT = 300, 5, 2.5


class Suspect(NamedTuple):
    """A probable error. score: 0 to 1; kind: of _KINDS; label and detection: rows of GroundTruth and of Detections, -1
    for none; iou: of the two.
    """

    score: float
    kind: str
    label: int
    detection: int
    iou: float


class Pairs(NamedTuple):
    """Labels and detections that overlap, each (P,). The last entry is no pair: index -1 means that there is none.

    covered: the share of the smaller box that lies in the larger. alike: whether the classes are the same.
    """

    label: np.ndarray
    detection: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    covered: np.ndarray
    alike: np.ndarray


def check(values):
    """The settings as a namespace. Raises ValueError: parameter, got, expected."""
    settings = check_values(values)
    if not 0 <= settings.lowest_score <= 1 or settings.num_pictures < 0:
        raise UserError(
            f"lowest_score is {settings.lowest_score} and num_pictures is {settings.num_pictures}; expected a share "
            "from 0 to 1, such as 0.5, and 0 or more, such as 40."
        )
    return settings


def main(settings):
    """Find the suspects, write both files, print how many there are. Returns the rows of suspects.csv."""
    detector = open_detector(settings)
    rows = [
        row for path, split in sets_of(settings.annotation_path) for row in look_at(path, split, detector, settings)
    ]
    rows.sort(key=lambda row: -row["score"])
    rows = [{"rank": rank} | row for rank, row in enumerate(rows, 1)]
    folder = Path(settings.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "suspects.csv", rows)
    picture = folder / "suspects.jpg"
    picture.unlink(missing_ok=True)
    if rows[: settings.num_pictures]:
        tiles, captions = zip(*map(draw, rows[: settings.num_pictures]), strict=True)
        write_image(str(picture), sheet(tiles, captions, _TILES_IN_ROW))
    logger.info(f"\n{summary(rows)}\nwrote {folder}/suspects.csv" + (f" and {picture}" if picture.exists() else ""))
    return rows


def sets_of(annotation_path):
    """[(path, "train" or "val")] of what annotation_path names."""
    paths = [annotation_path] if Path(annotation_path).exists() else map(str.strip, annotation_path.split(","))
    return [
        (path, split)
        for path in paths
        for split in (("train", "val") if path.lower().endswith((".yaml", ".yml")) else ("train",))
    ]


def look_at(path, split, detector, settings):
    """The suspects of one set of images as rows of suspects.csv without their rank, in no order."""
    annotations, findings = read_annotations(path, detector.class_names, split)
    logger.info(f"{path}: {len(annotations)} images, {len(annotations.boxes_xyxy)} boxes")
    if findings:
        logger.info(findings_table(findings))
    options = EvalOptions(confidence=_LOWEST_CONFIDENCE)
    evaluation = evaluate_detector(detector, annotations, settings.batch_size, settings.num_workers, options)
    for unreadable in evaluation.unreadable:
        logger.warning(f"{unreadable} cannot be decoded and is left out")
    labels, detections, names = ground_truth(annotations), evaluation.detections, detector.class_names
    suspects = find_suspects(labels, detections, len(names))
    rows = [
        row_of(item, labels, detections, annotations, names) for item in suspects if item.score >= settings.lowest_score
    ]
    return [row for row in rows if row["image"] not in evaluation.unreadable]


def find_suspects(labels, detections, num_classes):
    """The Suspects among the labels and detections of a set, the highest score first; a label is in one at most.

    labels, detections: GroundTruth and Detections. Labels that are marked difficult are none,
    and what is found in them is none.
    """
    pairs = overlapping(labels, detections)
    by_label = suspicious_labels(pairs, labels, detections, num_classes)
    named = {item.detection for item in by_label if item.score > 0}
    return sorted([*by_label, *unlabelled(pairs, labels, detections, named)], key=lambda item: -item.score)


def overlapping(labels, detections):
    """The Pairs of all images."""
    nothing = np.zeros(0, np.int64)
    parts = [(nothing, nothing, np.zeros(0), np.zeros(0))]
    of_any_class = (arrays._replace(classes=np.zeros_like(arrays.classes)) for arrays in (labels, detections))
    for detection, label in same_class_pairs(*of_any_class, 1):
        first, second = (
            boxes.astype(np.float64) for boxes in (labels.boxes_xyxy[label], detections.boxes_xyxy[detection])
        )
        shared = (np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])).clip(0).prod(1)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
        touch = shared > 0
        iou = shared[touch] / (sum(areas) - shared)[touch]
        parts.append((label[touch], detection[touch], iou, shared[touch] / np.minimum(*areas)[touch]))
    label, detection, iou, covered = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    alike = labels.classes[label] == detections.classes[detection]
    pairs = label, detection, detections.scores[detection], iou, covered, alike
    return Pairs(*(np.append(column, end) for column, end in zip(pairs, (-1, -1, 0.0, 0.0, 0.0, False), strict=True)))


def surest(wanted, places, values, count):
    """For each of so many places the pair of the highest value among those wanted (P,), -1 for none: (count,)."""
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(values[rows], kind="stable")]
    best = np.full(count, -1)
    best[places[rows]] = rows
    return best


def suspicious_labels(pairs, labels, detections, num_classes):
    """For each label the most probable of three errors, as a Suspect; its score is 0 where nothing speaks for one.

    With the scores of the surest detections that fit, `own` of the label's class and `rival` of another one at an IoU
    from SAME on, and `near` of its class, which overlaps no label more than this one:
        not found     (1 - the highest of the three) * mean own of the class, which is how sure labels of it are found
        other class   rival / (rival + own + DOUBT)
        loose box     near / (near + own + DOUBT), own only where near's IoU is below SAME; and the score falls to 0
                      as that IoU rises from SAME to TIGHT, or in the same proportion to what is usual for the class
    """
    count = len(labels.classes)
    own, rival = (
        surest(wanted & (pairs.iou >= _SAME), pairs.label, pairs.score, count) for wanted in (pairs.alike, ~pairs.alike)
    )
    closest = np.zeros(len(pairs.iou), bool)
    closest[surest(pairs.iou >= _NEAR, pairs.detection, pairs.iou, len(detections.scores))] = True
    near = surest(closest & pairs.alike, pairs.label, pairs.score, count)
    own_score, rival_score, near_score = (pairs.score[rows] for rows in (own, rival, near))
    against = np.where(pairs.iou[near] < _SAME, own_score, 0)
    tight = usual_iou(pairs.iou[near], labels.classes, num_classes)[labels.classes]
    looseness = ((tight - pairs.iou[near]) / (tight - _SAME / _TIGHT * tight)).clip(0, 1)
    sums = np.bincount(labels.classes, own_score, num_classes)
    certainty = sums / np.maximum(np.bincount(labels.classes, minlength=num_classes), 1)
    scores = np.array(
        [
            (1 - np.maximum.reduce([own_score, rival_score, near_score])) * certainty[labels.classes],
            rival_score / (rival_score + own_score + _DOUBT),
            looseness * near_score / (near_score + against + _DOUBT),
        ]
    )
    chosen, rows = scores.argmax(0), np.array([np.full(count, -1), rival, near])
    kinds = ("not found", "other class", "loose box")
    return [
        Suspect(
            float(scores[chosen[label], label]),
            kinds[chosen[label]],
            int(label),
            int(pairs.detection[rows[chosen[label], label]]),
            float(pairs.iou[rows[chosen[label], label]]),
        )
        for label in np.flatnonzero(~labels.difficult)
    ]


def usual_iou(ious, classes, num_classes):
    """(C,) the IoU that three quarters of the labels of a class reach, TIGHT at most: poor detectors place all badly.

    ious: (M,) of each label with what was found near it, 0 for nothing. classes: (M,).
    """
    usual = np.full(num_classes, _TIGHT)
    for class_id in np.unique(classes[ious > 0]):
        usual[class_id] = min(_TIGHT, np.quantile(ious[(classes == class_id) & (ious > 0)], 0.25))
    return usual


def unlabelled(pairs, labels, detections, named):
    """Detections without a label as Suspects. named: detections that a suspicious label has to do with already.

    The score is the detection's, times the share of it that no label explains, one of its class or a difficult one; a
    label at the same place explains all of it. Of detections that share more than half of the smaller one the surest
    stands for all.
    """
    covered, real = np.zeros(len(detections.scores)), Pairs(*(column[:-1] for column in pairs))
    is_same = real.iou >= _SAME
    explains = real.alike | is_same | labels.difficult[real.label]
    np.maximum.at(covered, real.detection[explains], np.where(is_same, 1, real.covered)[explains])
    scores, kept, suspects = detections.scores * (1 - covered), {}, []
    for row in np.argsort(-scores, kind="stable").tolist():
        others = kept.setdefault(int(detections.image_ids[row]), [])
        box_xyxy = detections.boxes_xyxy[row]
        if row not in named and scores[row] > 0 and not any(shares_half(box_xyxy, other) for other in others):
            others.append(box_xyxy)
            suspects.append(Suspect(float(scores[row]), "no label", -1, row, 0.0))
    return suspects


def shares_half(first_xyxy, second_xyxy):
    """Whether two boxes (4,) share more than half of the smaller one."""
    shared = (np.minimum(first_xyxy[2:], second_xyxy[2:]) - np.maximum(first_xyxy[:2], second_xyxy[:2])).clip(0).prod()
    return shared > 0.5 * min((box[2:] - box[:2]).prod() for box in (first_xyxy, second_xyxy))


def row_of(suspect, labels, detections, annotations, class_names):
    """A Suspect as a row of suspects.csv without its rank; None stands where nothing is labelled, or nothing found."""
    row = dict.fromkeys(_CSV_COLUMNS[1:]) | {"score": suspect.score, "kind": suspect.kind}
    for name, index, arrays in (("label", suspect.label, labels), ("found", suspect.detection, detections)):
        if index >= 0:
            row |= {"image": annotations.path(arrays.image_ids[index]), name: class_names[arrays.classes[index]]}
            corners = zip(("x1", "y1", "x2", "y2"), arrays.boxes_xyxy[index].tolist(), strict=True)
            row |= {f"{name}_{corner}": value for corner, value in corners}
    if suspect.detection >= 0:
        row["confidence"] = float(detections.scores[suspect.detection])
    return row | {"iou": suspect.iou} if row["label"] and row["found"] else row


def write_rows(path, rows):
    """A CSV file of UTF-8 text with BOM, for spreadsheets; numbers to three digits behind the point."""
    with open(path, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


def draw(row):
    """A row of suspects.csv as a picture: the part of the image with both boxes and their names, and a caption."""
    image_rgb = read_image(row["image"])
    names = {"label": f"label {row['label']}", "found": f"found {row['found']} {row['confidence'] or 0:.2f}"}
    shown = [name for name in names if row[name]]
    boxes_xyxy = np.array([[row[f"{name}_{corner}"] for corner in ("x1", "y1", "x2", "y2")] for name in shown])
    top_left, bottom_right = boxes_xyxy[:, :2].min(0), boxes_xyxy[:, 2:].max(0)
    reach = _CONTEXT / 2 * max(*(bottom_right - top_left), 1)
    size = np.array(image_rgb.shape[1::-1])
    x1, y1 = ((top_left + bottom_right) / 2 - reach).clip(0, size - 1).astype(int)
    x2, y2 = np.ceil((top_left + bottom_right) / 2 + reach).clip((x1 + 1, y1 + 1), size).astype(int)
    ids = [list(names).index(name) for name in shown]  # a colour for what is labelled, another for what was found
    tile = boxes_tile(image_rgb[y1:y2, x1:x2], (_TILE, _TILE), boxes_xyxy - [x1, y1] * 2, ids, None, [*names.values()])
    return tile, f"{row['rank']} {row['kind']} {row['score']:.2f} {Path(row['image']).stem}"


def summary(rows):
    """How many suspects of which kind there are, as lines."""
    counts = Counter(row["kind"] for row in rows)
    lines = [f"{len(rows)} suspects" + (", which a person should look at, the first ones first:" if rows else ".")]
    return "\n".join([*lines, *(f"{count:6d}  {kind}: {_KINDS[kind]}" for kind, count in counts.most_common())])


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check)
