"""Score a detector on labelled images: COCO AP and VOC mAP with 95 % intervals, by the evaluator that training uses.

python tools/get_map.py --annotation_path=VOCdevkit/VOC2007/ImageSets/Main/test.txt [--model_path=... --nms_iou=...]
python tools/get_map.py --gt=FOLDER --det=FOLDER [--box_format=xywh]     any detector's boxes, a text file per image
python tools/get_map.py --gt=instances.json --det=results.json           the same as COCO files
"""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.config.rules import check_values
from utils.data.annotations import read_annotations
from utils.data.quality.findings import findings_table
from utils.evaluation.average_precision import coco_annotations
from utils.evaluation.bootstrap import with_intervals
from utils.evaluation.box_files import Labelled, read_coco_pair, read_folders
from utils.evaluation.curves import pr_curves
from utils.evaluation.evaluate import EvalOptions, evaluate_detector, ground_truth
from utils.evaluation.matching import match_voc
from utils.evaluation.scores import format_scores, score_detections
from utils.inference.detector import open_detector
from utils.io.class_names import one_line
from utils.io.errors import MissingFileError, UserError
from utils.io.logger import logger
from utils.io.lookup import canonical
from utils.io.text import counted, json_text
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
#   tile              As in predict.py: None takes what the weights were trained with, 0 looks at whole images alone.
#   tile_overlap      As in predict.py.
#   MINOVERLAP        A box is right from this IoU on, for VOC mAP, precision, recall, F1 and miss rate.
#   plus_one          Also the VOC mAP with pixels counted as the VOC kit of 2007 does (width = x2 - x1 + 1).
#   gt                Score detections that are there already, of any detector: what is labelled. A folder with a text
#                     file per image, with lines `class x1 y1 x2 y2`, with `difficult` behind it where it is, or a COCO
#                     file (.json). No weights are needed, and none of the constants above but MINOVERLAP and
#                     plus_one.
#   det               What was detected: a folder with files of the same names, with lines `class score x1 y1 x2 y2`, or
#                     a COCO file of results.
#   box_format        Of these lines: 'xyxy', or 'xywh' for left, top, width, height.
#   resamplings       How often the images are drawn anew for the 95 % intervals; 0 leaves the intervals out.
#   batch_size        Images at a time.
#   num_workers       Processes that prepare images; 0 for none.
#   Cuda              Use the GPU where there is one.
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
tile = None
tile_overlap = None
MINOVERLAP = 0.5
plus_one = False
gt = ""
det = ""
box_format = "xyxy"
resamplings = 1000
batch_size = 16
num_workers = 0
Cuda = True
map_out_path = "map_out"


_TEXT_FOLDER = "detections"


def main(settings):
    """Evaluate, print the table, write everything into map_out_path. Returns the scores."""
    folder = Path(settings.map_out_path)
    check_paths(settings, folder)
    data = read_files(settings) if settings.gt else detect(settings)
    for note in data.notes:
        logger.warning(f"{note}")
    count, images = len(data.class_names), len(data.image_names)
    scores = score_detections(
        data.ground_truth, data.detections, data.class_names, images, settings.MINOVERLAP, settings.plus_one
    )
    if settings.resamplings:
        scores = with_intervals(scores, data.ground_truth, data.detections, settings.resamplings)
    matches = match_voc(data.ground_truth, data.detections, count, settings.MINOVERLAP)
    curves = pr_curves(matches, data.ground_truth, data.detections, count, images)
    table = format_scores(scores)
    logger.info(f"\n{table}")
    if math.isnan(scores["map50"]):
        logger.warning("there is no box to find, so that no score is defined")

    folder.mkdir(parents=True, exist_ok=True)
    if settings.gt:
        about = {"gt": settings.gt, "det": settings.det}
    else:
        about = {"model_path": settings.model_path, "annotation_path": settings.annotation_path}
    write_json(folder / "results.json", without_nan(about | scores))
    (folder / "results.txt").write_text(f"{table}\n", encoding="utf-8")
    write_detections(folder, data)
    draw_curves(curves, data.class_names, [row["map50"] for row in scores["classes"]], folder, scores["iou"])
    logger.info(f"\nsaved in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return scores


def check_paths(settings, folder):
    """Raise ValueError where gt and det do not go together, or where writing would destroy files of the user."""
    if bool(settings.gt) != bool(settings.det):
        raise UserError("gt and det belong together, what is labelled and what was detected: give both, or none.")
    for name in ("gt", "det"):
        path = getattr(settings, name)
        if path and Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{name} is {path!r}, which lies in map_out_path, {str(folder)!r}: write to another folder."
            )
    if any((folder / _TEXT_FOLDER).glob("*.txt")) and not (folder / "results.json").exists():
        raise UserError(
            f"{folder / _TEXT_FOLDER} holds text files that no earlier run wrote, and would be replaced: let "
            "map_out_path name another folder."
        )


