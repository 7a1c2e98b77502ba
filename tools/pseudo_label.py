"""Let a trained detector label pictures, as sure as a labelled validation set shows it to be, to train on them too.

python tools/pseudo_label.py --dir_origin_path=my_pictures --annotation_path=my_data/data.yaml [--precision=0.9 ...]

Each class has a threshold of its own: the lowest confidence from which on at least `precision` of the boxes on the
validation set are right, with enough boxes to say so. A class that nowhere surely is so precise is left out, and said.
It writes a data set in YOLO's layout into dir_save_path, a new folder:

    data.yaml          the data set, for a list in train_annotation_path
    images/            the pictures in which something was found, as hard links where the disk allows it, else copies
    labels/            their boxes
    detections.json    the same as a COCO file, with scores
    review.csv         pictures that a person should look at, the most doubtful first

Your pictures are not changed. Those that annotation_path or train.py's train_annotation_path labels already are left
out.
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np

from utils.config.cli import run_script
from utils.config.constants import read_constants, require_literals, train_constants
from utils.config.rules import check_values
from utils.data.annotations import build_annotations, read_annotations
from utils.data.formats.base import RawAnnotationsBuilder
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.quality.findings import findings_table
from utils.data.sources import paths_of
from utils.evaluation.evaluate import ground_truth
from utils.evaluation.thresholds import class_thresholds
from utils.evaluation.views import COUNTS, detect_views, doubts_of, rows_of, seen_by_all
from utils.inference.base import Detections, NMSOptions
from utils.inference.detector import open_detector
from utils.io.errors import UserError
from utils.io.files import write_csv
from utils.io.logger import logger
from utils.io.text import counted, format_table, json_text, shorten_list
from utils.modes.images import pictures_below
from utils.modes.label_files import LabelFiles

# ----------------------------------------------------------------------------------------------------------------------
#   model_path        Weights of a detector: a file that training wrote, or any other that holds a whole network.
#   dir_origin_path   The folder of pictures without labels; its sub-folders count too.
#   dir_save_path     The folder to write, new or empty: labels that a person may have corrected are never replaced.
#   annotation_path   The labelled validation set that decides on the thresholds, in any of the formats that train.py
#                     reads; of a data.yaml its val part. The detector must not have learned from it.
#   precision         Share of right boxes, between 0 and 1, that each class has to reach: 0.9 teaches few wrong boxes,
#                     0.7 leaves out fewer objects, which a training takes for background. The lower end of the share's
#                     80 % interval counts, so that 0.9 takes at least 15 boxes of a class, all right, and more where
#                     some are wrong.
#   tta_flip          As in predict.py: look at each picture in a mirror too. What only one of the two views shows is
#                     doubtful, and in review.csv. False takes half the time.
#   nms_iou           Two boxes of one class that overlap more than this are one object.
#   max_boxes         Most objects of a picture.
#   classes_path      Only for files that do not say their classes and have others than COCO's 80.
#   model_name        '' lets the file say it; a name has to agree with the file.
#   weights_format    As in train.py; '' lets the file's content decide.
#   input_shape       [height, width] that the network sees, multiples of 32; [] takes the size of the training.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
# ----------------------------------------------------------------------------------------------------------------------
model_path = "logs/best_epoch_weights.pth"
dir_origin_path = "my_pictures"
dir_save_path = "pseudo_labels"
annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
precision = 0.9
tta_flip = True
nms_iou = 0.5
max_boxes = 300
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
batch_size = 16
num_workers = 0
Cuda = True

_OF_TRAIN = ("train_annotation_path",)
_LOWEST = 0.01  # no threshold lies below this confidence
_LOW_RECALL = 0.5  # what is not found is learned as background
_REVIEW = ("rank", "doubt", "image", "labels", "boxes", *COUNTS, "what")


def constants():
    """All that the command line takes: the constants above, and train.py's."""
    return read_constants(globals()) | train_constants(_OF_TRAIN)


def check(values):
    """The settings as a namespace. Raises ValueError: parameter, got, expected."""
    require_literals(values, _OF_TRAIN)
    settings = check_values(values)
    if not 0 < settings.precision < 1:
        raise UserError(f"precision is {settings.precision}; expected a share between 0 and 1, such as 0.9.")
    folder = Path(settings.dir_save_path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            f"dir_save_path is {settings.dir_save_path!r}, which holds files already, and labels in it may have been "
            "corrected; name a new folder, or move that one away."
        )
    return settings


