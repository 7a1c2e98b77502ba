"""Which of the images in a folder and its sub-folders belong to a data set."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from utils.data.formats.base import RawAnnotationsBuilder
from utils.data.formats.label_files import IMAGE_FOLDERS, LABEL_SUFFIXES, LabelFiles
from utils.io.files import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, files_below, read_bytes
from utils.io.lookup import find_spelled

MASKS = re.compile(r"(/.*)?/(masks?|segmentation(class|object))/", re.IGNORECASE)
# A symbolic link that became a file holds its target, so many characters at most.
LONGEST_LINK = 500


def images_of_folder(folder: str, builder: RawAnnotationsBuilder) -> list[str]:
    """The paths of the images of a folder and its sub-folders.

    Left out is what lies in folders of masks, and what lies beside images/ without labels, as drawings of results do.
    Masks, and what may be images and is not read, are reported.
    """
    folder = _image_folder(folder)
    for name in files_below(folder, OTHER_IMAGE_SUFFIXES):
        builder.report("other_image_format", os.path.join(folder, name), "save it as JPEG or PNG")
    for path, target in _links_as_text(folder):
        builder.report("link_as_text", path, f"it should lead to {target}; make it a link or a folder")
    return _without_masks(folder, files_below(folder, IMAGE_SUFFIXES), builder)


def _image_folder(folder: str) -> str:
    """The sub-folder images/ or the like of a folder that has no labelled or loose images besides; else the folder."""
    inner = next(filter(None, (find_spelled(folder, name, os.path.isdir) for name in IMAGE_FOLDERS)), None)
    if inner is None or os.path.basename(os.path.abspath(folder)).lower() in IMAGE_FOLDERS:
        return folder
    # images/ and JPEGImages/ in one folder hold the same images, for two formats, and would share their labels.
    beside = [name for name in files_below(folder, IMAGE_SUFFIXES) if name.split("/")[0].lower() not in IMAGE_FOLDERS]
    has_others = any("/" not in name for name in beside) or any(_with_labels(folder, beside))
    return folder if has_others else inner


def _links_as_text(folder: str) -> list[tuple[str, str]]:
    """(path, target) of symbolic links to folders that became files, as git makes them on Windows."""
    found = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if "." not in name and os.path.isfile(path) and os.path.getsize(path) <= LONGEST_LINK:
            target = read_bytes(path, 1).decode("utf-8", "replace").strip()
            if target and os.path.isdir(os.path.join(folder, target)):
                found.append((path, target))
    return found


def _without_masks(folder: str, names: Sequence[str], builder: RawAnnotationsBuilder) -> list[str]:
    """Paths of the images of a folder, less those in its folders of masks that have no labels, which are reported."""
    masks = {name: mask[0] for name in names if (mask := MASKS.match(f"/{name}"))}
    # Masks may be what is to be detected, in folders of pictures with and without them.
    with_labels = {masks[name] for name in _with_labels(folder, masks)}
    left_out = {name: inner for name, inner in masks.items() if inner not in with_labels}
    if len(left_out) == len(names):
        left_out = {}
    for inner, count in Counter(left_out.values()).items():
        builder.report("masks", os.path.join(folder, inner.strip("/")), f"images: {count}")
    return [os.path.join(folder, name) for name in names if name not in left_out]


def _with_labels(folder: str, names: Iterable[str]) -> Iterator[str]:
    """Those of the images of a folder that have a label file of their own."""
    labels = [LabelFiles(suffix) for suffix in LABEL_SUFFIXES]
    return (name for name in names if any(label.find_own(os.path.join(folder, name)) for label in labels))