def detect(settings):
    """Run the network of a weight file over labelled images. Returns Labelled."""
    names = ("tta_flip", "tta_scales", "tile", "tile_overlap")
    detector = open_detector(settings, **{name: getattr(settings, name) for name in names})
    annotations, findings = read_annotations(
        settings.annotation_path, detector.class_names, "val", of_weights=not settings.classes_path
    )
    boxes = counted(len(annotations.boxes_xyxy), "box")
    logger.info(f"{settings.annotation_path}: {counted(len(annotations), 'image')}, {boxes}")
    if findings:
        logger.info(findings_table(findings))
    options = EvalOptions(settings.confidence, settings.nms_iou, settings.MINOVERLAP)
    evaluation = evaluate_detector(detector, annotations, settings.batch_size, settings.num_workers, options)
    notes = [f"{path} cannot be decoded; its objects count as missed" for path in evaluation.unreadable]
    names = [Path(annotations.path(number)).name for number in range(len(annotations))]
    image_ids, category_ids = list(range(1, len(names) + 1)), list(range(1, len(detector.class_names) + 1))
    if settings.annotation_path.lower().endswith(".json"):
        own_ids, category_ids = ids_of_coco(settings.annotation_path, names, detector.class_names)
        if own_ids is None:
            notes.append(f"{settings.annotation_path} names pictures alike: detections.json has ids of its own")
        image_ids = own_ids or image_ids
    return Labelled(
        ground_truth(annotations), evaluation.detections, detector.class_names, names, image_ids, category_ids, notes
    )


def ids_of_coco(path, image_names, class_names):
    """The ids that a COCO file gives, so that detections can be scored against it by any tool.

    image_names: of files, without folder. Returns (ids of these images, None where the file names several alike; ids of
    these classes, new ones for those that it lacks).
    """
    content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    id_of = {canonical(image["file_name"]).rpartition("/")[2]: image["id"] for image in content["images"]}
    image_ids = [id_of[canonical(name)] for name in image_names] if len(id_of) == len(content["images"]) else None
    id_of = {one_line(category["name"]): category["id"] for category in content["categories"]}
    free = max([number for number in id_of.values() if isinstance(number, int)], default=0)
    return image_ids, [id_of.get(name, free + 1 + place) for place, name in enumerate(class_names)]


def read_files(settings):
    """Labels and detections from two folders of text files or two COCO files. Returns Labelled.

    Raises FileNotFoundError and ValueError, naming file and line, for what is missing, no number, or contradicts.
    """
    if settings.box_format not in ("xyxy", "xywh"):
        raise UserError(f"box_format is {settings.box_format!r}; expected 'xyxy' or 'xywh'.")
    paths = Path(settings.gt), Path(settings.det)
    for name, path in zip(("gt", "det"), paths, strict=True):
        if not path.exists():
            raise MissingFileError(f"{name} is {str(path)!r}, and there is no such folder or file; correct the path.")
    if all(path.is_dir() for path in paths):
        return read_folders(*paths, settings.box_format)
    if all(path.suffix.lower() == ".json" for path in paths):
        return read_coco_pair(*paths)
    raise UserError(f"gt is {settings.gt!r} and det is {settings.det!r}; expected two folders or two .json files.")


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
        logger.warning(f"pictures are named alike, so the names of the files in {text_folder} begin with numbers")
        stems = [f"{number}_{stem}" for number, stem in enumerate(stems, 1)]
    for stem, text in zip(stems, lines, strict=True):
        (text_folder / f"{stem}.txt").write_text("".join(text), encoding="utf-8")


def write_json(path, content, indent=2):
    """Write a JSON file of UTF-8 text."""
    path.write_text(json_text(content, indent) + "\n", encoding="utf-8")


def without_nan(value):
    """The same structure with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_script(main, read_constants(globals()), check_values)
