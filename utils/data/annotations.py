"""From the annotations of a data set, in any of the formats, to checked arrays; pixels are not decoded here."""

import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from utils.data.formats.base import RawAnnotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.quality.coordinates import in_order, look_like_percent, other_coordinates, turned
from utils.data.quality.findings import Finding, raise_errors
from utils.image.codec import TURNING, read_header
from utils.io.class_names import repeated_names
from utils.io.errors import UserError
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

    def source(self, index: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """(height, width) of the image in the file, and x1, y1, x2, y2 of the part of it that is this entry: all."""
        height, width = self.sizes_hw[index].tolist()
        return (height, width), (0, 0, width, height)

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


def read_annotations(
    annotation_path: str, class_names: Sequence[str], split: str = "train", of_weights: bool = False
) -> tuple[Annotations, list[Finding]]:
    """Read a data set: its annotations, and what was found wrong with it. Arguments and formats: see
    read_raw_annotations. of_weights: the names are those that a weight file gives, for messages.

    Raises FileNotFoundError or ValueError for what makes it unusable: see read_raw_annotations and
    utils.data.quality.findings.raise_errors.
    """
    annotations, findings = build_annotations(read_raw_annotations(annotation_path, split), class_names)
    raise_errors(annotation_path, findings, class_names, of_weights)
    return annotations, findings


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
    findings = [*source.findings, *_joined_classes(source)]
    sizes_hw, orientations = _read_headers(source, findings)
    _settle_turning(source, sizes_hw, orientations, findings)
    is_readable = sizes_hw[:, 0] > 0
    if not is_readable.any():
        raise_errors(source.annotation_path, findings, class_names)

    image_index = source.image_index
    limits = sizes_hw[image_index][:, [1, 0, 1, 0]]
    written_xyxy = _in_pixels(source, sizes_hw, orientations)
    readable = is_readable[image_index]
    findings += _coordinate_findings(source, written_xyxy[readable], limits[readable])
    ordered_xyxy = in_order(written_xyxy)
    boxes_xyxy = np.clip(ordered_xyxy, 0, limits)
    classes = _map_classes(source, class_names)
    has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    for kind, rows in (
        ("unknown_class", classes < 0),
        ("no_area", ~has_area),
        ("swapped_corners", (ordered_xyxy != written_xyxy).any(axis=1) & has_area),
        ("clipped_box", (np.abs(boxes_xyxy - ordered_xyxy) > ROUNDING).any(axis=1) & has_area),
    ):
        findings += _box_findings(kind, source, np.flatnonzero(rows & readable), written_xyxy)

    kept = has_area & (classes >= 0) & readable
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


def _read_headers(source: RawAnnotations, findings: list[Finding]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) int32 sizes of the images as they are decoded, 0 where an image cannot be read; (N,) the orientation by
    which EXIF data turn those whose annotation states the size before that, 1 for all others."""
    sizes_hw, total = np.zeros((len(source.paths), 2), np.int32), len(source.paths)
    orientations, unreadable = np.ones(total, np.int8), []
    paths = tqdm(source.paths, desc="reading image headers", unit="file", disable=None, delay=1, leave=False)
    for index, path in enumerate(paths):
        try:
            size_hw, orientation = read_header(path)
        except ValueError as error:
            unreadable.append(path)
            findings.append(Finding("unreadable_image", path, str(error)))
            continue
        sizes_hw[index] = size_hw
        stated_hw = tuple(source.stated_sizes_hw[index].tolist())
        is_stated = min(stated_hw) > 0
        if is_stated and stated_hw != size_hw and stated_hw == size_hw[::-1] and orientation in TURNING:
            orientations[index] = orientation
        elif is_stated and stated_hw != size_hw:
            findings.append(Finding("size_disagrees", path, _size_words(stated_hw, size_hw)))
        elif orientation != 1 and not (is_stated and orientation in TURNING and size_hw[0] != size_hw[1]):
            findings.append(Finding("turned_image", path, f"EXIF orientation {orientation}"))
    most = min(total - 1, max(MAX_UNREADABLE_COUNT, MAX_UNREADABLE_SHARE * total))
    if unreadable and len(unreadable) > most:
        detail = f"{len(unreadable)} of {total} images cannot be read: {shorten_list(unreadable)}"
        findings.append(Finding("many_unreadable", source.annotation_path, detail))
    return sizes_hw, orientations


def _settle_turning(source: RawAnnotations, sizes_hw, orientations: np.ndarray, findings: list[Finding]) -> None:
    """Report the images whose boxes are still to be turned; none where the boxes end inside the turned images, and not
    inside the stored ones: some programs write the stored size with the boxes of what they show."""
    turning = np.flatnonzero(orientations != 1)
    rows = np.isin(source.image_index, turning)
    shown_wh, farthest = sizes_hw[source.image_index[rows]][:, ::-1], source.boxes_xyxy[rows, 2:] - ROUNDING
    fits_shown, fits_stored = ((farthest <= size).all(axis=1) for size in (shown_wh, shown_wh[:, ::-1]))
    is_shown = np.sum(fits_shown & ~fits_stored) > np.sum(fits_stored & ~fits_shown)
    for index in turning:
        words = _size_words(source.stated_sizes_hw[index].tolist(), sizes_hw[index].tolist())
        findings.append(Finding("size_disagrees" if is_shown else "turned_boxes", source.paths[index], words))
    if is_shown:
        orientations[turning] = 1


def _size_words(stated_hw: Sequence[int], size_hw: Sequence[int]) -> str:
    return f"annotation says {stated_hw[1]}x{stated_hw[0]} (width x height), the image has {size_hw[1]}x{size_hw[0]}"


def _in_pixels(source: RawAnnotations, sizes_hw: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """(M, 4) float64 the boxes in pixels of their images, turned with those that EXIF data turn."""
    boxes_xyxy = source.boxes_xyxy
    if source.normalized:
        boxes_xyxy = boxes_xyxy * sizes_hw[source.image_index][:, [1, 0, 1, 0]]
    first, last = (np.searchsorted(source.image_index, np.arange(len(sizes_hw)), side) for side in ("left", "right"))
    turning = np.flatnonzero(orientations != 1)
    boxes_xyxy = boxes_xyxy.copy() if len(turning) else boxes_xyxy
    for index in turning:
        rows = slice(first[index], last[index])
        boxes_xyxy[rows] = turned(boxes_xyxy[rows], int(orientations[index]), tuple(sizes_hw[index].tolist()))
    return boxes_xyxy


def _joined_classes(source: RawAnnotations) -> list[Finding]:
    repeated = repeated_names(source.names or ())
    return [Finding("joined_classes", source.annotation_path, f"{name!r} is the name of several") for name in repeated]


def _coordinate_findings(source: RawAnnotations, boxes_xyxy: np.ndarray, limits: np.ndarray) -> list[Finding]:
    """What the boxes of readable images as a whole show of the coordinates that they are written in."""
    words, is_sure = other_coordinates(boxes_xyxy, limits, source.coordinates)
    if not words and not source.normalized and look_like_percent(boxes_xyxy, limits):
        words = "percent, where pixels are expected: all lie in the first 100 pixels"
    kind = "other_coordinates" if is_sure else "doubtful_coordinates"
    return [Finding(kind, source.annotation_path, f"its boxes look like {words}")] if words else []


def _box_findings(kind: str, source: RawAnnotations, rows: np.ndarray, written_xyxy: np.ndarray) -> list[Finding]:
    """One Finding for each of these rows of the box arrays."""
    findings = []
    for row in rows:
        path, name = source.paths[source.image_index[row]], _class_words(source, source.classes[row])
        corners = "" if kind == "unknown_class" else ": " + ", ".join(f"{value:.6g}" for value in written_xyxy[row])
        findings.append(Finding(kind, path, name + corners))
    return findings


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
    told_kinds = ("no_label_file", "broken_annotation", "class_beyond_names", "unknown_class")
    told = {finding.image for finding in findings if finding.kind in told_kinds}
    lost = np.bincount(source.image_index, minlength=len(source.paths)) > 0
    for index in np.flatnonzero(is_background):
        if source.paths[index] not in told:
            detail = "none of its boxes can be used" if lost[index] else ""
            findings.append(Finding("background", source.paths[index], detail))