def main(settings):
    """Find the thresholds, label the pictures, write the data set. Returns the rows of review.csv."""
    folder, target = Path(settings.dir_origin_path), Path(settings.dir_save_path)
    names = unlabelled(folder, pictures_below(folder, target), settings)
    detector = open_detector(settings, tta_flip=settings.tta_flip)
    thresholds = find_thresholds(detector, settings)
    confidences = np.array([threshold.confidence for threshold in thresholds])
    if not np.isfinite(confidences).any():
        table = threshold_table(detector.class_names, thresholds, np.zeros(len(thresholds), int))
        raise UserError(
            f"For no class is it certain that precision = {settings.precision} is reached on "
            f"{settings.annotation_path} (the lower end of the 80 % interval), so that nothing is labelled:\n"
            f"{table}\nLower precision, validate on more images, or train on more labels first."
        )

    annotations, names = open_pictures(folder, names)
    # Half the threshold: what lies between is doubtful. Of classes that are left out, what would be shown elsewhere.
    lowest = np.where(np.isfinite(confidences), confidences / 2, detector.confidences)
    options = NMSOptions(lowest.tolist(), settings.nms_iou, settings.max_boxes)
    views = detect_views(detector, annotations, settings.batch_size, settings.num_workers, options)
    if views.unreadable:
        logger.warning(
            f"{counted(len(views.unreadable), 'picture')} that cannot be decoded: {shorten_list(views.unreadable)}"
        )

    linked, rows, written = write_labels(views, annotations, names, confidences, detector.class_names, settings)
    write_csv(target / "review.csv", _REVIEW, rows)
    content = f"train: images\nnames: {json_text(detector.class_names)}\n"
    (target / "data.yaml").write_text(content, encoding="utf-8")
    logger.info(f"\n{threshold_table(detector.class_names, thresholds, written)}\n")
    logger.info(summary(len(names), linked, rows, thresholds, detector.class_names, settings))
    return rows


def write_labels(views, annotations, names, confidences, class_names, settings):
    """Write labels, pictures and detections.json.

    views: of the pictures of annotations, whose names these are. confidences: (C,) the thresholds, NaN for none.
    Returns (of each picture that was written whether it is a link, the rows of review.csv, (C,) boxes written).
    """
    folder, target = Path(settings.dir_origin_path), Path(settings.dir_save_path)
    is_seen, table = seen_by_all(views, len(class_names)), views.found
    is_sure = table.scores >= np.nan_to_num(confidences, nan=np.inf)[table.classes]
    bounds = np.searchsorted(table.image_ids, np.arange(len(names) + 1))
    written, linked, rows = np.zeros(len(class_names), int), [], []
    with LabelFiles(target, class_names, yolo_txt=True) as label_files:
        for index, name in enumerate(names):
            at = np.arange(*bounds[index : index + 2])
            sure, labels = rows_of(table, at[is_sure[at]]), ""
            if len(sure.scores) and can_have_labels(label_files, name):
                found = Detections(*sure[1:], np.array(class_names)[sure.classes])
                label_files.add(name, annotations.sizes_hw[index].tolist(), found)
                linked.append(link_picture(folder / name, target / "images" / name))
                written += np.bincount(sure.classes, minlength=len(written))
                labels = f"labels/{Path(name).with_suffix('.txt').as_posix()}"
            about = {"image": str(folder / name), "labels": labels, "boxes": len(sure.scores)}
            doubts = doubts_of(rows_of(table, at), is_seen[at], confidences, class_names)
            rows += [about | doubts] if doubts else []
    rows.sort(key=lambda row: -row["doubt"])
    return linked, [{"rank": rank} | row for rank, row in enumerate(rows, 1)], written


def unlabelled(folder, names, settings):
    """The names of the pictures in a folder that no annotation labels. Raises UserError where none is left."""
    labelled = [
        (settings.annotation_path, "val"),
        *((path, "train") for path in paths_of(settings.train_annotation_path)),
    ]
    known = set()
    for path, split in labelled:
        known.update(map(identity, read_raw_annotations(path, split).paths))
    left = [name for name in names if identity(folder / name) not in known]
    if len(left) < len(names):
        logger.info(f"{len(names) - len(left)} of {len(names)} pictures in {folder} are labelled, and left out")
    if not left:
        raise UserError(
            f"dir_origin_path is {str(folder)!r}, whose {counted(len(names), 'picture')} annotation_path or "
            "train_annotation_path labels already; name a folder with others."
        )
    return left


