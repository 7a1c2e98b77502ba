"""Reading the classic list file: one image per line, `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...`."""

import math
import os
import re

from utils.data.formats.base import RawAnnotations, RawAnnotationsBuilder
from utils.io.errors import UserError
from utils.io.files import read_lines
from utils.io.lookup import find_image, is_as_written, words_on_near

# A path, which may hold spaces, then boxes x1,y1,x2,y2,class up to the end of the line.
LIST_LINE = re.compile(r"(?P<path>.*?)(?P<boxes>(?:\s+[-+.\deE]+(?:,[-+.\deE]+){4})*)$")
WHERE = "looked for from the current directory and from the list's folder; boxes must read x1,y1,x2,y2,class"


def read_list_file(annotation_path: str) -> RawAnnotations:
    """Read a list; boxes are in pixels, classes are numbers. Raises ValueError where it is empty or not UTF-8."""
    builder, folder = RawAnnotationsBuilder(annotation_path), os.path.dirname(annotation_path)
    is_empty = True
    for number, line in enumerate(map(str.strip, read_lines(annotation_path)), 1):
        if not line:
            continue
        is_empty = False
        match = LIST_LINE.match(line)
        path = find_image(match["path"], ("", folder))
        if path is None:
            near = words_on_near(match["path"], ("", folder))
            builder.report("missing_image", match["path"], WHERE + (f"; {near}" if near else ""))
            continue
        try:
            boxes = [_box(text) for text in match["boxes"].split()]
        except ValueError as error:
            builder.report("broken_annotation", annotation_path, f"line {number}: {error}")
            continue
        builder.add_image(path)
        if not is_as_written(path, match["path"]):
            builder.report("other_spelling", path, f"the list says {match['path']}")
        for box_xyxy, class_index in boxes:
            builder.add_box(box_xyxy, class_index)
    if is_empty:
        raise UserError(f"{annotation_path} is empty; it must name at least one image.")
    return builder.source(names=None)


def _box(text: str) -> tuple[list[float], int]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)) or not values[4].is_integer() or abs(values[4]) > 2**31:
        raise UserError(f"{text} is no box; expected five numbers x1,y1,x2,y2,class, the class a whole one")
    return values[:4], int(values[4])
