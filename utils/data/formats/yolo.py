"""Reading YOLO's layout: images/a.jpg with labels/a.txt, described by a data.yaml, a folder or a list of images.

A label file has a line for each box, `class cx cy w h`, or for each outline, `class x1 y1 x2 y2 x3 y3 ...`; all but the
class are shares of the image's width and height. As https://docs.ultralytics.com/datasets/detect describes it.
"""

import math
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm import tqdm

from utils.data.formats.base import RawAnnotations, RawAnnotationsBuilder
from utils.data.formats.list_file import LIST_LINE
from utils.io.class_names import one_line
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES, files_below, find_image, read_bytes, read_lines
from utils.io.text import shorten_list

MAX_LABEL_MEGABYTES, MAX_YAML_MEGABYTES = 5, 1
# Boxes may reach a little beyond their image; numbers far outside 0 to 1 are pixels by mistake.
LOWEST_SHARE, HIGHEST_SHARE = -0.5, 1.5
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid")}
# Names of classes are looked for in so many folders above the labels or the folder that was named.
FOLDERS_ABOVE = 3


class ClassNames(NamedTuple):
    """Names of classes 0, 1, 2, ..., and the file that gives them."""

    names: list[str]
    path: str


def read_yolo_yaml(annotation_path: str, split: str) -> RawAnnotations:
    """Read the part of a data.yaml (keys path, train, val, names) that split, "train" or "val", names.

    Raises FileNotFoundError where its folders or lists do not exist, ValueError for what is no such file, and where it
    leads to no images, or none of them has a label file.
    """
    content = _load_yaml(annotation_path)
    known = _names_of_yaml(annotation_path, content)
    places = content.get(split) or []
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not places or not all(isinstance(place, str) for place in places):
        raise UserError(
            f"{annotation_path} has {split}: {reprlib.repr(content.get(split))}; expected a folder of images, a list "
            "file of image paths, or a list of these."
        )
    builder, paths = RawAnnotationsBuilder(annotation_path), []
    bases = _bases(annotation_path, str(content.get("path") or ""))
    for place in places:
        paths += _images_of(_find_place(annotation_path, bases, place), builder, bases)
    return _read_images(builder, paths, known)


def read_yolo_folder(folder: str, split: str) -> RawAnnotations:
    """Read a folder of images, or one that holds images/ and labels/; where it holds both parts, that of split.

    The names of the classes come from a data.yaml or classes.txt in it or near it, if there is one. Raises ValueError
    where it holds no images, or none of them has a label file.
    """
    inner = [*SPLIT_FOLDERS[split], *(f"images/{name}" for name in SPLIT_FOLDERS[split]), "images"]
    chosen = next((place for name in inner if os.path.isdir(place := os.path.join(folder, name))), folder)
    builder = RawAnnotationsBuilder(folder)
    paths = _images_of(chosen, builder)
    return _read_images(builder, paths, _names_near(paths[0], folder) if paths else None)


def read_yolo_list(annotation_path: str) -> RawAnnotations | None:
    """Read a list of image paths; None where a line holds boxes, or none of the images has a label file.

    Names as for read_yolo_folder.
    """
    if any(LIST_LINE.match(line.strip())["boxes"] for line in read_lines(annotation_path)):
        return None
    builder = RawAnnotationsBuilder(annotation_path)
    paths = _images_of(annotation_path, builder)
    if not has_label_files(paths):
        return None
    return _read_images(builder, paths, _names_near(paths[0], os.path.dirname(annotation_path)))


def has_label_files(paths: Sequence[str]) -> bool:
    return any(os.path.isfile(label_path_of(path)) for path in paths)


def label_path_of(path: str) -> str:
    """Where the label file of an image lies: in the twin of its folder, or beside it where there is no twin."""
    folder, name = os.path.split(path)
    return os.path.join(_label_folder(folder), f"{os.path.splitext(name)[0]}.txt")


def _label_folder(folder: str) -> str:
    """The folder with its last component `images` replaced by `labels`."""
    for parts in (Path(folder).parts, Path(os.path.abspath(folder)).parts):
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            twin = os.path.join(*parts[:last], "labels", *parts[last + 1 :])
            if os.path.isdir(twin):
                return twin
    return folder


def _read_images(builder: RawAnnotationsBuilder, paths: Sequence[str], known: ClassNames | None) -> RawAnnotations:
    if not paths and not builder.findings:
        raise UserError(
            f"{builder.annotation_path} leads to no images ({', '.join(IMAGE_SUFFIXES)}). Name a data.yaml, or a "
            "folder that holds images/ and labels/."
        )
    if paths and not has_label_files(paths):
        raise UserError(
            f"{builder.annotation_path}: none of its {len(paths)} images has a label file; the first would be "
            f"{label_path_of(paths[0])}. Put the labels there, or name another annotation file."
        )
    for path in tqdm(paths, desc=f"reading {builder.annotation_path}", unit="file", disable=None, delay=1, leave=False):
        builder.add_image(path)
        label_path = label_path_of(path)
        try:
            lines = read_bytes(label_path, MAX_LABEL_MEGABYTES).decode("utf-8-sig").splitlines()
        except FileNotFoundError:
            builder.report("no_label_file", path, f"no {label_path}")
            continue
        except (OSError, ValueError) as error:
            builder.report("broken_annotation", path, f"{label_path}: {error}")
            continue
        for number, line in enumerate(lines, 1):
            _add_line(builder, line, f"{label_path}, line {number}", known)
    return builder.source(known.names if known else None, normalized=True)


