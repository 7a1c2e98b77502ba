"""Reading images that have a label file each: a data.yaml, an obj.data, a folder, or a list of images.

The label files are YOLO's text files (images/a.jpg with labels/a.txt), or, in a folder, VOC's XML files or LabelMe's
JSON files, beside the images or in a twin of their folder.
"""

import os
import reprlib
from collections.abc import Sequence

from tqdm import tqdm

from utils.data.formats.base import RawAnnotations, RawAnnotationsBuilder
from utils.data.formats.class_files import ClassNames, check_names, names_near, names_of_description, names_of_file
from utils.data.formats.image_folders import images_of_folder
from utils.data.formats.label_files import LABEL_SUFFIXES, LabelFiles
from utils.data.formats.labelme import add_labelme_image, is_labelme
from utils.data.formats.list_file import LIST_LINE
from utils.data.formats.voc import add_voc_image
from utils.data.formats.yolo_rows import RowReader
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES, read_bytes, read_lines
from utils.io.lookup import find_image, find_spelled, is_as_written, lying_near, tails, words_on_near
from utils.io.text import SAVE_AS_UTF8, shorten_list
from utils.io.yaml_files import load_yaml

MAX_LABEL_MEGABYTES = 5
# Files that describe a whole data set.
ANNOTATION_SUFFIXES = (".json", ".csv", ".xml", ".ndjson", ".jsonl", ".parquet", ".tfrecord", ".record")
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid")}
# So many of the JSON files beside images that have other labels are looked into, to see which program wrote them.
LOOKED_INTO = 10


def read_yolo_yaml(annotation_path: str, split: str) -> RawAnnotations:
    """Read the part of a data.yaml (keys path, train, val, names, kpt_shape) that split, "train" or "val", names.

    Raises FileNotFoundError where its folders or lists do not exist, ValueError for what is no such file, and where it
    leads to no images, or none of them has a label file.
    """
    content = load_yaml(annotation_path)
    known = names_of_description(annotation_path, content)
    places = content.get(split) or []
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not places or not all(isinstance(place, str) for place in places):
        raise UserError(
            f"{annotation_path} has {split}: {reprlib.repr(content.get(split))}; expected a folder of images, a list "
            "file of image paths, or a list of these."
        )
    builder = RawAnnotationsBuilder(annotation_path)
    root = str(content.get("path") or "")
    paths = _images_of_places(builder, places, root)
    return _read_yolo(builder, paths, known)


def read_darknet_data(annotation_path: str, split: str) -> RawAnnotations:
    """Read the part of an obj.data of Darknet or CVAT (lines train = ..., valid = ..., names = ...) that split names.
    Raises as read_yolo_yaml."""
    content = _darknet_content(annotation_path)
    key = "train" if split == "train" else "valid"
    if missing := [name for name in (key, "names") if not content.get(name)]:
        raise UserError(f"{annotation_path} has no line `{missing[0]} = ...`; expected one, as in Darknet's obj.data.")
    builder = RawAnnotationsBuilder(annotation_path)
    # Darknet starts in the folder above data/, where these files lie.
    known = names_of_file(_find_place(annotation_path, "", content["names"], builder, least=1))
    paths = _images_of(_find_place(annotation_path, "", content[key], builder, least=1), builder)
    return _read_yolo(builder, paths, known)


def read_yolo_folder(folder: str, split: str) -> RawAnnotations:
    """Read a folder of images, or one that holds images/ and labels/; where it holds both parts, that of split.

    Labels are of the kind that most of the images have. The names of YOLO's classes come from a data.yaml, classes.txt
    or the like in it or near it, if there is one. Raises ValueError where it holds no images, or none of them has a
    label file.
    """
    builder = RawAnnotationsBuilder(folder)
    paths = _images_of(_part_folder(folder, split), builder)
    return _read_labelled(builder, paths, _label_suffix(paths) or LABEL_SUFFIXES[0], folder)


def places_of_parts(annotation_path: str) -> list[str]:
    """What a folder, data.yaml or obj.data names for training and for validation, from its own folder, as key `train`
    of a data.yaml may name them together; [] where it has no part for validation alone."""
    if os.path.isdir(annotation_path):
        folders = [_part_folder(annotation_path, split) for split in SPLIT_FOLDERS]
        train, val = ([os.path.relpath(folder, annotation_path).replace(os.sep, "/")] for folder in folders)
        # What has no part for training trains on all that is in it.
        return [] if val == ["."] else train if train == ["."] else train + val
    is_darknet = annotation_path.lower().endswith(".data")
    if not is_darknet and not annotation_path.lower().endswith((".yaml", ".yml")):
        return []
    content = _darknet_content(annotation_path) if is_darknet else load_yaml(annotation_path)
    named = map(content.get, ("train", "valid" if is_darknet else "val"))
    train, val = ([part] if isinstance(part, str) else list(part or ()) for part in named)
    return train + val if val and val != train else []


