"""What the annotation of a data set says, before any image is looked at: the same for all formats."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.quality.findings import Finding


@dataclass
class RawAnnotations:
    """N images and M boxes in flat arrays.

    annotation_path: where all this was read, for messages.
    paths:           the images' paths.
    stated_sizes_hw: (N, 2) int32 height and width as the annotation states them; 0 where it states none.
    image_index:     (M,) int64 image of each box, ascending.
    boxes_xyxy:      (M, 4) float64 x1, y1, x2, y2 as written: in pixels, or in shares of the image where normalized.
    classes:         (M,) int64 index into names; where these are None, the number that the annotation states.
    difficult:       (M,) bool.
    names:           the class names that the annotation knows, or None where it knows numbers alone.
    findings:        what is wrong; images that are missing or have no annotation are here and not in paths.
    coordinates:     what the four numbers of a box are in this format: "xyxy", "xywh" or "cxcywh".
    areas:           (M,) what the annotation states as the area of each object, NaN where it states none; None where
                     the format knows no areas.
    """

    annotation_path: str
    paths: list[str]
    stated_sizes_hw: np.ndarray
    image_index: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    names: list[str] | None
    normalized: bool
    findings: list[Finding]
    areas: np.ndarray | None = None
    coordinates: str = "xyxy"


class RawAnnotationsBuilder:
    """Takes in images and their boxes one after another; arrays, because objects of 800,000 boxes fill the memory."""

    def __init__(self, annotation_path: str):
        self.annotation_path = annotation_path
        self.paths, self.findings = [], []
        self.sizes_hw, self.image_index, self.boxes_xyxy = array("i"), array("q"), array("d")
        self.classes, self.difficult = array("q"), array("b")
        self.numbers = {}  # {name: number} of named boxes

    def report(self, kind: str, image: str, detail: str = "") -> None:
        self.findings.append(Finding(kind, image, detail))

    def add_image(self, path: str, size_hw: tuple[int, int] = (0, 0)) -> None:
        self.paths.append(path)
        self.sizes_hw.extend(size_hw)

    def add_box(self, box_xyxy: Sequence[float], class_index: int, difficult: bool = False) -> None:
        """Add a box of the image that was added last."""
        self.image_index.append(len(self.paths) - 1)
        self.boxes_xyxy.extend(box_xyxy)
        self.classes.append(class_index)
        self.difficult.append(difficult)

    def add_named_box(self, box_xyxy: Sequence[float], name: str, difficult: bool = False) -> None:
        """Add a box of a class that the annotation knows by name, to the image that was added last."""
        self.add_box(box_xyxy, self.numbers.setdefault(name, len(self.numbers)), difficult)

    def named_source(self) -> RawAnnotations:
        """The source of named boxes. Its names are sorted, so that train and val, and another order of the same images,
        give the same classes."""
        names = sorted(self.numbers)
        source = self.source(names)
        source.classes = np.array([names.index(name) for name in self.numbers], np.int64)[source.classes]
        return source

    def source(self, names: list[str] | None, normalized: bool = False, coordinates: str = "xyxy") -> RawAnnotations:
        return RawAnnotations(
            self.annotation_path,
            self.paths,
            np.array(self.sizes_hw, np.int32).reshape(-1, 2),
            np.array(self.image_index, np.int64),
            np.array(self.boxes_xyxy, np.float64).reshape(-1, 4),
            np.array(self.classes, np.int64),
            np.array(self.difficult, bool),
            names,
            normalized,
            self.findings,
            coordinates=coordinates,
        )
