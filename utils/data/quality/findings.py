"""What can be wrong with a data set: the kinds of findings, their table, and their file."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from utils.io.errors import MissingFileError, UserError
from utils.io.files import write_csv
from utils.io.text import format_table, shorten_list

LEVELS = {
    "error": "training refuses to start",
    "critical": "training or its scores mean nothing",
    "warning": "the detector gets worse",
    "info": "good to know",
}


# A sentence names so many classes, and counts the rest.
MAX_CLASSES_NAMED = 5


class Kind(NamedTuple):
    level: str  # of LEVELS
    what: str
    effect: str  # what training does about it


# In the order of how much they hurt; tables follow it.
KINDS = {
    "other_coordinates": Kind("error", "boxes written in other coordinates", "refuses to start"),
    "missing_image": Kind("error", "image does not exist", "refuses to start"),
    "missing_annotation": Kind("error", "image without annotation file", "refuses to start"),
    "broken_annotation": Kind("error", "annotation cannot be read", "refuses to start"),
    "many_unreadable": Kind("error", "many images cannot be read", "refuses to start"),
    "undecodable_row": Kind("error", "images in a row that cannot be decoded", "stops: none near takes their place"),
    "class_beyond_names": Kind("error", "class number beyond the names", "refuses to start"),
    "unknown_class": Kind("error", "box of a class that classes_path lacks", "refuses to start"),
    "only_difficult": Kind("error", "all training boxes are marked difficult, or are crowds", "refuses to start"),
    "no_boxes_at_all": Kind("error", "no boxes to learn from", "refuses to start"),
    "leaked_image": Kind("critical", "same image in train and val", "uses it: scores come out too high"),
    "no_val_boxes": Kind("critical", "no boxes to validate on", "cannot score: every mAP is empty"),
    "unreadable_image": Kind(
        "warning", "image cannot be read", "leaves it out, in validation too (the score looks better)"
    ),
    "undecodable_image": Kind(
        "warning", "image cannot be decoded", "takes another in its place; in validation its boxes count as missed"
    ),
    "truncated_image": Kind("warning", "image lacks its last bytes", "uses it, grey where it is missing"),
    "doubtful_coordinates": Kind("warning", "boxes that may be written in other coordinates", "takes them as they are"),
    "unmatched_labels": Kind(
        "warning", "images and label files of different names", "takes these images as background"
    ),
    "label_elsewhere": Kind("warning", "image whose labels lie in another place or format", "takes it as background"),
    "shared_label": Kind("warning", "two images of one name share a label file", "learns its boxes for both"),
    "other_image_format": Kind("warning", "image of a format that is not read", "leaves it out"),
    "link_as_text": Kind(
        "warning", "symbolic link that was copied as a text file", "leaves out the images that it led to"
    ),
    "joined_classes": Kind("warning", "several classes of one name", "makes one class of them"),
    "conflicting_labels": Kind("warning", "same image twice, labels differ", "learns both"),
    "size_disagrees": Kind("warning", "annotation states another image size", "takes the boxes as pixels of the image"),
    "leaked_near_duplicate": Kind(
        "warning", "nearly the same image in train and val", "uses it: scores come out too high"
    ),
    "class_without_boxes": Kind("warning", "class without training boxes", "never finds it"),
    "class_not_validated": Kind("warning", "class without validation boxes", "cannot score it"),
    "rare_class": Kind("warning", "class with few training boxes", "finds it poorly"),
    "no_area": Kind("warning", "box without area inside its image", "drops the box"),
    "swapped_corners": Kind("warning", "box whose corners are exchanged", "puts them in order"),
    "clipped_box": Kind("warning", "box reaches beyond its image", "clips the box"),
    "duplicate_box": Kind("warning", "same box twice in one image", "learns both"),
    "vanishing_box": Kind("warning", "box of less than 2 pixels at input_shape", "drops it: nothing is left to learn"),
    "small_boxes": Kind("warning", "many boxes under 10 pixels at input_shape", "finds few of them"),
    "tiny_box": Kind("warning", "box of a few pixels at input_shape", "learns it, mostly in vain"),
    "thin_box": Kind("warning", "box absurdly long and thin", "learns it"),
    "extra_numbers": Kind("info", "label lines with more numbers behind the box", "takes the box and leaves the rest"),
    "turned_boxes": Kind("info", "boxes of the picture before its EXIF data turn it", "turns them with the picture"),
    "turned_image": Kind(
        "info", "image that its EXIF data turn", "turns it; its boxes must be those of the picture as viewers show it"
    ),
    "masks": Kind("info", "folder of masks", "leaves out its images"),
    "other_spelling": Kind("info", "file whose name is spelled in another way", "takes the file that is there"),
    "no_label_file": Kind("info", "image without label file", "takes it as background"),
    "background": Kind("info", "image without boxes", "takes it as background"),
    "difficult_box": Kind("info", "box marked difficult, or a crowd", "follows keep_difficult; scores ignore it"),
    "repeated_image": Kind("info", "same image twice, same labels", "uses it twice"),
}


class Finding(NamedTuple):
    """One thing about one image (or list, or class): kind is a key of KINDS, detail says what exactly."""

    kind: str
    image: str
    detail: str = ""


def findings_table(findings: Iterable[Finding]) -> str:
    """The rows of findings_rows as aligned lines, '' for none. For people; findings.csv has all findings."""
    rows = findings_rows(findings)
    head = ("", "count", "what", "what training does", "for example")
    return format_table([head, *rows], right=(1,)) if rows else ""


def findings_rows(findings: Iterable[Finding]) -> list[tuple[str, str, str, str, str]]:
    """(level, count, what, what training does, one example) of each kind that occurs, the worst first."""
    rows = []
    for kind, found in by_kind(findings).items():
        level, what, effect = KINDS[kind]
        rows.append((level, str(len(found)), what, effect, ": ".join(part for part in found[0][1:] if part)))
    return rows


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """{kind: its findings} of the kinds that occur, the worst first."""
    groups = {kind: [] for kind in KINDS}
    for finding in findings:
        groups[finding.kind].append(finding)
    return {kind: found for kind, found in groups.items() if found}


def write_findings(path, findings: Iterable[Finding]) -> None:
    """A CSV file with one row per finding: level, finding, image, detail, what training does. As write_csv writes."""
    columns = ("level", "finding", "image", "detail", "what training does")
    rows = [
        dict(zip(columns, (level, what, image, detail, effect), strict=True))
        for kind, found in by_kind(findings).items()
        for level, what, effect in [KINDS[kind]]
        for _, image, detail in found
    ]
    write_csv(path, columns, rows)


def raise_errors(
    annotation_path: str,
    findings: Iterable[Finding],
    class_names: Sequence[str] = (),
    of_weights: bool = False,
    cause: str = "",
) -> None:
    """Raise where findings are errors, with which training cannot start: a sentence on each kind, which names them and
    says what to do.

    For the sentence on unknown classes: class_names are those of classes_path, or, with of_weights, of a weight file;
    cause says why they are unknown and what to do, where that is known. Raises MissingFileError where the worst are
    missing files, else UserError.
    """
    errors = [(kind, found) for kind, found in by_kind(findings).items() if KINDS[kind].level == "error"]
    if not errors:
        return
    sentences = []
    for kind, found in errors:
        named = _named(kind, found)
        if kind == "unknown_class" and of_weights:
            sentences.append(
                f"{annotation_path} has boxes of classes that the weights do not know: {named}. The weights know "
                f"{shorten_list(class_names, MAX_CLASSES_NAMED)}. Let annotation_path name data of these classes."
            )
            continue
        remedy = _words_on_names(class_names, cause) if kind == "unknown_class" else REMEDIES[kind]
        sentences.append(f"{annotation_path}: {counted(kind, len(found))}: {named}. {remedy}")
    error = MissingFileError if errors[0][0].startswith("missing") else UserError
    raise error("\n".join(sentences))


def _words_on_names(class_names: Sequence[str], cause: str) -> str:
    """What classes_path names, and what to do where the annotations have other classes."""
    if len(class_names) == 1 and re.search(r"[\s,;]", class_names[0]):
        return f"classes_path names 1 class, {class_names[0]!r}: write one name per line."
    return f"classes_path names {shorten_list(class_names, MAX_CLASSES_NAMED)}. {cause or REMEDIES['unknown_class']}"


def counted(kind: str, count: int) -> str:
    """What a kind of findings is, and how often it was found: `image does not exist (3 times)`."""
    return f"{KINDS[kind].what} ({_times(count)})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _named(kind: str, found: Sequence[Finding]) -> str:
    """Images and details of findings of one kind, without saying the same detail over and over."""
    details = Counter(finding.detail for finding in found)
    if kind == "unknown_class":
        return shorten_list([f"{name} ({_times(count)})" for name, count in details.most_common()], MAX_CLASSES_NAMED)
    if len(details) == 1 and len(found) > 1:
        (detail,) = details
        return shorten_list([finding.image for finding in found]) + (f" ({detail})" if detail else "")
    return shorten_list([": ".join(part for part in finding[1:] if part) for finding in found])


REMEDIES = {
    "missing_image": "Put them there, or take them out of the list.",
    "missing_annotation": "Put them there, or take them out of the list; images of pure background need empty ones.",
    "broken_annotation": "Correct or remove them.",
    "many_unreadable": "Save them anew as JPEG or PNG, or take them out of the list.",
    "undecodable_row": "Save them anew as JPEG or PNG, or take them out of the list.",
    "other_coordinates": "Export the data set again in its format, or as VOC, COCO or YOLO.",
    "class_beyond_names": "Add the missing names to that file, or correct the numbers.",
    "only_difficult": "Set keep_difficult = True to learn them, or take the marks off.",
    "unknown_class": "Set it to the file of these classes, add the missing names to it, or correct the annotations.",
    "no_boxes_at_all": "Check that the annotations belong to these images.",
}
