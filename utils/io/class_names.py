"""The file of class names: one name per line, and the line's place is the class's number."""

import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.io.errors import MissingFileError, UserError
from utils.io.files import read_lines
from utils.io.text import printable, shorten_list
from utils.io.yaml_files import load_yaml

YAML_SUFFIXES = (".yaml", ".yml")
# Files of other kinds, whose lines would pass for names.
NO_NAMES = (".json", ".xml", ".csv", ".py", ".pth", ".pt", ".onnx", ".jpg", ".png")


def one_line(name: str) -> str:
    """A name without line breaks, repeated blanks and what is no text, as a line of the file can hold it."""
    return printable(" ".join(name.split()))


def read_class_names(classes_path: str) -> list[str]:
    """Class names from a text file, one per line, or from the key names of a data.yaml; blank lines do not count.
    UTF-8, with or without BOM.

    Raises FileNotFoundError when the file is missing, ValueError when it is empty, of another kind, or names a class
    twice.
    """
    if not os.path.isfile(classes_path):
        raise MissingFileError(
            f"classes_path: {classes_path} does not exist. Write your class names into it, one per line."
        )
    suffix = os.path.splitext(classes_path)[1].lower()
    if suffix in NO_NAMES:
        raise UserError(
            f"classes_path: {classes_path} is a {suffix} file; expected a text file with one class name per line, or "
            "a data.yaml."
        )
    if suffix in YAML_SUFFIXES:
        return names_of_yaml(classes_path, load_yaml(classes_path))
    names = list(filter(None, map(one_line, read_lines(classes_path))))
    if not names:
        raise UserError(f"classes_path: {classes_path} is empty. Write your class names into it, one per line.")
    if repeated := repeated_names(names):
        raise UserError(
            f"classes_path: {classes_path} names {shorten_list(repeated)} more than once; keep one line of each."
        )
    return names


def names_of_yaml(path: str, content: dict) -> list[str]:
    """The names that a data.yaml gives, as a list or as a dict {0: name}.

    content: of the file. Raises ValueError where it has none, or one twice.
    """
    names = content.get("names")
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and one_line(name) for name in names):
        raise UserError(
            f"{path} has names: {reprlib.repr(names)}; expected the class names as a list, or under the numbers 0, 1, "
            "2, ..."
        )
    names = list(map(one_line, names))
    if repeated := repeated_names(names):
        raise UserError(
            f"{path} names {shorten_list(repeated)} more than once, which would become one class; give each class a "
            "name of its own."
        )
    return names


def repeated_names(names: Sequence[str]) -> list[str]:
    """Those that stand there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def write_class_names(classes_path: str, class_names: Sequence[str]) -> None:
    """Write a file that read_class_names reads."""
    Path(classes_path).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
