"""Score a detector on labelled images: COCO AP and VOC mAP with 95 % intervals, by the evaluator that training uses.

python tools/get_map.py --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/test.txt [--model_path=... --nms_iou=...]
python tools/get_map.py --gt=FOLDER --det=FOLDER [--box_format=xywh]     any detector's boxes, a text file per image
python tools/get_map.py --gt=instances.json --det=results.json           the same as COCO files
"""

import json
import math
import reprlib
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.threads  # noqa: F401 # isort: skip
import numpy as np

from utils.config.cli import run_script, script_constants
from utils.config.rules import check_values
from utils.data.annotations import read_annotations
from utils.data.quality.findings import findings_table
from utils.evaluation.average_precision import coco_annotations
from utils.evaluation.bootstrap import with_intervals
from utils.evaluation.curves import draw_from
from utils.evaluation.evaluate import Thresholds, evaluate_detector, ground_truth
from utils.evaluation.matching import voc_outcome
from utils.evaluation.scores import format_scores, score_detections
from utils.evaluation.types import Detections, GroundTruth
from utils.inference.detector import open_detector
from utils.io.text import listed
from utils.runtime.device import choose_precision
from utils.visualize.curves import draw_curves

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_path   What to measure on, in any of the formats that train.py reads; of a data.yaml its val part.
#   model_path        Weights. A file that training wrote says itself which network, classes and input size it needs.
#   classes_path      Only for files that do not say their classes and have others than COCO's 80.
#   model_name        '' lets the file say it; a name has to agree with the file.
#   weights_format    As in train.py; '' lets the file's content decide.
#   input_shape       [height, width] that the network sees, multiples of 32; [] takes the size of the training.
#   confidence        Boxes below this score are left out. Low, because an AP looks at the whole curve.
#   nms_iou           Two boxes of one class that overlap more than this are one object.
#   tta_flip          As in predict.py: look at each image in a mirror too (test-time augmentation).
#   tta_scales        As in predict.py: with the input at these sizes too, such as [1.0, 1.5]; [1.0] looks once.
#   MINOVERLAP        A box is right from this IoU on, for VOC mAP, precision, recall, F1 and miss rate.
#   gt                Score detections that are there already, of any detector: what is labelled, and
#   det               what was detected. Two folders with a text file per image, of the same name in both, or two COCO
#                     files (.json). Lines are `class x1 y1 x2 y2`, with `difficult` behind it where it is, and
#                     `class score x1 y1 x2 y2`. No weights are needed, and none of the constants above but MINOVERLAP.
#   box_format        Of these lines: 'xyxy', or 'xywh' for left, top, width, height.
#   resamplings       How often the images are drawn anew for the 95 % intervals; 0 leaves the intervals out.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
#   fp16              Mixed precision as in training: faster, and its very numbers; False is the most exact.
#   map_out_path      Folder for scores, detections and curves; what an earlier run left there is replaced.
# ----------------------------------------------------------------------------------------------------------------------
annotation_path = "VOCdevkit/Sample/ImageSets/Main/val.txt"
model_path = "logs/best_epoch_weights.pth"
classes_path = ""
model_name = ""
weights_format = ""
input_shape = []
confidence = 0.001
nms_iou = 0.65
tta_flip = False
tta_scales = [1.0]
MINOVERLAP = 0.5
gt = ""
det = ""
box_format = "xyxy"
resamplings = 1000
batch_size = 16
num_workers = 0
Cuda = True
fp16 = False
map_out_path = "map_out"


_TEXT_FOLDER = "detections"


class Labelled(NamedTuple):
    """Labels and detections of a set of images, ready to be scored. image_ids, category_ids: those of COCO files."""

    ground_truth: GroundTruth
    detections: Detections
    class_names: list
    image_names: list
    image_ids: list
    category_ids: list
    notes: list


