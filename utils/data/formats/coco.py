"""Reading COCO annotations (instances_*.json); pixels are not looked at here."""

import math
import os
import reprlib
from array import array
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from utils.data.formats.base import RawAnnotations
from utils.data.formats.json_stream import JsonStream
from utils.data.quality.findings import Finding
from utils.io.class_names import one_line
from utils.io.errors import UserError
from utils.io.files import is_inside
from utils.io.lookup import find_image, is_as_written, words_on_near
from utils.io.text import SAVE_AS_UTF8

NUMBERS, LARGEST = {int, float}, 1e300  # JSON in Python also knows NaN and integers of any length


def _is_id(value) -> bool:
    return type(value) is int or type(value) is str or (type(value) is float and abs(value) < LARGEST)


def _is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_file_name(value) -> bool:
    return _is_text(value) and is_inside(value)


def _is_box(value) -> bool:
    if type(value) is not list or len(value) != 4 or not NUMBERS.issuperset(map(type, value)):
        return False
    x, y, width, height = value
    return abs(x) < LARGEST and abs(y) < LARGEST and abs(width) < LARGEST and abs(height) < LARGEST


def _is_flag(value) -> bool:
    return value in (None, 0, 1)


# What is read of each part of the file: {part: (key, test, the words for what was expected)}.
_ID = ("id", _is_id, "a number")
RULES = {
    "categories": (_ID, ("name", _is_text, "the name of a class")),
    "images": (_ID, ("file_name", _is_file_name, "a path inside the data set's folder: not absolute, no `..`")),
    "annotations": (
        ("image_id", _is_id, "a number"),
        ("category_id", _is_id, "a number"),
        ("bbox", _is_box, "[x, y, width, height] in pixels"),
        ("iscrowd", _is_flag, "0 or 1, or nothing"),
    ),
}


def read_coco_json(annotation_path: str) -> RawAnnotations:
    """What a COCO annotation file says. Crowds (iscrowd) become difficult boxes; names come in the order of their ids.

    Images are looked for in the file's folder and in images/ in it, and beside that folder in the one of the split
    (val2017/ for instances_val2017.json), in images/<split>/, in images/, and in the folder above. Raises ValueError
    for what is no COCO annotation, and where no image is named. Items that are broken, contradict others or lead
    outside become findings.
    """
    content = _Content(annotation_path)
    _read_parts(annotation_path, content.add)
    if not content.images and not content.findings:
        raise UserError(f"{annotation_path} is empty; it must name at least one image.")
    return content.source()


def _read_parts(annotation_path: str, add: Callable[[str, int, object], None]) -> None:
    """Call add(part, number, item) for each item of the parts, in whatever order they come."""
    missing, others = list(RULES), set()
    try:
        with open(annotation_path, encoding="utf-8-sig") as file:
            stream = JsonStream(file)
            if not stream.peek():
                raise UserError("it is empty")
            if stream.peek() != "{":
                stream.value()
            else:
                for _ in stream.items("{", "}"):
                    part = stream.value()
                    stream.take(":")
                    if part not in missing or stream.peek() != "[":
                        others.add(part if isinstance(part, str) else "")
                        stream.value()
                        continue
                    missing.remove(part)
                    words = f"reading {part} of {annotation_path}"
                    items = tqdm(stream.items("[", "]"), desc=words, unit="", disable=None, delay=1, leave=False)
                    for number, _ in enumerate(items):
                        add(part, number, stream.value())
            if stream.peek():
                raise UserError("it goes on after its end")
    except UnicodeDecodeError as error:
        raise UserError(f"{annotation_path} is not UTF-8 text{SAVE_AS_UTF8}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{annotation_path} is not valid JSON ({error}); copy or export it again.") from error
    if missing and "shapes" in others:
        raise UserError(
            f"{annotation_path} is LabelMe's file of one image; name the folder that holds the images and these files."
        )
    if missing:
        raise UserError(
            f"{annotation_path} has no list {missing[0]!r}; expected COCO annotations with images, annotations and "
            "categories. Export the boxes as COCO JSON (object detection)."
        )


