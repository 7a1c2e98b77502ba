"""What the readers of annotation formats share: an image as its annotation tells of it, and words for their errors."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

SHOWN = 10


class Entry(NamedTuple):
    """What an annotation says of one image, before the image is looked at."""

    path: str
    boxes_xyxy: list[tuple[float, float, float, float]]
    classes: list
    difficult: list[bool]


def refuse_unknown_classes(annotation_path: str, unknown: Counter, class_names: Sequence[str]) -> None:
    """Raise ValueError where boxes have classes outside class_names; unknown counts these boxes by class."""
    if unknown:
        counts = ", ".join(f"{name!r} ({count} boxes)" for name, count in unknown.most_common())
        raise ValueError(
            f"{annotation_path}: the annotations hold classes that the file of classes_path lacks: {counts}. "
            f"It names {listed(class_names)}. Set classes_path to the file of these classes, add the names to it, or "
            "correct the annotations."
        )


def refuse_missing(annotation_path: str, what: str, missing: Sequence[str]) -> None:
    """Raise FileNotFoundError where files that an annotation names do not exist."""
    if missing:
        raise FileNotFoundError(
            f"{annotation_path}: {len(missing)} {what} are missing: {listed(missing)}. "
            f"Put them there, or take them out of the list."
        )


def listed(items: Sequence[str]) -> str:
    """The first few items, separated by commas, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
