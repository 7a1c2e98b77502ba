"""Reading COCO annotations (instances_*.json); pixels are not looked at here."""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PureWindowsPath

from utils.data.entries import Entry, refuse_missing, refuse_unknown_classes


def _is_number(value) -> bool:
    """Whether a value is a number that float64 holds: JSON in Python also knows NaN and integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_id(value) -> bool:
    return _is_number(value) or isinstance(value, str)


def _is_text(value) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_inside(value) -> bool:
    """Whether a file name stays in the folder it is looked for in, on any system: not absolute, and without `..`."""
    return _is_text(value) and not PureWindowsPath(value).anchor and ".." not in PureWindowsPath(value).parts


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What is read of each part of the file: {part: {key: (test, the words for what was expected)}}.
_ID = (_is_id, "a number")
PARTS = {
    "categories": {"id": _ID, "name": (_is_text, "the name of a class")},
    "images": {"id": _ID, "file_name": (_is_inside, "a path inside the data set's folder: not absolute, no `..`")},
    "annotations": {
        "image_id": _ID,
        "category_id": _ID,
        "bbox": (_is_box, "[x, y, width, height] in pixels"),
        "iscrowd": (lambda value: value in (None, 0, 1), "0 or 1, or nothing"),
    },
}
# Outlines take most of a file and have no use here: leaving them out while reading keeps memory small.
USED_KEYS = {*PARTS, *(key for rules in PARTS.values() for key in rules)}


def read_coco_json(annotation_path: str, class_names: Sequence[str]) -> list[Entry]:
    """What a COCO annotation file says, one Entry per image, in its order; crowds (iscrowd) become difficult boxes.

    Categories become classes by their names. Images are looked for in the file's folder, and beside that in images/, in
    the folder of the split (val2017/ for instances_val2017.json) and in the folder above. Raises ValueError, naming
    file and place, for what is no COCO annotation, contradicts itself or leads outside, for classes with boxes that
    class_names lacks, and where no image is named; FileNotFoundError for images that are missing.
    """
    content = _load(annotation_path)
    categories = _by_id(annotation_path, content, "categories")
    images = _by_id(annotation_path, content, "images")
    if not images:
        raise ValueError(f"{annotation_path} is empty; it must name at least one image.")
    paths = _find_images(annotation_path, list(images.values()))
    entries = {image_id: Entry(path, [], [], []) for image_id, path in zip(images, paths, strict=True)}
    index_of = {name: index for index, name in enumerate(class_names)}
    unknown = Counter()
    for place, (image_id, category_id, box_xywh, is_crowd) in _rows(annotation_path, content, "annotations"):
        for key, value, known in (("image_id", image_id, images), ("category_id", category_id, categories)):
            if value not in known:
                raise ValueError(f"{place} has the {key} {value!r}, which no other part lists. Correct or remove it.")
        name = categories[category_id].strip()
        if name not in index_of:
            unknown[name] += 1
        x, y, width, height = box_xywh
        entry = entries[image_id]
        entry.boxes_xyxy.append((x, y, x + width, y + height))
        entry.classes.append(index_of.get(name, -1))
        entry.difficult.append(is_crowd == 1)
    refuse_unknown_classes(annotation_path, unknown, class_names)
    return list(entries.values())


def _load(annotation_path: str) -> dict:
    try:
        with open(annotation_path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=lambda item: {key: item[key] for key in item if key in USED_KEYS})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{annotation_path} is not valid JSON ({error}); copy or export it again.") from error
    for part in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(
                f"{annotation_path} has no list {part!r}; expected COCO annotations with images, annotations and "
                "categories. Export the boxes as COCO JSON (object detection)."
            )
    return content


def _rows(annotation_path: str, content: dict, part: str) -> Iterator[tuple[str, list]]:
    """(its place in the file, the values of its keys) of each item of a part; raises ValueError at the first wrong."""
    rules = PARTS[part]
    for number, item in enumerate(content[part]):
        place = f"{annotation_path}: {part}[{number}]"
        values = [item.get(key) if isinstance(item, dict) else None for key in rules]
        for value, (key, (holds, expected)) in zip(values, rules.items(), strict=True):
            if not holds(value):
                raise ValueError(
                    f"{place} has the {key} {reprlib.repr(value)}; expected {expected}. Correct or remove it."
                )
        yield place, values


def _by_id(annotation_path: str, content: dict, part: str) -> dict:
    """{id: name or file name} of a part whose ids must differ."""
    found = {}
    for place, (item_id, value) in _rows(annotation_path, content, part):
        if item_id in found:
            raise ValueError(f"{place} has the id {item_id!r}, which another of its {part} has too. Correct the ids.")
        found[item_id] = value
    return found


def _find_images(annotation_path: str, file_names: Sequence[str]) -> list[str]:
    """The path of each image. Raises FileNotFoundError, naming the folders, where some are in none of them."""
    folder = os.path.dirname(annotation_path)
    split = os.path.splitext(os.path.basename(annotation_path))[0].rpartition("_")[2]
    around = ("", "../images", f"../{split}", "..")
    folders = [os.path.normpath(os.path.join(folder, part)) for part in around]
    paths = []
    for file_name in file_names:
        candidates = [os.path.join(folder, file_name.replace("\\", "/")) for folder in folders]
        paths.append(next(filter(os.path.isfile, candidates), None))
    missing = [name for name, path in zip(file_names, paths, strict=True) if path is None]
    refuse_missing(annotation_path, f"images (looked for in {', '.join(folders)})", missing)
    return paths
