"""Reading one annotation file of the VOC format."""

import math
import re
import reprlib
from typing import NamedTuple
from xml.etree import ElementTree

from utils.io.class_names import one_line
from utils.io.errors import UserError
from utils.io.files import read_bytes
from utils.io.text import SAVE_AS_UTF8, decode_text

MAX_XML_MEGABYTES = 5
# Programs that keep all images in one file, by the root of that file.
OTHER_ROOTS = {"annotations": "a file of CVAT for all of its images"}
# Tags of other formats that may hold boxes have one of these in them, in whatever case.
BOX_TAGS = re.compile(r"object|box|polygon|rect|xmin", re.IGNORECASE)
FIRST_TAG, LOOKED_AT = re.compile(rb"<([A-Za-z_]+)"), 4096
DECLARATION, ENCODING = re.compile(r"^\s*<\?xml[^>]*\?>"), re.compile(r"encoding\s*=\s*[\"']([\w.:-]+)")


class VocAnnotation(NamedTuple):
    """One annotation file: the objects' names, boxes as written (x1, y1, x2, y2 in pixels) and difficult flags, and the
    size that the file states for its image, (0, 0) where it states none."""

    names: list[str]
    boxes_xyxy: list[tuple[float, float, float, float]]
    difficult: list[bool]
    size_hw: tuple[int, int]


def parse_voc_xml(xml_path: str) -> VocAnnotation:
    """Read one annotation file; an empty one is that of an image without objects.

    Raises ValueError naming the file when it is not valid, or holds boxes outside of objects; DTDs, entities and files
    over MAX_XML_MEGABYTES are refused.
    """
    try:
        content = read_bytes(xml_path, MAX_XML_MEGABYTES)
        if not content.strip():
            return VocAnnotation([], [], [], (0, 0))
        tree = _parsed(content)
        if tree.tag != "annotation":
            words = OTHER_ROOTS.get(tree.tag)
            raise UserError(
                f"its root is {reprlib.repr(tree.tag)}; expected 'annotation', as in VOC's files"
                + (f". It is {words}; export them as VOC, COCO or YOLO" if words else "")
            )
        annotation = VocAnnotation([], [], [], _stated_size_hw(tree))
        for item in tree.iter("object"):
            _add_object(annotation, item)
        _check_nothing_is_left(tree, len(annotation.names))
    except ValueError as error:
        raise UserError(f"{xml_path}: {error}") from error
    return annotation


def _add_object(annotation: VocAnnotation, item) -> None:
    """Add an object; one with several boxes counts as several, as labelling programs write repeated objects."""
    name = one_line(item.findtext("name") or "")
    if not name:
        raise UserError("an object has no name; expected that of its class")
    flag = item.findtext("difficult") or "0"
    difficult = flag != "0" and flag.strip().lower() in ("1", "true")
    names, boxes_xyxy, difficults, _ = annotation
    for box in item.findall("bndbox") or [None]:
        names.append(name)
        boxes_xyxy.append(_corners(box, name))
        difficults.append(difficult)


def _check_nothing_is_left(tree, read: int) -> None:
    """Raise where the file has boxes that belong to no object, or objects of another format. Parts of objects, such as
    heads, may have boxes of their own."""
    filled = (item.tag for item in tree.iter() if len(item) or (item.text or "").strip())
    unread = (tag for tag in filled if (tag.lower() == "object" != tag if read else BOX_TAGS.search(tag)))
    if tag := next(unread, ""):
        raise UserError(f"it holds <{tag}>, which VOC's files do not; expected <object> with <bndbox>")
    boxes = sum(1 for _ in tree.iter("bndbox"))
    if boxes > read:
        boxes -= sum(1 for part in tree.iter("part") for _ in part.iter("bndbox"))
    if boxes > read:
        raise UserError(f"{boxes - read} of its {boxes} bndbox belong to no object; expected each inside an object")


def other_root(xml_path: str) -> str:
    """What a file is, in words, whose root says that it is of another format; '' for an annotation of VOC. Only its
    first bytes are looked at."""
    with open(xml_path, "rb") as file:
        match = FIRST_TAG.search(file.read(LOOKED_AT))
    return OTHER_ROOTS.get(match[1].decode(), "") if match else ""


def _parsed(content: bytes) -> ElementTree.Element:
    """The root of an XML file in whatever encoding it states.

    A file without a DTD defines no entities, so none can grow, nor open other files: a DTD is refused before the
    parser sees it.
    """
    text = decode_text(content, _stated_encoding(content))
    if text is None:
        raise UserError(f"not valid XML (its encoding is not what its first line states){SAVE_AS_UTF8}")
    if "\0" in text:  # UTF-16 without its mark, which the parser would read behind this function's back
        raise UserError(f"not valid XML (it holds zero bytes){SAVE_AS_UTF8}")
    text = DECLARATION.sub("", text, count=1)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError("holds a DTD or entities, which are refused")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"not valid XML ({error})") from error


def _stated_encoding(content: bytes) -> str:
    declaration = DECLARATION.match(content[:200].decode("latin-1"))
    encoding = ENCODING.search(declaration[0]) if declaration else None
    return encoding[1] if encoding else "utf-8"


def _corners(box, name: str) -> tuple[float, float, float, float]:
    try:
        text = box.findtext
        corners = float(text("xmin")), float(text("ymin")), float(text("xmax")), float(text("ymax"))
        is_finite = math.isfinite(sum(corners))
    except (AttributeError, TypeError, ValueError):
        is_finite = False
    if not is_finite:
        raise UserError(f"an object {name!r} has no bndbox with four numbers")
    return corners


def _stated_size_hw(tree) -> tuple[int, int]:
    try:
        height, width = (int(float(tree.findtext(f"size/{key}"))) for key in ("height", "width"))
    except (TypeError, ValueError, OverflowError):
        return 0, 0
    return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else (0, 0)