def main(settings):
    """Evaluate, print the table, write everything into map_out_path. Returns the scores."""
    folder = Path(settings.map_out_path)
    check_paths(settings, folder)
    data = read_files(settings) if settings.gt else detect(settings)
    for note in data.notes:
        print(f"note: {note}")
    count, images = len(data.class_names), len(data.image_names)
    scores = score_detections(data.ground_truth, data.detections, data.class_names, images, settings.MINOVERLAP)
    if settings.resamplings:
        scores = with_intervals(scores, data.ground_truth, data.detections, settings.resamplings)
    outcome = voc_outcome(data.ground_truth, data.detections, count, settings.MINOVERLAP)
    curves = draw_from(outcome, data.ground_truth, data.detections, count, images)
    table = format_scores(scores)
    print(f"\n{table}")
    if math.isnan(scores["map50"]):
        print("note: there is no box to find, so that no score is defined")

    folder.mkdir(parents=True, exist_ok=True)
    if settings.gt:
        about = {"gt": settings.gt, "det": settings.det}
    else:
        about = {"model_path": settings.model_path, "annotation_path": settings.annotation_path}
    write_json(folder / "results.json", without_nan(about | scores))
    (folder / "results.txt").write_text(f"{table}\n", encoding="utf-8")
    write_detections(folder, data)
    draw_curves(curves, data.class_names, [row["map50"] for row in scores["classes"]], folder)
    print(f"\nsaved in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return scores


def check_paths(settings, folder):
    """Raise ValueError where gt and det do not go together, or where writing would destroy files of the user."""
    if bool(settings.gt) != bool(settings.det):
        raise ValueError("gt and det belong together, what is labelled and what was detected: give both, or none.")
    for name in ("gt", "det"):
        path = getattr(settings, name)
        if path and Path(path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{name} is {path!r}, which lies in map_out_path, {str(folder)!r}: write to another folder."
            )
    if any((folder / _TEXT_FOLDER).glob("*.txt")) and not (folder / "results.json").exists():
        raise ValueError(
            f"{folder / _TEXT_FOLDER} holds text files that no earlier run wrote, and would be replaced: let "
            "map_out_path name another folder."
        )


def detect(settings):
    """Run the network of a weight file over labelled images. Returns Labelled."""
    detector = open_detector(settings, tta_flip=settings.tta_flip, tta_scales=settings.tta_scales)
    precision = choose_precision(settings.fp16, detector.device)
    records, findings = read_annotations(settings.annotation_path, detector.class_names, "val")
    print(f"{settings.annotation_path}: {len(records)} images, {len(records.boxes_xyxy)} boxes")
    if findings:
        print(findings_table(findings))
    thresholds = Thresholds(settings.confidence, settings.nms_iou, settings.MINOVERLAP)
    evaluation = evaluate_detector(
        detector, records, precision.dtype, settings.batch_size, settings.num_workers, thresholds
    )
    notes = [f"{path} cannot be decoded; its objects count as missed" for path in evaluation.unreadable]
    names = [Path(records.path(number)).name for number in range(len(records))]
    image_ids, category_ids = list(range(1, len(names) + 1)), list(range(1, len(detector.class_names) + 1))
    if settings.annotation_path.lower().endswith(".json"):
        # Detections with the ids of the user's own file can be scored against it by any tool.
        content = json.loads(Path(settings.annotation_path).read_text(encoding="utf-8-sig"))
        id_of = {Path(image["file_name"].replace("\\", "/")).name: image["id"] for image in content["images"]}
        if len(id_of) == len(content["images"]):
            image_ids = [id_of[name] for name in names]
        else:
            notes.append(f"{settings.annotation_path} names pictures alike: detections.json has ids of its own")
        notes.append(
            "small, medium and large go by the size of the box; by the area of the outline, where the file says it, "
            f"with --gt={settings.annotation_path} --det={Path(settings.map_out_path) / 'detections.json'}"
        )
        id_of = {category["name"].strip(): category["id"] for category in content["categories"]}
        free = max([number for number in id_of.values() if isinstance(number, int)], default=0)
        category_ids = [id_of.get(name, free + 1 + place) for place, name in enumerate(detector.class_names)]
    return Labelled(
        ground_truth(records), evaluation.detections, detector.class_names, names, image_ids, category_ids, notes
    )


def read_files(settings):
    """Labels and detections from two folders of text files or two COCO files. Returns Labelled.

    Raises FileNotFoundError and ValueError, naming file and line, for what is missing, no number, or contradicts.
    """
    if settings.box_format not in ("xyxy", "xywh"):
        raise ValueError(f"box_format is {settings.box_format!r}; expected 'xyxy' or 'xywh'.")
    paths = Path(settings.gt), Path(settings.det)
    for name, path in zip(("gt", "det"), paths, strict=True):
        if not path.exists():
            raise FileNotFoundError(f"{name} is {str(path)!r}, and there is no such folder or file; correct the path.")
    if all(path.is_dir() for path in paths):
        return read_folders(*paths, settings.box_format)
    if all(path.suffix.lower() == ".json" for path in paths):
        return read_coco_pair(*paths)
    raise ValueError(f"gt is {settings.gt!r} and det is {settings.det!r}; expected two folders or two .json files.")


def read_folders(truth_folder, found_folder, box_format):
    """Labels and detections from folders with a text file per image. Returns Labelled.

    An image without a file of detections counts as one where nothing was found.
    """
    files = {path.stem: path for path in sorted(truth_folder.glob("*.txt"))}
    found_files = {path.stem: path for path in sorted(found_folder.glob("*.txt"))}
    if not files:
        raise FileNotFoundError(f"{truth_folder} holds no .txt files; expected one per image, with the labelled boxes.")
    unknown = [str(found_files[stem]) for stem in found_files if stem not in files]
    if unknown:
        raise ValueError(
            f"{len(unknown)} files of detections belong to no image of {truth_folder}: {listed(unknown)}. Remove them, "
            "or add an empty file of labels for each image without objects."
        )
    truth = [row for place, path in enumerate(files.values()) for row in read_boxes(path, place, box_format, False)]
    found = [
        row
        for place, stem in enumerate(files)
        if stem in found_files
        for row in read_boxes(found_files[stem], place, box_format, True)
    ]
    notes = []
    if len(found_files) < len(files):
        notes.append(f"{len(files) - len(found_files)} of {len(files)} images have no detections")
    return assemble(truth, found, sorted({row[0] for row in truth}), list(files), notes)


def read_boxes(path, image, box_format, has_score):
    """Rows (class name, image, x1, y1, x2, y2, score or difficult) of one text file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it with the encoding UTF-8.") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        difficult = not has_score and words[-1] == "difficult"
        words = words[:-1] if difficult else words
        # From the right, because a class name may consist of several words.
        count = 5 if has_score else 4
        try:
            name, numbers = " ".join(words[:-count]), [float(word) for word in words[-count:]]
        except ValueError:
            name = ""
        if not name:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not `class {'score ' if has_score else ''}` and four numbers."
            )
        *score, x1, y1, x2, y2 = numbers
        if box_format == "xywh":
            x2, y2 = x1 + x2, y1 + y2
        check_box(f"{path}, line {number}", (x1, y1, x2, y2), score, "Is box_format right?")
        yield name, image, x1, y1, x2, y2, score[0] if has_score else difficult


def check_box(place, box_xyxy, score, hint):
    """Raise ValueError for a box that ends before it begins, and for NaN and infinity; `[score]` may be empty."""
    if not all(map(math.isfinite, (*box_xyxy, *score))):
        raise ValueError(f"{place}: a number is NaN or infinite; expected finite numbers. Correct or remove it.")
    if box_xyxy[2] < box_xyxy[0] or box_xyxy[3] < box_xyxy[1]:
        raise ValueError(f"{place}: the box {box_xyxy} (x1, y1, x2, y2) ends before it begins. {hint}")


def assemble(truth, found, class_names, image_names, notes, image_ids=None, category_ids=None, areas=None):
    """Labelled from rows (class name, image, x1, y1, x2, y2, score or difficult).

    Detections of classes without labels do not count, and are noted; where all are such it is a ValueError.
    """
    index_of = {name: number for number, name in enumerate(class_names)}
    extra = Counter(row[0] for row in found if row[0] not in index_of)
    if found and sum(extra.values()) == len(found) and class_names:
        raise ValueError(
            f"No detection has one of the classes that are labelled: labelled are {listed(class_names)}, detected "
            f"{listed(list(extra))}. Use the same names in both."
        )
    if extra:
        classes = listed([f"{name} ({count})" for name, count in extra.items()])
        notes = [*notes, f"{sum(extra.values())} detections are of classes without labels and do not count: {classes}"]

    def columns(rows):
        table = np.array([row[1:] for row in rows if row[0] in index_of], np.float64).reshape(-1, 6)
        classes = np.array([index_of[row[0]] for row in rows if row[0] in index_of], np.int64)
        return table[:, 0].astype(np.int64), table[:, 1:5], classes, table[:, 5]

    images, boxes_xyxy, classes, difficult = columns(truth)
    labels = GroundTruth(images, boxes_xyxy, classes, difficult > 0, areas)
    images, boxes_xyxy, classes, scores = columns(found)
    return Labelled(
        labels,
        Detections(images, boxes_xyxy, scores, classes),
        class_names,
        image_names,
        image_ids or list(range(1, len(image_names) + 1)),
        category_ids or list(range(1, len(class_names) + 1)),
        notes,
    )


def read_coco_pair(truth_path, found_path):
    """Labels and detections from COCO files: an annotation file, and a list of results or another such file."""
    content, results = (json_of(path) for path in (truth_path, found_path))
    results = results.get("annotations") if isinstance(results, dict) else results
    if not isinstance(results, list):
        raise ValueError(f"{found_path} is no list of {{image_id, category_id, bbox, score}}; expected COCO results.")
    parts = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise ValueError(f"{truth_path} is no COCO annotation file; expected the lists {', '.join(parts)}.")
    images, categories, _ = (by_id(truth_path, content, part) for part in parts)
    image_names = [str(image.get("file_name", image_id)) for image_id, image in images.items()]
    name_of = {category_id: str(item.get("name", category_id)) for category_id, item in categories.items()}
    if len(set(name_of.values())) < len(name_of):
        raise ValueError(f"{truth_path} names two of its categories alike; give each a name of its own.")
    place_of = {image_id: place for place, image_id in enumerate(images)}
    truth, areas = [], []
    for number, item in enumerate(content["annotations"]):
        where = f"{truth_path}: annotations[{number}]"
        category_id, *row = coco_row(where, item, place_of, ())
        if category_id not in name_of:
            raise ValueError(
                f"{where} has the category_id {category_id!r}, which categories does not list. Correct it."
            )
        truth.append((name_of[category_id], *row, item.get("iscrowd") == 1))
        area = item.get("area")
        areas.append(area if is_number(area) else (row[3] - row[1]) * (row[4] - row[2]))
    found = []
    for number, item in enumerate(results):
        category_id, *row = coco_row(f"{found_path}: entry {number}", item, place_of, ("score",))
        found.append((name_of.get(category_id, f"category {category_id}"), *row))
    ids = {"image_ids": list(images), "category_ids": list(name_of)}
    return assemble(truth, found, list(name_of.values()), image_names, [], **ids, areas=np.array(areas, np.float64))


def json_of(path):
    """What a JSON file holds. Raises ValueError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy or export it again.") from error


def by_id(path, content, part):
    """{id: item} of a list of a COCO file, whose ids must differ."""
    items = {}
    for number, item in enumerate(content[part]):
        item_id = item.get("id") if isinstance(item, dict) else None
        if not isinstance(item_id, int | str):
            raise ValueError(f"{path}: {part}[{number}] has the id {item_id!r}; expected a number.")
        if item_id in items:
            raise ValueError(f"{path}: {part}[{number}] has the id {item_id!r}, as another has. Correct the ids.")
        items[item_id] = item
    return items


def coco_row(where, item, place_of, more):
    """(category id, image, x1, y1, x2, y2, the values of the keys `more`) of an entry of a COCO file, checked."""
    item = item if isinstance(item, dict) else {}
    image_id, category_id, box = (item.get(key) for key in ("image_id", "category_id", "bbox"))
    numbers = [*(box if isinstance(box, list) else [None]), *(item.get(key) for key in more)]
    if len(numbers) != 4 + len(more) or not all(map(is_number, numbers)):
        expected = ", ".join(("bbox [x, y, width, height]", *more))
        raise ValueError(f"{where} is {reprlib.repr(item)}; expected numbers for {expected}. Correct or remove it.")
    if not isinstance(image_id, int | str) or image_id not in place_of:
        raise ValueError(
            f"{where} has the image_id {image_id!r}, which is no image of the labels. Correct or remove it."
        )
    if not isinstance(category_id, int | str):
        raise ValueError(f"{where} has the category_id {category_id!r}; expected a number. Correct or remove it.")
    x, y, width, height, *score = numbers
    check_box(where, (x, y, x + width, y + height), score, "A bbox is [x, y, width, height].")
    return category_id, place_of[image_id], x, y, x + width, y + height, *score


def is_number(value):
    """Whether a value is a number that float64 holds: JSON in Python also knows integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300


def write_detections(folder, data):
    """Write detections.json and ground_truth.json in COCO's format, and detections/NAME.txt for each image."""
    found = coco_annotations(data.detections, data.image_ids, data.category_ids)
    write_json(folder / "detections.json", [{key: row[key] for key in row if key != "id"} for row in found], None)
    images = zip(data.image_ids, data.image_names, strict=True)
    classes = zip(data.category_ids, data.class_names, strict=True)
    truth = {
        "images": [{"id": image_id, "file_name": name} for image_id, name in images],
        "categories": [{"id": category_id, "name": name} for category_id, name in classes],
        "annotations": coco_annotations(data.ground_truth, data.image_ids, data.category_ids),
    }
    write_json(folder / "ground_truth.json", truth, None)
    text_folder = folder / _TEXT_FOLDER
    text_folder.mkdir(exist_ok=True)
    for path in text_folder.glob("*.txt"):
        path.unlink()
    lines = [[] for _ in data.image_names]
    for image, box, score, class_id in zip(*(column.tolist() for column in data.detections), strict=True):
        lines[image].append(f"{data.class_names[class_id]} {score:.6g} {' '.join(f'{value:.6g}' for value in box)}\n")
    stems = [Path(name).stem for name in data.image_names]
    if len(set(stems)) < len(stems):
        print(f"note: pictures are named alike, so the files in {text_folder} are named by their image ids")
        stems = data.image_ids
    for stem, text in zip(stems, lines, strict=True):
        (text_folder / f"{stem}.txt").write_text("".join(text), encoding="utf-8")


def write_json(path, content, indent=2):
    """Write a JSON file of UTF-8 text."""
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def without_nan(value):
    """The same structure with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_script(main, script_constants(globals()), check_values)
