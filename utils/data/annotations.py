"""From the annotations of a data set, in any of the formats, to checked arrays; pixels are not decoded here."""

import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from utils.data.formats.base import RawAnnotations
from utils.data.formats.coco import read_coco_json
from utils.data.formats.list_file import read_list_file
from utils.data.formats.voc import read_voc_split, voc_root
from utils.data.formats.yolo import read_yolo_folder, read_yolo_list, read_yolo_yaml
from utils.data.quality.findings import Finding, raise_errors
from utils.image.codec import image_size_hw
from utils.io.errors import MissingFileError, UserError
from utils.io.text import shorten_list


class Annotations:
    """One entry per image; the boxes of image i are rows offsets[i] to offsets[i + 1] of the box arrays.

    paths:      file paths, one per image.
    sizes_hw:   (N, 2) height and width of the image as OpenCV decodes it (EXIF rotation applied).
    box_counts: (N,) number of boxes of each image, in the order of the box arrays.
    boxes_xyxy: (M, 4) float32 x1, y1, x2, y2 in pixels of that image.
    classes:    (M,) int64 index into the class names.
    difficult:  (M,) bool, the flag of the VOC format; all False when not given.
    areas:      (M,) float32 what makes an object small, medium or large to COCO; that of its box when not given.
    """

    def __init__(self, paths: Sequence[str], sizes_hw, box_counts, boxes_xyxy, classes, difficult=None, areas=None):
        encoded = [os.fsencode(path) for path in paths]
        self.path_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self.path_offsets = _offsets([len(path) for path in encoded])
        self.sizes_hw = np.asarray(sizes_hw, np.int32).reshape(-1, 2)
        self.offsets = _offsets(box_counts)
        self.boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
        self.classes = np.asarray(classes, np.int64).reshape(-1)
        self.difficult = np.zeros(len(self.classes), bool) if difficult is None else np.asarray(difficult, bool)
        box_areas = (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).prod(axis=1)
        self.areas = box_areas if areas is None else np.where(np.isnan(areas), box_areas, areas).astype(np.float32)
        assert len(self.sizes_hw) == len(paths) == len(self.offsets) - 1
        assert len(self.boxes_xyxy) == len(self.classes) == len(self.difficult) == self.offsets[-1]

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def path(self, index: int) -> str:
        return os.fsdecode(self.path_bytes[self.path_offsets[index] : self.path_offsets[index + 1]].tobytes())

    def boxes(self, index: int) -> np.ndarray:
        """(n, 4) float32 boxes of one image, x1, y1, x2, y2 in its pixels."""
        return self.boxes_xyxy[self.offsets[index] : self.offsets[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """(n,) int64 classes of the boxes of one image."""
        return self.classes[self.offsets[index] : self.offsets[index + 1]]

    def without_difficult(self) -> "Annotations":
        """The same images without the boxes that are marked difficult."""
        keep = ~self.difficult
        kept_before = np.concatenate([[0], np.cumsum(keep)])[self.offsets]
        paths = [self.path(index) for index in range(len(self))]
        boxes_xyxy, classes, areas = self.boxes_xyxy[keep], self.classes[keep], self.areas[keep]
        return Annotations(paths, self.sizes_hw, np.diff(kept_before), boxes_xyxy, classes, areas=areas)


def _offsets(counts) -> np.ndarray:
    """(N + 1,) int64 running sum of counts, starting at 0."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


# More unreadable images than both of these stop a training, fewer are left out.
MAX_UNREADABLE_COUNT, MAX_UNREADABLE_SHARE = 3, 0.1
# Boxes that reach this little beyond their image, in pixels, come from rounding.
ROUNDING = 0.5
# What people name by mistake: {ending: what to do}.
_UNPACK = "is an archive; unpack it, and name the annotations in it"
OTHER_FILES = {
    ".xml": "is the annotation of one image; name a split, as in VOCdevkit/VOC2007/ImageSets/Main/train.txt",
    ".csv": "is a table, which is not read; export the annotations as VOC, COCO or YOLO",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), _UNPACK),
}


def read_annotations(
    annotation_path: str, class_names: Sequence[str], split: str = "train"
) -> tuple[Annotations, list[Finding]]:
    """Read a data set: its annotations, and what was found wrong with it. Arguments and formats: see
    read_raw_annotations.

    Raises FileNotFoundError or ValueError for what makes it unusable: see read_raw_annotations and
    utils.data.findings.refuse.
    """
    annotations, findings = build_annotations(read_raw_annotations(annotation_path, split), class_names)
    raise_errors(annotation_path, findings, class_names)
    return annotations, findings


def read_raw_annotations(annotation_path: str, split: str = "train") -> RawAnnotations:
    """What the annotation says, before any image is looked at. The format is recognised from what the path is:

    - <root>/ImageSets/Main/<split>.txt: a split of a VOC folder, with <root>/Annotations and <root>/JPEGImages;
    - a file that ends in .json: COCO annotations;
    - a file that ends in .yaml or .yml: YOLO's description of a data set; split, "train" or "val", chooses its part;
    - a folder: images in YOLO's layout, with a text file of boxes for each;
    - any other file: a list with lines `path x1,y1,x2,y2,class ...`, or paths alone of images in YOLO's layout.

    Raises FileNotFoundError where it does not exist, ValueError where it is empty or no such file at all. What is wrong
    with single images and boxes are findings of the result.
    """
    annotation_path = os.fspath(annotation_path)
    suffix = os.path.splitext(annotation_path)[1].lower()
    if os.path.isdir(os.path.join(annotation_path, "ImageSets", "Main")):
        split_path = os.path.join(annotation_path, "ImageSets", "Main", f"{split}.txt")
        raise UserError(f"{annotation_path} is a VOC folder; name one of its splits, as in {split_path}.")
    if os.path.isdir(annotation_path):
        return read_yolo_folder(annotation_path, split)
    if voc_root(annotation_path) is not None:
        return read_voc_split(annotation_path)
    if not os.path.isfile(annotation_path):
        raise MissingFileError(
            f"{annotation_path} does not exist. Check train_annotation_path and val_annotation_path."
        )
    if suffix == ".json":
        return read_coco_json(annotation_path)
    if suffix in (".yaml", ".yml"):
        return read_yolo_yaml(annotation_path, split)
    if suffix in OTHER_FILES:
        raise UserError(f"{annotation_path} {OTHER_FILES[suffix]}.")
    return read_yolo_list(annotation_path) or read_list_file(annotation_path)


def class_names_of(sources: Sequence[RawAnnotations]) -> list[str]:
    """The classes that the annotations name, each once: in the order of their files, the first source first.

    Raises ValueError where an annotation knows its classes by number alone, or none names any class; where the reason
    is that images or annotations are missing or broken, as raise_errors does.
    """
    for source in sources:
        if source.names is None:
            raise UserError(
                f"{source.annotation_path} gives its classes as numbers alone, so classes_path cannot be ''. Write the "
                "names into a file, one per line in the order of the numbers, and set classes_path to it."
            )
    names = list(dict.fromkeys(name for source in sources for name in source.names))
    if not names:
        for source in sources:
            raise_errors(source.annotation_path, source.findings)
        paths = " and ".join(source.annotation_path for source in sources)
        raise UserError(f"{paths} name no classes. Check that the annotations belong to these images.")
    return names


def build_annotations(source: RawAnnotations, class_names: Sequence[str]) -> tuple[Annotations, list[Finding]]:
    """Look at every image's header, map classes to class_names, clip the boxes to their images and drop the rest.

    Returns the annotations, and the source's findings with those made here. Raises as raise_errors does where no image
    is left.
    """
    findings = list(source.findings)
    sizes_hw = _read_sizes(source, findings)
    is_readable = sizes_hw[:, 0] > 0
    if not is_readable.any():
        raise_errors(source.annotation_path, findings, class_names)

    image_index, written_xyxy = source.image_index, source.boxes_xyxy
    limits = sizes_hw[image_index][:, [1, 0, 1, 0]]
    if source.normalized:
        written_xyxy = written_xyxy * limits
    boxes_xyxy = np.clip(written_xyxy, 0, limits)
    classes = _map_classes(source, class_names)
    has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    reaches_out = (np.abs(boxes_xyxy - written_xyxy) > ROUNDING).any(axis=1)
    known, readable = classes >= 0, is_readable[image_index]
    for kind, rows in (("unknown_class", ~known), ("no_area", ~has_area), ("clipped_box", reaches_out & has_area)):
        for row in np.flatnonzero(rows & readable):
            path, name = source.paths[image_index[row]], _class_words(source, source.classes[row])
            corners = "" if kind == "unknown_class" else ": " + ", ".join(f"{value:.6g}" for value in written_xyxy[row])
            findings.append(Finding(kind, path, name + corners))

    kept = has_area & known & readable
    counts = np.bincount(image_index[kept], minlength=len(sizes_hw))
    _report_background(source, findings, is_readable & (counts == 0))
    annotations = Annotations(
        [path for path, is_kept in zip(source.paths, is_readable, strict=True) if is_kept],
        sizes_hw[is_readable],
        counts[is_readable],
        boxes_xyxy[kept],
        classes[kept],
        source.difficult[kept],
        None if source.areas is None else source.areas[kept],
    )
    return annotations, findings


def _read_sizes(source: RawAnnotations, findings: list[Finding]) -> np.ndarray:
    """(N, 2) int32 sizes of the images, 0 where an image cannot be read."""
    sizes_hw, total = np.zeros((len(source.paths), 2), np.int32), len(source.paths)
    unreadable = []
    paths = tqdm(source.paths, desc="reading image headers", unit="file", disable=None, delay=1, leave=False)
    for index, path in enumerate(paths):
        try:
            size_hw, is_turned = image_size_hw(path)
        except ValueError as error:
            unreadable.append(path)
            findings.append(Finding("unreadable_image", path, str(error)))
            continue
        sizes_hw[index] = size_hw
        stated_hw = tuple(source.stated_sizes_hw[index].tolist())
        if min(stated_hw) > 0 and stated_hw != size_hw:
            findings.append(Finding("size_disagrees", path, _size_words(stated_hw, size_hw, is_turned)))
    most = min(total - 1, max(MAX_UNREADABLE_COUNT, MAX_UNREADABLE_SHARE * total))
    if unreadable and len(unreadable) > most:
        detail = f"{len(unreadable)} of {total} images cannot be read: {shorten_list(unreadable)}"
        findings.append(Finding("many_unreadable", source.annotation_path, detail))
    return sizes_hw


def _size_words(stated_hw: tuple[int, int], size_hw: tuple[int, int], is_turned: bool) -> str:
    words = f"annotation says {stated_hw[1]}x{stated_hw[0]} (width x height), the image has {size_hw[1]}x{size_hw[0]}"
    if is_turned and stated_hw == size_hw[::-1]:
        words += "; its EXIF data turns the image, and the boxes probably belong to the unturned one"
    return words


def _map_classes(source: RawAnnotations, class_names: Sequence[str]) -> np.ndarray:
    """(M,) int64 index into class_names of each box, -1 for classes that these lack."""
    if source.names is None:
        return np.where((source.classes >= 0) & (source.classes < len(class_names)), source.classes, -1)
    index_of = {name: index for index, name in enumerate(class_names)}
    return np.array([index_of.get(name, -1) for name in source.names], np.int64)[source.classes]


def _class_words(source: RawAnnotations, class_index: int) -> str:
    return f"class {class_index}" if source.names is None else repr(source.names[class_index])


def _report_background(source: RawAnnotations, findings: list[Finding], is_background: np.ndarray) -> None:
    # Where boxes are no boxes because of a mistake that is told, it is no background.
    told_kinds = ("no_label_file", "broken_annotation", "unknown_class")
    told = {finding.image for finding in findings if finding.kind in told_kinds}
    lost = np.bincount(source.image_index, minlength=len(source.paths)) > 0
    for index in np.flatnonzero(is_background):
        if source.paths[index] not in told:
            detail = "none of its boxes can be used" if lost[index] else ""
            findings.append(Finding("background", source.paths[index], detail))
