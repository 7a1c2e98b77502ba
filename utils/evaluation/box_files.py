"""Labels and detections of any detector from files: a text file per image, or COCO annotations and results."""

import json
import math
import reprlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from utils.evaluation.types import DetectionTable, GroundTruth
from utils.io.errors import MissingFileError, UserError
from utils.io.text import shorten_list


class Labelled(NamedTuple):
    """Labels and detections of a set of images, ready to be scored. image_ids, category_ids: those of COCO files."""

    ground_truth: GroundTruth
    detections: DetectionTable
    class_names: list
    image_names: list
    image_ids: list
    category_ids: list
    notes: list


def read_folders(truth_folder, found_folder, box_format):
    """Labels and detections from folders with a text file per image. Returns Labelled.

    An image without a file of detections counts as one where nothing was found.
    """
    files = {path.stem: path for path in sorted(truth_folder.glob("*.txt"))}
    found_files = {path.stem: path for path in sorted(found_folder.glob("*.txt"))}
    if not files:
        raise MissingFileError(f"{truth_folder} holds no .txt files; expected one per image, with the labelled boxes.")
    unknown = [str(found_files[stem]) for stem in found_files if stem not in files]
    if unknown:
        raise UserError(
            f"{len(unknown)} files of detections belong to no image of {truth_folder}: {shorten_list(unknown)}. Remove "
            "them, or add an empty file of labels for each image without objects."
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
        raise UserError(f"{path} is not UTF-8 text; save it with the encoding UTF-8.") from error
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
            raise UserError(
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
        raise UserError(f"{place}: a number is NaN or infinite; expected finite numbers. Correct or remove it.")
    if box_xyxy[2] < box_xyxy[0] or box_xyxy[3] < box_xyxy[1]:
        raise UserError(f"{place}: the box {box_xyxy} (x1, y1, x2, y2) ends before it begins. {hint}")


def assemble(truth, found, class_names, image_names, notes, image_ids=None, category_ids=None, areas=None):
    """Labelled from rows (class name, image, x1, y1, x2, y2, score or difficult).

    DetectionTable of classes without labels do not count, and are noted; where all are such it is a ValueError.
    """
    index_of = {name: number for number, name in enumerate(class_names)}
    extra = Counter(row[0] for row in found if row[0] not in index_of)
    if found and sum(extra.values()) == len(found) and class_names:
        raise UserError(
            f"No detection has one of the classes that are labelled: labelled are {shorten_list(class_names)}, "
            f"detected {shorten_list(list(extra))}. Use the same names in both."
        )
    if extra:
        classes = shorten_list([f"{name} ({count})" for name, count in extra.items()])
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
        DetectionTable(images, boxes_xyxy, scores, classes),
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
        raise UserError(f"{found_path} is no list of {{image_id, category_id, bbox, score}}; expected COCO results.")
    parts = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError(f"{truth_path} is no COCO annotation file; expected the lists {', '.join(parts)}.")
    images, categories, _ = (by_id(truth_path, content, part) for part in parts)
    image_names = [str(image.get("file_name", image_id)) for image_id, image in images.items()]
    name_of = {category_id: str(item.get("name", category_id)) for category_id, item in categories.items()}
    if len(set(name_of.values())) < len(name_of):
        raise UserError(f"{truth_path} names two of its categories alike; give each a name of its own.")
    place_of = {image_id: place for place, image_id in enumerate(images)}
    truth, areas = [], []
    for number, item in enumerate(content["annotations"]):
        where = f"{truth_path}: annotations[{number}]"
        category_id, *row = coco_row(where, item, place_of, ())
        if category_id not in name_of:
            raise UserError(f"{where} has the category_id {category_id!r}, which categories does not list. Correct it.")
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
        raise UserError(f"{path} is not valid JSON ({error}); copy or export it again.") from error


def by_id(path, content, part):
    """{id: item} of a list of a COCO file, whose ids must differ."""
    items = {}
    for number, item in enumerate(content[part]):
        item_id = item.get("id") if isinstance(item, dict) else None
        if not isinstance(item_id, int | str):
            raise UserError(f"{path}: {part}[{number}] has the id {item_id!r}; expected a number.")
        if item_id in items:
            raise UserError(f"{path}: {part}[{number}] has the id {item_id!r}, as another has. Correct the ids.")
        items[item_id] = item
    return items


def coco_row(where, item, place_of, more):
    """(category id, image, x1, y1, x2, y2, the values of the keys `more`) of an entry of a COCO file, checked."""
    item = item if isinstance(item, dict) else {}
    image_id, category_id, box = (item.get(key) for key in ("image_id", "category_id", "bbox"))
    numbers = [*(box if isinstance(box, list) else [None]), *(item.get(key) for key in more)]
    if len(numbers) != 4 + len(more) or not all(map(is_number, numbers)):
        expected = ", ".join(("bbox [x, y, width, height]", *more))
        raise UserError(f"{where} is {reprlib.repr(item)}; expected numbers for {expected}. Correct or remove it.")
    if not isinstance(image_id, int | str) or image_id not in place_of:
        raise UserError(
            f"{where} has the image_id {image_id!r}, which is no image of the labels. Correct or remove it."
        )
    if not isinstance(category_id, int | str):
        raise UserError(f"{where} has the category_id {category_id!r}; expected a number. Correct or remove it.")
    x, y, width, height, *score = numbers
    check_box(where, (x, y, x + width, y + height), score, "A bbox is [x, y, width, height].")
    return category_id, place_of[image_id], x, y, x + width, y + height, *score


def is_number(value):
    """Whether a value is a number that float64 holds: JSON in Python also knows integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300