def identity(path):
    return os.path.normcase(os.path.realpath(path))


def find_thresholds(detector, settings):
    """The ClassThreshold of each class, by the validation set."""
    annotations, findings = read_annotations(
        settings.annotation_path, detector.class_names, "val", of_weights=not settings.classes_path
    )
    boxes = counted(len(annotations.boxes_xyxy), "box")
    logger.info(f"{settings.annotation_path}: {counted(len(annotations), 'image')}, {boxes}")
    if findings:
        logger.info(findings_table(findings))
    options = NMSOptions(_LOWEST, settings.nms_iou, settings.max_boxes)
    views = detect_views(detector, annotations, settings.batch_size, settings.num_workers, options)
    count = len(detector.class_names)
    return class_thresholds(ground_truth(annotations), views.found, count, settings.precision)


def open_pictures(folder, names):
    """(Annotations without boxes, names) of the pictures that can be read; the others are said."""
    builder = RawAnnotationsBuilder(str(folder))
    for name in names:
        builder.add_image(str(folder / name))
    annotations, findings = build_annotations(builder.source([]), [])
    if unreadable := {finding.image for finding in findings if finding.kind == "unreadable_image"}:
        logger.warning(f"{counted(len(unreadable), 'picture')} that cannot be read: {shorten_list(sorted(unreadable))}")
    return annotations, [name for name in names if str(folder / name) not in unreadable]


def can_have_labels(label_files, name):
    """Whether no other picture has the name of this one's label file; where one has, a line says so."""
    try:
        label_files.check(name)
    except UserError as error:
        logger.warning(str(error))
        return False
    return True


def link_picture(source, target):
    """Give a picture a second name, or, on another disk, a copy. Returns whether it is a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def threshold_table(class_names, thresholds, written):
    """A line for each class: its threshold, precision and recall on the validation set from there on, what was written.

    written: (C,) boxes. Returns text.
    """
    rows = [("class", "threshold", "precision", "80 % interval", "of boxes", "recall", "boxes written")]
    for name, item, count in zip(class_names, thresholds, written, strict=True):
        shares = (f"{item.precision:.3f}", f"{item.low:.3f} to {item.high:.3f}", str(item.boxes), f"{item.recall:.3f}")
        is_used = np.isfinite(item.confidence)
        lowest, boxes = (f"{item.confidence:.3f}", str(count)) if is_used else ("-", "left out")
        rows.append((name, lowest, *(shares if item.boxes else "--0-"), boxes))
    return format_table(rows, right=range(1, 7))


def summary(total, linked, rows, thresholds, class_names, settings):
    """What was written, what to look at, and what to put into train.py. Returns text."""
    folder = Path(settings.dir_save_path)
    by_name = dict(zip(class_names, thresholds, strict=True))
    left_out = [name for name, item in by_name.items() if np.isnan(item.confidence)]
    low = [
        f"{name} ({item.recall:.0%})"
        for name, item in by_name.items()
        if np.isfinite(item.confidence) and item.recall < _LOW_RECALL
    ]
    yaml_path = (folder / "data.yaml").absolute().as_posix()
    sources = [*map(str, paths_of(settings.train_annotation_path)), yaml_path]
    copies = f"; {linked.count(False)} are copies, as their disk allows no links" if False in linked else ""
    lines = [
        f"{len(linked)} of {total} pictures have boxes that are sure enough, and are in {folder}{copies}. The others "
        "are left out.",
        f"Doubtful: {counted(len(rows), 'picture')}, in {folder / 'review.csv'}, those to look at first at the top.",
    ]
    if left_out:
        lines.append(
            f"No boxes, as it is nowhere certain that precision = {settings.precision} is reached (the lower end of "
            f"the 80 % interval): {shorten_list(left_out)}. A training takes their objects in these pictures for "
            "background: lower precision, validate on more images, or draw their boxes."
        )
    if low:
        lines.append(
            f"Less than half of the objects get a box: {shorten_list(low)}. A training takes the others for "
            "background, which may harm more than the boxes help: lower precision, or correct the pictures of "
            "review.csv first."
        )
    if linked:
        lines += [
            "For train.py, with a weight for each source:",
            f"train_annotation_path = {json_text(sources)}",
            f"source_weights = {[1.0] * len(sources)}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, constants(), check)
