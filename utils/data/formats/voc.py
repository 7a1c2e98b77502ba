"""Reading a VOC folder: Annotations/*.xml, JPEGImages/ and ImageSets/Main/<split>.txt."""

import math
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from tqdm import tqdm

from utils.data.formats.base import RawAnnotations, RawAnnotationsBuilder
from utils.io.class_names import one_line
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES, files_below, read_bytes, read_lines
from utils.io.text import shorten_list

MAX_XML_MEGABYTES = 5


class VocAnnotation(NamedTuple):
    """One annotation file: the objects' names, boxes as written (x1, y1, x2, y2 in pixels) and difficult flags, and the
    size that the file states for its image, (0, 0) where it states none."""

    names: list[str]
    boxes_xyxy: list[tuple[float, float, float, float]]
    difficult: list[bool]
    size_hw: tuple[int, int]


def voc_root(annotation_path: str) -> Path | None:
    """The VOC folder of <root>/ImageSets/Main/<split>.txt; None for any other path."""
    folder = os.path.dirname(os.path.abspath(annotation_path))
    if Path(folder).parts[-2:] == ("ImageSets", "Main"):
        return Path(os.path.normpath(os.path.join(os.path.dirname(annotation_path), "..", "..")))
    return None


def read_voc_split(annotation_path: str) -> RawAnnotations:
    """Read the images that a split names. Raises FileNotFoundError where it is missing, ValueError where empty."""
    root = voc_root(annotation_path)
    if not os.path.isfile(annotation_path):
        raise MissingFileError(_missing_split_message(annotation_path, root))
    lines = [line.strip() for line in read_lines(annotation_path) if line.strip()]
    if not lines:
        raise UserError(f"{annotation_path} is empty; it must name at least one image.")
    return read_voc(root, lines, annotation_path)


def read_voc(root: Path, lines: Sequence[str], annotation_path: str) -> RawAnnotations:
    """Read the images of a VOC folder that the lines of a split name; annotation_path stands in messages only.

    Raises FileNotFoundError where root has no Annotations or JPEGImages.
    """
    # Looking ids up in listings keeps `../` in a split file from leading anywhere.
    xml_names, image_names = _by_id(root, "Annotations", (".xml",)), _by_id(root, "JPEGImages", IMAGE_SUFFIXES)
    builder, numbers = RawAnnotationsBuilder(annotation_path), {}
    for line in tqdm(lines, desc=f"reading {annotation_path}", unit="file", disable=None, delay=1, leave=False):
        # The devkit writes `id` or `id flag`; ids of other tools may hold spaces and folders.
        image_id = line.replace("\\", "/")
        if image_id not in xml_names and image_id not in image_names:
            image_id = image_id.split()[0]
        if image_id not in image_names:
            is_named = os.path.splitext(image_id)[0] in image_names
            detail = "it is there, but a split must name images without their ending" if is_named else ""
            builder.report("missing_image", str(root / "JPEGImages" / image_id), detail)
        elif image_id not in xml_names:
            builder.report("missing_annotation", os.path.join(root, "JPEGImages", image_names[image_id]))
        else:
            xml_path = os.path.join(root, "Annotations", xml_names[image_id])
            _add_image(builder, os.path.join(root, "JPEGImages", image_names[image_id]), xml_path, numbers)
    # Sorted, so that train and val, and another order of the same images, give the same classes.
    names = sorted(numbers)
    source = builder.source(names)
    place_of = np.array([names.index(name) for name in numbers], np.int64)
    source.classes = place_of[source.classes]
    return source


def _add_image(builder: RawAnnotationsBuilder, path: str, xml_path: str, numbers: dict[str, int]) -> None:
    """Add an image with its boxes; numbers gives each class name its number, and takes in new ones."""
    try:
        annotation = parse_voc_xml(xml_path)
    except (OSError, ValueError) as error:
        builder.report("broken_annotation", xml_path, str(error).removeprefix(f"{xml_path}: "))
        return
    builder.add_image(path, annotation.size_hw)
    for name, box_xyxy, difficult in zip(*annotation[:3], strict=True):
        builder.add_box(box_xyxy, numbers.setdefault(name, len(numbers)), difficult)


def parse_voc_xml(xml_path: str) -> VocAnnotation:
    """Read one annotation file.

    Raises ValueError naming the file when it is not valid; DTDs, entities and files over MAX_XML_MEGABYTES are refused.
    """
    try:
        tree = _parsed(read_bytes(xml_path, MAX_XML_MEGABYTES))
        if tree.tag != "annotation":
            raise UserError(f"its root is {reprlib.repr(tree.tag)}; expected 'annotation', as in VOC's files")
        annotation = VocAnnotation([], [], [], _stated_size_hw(tree))
        for item in tree.findall("object"):
            name = one_line(item.findtext("name") or "")
            if not name:
                raise UserError("an object has no name; expected that of its class")
            annotation.names.append(name)
            annotation.boxes_xyxy.append(_corners(item, name))
            annotation.difficult.append((item.findtext("difficult") or "").strip().lower() in ("1", "true"))
    except ValueError as error:
        raise UserError(f"{xml_path}: {error}") from error
    return annotation


def _parsed(content: bytes):
    try:
        return ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise UserError("holds a DTD or entities, which are refused") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        # All but the first are about encodings, of which the parser knows few.
        is_utf8 = isinstance(error, ElementTree.ParseError) and "\ufffd" not in content.decode("utf-8", "replace")
        hint = "" if is_utf8 else "; save it as UTF-8, and name no other encoding in its first line"
        raise UserError(f"not valid XML ({error}){hint}") from error


def _corners(item, name: str) -> tuple[float, float, float, float]:
    box = item.find("bndbox")
    try:
        corners = tuple(float(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
    except (AttributeError, TypeError, ValueError):
        corners = (math.nan,) * 4
    if not all(map(math.isfinite, corners)):
        raise UserError(f"an object {name!r} has no bndbox with four numbers")
    return corners


def _stated_size_hw(tree) -> tuple[int, int]:
    try:
        height, width = (int(float(tree.findtext(f"size/{key}"))) for key in ("height", "width"))
    except (TypeError, ValueError, OverflowError):
        return 0, 0
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else (0, 0)


def _by_id(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """{id: file name} of a folder; where an id has several files, the one with the preferred suffix."""
    if not (root / folder).is_dir():
        raise MissingFileError(
            f"{root / folder} does not exist. A VOC data set has Annotations and JPEGImages folders."
        )
    parts = [os.path.splitext(name) for name in files_below(str(root / folder), suffixes)]
    parts.sort(key=lambda part: suffixes.index(part[1].lower()), reverse=True)
    return {stem: stem + suffix for stem, suffix in parts}


def _missing_split_message(annotation_path: str, root: Path) -> str:
    if (root / "Annotations").is_dir():
        present = sorted(path.name for path in Path(annotation_path).parent.glob("*.txt"))
        return (
            f"{annotation_path} does not exist; the splits there are: {shorten_list(present) or 'none'}. "
            f'Make them by `python tools/voc_annotation.py --annotation_mode=1 --VOCdevkit_path="{root}"`.'
        )
    return (
        f"{annotation_path} does not exist, and {root} has no Annotations folder. Copy your data set there "
        f"(Annotations, JPEGImages), or point train_annotation_path and val_annotation_path at it."
    )
