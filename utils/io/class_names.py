"""The file of class names: one name per line, and the line's place is the class's number."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.io.errors import MissingFileError, UserError
from utils.io.files import read_lines
from utils.io.text import shorten_list


def one_line(name: str) -> str:
    """A name without line breaks and repeated blanks, as a line of the file can hold it."""
    return " ".join(name.split())


def read_class_names(classes_path: str) -> list[str]:
    """Class names from a text file, one per line; blank lines do not count. UTF-8, with or without BOM.

    Raises FileNotFoundError when the file is missing, ValueError when it is empty or names a class twice.
    """
    if not os.path.isfile(classes_path):
        raise MissingFileError(
            f"classes_path: {classes_path} does not exist. Write your class names into it, one per line."
        )
    names = list(filter(None, map(one_line, read_lines(classes_path))))
    if not names:
        raise UserError(f"classes_path: {classes_path} is empty. Write your class names into it, one per line.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(
            f"classes_path: {classes_path} names {shorten_list(repeated)} more than once; keep one line of each."
        )
    return names


def write_class_names(classes_path: str, class_names: Sequence[str]) -> None:
    """Write a file that read_class_names reads."""
    Path(classes_path).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
