"""Finding files that are there under another spelling of their name: percent-encoded, in another case, with other code
points for the same letters (macOS writes an accent as a letter of its own), with backslashes, or from another root."""

import contextlib
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote

from utils.io.files import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, PROJECT
from utils.io.text import shorten_list

# So many folders are kept as they were listed.
_LISTED_FOLDERS = 512


def canonical(name: str) -> str:
    """The one spelling that all spellings of a name share: no %xx, forward slashes, composed letters, lower case."""
    with contextlib.suppress(UnicodeDecodeError):  # a % that encodes nothing
        name = unquote(name, errors="strict")
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


class FileIndex:
    """Files by their names without ending, however these are spelled.

    names: paths from one folder, with forward slashes. Where a name has several endings, the one that comes first in
    `suffixes` is found.
    """

    def __init__(self, names: Iterable[str], suffixes: Sequence[str]):
        def rank(name):
            return suffixes.index(os.path.splitext(name)[1].lower())

        self.names = sorted(names, key=rank, reverse=True)
        self.exact = {os.path.splitext(name)[0]: name for name in self.names}
        self.used = set()

    @cached_property
    def loose(self) -> dict[str, list[str]]:
        """{spelling that a name shares with others: files}; made where a name is not found as written."""
        found = {}
        for name in self.names:
            stem = os.path.splitext(name)[0]
            for key in {canonical(stem), canonical(without_image_suffix(stem)), canonical(os.path.basename(stem))}:
                found.setdefault(key, []).append(name)
        return found

    def find(self, stem: str, ending: str = "", owned: Container[str] = ()) -> str | None:
        """The file of a stem: as written, then in another spelling, then in a folder below, where only one is there.

        ending: of the image that it belongs to, as some programs write a.jpg.txt. owned: stems of files that belong to
        others as written, and are not taken for another spelling.
        """
        name = self.exact.get(stem) or self.exact.get(stem + ending)
        if name is None and self.names:
            keys = (stem + ending, stem) if ending else (stem,)
            found = (found[0] for key in keys if len(found := self._loosely(key)) == 1)
            name = next((name for name in found if os.path.splitext(name)[0] not in owned), None)
        if name is not None:
            self.used.add(name)
        return name

    def unused(self) -> list[str]:
        return sorted(name for name in self.names if name not in self.used)

    def shared(self) -> list[str]:
        """Stems that several of the files have."""
        counts = {}
        for name in self.names:
            counts.setdefault(os.path.splitext(name)[0], []).append(name)
        return sorted(stem for stem, names in counts.items() if len(names) > 1)

    def _loosely(self, key: str) -> list[str]:
        return self.loose.get(canonical(key), [])


def without_image_suffix(stem: str) -> str:
    """a for a.jpg, as in the label file a.jpg.txt."""
    name, ending = os.path.splitext(stem)
    return name if ending.lower() in IMAGE_SUFFIXES else stem


def find_image(path: str, folders: Sequence[str]) -> str | None:
    """The image that a list names, as it exists: from the first of the folders that has it.

    path: as written, with any slashes. folders: "" is the current directory, or else that of the project. Where the
    path itself is nowhere, its other spellings are looked for, and then what is left of it without its first folders,
    as long as one folder remains: lists come from other machines.
    """
    folders = [*folders, str(PROJECT)] if "" in folders else list(folders)
    for candidate in dict.fromkeys((path, path.replace("\\", "/"))):
        for folder in folders:
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    candidates = (find_spelled(folder, tail) for tail in tails(path) for folder in folders)
    return next(filter(None, candidates), None)


def find_spelled(folder: str, name: str, exists: Callable[[str], bool] = os.path.isfile) -> str | None:
    """The path of a file below a folder in another spelling of its parts; None where no part fits, or several do.

    exists: what it must be.
    """
    place = folder
    for part in name.split("/"):
        found = [part] if part == ".." else _listing(place or ".").names.get(canonical(part), [])
        if len(found) != 1 and part not in found:
            return None
        place = os.path.join(place, part if part in found else found[0])
    return place if exists(place) else None


def is_as_written(path: str, written: str) -> bool:
    """Whether a path that was found is the one that a list names, and not another spelling or a part of it."""
    return path.endswith(written) or path.replace(os.sep, "/").endswith(tails(written)[0])


def lying_near(path: str) -> list[str]:
    """What lies where a file is missing under its name with another ending, or with more behind it: file names."""
    folder, name = os.path.split(path)
    names, keys = _listing(folder or ".")
    start = canonical(os.path.splitext(name)[0]) + "."
    # Behind the dot comes the slash in the order of characters.
    near = keys[bisect_left(keys, start) : bisect_left(keys, f"{start[:-1]}/")]
    return sorted(found for key in near for found in names[key])


def words_on_near(name: str, folders: Sequence[str]) -> str:
    """What to do with files that lie where one is missing, in words for a finding; '' where there are none.

    name: as a list names it. folders: in which it was looked for.
    """
    name = name.replace("\\", "/")
    for path in [os.path.join(folder, tail) for tail in (name, os.path.basename(name)) for folder in folders]:
        if near := lying_near(path):
            is_other = any(found.lower().endswith(OTHER_IMAGE_SUFFIXES) for found in near)
            place = os.path.dirname(path) or "."
            return f"{shorten_list(near, 2)} is in {place}" + (": save it as JPEG or PNG" if is_other else "")
    return ""


def tails(path: str, least: int = 2) -> list[str]:
    """A path with forward slashes, and what is left of it without its first folders: `least` parts or more."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if PureWindowsPath(path).drive:
        parts = parts[1:]
    parts = parts[next((at for at, part in enumerate(parts) if part != ".."), len(parts)) :]
    return ["/".join(parts[start:]) for start in range(max(len(parts) - least + 1, 1))]


class _Listing(NamedTuple):
    """The names in a folder by their canonical names, and these in alphabetical order."""

    names: dict[str, list[str]]
    keys: list[str]


def _listing(folder: str) -> _Listing:
    """What lies in a folder; nothing where it cannot be listed."""
    try:
        return _list(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):  # names in files may hold zero bytes, or what no file name can
        return _Listing({}, [])


@lru_cache(_LISTED_FOLDERS)
def _list(folder: str, _changed: int) -> _Listing:
    """_listing of a folder that was changed last at _changed."""
    found = {}
    for name in os.listdir(folder):
        found.setdefault(canonical(name), []).append(name)
    return _Listing(found, sorted(found))
