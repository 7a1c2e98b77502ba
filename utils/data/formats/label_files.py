"""Which file holds the boxes of an image, where each image has a file of its own: labels/a.txt for images/a.jpg."""

import os
from collections.abc import Sequence
from pathlib import Path

from utils.data.formats.base import RawAnnotationsBuilder
from utils.io.files import IMAGE_SUFFIXES
from utils.io.lookup import FileIndex, canonical, find_spelled
from utils.io.text import shorten_list

# Folders of images, and the folders that hold their label files in the same place.
IMAGE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
LABEL_FOLDERS = ("labels", "label", "annotations")
# Text files among labels that hold no boxes.
NO_LABELS = ("classes", "_classes", "train", "val", "valid", "test", "notes", "readme", "labels", "obj")
# Where more of the images lack a label file while label files lack an image, their names differ.
MAX_UNLABELLED_SHARE = 0.05


class LabelFiles:
    """Finds the label file of each image of a data set. suffix: of label files."""

    def __init__(self, suffix: str):
        self.suffix, self.indexes, self.places, self.image_of = suffix, {}, {}, {}

    def find(self, path: str) -> str | None:
        """The label file of an image: in the twin of its folder, or beside it; None where there is none."""
        folder, name = os.path.split(path)
        stem, ending = os.path.splitext(name)
        for place in self.folders_of(folder):
            found = self._index(place).find(stem, ending)
            if found:
                return os.path.join(place, found)
        return None

    def expected(self, path: str) -> str:
        """Where the label file of an image would lie."""
        folder, name = os.path.split(path)
        return os.path.join(self.folders_of(folder)[0], os.path.splitext(name)[0] + self.suffix)

    def folders_of(self, folder: str) -> list[str]:
        """The folders that may hold the label files of the images in a folder, the likeliest first."""
        if folder not in self.places:
            self.places[folder] = list(dict.fromkeys([*self._twins(folder), folder]))
        return self.places[folder]

    def claim(self, label_path: str, path: str) -> str | None:
        """Note that an image has this label file. Returns the image that had it before, if one did."""
        earlier = self.image_of.setdefault(label_path, path)
        return None if earlier == path else earlier

    def report_unmatched(self, builder: RawAnnotationsBuilder, paths: Sequence[str], unlabelled: Sequence[str]) -> None:
        """Report where many images have no label file, while label files lie there that belong to no image."""
        if len(unlabelled) <= MAX_UNLABELLED_SHARE * len(paths):
            return
        orphans = []
        for folder in {os.path.dirname(path) for path in unlabelled}:
            stems = {canonical(os.path.splitext(name)[0]) for name in _names_in(folder, IMAGE_SUFFIXES)}
            for place in self.folders_of(folder):
                unused = [name for name in self._index(place).unused() if not _holds_no_labels(name)]
                orphans += [os.path.join(place, name) for name in unused if _stem(name) not in stems]
        orphans = sorted(set(orphans) - self.image_of.keys())
        if orphans:
            images, labels = (shorten_list(list(map(os.path.basename, part)), 2) for part in (unlabelled, orphans))
            detail = (
                f"{len(unlabelled)} of {len(paths)} images have no label file, such as {images}, and {len(orphans)} "
                f"label files no image, such as {labels}"
            )
            builder.report("unmatched_labels", os.path.dirname(orphans[0]), detail)

    def _twins(self, folder: str) -> list[str]:
        """Folders with the last component that is called `images` replaced by `labels`, as far as they exist."""
        for path in (Path(folder), Path(os.path.abspath(folder))):
            lowered = [part.lower() for part in path.parts]
            if not set(IMAGE_FOLDERS).isdisjoint(lowered):
                last = max(at for at, part in enumerate(lowered) if part in IMAGE_FOLDERS)
                lead, rest = os.path.join("", *path.parts[:last]), "/".join(path.parts[last + 1 :])
                # The same place below labels/, or labels/ itself for images in sub-folders.
                names = [f"{name}/{rest}".rstrip("/") for name in LABEL_FOLDERS] + list(LABEL_FOLDERS)
                found = [place for name in names if (place := find_spelled(lead, name, os.path.isdir))]
                if found:
                    return found
        return []

    def _index(self, folder: str) -> FileIndex:
        if folder not in self.indexes:
            self.indexes[folder] = FileIndex(_names_in(folder, (self.suffix,)), (self.suffix,))
        return self.indexes[folder]


def _names_in(folder: str, suffixes: Sequence[str]) -> list[str]:
    with os.scandir(folder or ".") as entries:
        return [
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in suffixes and entry.name[0] != "." and entry.is_file()
        ]


def _stem(name: str) -> str:
    return canonical(os.path.splitext(name)[0])


def _holds_no_labels(name: str) -> bool:
    return _stem(name).startswith("readme") or _stem(name) in NO_LABELS