def _darknet_content(annotation_path: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in read_lines(annotation_path) if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _part_folder(folder: str, split: str) -> str:
    """The part of a folder that holds the images of split; where it has none, the folder."""
    inner = [*SPLIT_FOLDERS[split], *(f"images/{name}" for name in SPLIT_FOLDERS[split])]
    return next((place for name in inner if (place := find_spelled(folder, name, os.path.isdir))), folder)


def read_yolo_list(annotation_path: str) -> RawAnnotations | None:
    """Read a list of image paths; None where a line holds boxes, or none of the images has a label file.

    Labels and names as for read_yolo_folder.
    """
    if any(LIST_LINE.match(line.strip())["boxes"] for line in read_lines(annotation_path)):
        return None
    builder = RawAnnotationsBuilder(annotation_path)
    paths = _images_of(annotation_path, builder)
    suffix = _label_suffix(paths)
    return _read_labelled(builder, paths, suffix, os.path.dirname(annotation_path)) if suffix else None


def _label_suffix(paths: Sequence[str]) -> str | None:
    """The ending of the label files that most of the images have; None where none has any."""
    counts = {}
    for suffix in LABEL_SUFFIXES:
        found = list(filter(None, map(LabelFiles(suffix).find, paths)))
        is_usable = not any(counts.values()) or any(map(_may_hold_labels, found[:LOOKED_INTO]))
        counts[suffix] = len(found) if is_usable else 0
        if counts[suffix] == len(paths):
            break
    best = max(counts, key=counts.get)
    return best if counts[best] else None


def _read_labelled(builder: RawAnnotationsBuilder, paths: Sequence[str], suffix: str, named: str) -> RawAnnotations:
    """Read images with label files of an ending. named: where names of YOLO's classes may lie."""
    if suffix == ".txt":
        return _read_yolo(builder, paths, names_near(_label_folders(paths), named))
    add = add_voc_image if suffix == ".xml" else add_labelme_image
    for path, label_path in _labelled(builder, paths, LabelFiles(suffix)):
        add(builder, path, label_path)
    return builder.named_source()


def _label_folders(paths: Sequence[str]) -> list[str]:
    """The folders in which the label files of images lie, or would lie."""
    labels = LabelFiles(".txt")
    return [labels.place_of(folder) for folder in dict.fromkeys(map(os.path.dirname, paths))]


def _read_yolo(builder: RawAnnotationsBuilder, paths: Sequence[str], known: ClassNames | None) -> RawAnnotations:
    if known:
        check_names(known, _label_folders(paths))
    rows = RowReader(builder, known, known.keypoints if known else None)
    for path, label_path in _labelled(builder, paths, LabelFiles(".txt")):
        builder.add_image(path)
        try:
            lines = read_bytes(label_path, MAX_LABEL_MEGABYTES).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            hint = SAVE_AS_UTF8 if isinstance(error, UnicodeDecodeError) else ""
            builder.report("broken_annotation", path, f"{label_path}: {error}{hint}")
            continue
        for number, line in enumerate(lines, 1):
            rows.add(line, f"{label_path}, line {number}")
    rows.finish()
    return builder.source(known.names if known else None, normalized=True, coordinates="cxcywh")


def _labelled(builder: RawAnnotationsBuilder, paths: Sequence[str], labels: LabelFiles):
    """Yield (path, path of its label file) of the images that have one; those without are added here, and reported."""
    if not paths and not builder.findings:
        raise UserError(
            f"{builder.annotation_path} leads to no images ({', '.join(IMAGE_SUFFIXES)}). Name a data.yaml, or a "
            "folder that holds images/ and labels/."
        )
    found = [labels.find(path) for path in paths]
    if paths and not any(found):
        expected = labels.expected(paths[0])
        raise UserError(
            f"{builder.annotation_path}: none of its {len(paths)} images has a label file; the first would be "
            f"{expected}{_instead(paths[0], expected)}. Put the labels there, or name another annotation file."
        )
    words = f"reading {builder.annotation_path}"
    unlabelled, others = [], [LabelFiles(suffix) for suffix in LABEL_SUFFIXES if suffix != labels.suffix]
    for path, label_path in zip(
        tqdm(paths, desc=words, unit="file", disable=None, delay=1, leave=False), found, strict=True
    ):
        if label_path is None:
            builder.add_image(path)
            other = labels.find_own(path) or _find_other_kind(path, others)
            detail = f"no {labels.expected(path)}" + (f", but {other} is there" if other else "")
            builder.report("label_elsewhere" if other else "no_label_file", path, detail)
            unlabelled.append(path)
            continue
        if os.path.splitext(os.path.basename(label_path))[0] != os.path.splitext(os.path.basename(path))[0]:
            builder.report("other_spelling", path, f"its labels are in {label_path}")
        if earlier := labels.claim(label_path, path):
            builder.report("shared_label", path, f"{label_path} is that of {earlier} too")
        yield path, label_path
    labels.report_unmatched(builder, paths, unlabelled)


def _find_other_kind(path: str, others: Sequence[LabelFiles]) -> str | None:
    """A label file of an image that is of another kind than those that are read."""
    found = filter(None, (labels.find(path) for labels in others))
    return next((label_path for label_path in found if _may_hold_labels(label_path)), None)


def _may_hold_labels(label_path: str) -> bool:
    """Whether a file is more than JSON that a camera or a download wrote beside an image."""
    return not label_path.lower().endswith(".json") or is_labelme(label_path)


def _instead(path: str, expected: str) -> str:
    """Words on what lies there instead of the label file of an image."""
    near = [name for name in lying_near(expected) if not name.lower().endswith(IMAGE_SUFFIXES)]
    folder = os.path.dirname(path) or "."
    near += [name for name in sorted(os.listdir(folder)) if name.lower().endswith(ANNOTATION_SUFFIXES)]
    return f", and there is {shorten_list(near, 2)}" if near else ""


def _images_of_places(builder: RawAnnotationsBuilder, places: Sequence[str], root: str) -> list[str]:
    annotation_path = builder.annotation_path
    found = [_find_place(annotation_path, root, place, builder) for place in places]
    return [path for place in found for path in _images_of(place, builder, _bases(annotation_path, root))]


def _bases(annotation_path: str, root: str) -> list[str]:
    """The folders that places in a description may start from; root: its key path."""
    beside = os.path.dirname(annotation_path)
    return [os.path.join(beside, root.replace("\\", "/")), root, beside] if root else [beside]


def _find_place(annotation_path: str, root: str, place: str, builder: RawAnnotationsBuilder, least: int = 2) -> str:
    """A folder or file that a description names, as it exists; least: how many parts of its path must agree."""
    written, bases = place.replace("\\", "/"), _bases(annotation_path, root)
    candidates = [os.path.normpath(os.path.join(base, written)) for base in bases]
    found = [candidate for candidate in candidates if os.path.exists(candidate)]
    # Roboflow writes ../train/images for a folder that lies beside the file, and others name folders above it.
    moved = [
        candidate
        for base in bases
        for tail in tails(written, least)
        if (candidate := find_spelled(os.path.normpath(base or "."), tail, os.path.exists))
    ]
    beside = [path for path in moved if written.startswith("../") and found and not os.path.samefile(path, found[0])]
    if beside:
        raise UserError(
            f"{annotation_path} names {place}, and there are two of these: {found[0]} and {beside[0]}. Name the one "
            "that is meant by its whole path, or move the other one away."
        )
    if not found and not moved:
        looked_for = shorten_list(list(dict.fromkeys(candidates)))
        raise MissingFileError(
            f"{annotation_path} names {place}, which does not exist; looked for {looked_for}. Correct the keys "
            "path, train and val in it."
        )
    if not found and not written.startswith("../"):
        builder.report("other_spelling", annotation_path, f"names {place}; {moved[0]} is taken")
    return (found or moved)[0]


def _images_of(place: str, builder: RawAnnotationsBuilder, bases: Sequence[str] = ()) -> list[str]:
    """The images of a folder and its sub-folders, or of a list file; those of a list that are missing are reported.

    Paths of a list start from its own folder, from one of the bases, or from the current directory.
    """
    if os.path.isdir(place):
        return images_of_folder(place, builder)
    paths, bases = [], (os.path.dirname(place), *bases, "")
    for line in filter(None, map(str.strip, read_lines(place))):
        path = find_image(line, bases)
        if path is None:
            near = words_on_near(line, bases)
            builder.report("missing_image", line, f"named in {place}" + (f"; {near}" if near else ""))
            continue
        paths.append(path)
        if not is_as_written(path, line):
            builder.report("other_spelling", path, f"{place} names {line}")
    return paths
