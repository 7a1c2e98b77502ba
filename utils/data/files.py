"""Text, and files that an annotation names: read and looked for so that foreign data can do no harm."""

import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

# In order of preference where one name has several files.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_lines(path: str) -> list[str]:
    """The lines of a text file in UTF-8, with or without BOM. Raises ValueError where it is in another encoding."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it with the encoding UTF-8.") from error


def read_bytes(path: str, most_megabytes: int) -> bytes:
    """The content of a file. Raises ValueError, with the reason but without the path, where it is larger than that."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_megabytes * 2**20:
            raise ValueError(f"larger than {most_megabytes} MB, which no annotation is")
        return file.read(size)


def is_inside(name: str) -> bool:
    """Whether a file name stays in the folder it is looked for in, on any system: not absolute, and without `..`."""
    return not PureWindowsPath(name).anchor and ".." not in PureWindowsPath(name).parts


def find_image(path: str, folders: Sequence[str]) -> str | None:
    """The path as it exists, from the first of the folders that has it ("" is the current directory), as written or
    with slashes turned."""
    for candidate in dict.fromkeys((path, path.replace("\\", "/"))):
        for folder in folders:
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    return None


def files_below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files in a folder and its sub-folders that end in one of the suffixes, in either case.

    Returns their paths from that folder, with forward slashes, in alphabetical order. Hidden files and folders, whose
    names start with a dot, do not count: systems and editors leave copies there.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(place, folder).replace(os.sep, "/")
        lead = "" if inner == "." else f"{inner}/"
        shown = (name for name in names if not name.startswith("."))
        found += [lead + name for name in shown if os.path.splitext(name)[1].lower() in suffixes]
    return sorted(found)
