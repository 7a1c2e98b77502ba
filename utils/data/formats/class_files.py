"""The names of classes that lie with a data set: classes.txt, obj.names and the like, or the data.yaml."""

import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.io.class_names import names_of_yaml, one_line, repeated_names
from utils.io.errors import UserError
from utils.io.files import read_lines
from utils.io.text import shorten_list
from utils.io.yaml_files import load_yaml

# Names are looked for in so many folders above the labels or the folder that was named.
FOLDERS_ABOVE = 3
TEXT_FILES = ("classes.txt", "_darknet.labels", "_classes.txt", "obj.names")
YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")


class ClassNames(NamedTuple):
    """Names of classes 0, 1, 2, ..., and the file that gives them. keypoints: how many numbers of key points follow
    each box, where the file says so."""

    names: list[str]
    path: str
    keypoints: int | None = None

    def __str__(self) -> str:
        return f"{self.path} names {len(self.names)}"


def names_near(label_folders: Iterable[str], named: str) -> ClassNames | None:
    """The names for labels: of the nearest file of names, from their folder upwards, then from the folder that was
    named. Raises ValueError where a data.yaml contradicts a file nearer by, or two folders of labels have other names.
    """
    files = {}
    found = [known for folder in label_folders if (known := _nearest(folder, named, files))]
    for known in found[1:]:
        if known.names != found[0].names:
            raise _contradiction(found[0], known)
    return found[0] if found else None


def check_names(known: ClassNames, label_folders: Iterable[str]) -> None:
    """Raise ValueError where a file of names among the labels gives other names than a description does."""
    top = Path(known.path).absolute().parent
    starts = [Path(folder).absolute() for folder in label_folders]
    folders = {folder for start in starts for folder in (start, *start.parents[:FOLDERS_ABOVE])}
    for file in (folder / name for folder in sorted(folders) for name in TEXT_FILES):
        is_within = file.parent in starts or file.parent.is_relative_to(top)
        other = names_of_file(str(file)) if is_within and file.is_file() else None
        if other and any(first != second for first, second in zip(known.names, other.names, strict=False)):
            raise _contradiction(other, known)


def names_of_file(path: str) -> ClassNames | None:
    """The names that a file gives, None where it gives none. Raises ValueError where it names a class twice."""
    if Path(path).name in YAML_FILES:
        content = load_yaml(path)
        return names_of_description(path, content) if "names" in content else None
    names = list(filter(None, map(one_line, read_lines(path))))
    if repeated := repeated_names(names):
        raise UserError(
            f"{path} names {shorten_list(repeated)} more than once, which would become one class; give each class a "
            "name of its own."
        )
    return ClassNames(names, path) if names else None


def names_of_description(path: str, content: dict) -> ClassNames:
    """The names that a data.yaml gives, and how many numbers of key points by its key kpt_shape: [points, numbers for
    each]. content: of the file. Raises ValueError for what is neither."""
    names, shape = names_of_yaml(path, content), content.get("kpt_shape")
    if shape is None:
        return ClassNames(names, path)
    if not isinstance(shape, list) or len(shape) != 2 or not all(str(number).isdecimal() for number in shape):
        raise UserError(
            f"{path} has kpt_shape: {reprlib.repr(shape)}; expected [number of points, 2 or 3]: correct it, or export "
            "the data set for detection (boxes)."
        )
    return ClassNames(names, path, int(shape[0]) * int(shape[1]))


def _nearest(label_folder: str, named: str, files: dict) -> ClassNames | None:
    """files: {path: what names_of_file gave} of those that were read."""
    starts = [Path(start).absolute() for start in (label_folder, named)]
    folders = [folder for start in starts for folder in (start, *start.parents[:FOLDERS_ABOVE])]
    nearest = None
    for file in (folder / name for folder in folders for name in (*TEXT_FILES, *YAML_FILES)):
        if file not in files:
            files[file] = names_of_file(str(file)) if file.is_file() else None
        known = files[file]
        if known and file.name in YAML_FILES:
            if nearest and nearest.names != known.names:
                raise _contradiction(nearest, known)
            return known
        nearest = nearest or known
    return nearest


def _contradiction(first: ClassNames, second: ClassNames) -> UserError:
    return UserError(
        f"{first.path} names the classes {shorten_list(first.names)}, but {second.path} names "
        f"{shorten_list(second.names)}. Correct the wrong one, or move it elsewhere."
    )
