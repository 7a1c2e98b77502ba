"""From annotation files to Records, with every problem either named or raised. Pixels are not decoded here."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from PIL import Image

from utils.data.coco_json import read_coco_json
from utils.data.entries import Entry, listed, refuse_missing, refuse_unknown_classes
from utils.data.records import Records

# In order of preference where one id has several files.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_XML_BYTES = 5 * 1024 * 1024
# More unreadable images than both of these are an error, fewer are left out with a note.
MAX_UNREADABLE_COUNT, MAX_UNREADABLE_SHARE = 3, 0.1
EXIF_ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT = 274, 256, 257


def read_class_names(classes_path: str) -> list[str]:
    """Class names from a text file, one per line; blank lines do not count. UTF-8, with or without BOM.

    Raises FileNotFoundError when the file is missing, ValueError when it is empty or names a class twice.
    """
    if not os.path.isfile(classes_path):
        raise FileNotFoundError(
            f"classes_path: {classes_path} does not exist. Write your class names into it, one per line."
        )
    names = [line.strip() for line in _read_lines(classes_path) if line.strip()]
    if not names:
        raise ValueError(f"classes_path: {classes_path} is empty. Write your class names into it, one per line.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"classes_path: {classes_path} names {listed(repeated)} more than once; keep one line of each."
        )
    return names


def read_annotations(annotation_path: str, class_names: Sequence[str]) -> tuple[Records, list[str]]:
    """Read a data set: its records, and notes (sentences) on all that was dropped, clipped or looks odd.

    annotation_path: a split of a VOC folder (<root>/ImageSets/Main/<split>.txt, with <root>/Annotations and
    <root>/JPEGImages); or COCO annotations, any file that ends in .json; or a list file with lines
    `path x1,y1,x2,y2,class x1,y1,x2,y2,class ...`. Boxes of all are in pixels and taken as written. Raises
    FileNotFoundError and ValueError for what makes the data unusable: missing files, an empty list, unknown classes,
    broken XML or JSON, many unreadable images.
    """
    annotation_path = os.fspath(annotation_path)
    root = _voc_root(annotation_path)
    if not os.path.isfile(annotation_path):
        raise FileNotFoundError(_missing_list_message(annotation_path, root))
    if annotation_path.lower().endswith(".json"):
        return _to_records(annotation_path, read_coco_json(annotation_path, class_names), class_names)
    lines = [line.strip() for line in _read_lines(annotation_path)]
    lines = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not lines:
        raise ValueError(f"{annotation_path} is empty; it must name at least one image.")
    if root is not None:
        return read_voc(root, [line for _, line in lines], class_names, annotation_path)
    return _to_records(annotation_path, _read_list(annotation_path, lines, len(class_names)), class_names)


def read_voc(
    root: Path, lines: Sequence[str], class_names: Sequence[str], annotation_path: str
) -> tuple[Records, list[str]]:
    """Read the images of a VOC folder that the lines of a split name; annotation_path stands in messages only.

    Returns and raises as read_annotations does.
    """
    return _to_records(annotation_path, _voc_entries(annotation_path, root, lines, class_names), class_names)


def parse_voc_xml(xml_path: str) -> tuple[list[str], list[tuple[float, float, float, float]], list[bool]]:
    """Names, boxes (x1, y1, x2, y2 in pixels, as written) and difficult flags of one VOC annotation file.

    Raises ValueError naming the file when it is not valid; DTDs, entities and files over MAX_XML_BYTES are refused.
    """
    with open(xml_path, "rb") as file:
        content = file.read(MAX_XML_BYTES + 1)
    if len(content) > MAX_XML_BYTES:
        raise ValueError(f"{xml_path}: larger than {MAX_XML_BYTES // 1024**2} MB, which no annotation is")
    try:
        objects = ElementTree.fromstring(content, forbid_dtd=True).findall("object")
    except DefusedXmlException as error:
        raise ValueError(f"{xml_path}: holds a DTD or entities, which are refused") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{xml_path}: not valid XML ({error})") from error
    names, boxes_xyxy, difficult = [], [], []
    for item in objects:
        name, corners = (item.findtext("name") or "").strip(), item.find("bndbox")
        try:
            boxes_xyxy.append(tuple(float(corners.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{xml_path}: an object {name!r} has no bndbox with four numbers") from error
        names.append(name)
        difficult.append((item.findtext("difficult") or "").strip().lower() in ("1", "true"))
    return names, boxes_xyxy, difficult


def image_size_hw(path: str) -> tuple[int, int]:
    """(height, width) an image will have when OpenCV decodes it, from its header alone: EXIF rotation is applied.

    Raises ValueError, with the reason but without the path, when the header cannot be read or claims a size that only
    an attack or a mistake has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF data does not stop OpenCV either
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # Newer Pillow versions turn the size of a TIFF by themselves, older ones do not.
                tags = image.tag_v2 if image.format == "TIFF" else None
                width, height = (tags[TIFF_WIDTH], tags[TIFF_HEIGHT]) if tags else image.size
                turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("too many pixels") from error
    except Exception as error:  # a damaged header raises nearly anything in Pillow
        raise ValueError("not an image") from error
    return (int(width), int(height)) if turned else (int(height), int(width))


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it with the encoding UTF-8.") from error


