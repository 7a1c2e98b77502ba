"""Find labels that are probably wrong: where a trained detector and the labels contradict each other, the surest first.

python tools/label_suspects.py [--model_path=... --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/train.txt ...]

It writes two files into save_dir, and changes none of yours:

    suspects.csv        a row for each suspect, the most probable error first
    suspects.jpg        the first of them as pictures: what is labelled there, and what was found

A suspect is a question to a person, no answer: the detector errs as well, and the more the worse it is. Images that it
learned from may be asked about too, as single wrong labels among many are hardly learned by heart.
"""

import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data.annotations import read_annotations
from utils.data.formats.yolo import SPLIT_FOLDERS
from utils.data.quality.findings import findings_table
from utils.evaluation.evaluate import EvalOptions, evaluate_detector, ground_truth
from utils.evaluation.label_suspects import COLUMNS, LOWEST_CONFIDENCE, TRUSTED_MAP, find_suspects, row_of
from utils.evaluation.scores import score_detections
from utils.image.codec import write_image
from utils.inference.detector import open_detector
from utils.io.errors import UserError
from utils.io.files import read_lines, write_csv
from utils.io.logger import logger
from utils.io.lookup import find_spelled
from utils.io.text import counted
from utils.io.yaml_files import load_yaml
from utils.visualize.images import sheet
from utils.visualize.suspects import suspect_tile

# ----------------------------------------------------------------------------------------------------------------------
#   model_path        Weights that training wrote, on these images or on others with the same classes.
#   annotation_path   Which labels to look at, in any of the formats that train.py reads; several with commas between
#                     them. Of a data.yaml, an obj.data, or a folder with both parts, both are looked at.
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

_CSV_COLUMNS = ("rank", *COLUMNS)
_TILES_IN_ROW = 5  # of suspects.jpg
# The kinds of Suspect, as they are told.
_KINDS = {
    "no label": "found, and not labelled",
    "not found": "labelled, and nothing found there",
    "other class": "labelled as another class than found",
    "loose box": "labelled with another place or size than found",
}


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
    folder = Path(settings.save_dir)
    table, picture = folder / "suspects.csv", folder / "suspects.jpg"
    require_writable(table, picture)
    detector = open_detector(settings)
    rows = [
        row for path, split in sets_of(settings.annotation_path) for row in look_at(path, split, detector, settings)
    ]
    rows.sort(key=lambda row: -row["score"])
    rows = [{"rank": rank} | row for rank, row in enumerate(rows, 1)]
    write_csv(table, _CSV_COLUMNS, rows)
    picture.unlink(missing_ok=True)
    if rows[: settings.num_pictures]:
        tiles, captions = zip(*map(draw, rows[: settings.num_pictures]), strict=True)
        write_image(str(picture), sheet(tiles, captions, _TILES_IN_ROW))
    logger.info(f"\n{summary(rows)}\nwrote {table}" + (f" and {picture}" if picture.exists() else ""))
    return rows


def require_writable(*paths):
    """Make the folder of files in save_dir, and try to write each, before hours of work for them. Raises UserError."""
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with open(path, "ab"):
                pass
            if is_new:
                path.unlink()
    except OSError as error:
        raise UserError(
            f"save_dir is {str(path.parent)!r}, where {path.name} cannot be written ({error.strerror}): name "
            "a folder to write to, and close programs that have the file open."
        ) from error


def sets_of(annotation_path):
    """[(path, "train" or "val")] of what annotation_path names."""
    paths = [annotation_path] if Path(annotation_path).exists() else map(str.strip, annotation_path.split(","))
    return [(path, split) for path in paths for split in parts_of(path)]


def parts_of(path):
    """Which of "train" and "val" a path leads to: both where a description names them, or a folder holds them; "train"
    for what has no parts, and where reading will say what is missing."""
    places = {"train": "train", "val": "val"}
    if path.lower().endswith((".yaml", ".yml")) and os.path.isfile(path):
        named = load_yaml(path)
    elif path.lower().endswith(".data") and os.path.isfile(path):
        pairs = (line.partition("=") for line in read_lines(path))
        named, places["val"] = {key.strip(): value.strip() for key, _, value in pairs}, "valid"
    else:
        # A folder of one part alone is read as a whole.
        named = {split: holds_part(path, split) for split in SPLIT_FOLDERS}
        named = named if all(named.values()) else {}
    return [split for split, place in places.items() if named.get(place)] or ["train"]


def holds_part(folder, split):
    """Whether a folder has one for the images of a split, as in train/images or images/train."""
    return os.path.isdir(folder) and any(
        find_spelled(folder, place, os.path.isdir)
        for name in SPLIT_FOLDERS[split]
        for place in (name, f"images/{name}")
    )


def look_at(path, split, detector, settings):
    """The suspects of one set of images as rows of suspects.csv without their rank, in no order."""
    annotations, findings = read_annotations(path, detector.class_names, split, of_weights=not settings.classes_path)
    logger.info(f"{path}: {counted(len(annotations), 'image')}, {counted(len(annotations.boxes_xyxy), 'box')}")
    if findings:
        logger.info(findings_table(findings))
    options = EvalOptions(confidence=LOWEST_CONFIDENCE)
    evaluation = evaluate_detector(detector, annotations, settings.batch_size, settings.num_workers, options)
    for unreadable in evaluation.unreadable:
        logger.warning(f"{unreadable} cannot be decoded and is left out")
    labels, detections, names = ground_truth(annotations), evaluation.detections, detector.class_names
    suspects = find_suspects(labels, detections, len(names), settings.lowest_score)
    score = score_detections(labels, detections, names, len(annotations))["map50"]
    if suspects and score < TRUSTED_MAP:
        logger.warning(f"this detector has a mAP@0.5 of {score:.2f} on {path}; most suspects are its own errors")
    rows = [row_of(item, labels, detections, annotations, names) for item in suspects]
    return [row for row in rows if row["image"] not in evaluation.unreadable]


def draw(row):
    """A row of suspects.csv as a picture, and its caption."""
    return suspect_tile(row), f"{row['rank']} {row['kind']} {row['score']:.2f} {Path(row['image']).stem}"


def summary(rows):
    """How many suspects of which kind there are, as lines."""
    counts = Counter(row["kind"] for row in rows)
    lines = [f"{len(rows)} suspects" + (", which a person should look at, the first ones first:" if rows else ".")]
    return "\n".join([*lines, *(f"{count:6d}  {kind}: {_KINDS[kind]}" for kind, count in counts.most_common())])


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check)
