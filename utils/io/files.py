"""Reading, finding and writing files: what is written appears whole or not at all."""

import contextlib
import csv
import errno
import glob
import os
import re
import secrets
import time
from functools import cache
from pathlib import Path, PureWindowsPath

from utils.io.errors import UserError
from utils.io.logger import logger

PROJECT = Path(__file__).resolve().parents[2]
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# In order of preference where one name has several files.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".mpo", ".jp2", ".avif", ".gif"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".flv", ".ts")
# What cameras and programs write beside these, and nothing here decodes.
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".psd", ".svg", ".pdf", ".dcm"),
)
# What makes a spreadsheet compute a cell, which in a data set of a stranger may do harm.
STARTS_OF_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def read_lines(path: str) -> list[str]:
    """The lines of a text file in UTF-8, with or without BOM. Raises ValueError where it is in another encoding."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it with the encoding UTF-8.") from error


def read_bytes(path: str, most_megabytes: int) -> bytes:
    """The content of a file. Raises ValueError, with the reason but without the path, where it is larger than that."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_megabytes * 2**20:
            raise UserError(f"larger than {most_megabytes} MB, which no annotation is")
        return file.read(size)


def is_inside(name: str) -> bool:
    """Whether a file name stays in the folder it is looked for in, on any system: not absolute, and without `..`."""
    return not PureWindowsPath(name).anchor and ".." not in PureWindowsPath(name).parts


def files_below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files in a folder and its sub-folders that end in one of the suffixes, in either case.

    Returns their paths from that folder, with forward slashes, in alphabetical order. Hidden files and folders, whose
    names start with a dot, do not count: systems and editors leave copies there. Links to folders are followed, each
    folder once. A warning names each folder that cannot be read.
    """
    found, seen = [], set()
    walk = os.walk(folder, onerror=lambda error: _warn_of(error.filename or folder, error.strerror), followlinks=True)
    for place, folders, names in walk:
        identity = os.path.realpath(place)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(place, folder).replace(os.sep, "/")
        lead = "" if inner == "." else f"{inner}/"
        shown = (name for name in names if not name.startswith("."))
        found += [lead + name for name in shown if os.path.splitext(name)[1].lower() in suffixes]
    return sorted(found)


@cache
def _warn_of(folder, reason):
    """Say once that a folder cannot be read, however often it is looked into."""
    logger.warning(f"{folder} cannot be read ({reason}), so its files are left out; correct the rights of the folder.")


def write_csv(path, columns, rows):
    """A CSV file of UTF-8 text with BOM, for spreadsheets; numbers to three digits behind the point. A text that a
    spreadsheet would compute, such as a class named =1+1, has a ' before it.

    columns: names, in order. rows: {name: value} each.
    """
    with open(path, "w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value):
    if isinstance(value, float):
        return round(value, 3)
    return f"'{value}" if isinstance(value, str) and value.startswith(STARTS_OF_FORMULAS) else value


def replace_file(path, write):
    """Write a file anew so that, whenever the machine stops, the old or the new one is there and whole.

    write(temporary): makes the new file, at a Path beside the old one. An OSError names the file; the old one stays.
    """
    # With a number of its own, as two trainings may write into one folder at the same time; in containers, whose
    # processes have the same numbers.
    temporary = Path(f"{path}.{secrets.randbelow(10**12)}.tmp")
    try:
        write(temporary)
        # Before the new name: a power cut could otherwise leave the new name on an empty file.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # What cannot be removed either must not hide why the writing failed.
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and _is_of(temporary, error):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _keep_names(Path(path).parent)


def remove_temporaries(folder, older_than=0, name=""):
    """Remove what replace_file left unfinished in a folder when its process was killed.

    older_than: seconds since the last write; 0 for a folder into which no other process writes. name: of the file that
    was written, '' for all.
    """
    for path in Path(folder).glob(f"{glob.escape(name)}*.tmp"):
        # Another process may have finished or removed it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if re.fullmatch(r".+\.\d+\.tmp", path.name) and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def _is_of(path, error):
    """Whether an OSError is about a file, or does not say what it is about."""
    return error.filename is None or str(path) in (str(error.filename), str(error.filename2))


def _keep_names(folder):
    """Have a folder's new names on disk. Windows and some network drives know no such thing."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
