"""The annotations that train_annotation_path and val_annotation_path name: one, or a list of several sources."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.annotations import Annotations, build_annotations, class_names_of
from utils.data.formats.base import RawAnnotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.quality.findings import Finding, raise_errors
from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.files import PROJECT
from utils.io.logger import logger
from utils.io.text import counted, shorten_list

# Where the constants of train.py point before anybody sets them.
SAMPLE = PROJECT / "VOCdevkit" / "Sample"


class DataSet(NamedTuple):
    """The sources of one constant together. findings: what is wrong with them; counts: how many images each has."""

    annotations: Annotations
    findings: list[Finding]
    counts: list[int]


def paths_of(annotation_path: str | Sequence[str]) -> list[str]:
    """The paths that a constant names, which is one path or a list of them."""
    return [annotation_path] if isinstance(annotation_path, str | os.PathLike) else list(annotation_path)


def path_words(annotation_path: str | Sequence[str]) -> str:
    """The paths of a constant as people read them."""
    return " and ".join(map(str, paths_of(annotation_path)))


def read_data_sets(
    paths: Mapping[str, str | Sequence[str]], classes_path: str, strict: bool = True
) -> tuple[list[str], dict[str, DataSet]]:
    """The class names, and the DataSet of each part.

    paths: {"train" or "val": what its constant names}; each source is read by its own format. classes_path: '' takes
    the names from the annotations. strict: raise where something in a source is an error to training. How much each
    source holds is logged. Raises as read_raw_annotations and build_annotations, and where the sources of one part do
    not name the same classes.
    """
    sources = {part: [read_raw_annotations(path, part) for path in paths_of(given)] for part, given in paths.items()}
    if classes_path:
        class_names = read_class_names(classes_path)
    else:
        class_names = class_names_of([source for several in sources.values() for source in several])
        for several in sources.values():
            _require_same_names(several)
    sets = {part: join(list(_built(several, part, class_names, strict))) for part, several in sources.items()}
    return class_names, sets


def _built(
    sources: Sequence[RawAnnotations], part: str, class_names: Sequence[str], strict: bool
) -> Iterator[tuple[Annotations, list[Finding]]]:
    for source in sources:
        annotations, findings = build_annotations(source, class_names)
        if strict:
            is_sample = Path(source.annotation_path).resolve().is_relative_to(SAMPLE)
            cause = f"{part}_annotation_path is still the sample's; set it to your data." if is_sample else ""
            raise_errors(source.annotation_path, findings, class_names, cause=cause)
        boxes, classes = counted(len(annotations.boxes_xyxy), "box"), counted(len(class_names), "class")
        logger.info(f"{source.annotation_path}: {counted(len(annotations), 'image')}, {boxes}, {classes}")
        yield annotations, findings


def _require_same_names(sources: Sequence[RawAnnotations]) -> None:
    """Raise UserError where one source names a class that another lacks: there its objects would pass for background,
    or it has another name."""
    for source in sources[1:]:
        if differing := sorted(set(source.names) ^ set(sources[0].names)):
            raise UserError(
                f"{sources[0].annotation_path} and {source.annotation_path} do not name the same classes: only one of "
                f"them has {shorten_list(differing)}. Rename them, or set classes_path to a file of all names."
            )


def join(parts: Sequence[tuple[Annotations, list[Finding]]]) -> DataSet:
    """The DataSet of sources that were read, in their order."""
    sets, findings = zip(*parts, strict=True)
    counts = [len(annotations) for annotations in sets]
    annotations = sets[0]
    if len(sets) > 1:
        paths = [part.path(index) for part in sets for index in range(len(part))]
        rows = [(part.sizes_hw, np.diff(part.offsets), *_box_columns(part)) for part in sets]
        annotations = Annotations(paths, *map(np.concatenate, zip(*rows, strict=True)))
    return DataSet(annotations, [finding for found in findings for finding in found], counts)


def _box_columns(part: Annotations) -> tuple[np.ndarray, ...]:
    return part.boxes_xyxy, part.classes, part.difficult, part.areas


def source_repeats(counts: Sequence[int], weights: Sequence[float], images: np.ndarray | None = None):
    """(N,) how often each entry of an epoch is drawn, 1 on average; None where all are drawn alike.

    counts: images of each source, in the order of the images. weights: of each source, [] for 1. images: (N,) which
    image an entry is a part of; None where the images are the entries.
    """
    if len(set(weights)) < 2:
        return None
    repeats = np.repeat(np.asarray(weights, np.float64), counts)
    repeats = repeats if images is None else repeats[images]
    return repeats * (len(repeats) / repeats.sum())


def weights_words(paths: Sequence[str], counts: Sequence[int], weights: Sequence[float]) -> str:
    """What weights make of an epoch, which keeps its length: a line for each source."""
    seen = np.multiply(counts, weights) / np.dot(counts, weights) * sum(counts)
    lines = [f"source_weights: an epoch keeps its {counted(sum(counts), 'image')}, of which on average come"]
    rows = zip(seen, paths, counts, strict=True)
    return "\n".join([*lines, *(f"  {part:8.1f} from {path}, which has {count}" for part, path, count in rows)])