def _add_line(builder: RawAnnotationsBuilder, line: str, place: str, known: ClassNames | None) -> None:
    """Add the box of a line of a label file to the image added last, or report what is wrong with it."""
    try:
        values = [float(value) for value in line.split()]
    except ValueError:
        values = [math.nan]
    if not values:
        return
    class_index, shares = values[0], values[1:]
    if not all(map(math.isfinite, values)) or not (len(shares) == 4 or (len(shares) >= 6 and len(shares) % 2 == 0)):
        expected = "expected `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`"
    elif not class_index.is_integer() or not 0 <= class_index < 2**31:
        expected = "expected a class of 0 or more, a whole number"
    elif min(shares) < LOWEST_SHARE or max(shares) > HIGHEST_SHARE:
        expected = "expected shares of the image, from 0 to 1"
    elif known and class_index >= len(known.names):
        expected = f"expected a class from 0 to {len(known.names) - 1}, as {known.path} names {len(known.names)}"
    else:
        builder.add_box(_box_xyxy(shares), int(class_index))
        return
    builder.report("broken_annotation", builder.paths[-1], f"{place}: {reprlib.repr(line.strip())}; {expected}")


def _box_xyxy(shares: list[float]) -> tuple[float, float, float, float]:
    """The box cx, cy, w, h as corners, or the box around the outline x1, y1, x2, y2, x3, y3, ..."""
    if len(shares) == 4:
        centre_x, centre_y, width, height = shares
        return centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2
    return min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])


def _load_yaml(annotation_path: str) -> dict:
    try:
        # BaseLoader makes text, lists and dicts only: nothing runs, and a class `no` or `1e3` keeps its name.
        content = yaml.load(read_bytes(annotation_path, MAX_YAML_MEGABYTES).decode("utf-8-sig"), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{annotation_path} is not valid YAML ({reason}); copy or export it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{annotation_path} is no data set description; expected the keys train, val and names.")
    return content


def _names_of_yaml(annotation_path: str, content: dict) -> ClassNames:
    """The names that a data.yaml gives, as a list or as a dict {0: name}."""
    if "kpt_shape" in content:
        raise UserError(
            f"{annotation_path} has kpt_shape, so its labels hold key points, which are not read; export the data "
            "set for detection (boxes)."
        )
    names = content.get("names")
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"{annotation_path} has names: {reprlib.repr(names)}; expected the class names as a list, or under the "
            "numbers 0, 1, 2, ..."
        )
    return ClassNames(list(map(one_line, names)), annotation_path)


def _names_near(path: str, named: str) -> ClassNames | None:
    """The names for the labels of an image: of the nearest data.yaml or classes.txt, from its label folder upwards,
    then from the folder that was named. Raises ValueError where a data.yaml contradicts a classes.txt nearer by."""
    starts = [Path(os.path.abspath(start)) for start in (os.path.dirname(label_path_of(path)), named)]
    folders = [folder for start in starts for folder in (start, *start.parents[:FOLDERS_ABOVE])]
    files = (folder / name for folder in folders for name in ("classes.txt", "data.yaml", "data.yml"))
    nearest = None
    for file in filter(Path.is_file, files):
        known = _names_of_file(str(file))
        if known and file.suffix != ".txt":
            if nearest and nearest.names != known.names:
                raise UserError(
                    f"{nearest.path} names the classes {shorten_list(nearest.names)}, but {known.path} names "
                    f"{shorten_list(known.names)}. Correct the wrong one, or move it elsewhere."
                )
            return known
        nearest = nearest or known
    return nearest


def _names_of_file(path: str) -> ClassNames | None:
    """The names that a classes.txt or data.yaml gives, None where it gives none."""
    if not path.endswith(".txt"):
        content = _load_yaml(path)
        return _names_of_yaml(path, content) if "names" in content else None
    names = list(filter(None, map(one_line, read_lines(path))))
    return ClassNames(names, path) if names else None


def _bases(annotation_path: str, root: str) -> list[str]:
    """The folders that places in a data.yaml may start from; root: its key path."""
    beside = os.path.dirname(annotation_path)
    return [os.path.join(beside, root.replace("\\", "/")), root, beside] if root else [beside]


def _find_place(annotation_path: str, bases: Sequence[str], place: str) -> str:
    """A folder or list file that a data.yaml names, as it exists."""
    place = place.replace("\\", "/")
    # Roboflow writes ../train/images for a folder that lies beside the file.
    names = dict.fromkeys((place, place.removeprefix("../")))
    candidates = [os.path.normpath(os.path.join(base, name)) for name in names for base in bases]
    found = next(filter(os.path.exists, candidates), None)
    if found is None:
        looked_for = shorten_list(list(dict.fromkeys(candidates)))
        raise MissingFileError(
            f"{annotation_path} names {place}, which does not exist; looked for {looked_for}. Correct the keys "
            "path, train and val in it."
        )
    return found


def _images_of(place: str, builder: RawAnnotationsBuilder, bases: Sequence[str] = ()) -> list[str]:
    """The images of a folder and its sub-folders, or of a list file; those of a list that are missing are reported.

    Paths of a list start from its own folder, from one of the bases, or from the current directory.
    """
    if os.path.isdir(place):
        return [os.path.join(place, name) for name in files_below(place, IMAGE_SUFFIXES)]
    paths, bases = [], (os.path.dirname(place), *bases, "")
    for line in filter(None, map(str.strip, read_lines(place))):
        path = find_image(line, bases)
        if path is None:
            builder.report("missing_image", line, f"named in {place}")
        else:
            paths.append(path)
    return paths