def _voc_root(annotation_path: str) -> Path | None:
    """The VOC folder of <root>/ImageSets/Main/<split>.txt; None for any other path."""
    parents = Path(annotation_path).absolute().parents
    if len(parents) > 2 and (parents[0].name, parents[1].name) == ("Main", "ImageSets"):
        return Path(annotation_path).parent.parent.parent
    return None


def _missing_list_message(annotation_path: str, root: Path | None) -> str:
    if root is None:
        return f"{annotation_path} does not exist. Check train_annotation_path and val_annotation_path."
    if (root / "Annotations").is_dir():
        present = sorted(path.name for path in Path(annotation_path).parent.glob("*.txt"))
        return (
            f"{annotation_path} does not exist; the splits there are: {listed(present) or 'none'}. "
            f'Make them by `python tools/voc_annotation.py --annotation_mode=1 --VOCdevkit_path="{root}"`.'
        )
    return (
        f"{annotation_path} does not exist, and {root} has no Annotations folder. Copy your data set there "
        f"(Annotations, JPEGImages), or point train_annotation_path and val_annotation_path at it."
    )


def _voc_entries(annotation_path: str, root: Path, lines: Sequence[str], class_names: Sequence[str]) -> list[Entry]:
    # Looking ids up in listings keeps `../` in a split file from leading anywhere.
    xml_names = {os.path.splitext(name)[0]: name for name in _listing(root, "Annotations", (".xml",))}
    image_names = {os.path.splitext(name)[0]: name for name in _listing(root, "JPEGImages", IMAGE_SUFFIXES)}
    # The devkit writes `id` or `id flag`; ids of other tools may hold spaces.
    ids = [line if line in xml_names or line in image_names else line.split()[0] for line in lines]
    refuse_missing(annotation_path, "images", [str(root / "JPEGImages" / i) for i in ids if i not in image_names])
    refuse_missing(annotation_path, "annotations", [str(root / "Annotations" / i) for i in ids if i not in xml_names])
    index_of = {name: index for index, name in enumerate(class_names)}
    entries, unknown, broken = [], Counter(), []
    for image_id in ids:
        try:
            names, boxes_xyxy, difficult = parse_voc_xml(os.path.join(root, "Annotations", xml_names[image_id]))
        except ValueError as error:
            broken.append(str(error))
            continue
        unknown.update(name for name in names if name not in index_of)
        path = os.path.join(root, "JPEGImages", image_names[image_id])
        entries.append(Entry(path, boxes_xyxy, [index_of.get(name, -1) for name in names], difficult))
    if broken:
        raise ValueError(f"{len(broken)} annotation files cannot be read: {listed(broken)}. Correct or remove them.")
    refuse_unknown_classes(annotation_path, unknown, class_names)
    return entries


