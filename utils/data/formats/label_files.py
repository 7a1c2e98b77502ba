"""Which file holds the boxes of an image, where each image has a file of its own: labels/a.txt for images/a.jpg."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from utils.data.formats.base import RawAnnotationsBuilder
from utils.io.files import IMAGE_SUFFIXES
from utils.io.lookup import FileIndex, canonical, find_spelled
from utils.io.text import shorten_list

# Folders of images, and the folders that hold their label files in the same place.
IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
LABEL_FOLDERS = ("labels", "label", "annotations")
# What an image's own label file may be, the likeliest first.
LABEL_SUFFIXES = (".txt", ".xml", ".json")
# A class and four numbers, with which label files begin.
LABEL_LINE, LOOKED_AT = re.compile(rb"\s*\d+(?:\.0*)?(?:[ \t]+-?[\d.][\d.eE+-]*){4}"), 200
# Where more of the images lack a label file while label files lack an image, their names differ.
MAX_UNLABELLED_SHARE = 0.05


class LabelFiles:
    """Finds the label file of each image of a data set. suffix: of label files.

    All images of a folder have theirs in one place, the first that holds any: a twin of the folder, such as
    labels/train for images/train, then the folder itself, then labels/ without sub-folders. Looking further for single
    images would give images of background the labels of others.
    """

    def __init__(self, suffix: str):
        self.suffix, self.indexes, self.places, self.owners, self.image_of = suffix, {}, {}, {}, {}

    def find(self, path: str) -> str | None:
        """The label file of an image; None where there is none."""
        return self._find_in(self.place_of(os.path.dirname(path)), path)

    def find_own(self, path: str) -> str | None:
        """The label file that an image has in any of the places for its folder alone."""
        folder = os.path.dirname(path)
        return next(filter(None, (self._find_in(place, path) for place in _own_places(folder))), None)

    def expected(self, path: str) -> str:
        """Where the label file of an image would lie."""
        folder, name = os.path.split(path)
        return os.path.join(self.place_of(folder), os.path.splitext(name)[0] + self.suffix)

    def place_of(self, folder: str) -> str:
        """The folder of the label files of the images in a folder; where none of them has one, the likeliest."""
        if folder not in self.places:
            paths = [os.path.join(folder, name) for name in _names_in(folder, IMAGE_SUFFIXES)]
            likely = [*_own_places(folder), *_shared_places(folder)]
            holding = (place for place in likely if any(self._find_in(place, path) for path in paths))
            self.places[folder] = next(holding, likely[0])
        return self.places[folder]

    def claim(self, label_path: str, path: str) -> str | None:
        """Note that an image has this label file. Returns the image that had it before, if one did."""
        earlier = self.image_of.setdefault(label_path, path)
        return None if earlier == path else earlier

    def report_unmatched(self, builder: RawAnnotationsBuilder, paths: Sequence[str], unlabelled: Sequence[str]) -> None:
        """Report where many images have no label file, while label files lie there that belong to no image."""
        if len(unlabelled) <= MAX_UNLABELLED_SHARE * len(paths):
            return
        folders = {os.path.dirname(path) for path in unlabelled}
        stems = {_stem(name) for folder in folders for name in _names_in(folder, IMAGE_SUFFIXES)}
        orphans = [
            os.path.join(place, name)
            for place in {place for folder in folders for place in _own_places(folder)}
            for name in self._index(place).unused()
            if _stem(name) not in stems
        ]
        orphans = [path for path in sorted(set(orphans) - self.image_of.keys()) if _may_be_labels(path)]
        if orphans:
            images, labels = (shorten_list(list(map(os.path.basename, part)), 2) for part in (unlabelled, orphans))
            detail = (
                f"{len(unlabelled)} of {len(paths)} images have no label file, such as {images}, and {len(orphans)} "
                f"label files no image, such as {labels}"
            )
            builder.report("unmatched_labels", os.path.dirname(orphans[0]), detail)

    def _find_in(self, place: str, path: str) -> str | None:
        folder, name = os.path.split(path)
        if folder not in self.owners:
            names = _names_in(folder, IMAGE_SUFFIXES)
            self.owners[folder] = {*names, *(os.path.splitext(name)[0] for name in names)}
        found = self._index(place).find(*os.path.splitext(name), self.owners[folder])
        return os.path.join(place, found) if found else None

    def _index(self, folder: str) -> FileIndex:
        if folder not in self.indexes:
            self.indexes[folder] = FileIndex(_names_in(folder, (self.suffix,)), (self.suffix,))
        return self.indexes[folder]


def _own_places(folder: str) -> list[str]:
    """Places for the label files of one folder of images alone: its twins that exist, the likeliest first, and itself.

    Of several components that are called `images` or the like, the last `images` is the likeliest to have a twin.
    """
    for path in (Path(folder), Path(os.path.abspath(folder))):
        levels = _image_levels(path)
        found = [
            place
            for lead, rest in levels
            for name in LABEL_FOLDERS
            if (place := find_spelled(lead, f"{name}/{rest}".rstrip("/"), os.path.isdir))
        ]
        if levels:
            return list(dict.fromkeys([*found, folder]))
    return [folder]


def _shared_places(folder: str) -> list[str]:
    """Folders called labels that hold the label files of images in several folders."""
    levels = _image_levels(Path(folder)) or _image_levels(Path(os.path.abspath(folder)))
    found = (find_spelled(lead, name, os.path.isdir) for lead, rest in levels if rest for name in LABEL_FOLDERS)
    return [place for place in found if place]


def _image_levels(path: Path) -> list[tuple[str, str]]:
    """(what is before a component that is called `images` or the like, what is behind it), the likeliest first."""
    found = [(part.lower() == IMAGE_FOLDERS[0], at) for at, part in enumerate(path.parts) if _is_images(part)]
    return [
        (os.path.join("", *path.parts[:at]), "/".join(path.parts[at + 1 :])) for _, at in sorted(found, reverse=True)
    ]


def _is_images(part: str) -> bool:
    return part.lower() in IMAGE_FOLDERS


def _names_in(folder: str, suffixes: Sequence[str]) -> list[str]:
    with os.scandir(folder or ".") as entries:
        return [
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in suffixes and entry.name[0] != "." and entry.is_file()
        ]


def _stem(name: str) -> str:
    return canonical(os.path.splitext(name)[0])


def _may_be_labels(path: str) -> bool:
    """Whether a text file begins as label files do; files of names, lists and licences do not. All others may."""
    if not path.lower().endswith(".txt"):
        return True
    with open(path, "rb") as file:
        return LABEL_LINE.match(file.read(LOOKED_AT)) is not None
