"""Reading the JSON files of LabelMe and X-AnyLabeling, one beside each image, with shapes in pixels.

As https://github.com/wkentaro/labelme writes them: `shapes`, a list of {label, points, shape_type}, and the size of the
image.
"""

import json
import math
import reprlib

from utils.data.formats.base import RawAnnotationsBuilder
from utils.io.class_names import one_line
from utils.io.errors import UserError
from utils.io.files import read_bytes
from utils.io.text import SAVE_AS_UTF8

# LabelMe stores the image itself in the file, unless it is told not to.
MAX_JSON_MEGABYTES = 100


def add_labelme_image(builder: RawAnnotationsBuilder, path: str, label_path: str) -> None:
    """Add an image with the boxes around its shapes, or report what is wrong with the file."""
    try:
        content = _load(label_path)
        boxes = [_box(number, shape) for number, shape in enumerate(content["shapes"])]
    except (OSError, ValueError) as error:
        builder.report("broken_annotation", label_path, str(error).removeprefix(f"{label_path}: "))
        return
    size_hw = tuple(content.get(key) for key in ("imageHeight", "imageWidth"))
    is_stated = all(type(side) is int and 0 < side < 2**31 for side in size_hw)
    builder.add_image(path, size_hw if is_stated else (0, 0))
    for name, box_xyxy in boxes:
        builder.add_named_box(box_xyxy, name)


def is_labelme(path: str) -> bool:
    """Whether a JSON file is one of LabelMe's."""
    try:
        _load(path)
    except (OSError, ValueError):
        return False
    return True


def _load(label_path: str) -> dict:
    try:
        content = json.loads(read_bytes(label_path, MAX_JSON_MEGABYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text{SAVE_AS_UTF8}") from error
    except RecursionError as error:
        raise UserError("not valid JSON (nested too deeply)") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError("has no list 'shapes'; expected a file of LabelMe")
    return content


def _box(number: int, shape) -> tuple[str, tuple[float, float, float, float]]:
    """(class name, box around the points of a shape)."""
    shape = shape if isinstance(shape, dict) else {}
    name, points = shape.get("label"), shape.get("points")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"shapes[{number}] has the label {reprlib.repr(name)}; expected the name of a class")
    if not isinstance(points, list) or not points or not all(map(_is_point, points)):
        raise UserError(f"shapes[{number}] has the points {reprlib.repr(points)}; expected pairs [x, y]")
    xs, ys = zip(*points, strict=True)
    if shape.get("shape_type") == "circle" and len(points) == 2:  # its centre, and a point of its edge
        radius = math.dist(*points)
        xs, ys = (xs[0] - radius, xs[0] + radius), (ys[0] - radius, ys[0] + radius)
    return one_line(name), (min(xs), min(ys), max(xs), max(ys))


def _is_point(point) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and abs(value) < 1e300 for value in point)
    )