def _listing(root: Path, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """File names in a folder that end in one of the suffixes, in either case; the preferred suffix last."""
    if not (root / folder).is_dir():
        raise FileNotFoundError(
            f"{root / folder} does not exist. A VOC data set has Annotations and JPEGImages folders."
        )
    names = [(os.path.splitext(name)[1].lower(), name) for name in os.listdir(root / folder)]
    names = [(suffixes.index(suffix), name) for suffix, name in names if suffix in suffixes]
    return [name for _, name in sorted(names, reverse=True)]


# A path, which may hold spaces, then boxes x1,y1,x2,y2,class up to the end of the line.
LIST_LINE = re.compile(r"(?P<path>.*?)(?P<boxes>(?:\s+[-+.\deE]+(?:,[-+.\deE]+){4})*)$")


def _read_list(annotation_path: str, lines: list[tuple[int, str]], class_count: int) -> list[Entry]:
    folder = os.path.dirname(annotation_path)
    entries, missing = [], []
    for number, line in lines:
        match = LIST_LINE.match(line)
        path = _find_image(match["path"].strip(), folder)
        if path is None:
            missing.append(match["path"])
            continue
        try:
            rows = [[float(value) for value in box.split(",")] for box in match["boxes"].split()]
        except ValueError as error:
            raise ValueError(f"{annotation_path}, line {number}: a box is not five numbers ({error}).") from error
        classes = [row[4] for row in rows]
        wrong = [value for value in classes if value not in range(class_count)]
        if wrong:
            raise ValueError(
                f"{annotation_path}, line {number}: class {wrong[0]:g} is not in 0 to {class_count - 1}. "
                f"Make classes_path name the file with which this list was made."
            )
        entries.append(Entry(path, [tuple(row[:4]) for row in rows], classes, [False] * len(rows)))
    refuse_missing(annotation_path, "images (or their boxes are not x1,y1,x2,y2,class)", missing)
    return entries


def _find_image(path: str, folder: str) -> str | None:
    """The path as it exists, from the current directory or the list's folder, as written or with slashes turned."""
    for candidate in (path, path.replace("\\", "/")):
        for base in ("", folder):
            if os.path.isfile(os.path.join(base, candidate)):
                return os.path.join(base, candidate)
    return None


def _to_records(annotation_path: str, entries: list[Entry], class_names: Sequence[str]) -> tuple[Records, list[str]]:
    """Look at every image's header, clip the boxes to it and drop what has no area left."""
    total = len(entries)
    sizes_hw, readable, unreadable = [], [], []
    for entry in entries:
        try:
            sizes_hw.append(image_size_hw(entry.path))
            readable.append(entry)
        except ValueError as error:
            unreadable.append(f"{entry.path} ({error})")
    if len(unreadable) == total or len(unreadable) > max(MAX_UNREADABLE_COUNT, MAX_UNREADABLE_SHARE * total):
        raise ValueError(
            f"{annotation_path}: {len(unreadable)} of {total} images cannot be read: {listed(unreadable)}. "
            f"Save them anew as JPEG or PNG, or take them out of the list."
        )
    notes = []
    if unreadable:
        notes.append(f"{len(unreadable)} of {total} images cannot be read and are left out: {listed(unreadable)}.")

    entries, sizes_hw = readable, np.array(sizes_hw, np.int32)
    owner = np.repeat(np.arange(len(entries)), [len(entry.boxes_xyxy) for entry in entries])
    written_xyxy = np.array([box for entry in entries for box in entry.boxes_xyxy], np.float64).reshape(-1, 4)
    classes = np.array([value for entry in entries for value in entry.classes], np.int64)
    difficult = np.array([value for entry in entries for value in entry.difficult], bool)
    limits = sizes_hw[owner][:, [1, 0, 1, 0]]
    boxes_xyxy = np.clip(written_xyxy, 0, limits)
    has_area = (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])
    clipped = (boxes_xyxy != written_xyxy).any(axis=1) & has_area
    counts = np.bincount(owner[has_area], minlength=len(entries))

    paths = [entry.path for entry in entries]
    for rows, what in (
        (~has_area, "have no area inside their image and are dropped"),
        (clipped, "reach beyond their image and are clipped to it"),
    ):
        if rows.any():
            images = [paths[index] for index in np.unique(owner[rows])]
            notes.append(f"{rows.sum()} of {len(rows)} boxes {what}: {listed(images)}.")
    present = set(classes[has_area].tolist())
    without = [name for index, name in enumerate(class_names) if index not in present]
    if without:
        notes.append(f"Classes without boxes: {listed(without)}.")
    if (counts == 0).any():
        notes.append(f"{(counts == 0).sum()} of {len(entries)} images have no boxes and are kept as background.")
    records = Records(paths, sizes_hw, counts, boxes_xyxy[has_area], classes[has_area], difficult[has_area])
    return records, notes