class _Content:
    """What was read so far. The parts of a file come in any order, so ids are resolved at the end."""

    def __init__(self, annotation_path: str):
        self.annotation_path, self.findings = annotation_path, []
        self.names, self.images = {}, {}  # {id: name}, {id: (file name, stated height, stated width)}
        self.parents = set()  # names that are the supercategory of another category
        # Ids are numbered as boxes mention them: arrays of numbers are much smaller than lists of ids.
        self.image_numbers, self.category_numbers = {}, {}
        self.places, self.image_of, self.category_of = array("q"), array("q"), array("q")
        self.boxes_xyxy, self.difficult, self.areas = array("d"), array("b"), array("d")

    def add(self, part: str, number: int, item: object) -> None:
        item = item if isinstance(item, dict) else {}
        for key, holds, expected in RULES[part]:
            if not holds(item.get(key)):
                found = reprlib.repr(item.get(key))
                self.report(f"{part}[{number}] has the {key} {found}; expected {expected}")
                return
        if part == "annotations":
            self.add_box(number, item)
            return
        known, item_id = self.names if part == "categories" else self.images, item["id"]
        if item_id in known:
            self.report(f"{part}[{number}] has the id {item_id!r}, which another of its {part} has too")
        elif part == "categories":
            known[item_id] = one_line(item["name"])
            if _is_text(parent := item.get("supercategory")) and one_line(parent) != known[item_id]:
                self.parents.add(one_line(parent))
        else:
            known[item_id] = (item["file_name"], _stated(item, "height"), _stated(item, "width"))

    def add_box(self, number: int, item: dict) -> None:
        x, y, width, height = item["bbox"]
        image_id, category_id = item["image_id"], item["category_id"]
        self.places.append(number)
        self.image_of.append(self.image_numbers.setdefault(image_id, len(self.image_numbers)))
        self.category_of.append(self.category_numbers.setdefault(category_id, len(self.category_numbers)))
        self.boxes_xyxy.extend((x, y, x + width, y + height))
        self.difficult.append(item.get("iscrowd") == 1)
        area = item.get("area")
        self.areas.append(area if type(area) in NUMBERS and 0 < area < LARGEST else math.nan)

    def report(self, detail: str) -> None:
        self.findings.append(Finding("broken_annotation", self.annotation_path, detail))

    def source(self) -> RawAnnotations:
        """The boxes, sorted by image, with what refers to nothing reported and left out."""
        paths = find_images(self.annotation_path, [name for name, *_ in self.images.values()], self.findings)
        is_found = np.array([path is not None for path in paths], bool)
        # Some programs list the root of all categories as one, which no box is of.
        is_class = (id_ for id_, name in self.names.items() if name not in self.parents or id_ in self.category_numbers)
        categories = sorted(is_class, key=lambda item_id: (isinstance(item_id, str), item_id))
        image_index = self.resolve("image_id", self.image_of, self.image_numbers, list(self.images))
        classes = self.resolve("category_id", self.category_of, self.category_numbers, categories)
        kept = (image_index >= 0) & (classes >= 0)
        kept[kept] = is_found[image_index[kept]]
        order = np.flatnonzero(kept)
        order = order[np.argsort(image_index[order], kind="stable")]
        return RawAnnotations(
            self.annotation_path,
            [path for path in paths if path is not None],
            np.array([size_hw for _, *size_hw in self.images.values()], np.int32).reshape(-1, 2)[is_found],
            (np.cumsum(is_found) - 1)[image_index[order]],
            np.array(self.boxes_xyxy, np.float64).reshape(-1, 4)[order],
            classes[order],
            np.array(self.difficult, bool)[order],
            [self.names[item_id] for item_id in categories],
            False,
            self.findings,
            np.array(self.areas, np.float64)[order],
            "xywh",
        )

    def resolve(self, key: str, numbers: array, number_of: dict, known: Sequence) -> np.ndarray:
        """For each box the place in known of the id that it mentions; -1, and a finding, where known lacks it."""
        place_of = {item_id: place for place, item_id in enumerate(known)}
        mentioned = list(number_of)
        result = np.array([place_of.get(item_id, -1) for item_id in mentioned], np.int64)[np.array(numbers, np.int64)]
        for row in np.flatnonzero(result < 0):
            item_id = mentioned[numbers[row]]
            self.report(f"annotations[{self.places[row]}] has the {key} {item_id!r}, which no other part lists")
        return result


def _stated(item: dict, key: str) -> int:
    """The height or width that an image states, 0 where it states none."""
    value = item.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def find_images(annotation_path: str, file_names: Sequence[str], findings: list[Finding]) -> list[str | None]:
    """The path of each image; None, and a finding, where it is in none of the folders."""
    folder = os.path.dirname(annotation_path)
    split = os.path.splitext(os.path.basename(annotation_path))[0].rpartition("_")[2]
    # The split before images/: an image of another split there may have the same name.
    around = ("", "images", f"../{split}", f"../images/{split}", "../images", "..")
    folders = [os.path.normpath(os.path.join(folder, part)) for part in around]
    looked_for, paths = f"looked for in {', '.join(folders)}", []
    folders = [place for place in folders if os.path.isdir(place)]
    for file_name in file_names:
        paths.append(path := find_image(file_name, folders))
        if path is None:
            findings.append(Finding("missing_image", file_name, words_on_near(file_name, folders) or looked_for))
        elif not is_as_written(path, file_name):
            findings.append(Finding("other_spelling", path, f"the annotation says {file_name}"))
    return paths
