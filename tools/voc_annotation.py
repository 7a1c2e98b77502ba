"""Split a VOC data set, and list it.

python tools/voc_annotation.py [--VOCdevkit_path=VOCdevkit/VOC2007 --classes_path=... "--group_pattern=(.+)_[0-9]+" ...]

Writes ImageSets/Main/{trainval,test,train,val}.txt in the VOC folder, and 2007_train.txt and 2007_val.txt, with lines
`path x1,y1,x2,y2,class ...`, in the current directory. train.py reads either kind.
"""

import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from utils.config.cli import read_constants, run_script
from utils.data.annotations import Annotations, build_annotations, read_raw_annotations
from utils.data.formats.voc import parse_voc_xml, read_voc
from utils.data.quality.findings import Finding, findings_table, raise_errors
from utils.io.class_names import read_class_names
from utils.io.errors import MissingFileError, UserError
from utils.io.logger import logger
from utils.io.text import shorten_list

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_mode   0: splits and lists. 1: only the splits in ImageSets/Main, which is all that train.py needs.
#                     2: only 2007_train.txt and 2007_val.txt, from the splits that are there.
#   VOCdevkit_path    The folder that holds Annotations and JPEGImages.
#   classes_path      The file of class names, one per line; it gives the class numbers in the lists.
#   trainval_percent  Share of all images for training and validation together, 0 to 1; the rest is the test split.
#   train_percent     Share of these that is trained on, 0 to 1; the rest is the validation split.
#   seed              The same number always makes the same splits. Choose once and keep it: results on different splits
#                     cannot be compared.
#   group_pattern     '' splits image by image. Where several images show nearly the same (frames of one video, pictures
#                     of one patient), a model would be validated on what it was trained on. Then write a regular
#                     expression that finds what these images share in their names (without the ending): its first
#                     bracket, or all that it matches where it has none, names the group. A group is never divided.
#                         (.+)_[0-9]+         street_01, street_02 and park_01: the groups street and park
#                         ^.{4}               the first four characters name the group
#                     A name in which the pattern finds nothing names a group itself.
#   overwrite         False: where a file that would be written exists already, stop and change nothing.
# ----------------------------------------------------------------------------------------------------------------------
annotation_mode = 0
VOCdevkit_path = "VOCdevkit/VOC2007"
classes_path = "model_data/voc_classes.txt"
trainval_percent = 0.9
train_percent = 0.9
seed = 0
group_pattern = ""
overwrite = False


def main(settings: SimpleNamespace) -> None:
    """Run with the constants above as attributes of settings. Nothing is written where ValueError or FileNotFoundError
    is raised for a user's mistake."""
    check(settings)
    root, mode = Path(settings.VOCdevkit_path), settings.annotation_mode
    splits, lists = {}, {}
    if mode in (0, 1):
        xml_paths = annotation_files(root / "Annotations")
        print_counts(xml_paths)
        ids = [path.stem for path in xml_paths]
        splits = make_splits(ids, settings)
    if mode in (0, 2):
        class_names = read_class_names(settings.classes_path)
        lists = {name: read_split(root, name, splits.get(name), class_names) for name in ("train", "val")}

    texts = {root / "ImageSets" / "Main" / f"{name}.txt": part for name, part in splits.items()}
    texts |= {Path(f"2007_{name}.txt"): list_lines(annotations) for name, annotations in lists.items()}
    if not settings.overwrite:
        refuse_to_overwrite(list(texts))
    for path, lines in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        logger.info(f"{path}: {len(lines)} images")


def check(settings: SimpleNamespace) -> None:
    if settings.annotation_mode not in (0, 1, 2):
        raise UserError(f"annotation_mode is {settings.annotation_mode}; it must be 0, 1 or 2.")
    for name in ("trainval_percent", "train_percent"):
        value = getattr(settings, name)
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}; it is a share and must lie above 0 and at most at 1, as in 0.9.")


def annotation_files(folder: Path) -> list[Path]:
    """All annotation files in a folder but hidden ones, in alphabetical order."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist. VOCdevkit_path must name the folder that holds Annotations.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml" and path.name[0] != ".")
    if not paths:
        raise UserError(f"{folder} holds no .xml files. Copy your annotations there.")
    return paths


def make_splits(ids: list[str], settings: SimpleNamespace) -> dict[str, list[str]]:
    """{"trainval", "test", "train", "val"}: ids, sorted; says what became of groups. Raises as the functions below."""
    counts = part_counts(len(ids), settings.trainval_percent, settings.train_percent)
    if settings.group_pattern:
        groups = group_ids(ids, settings.group_pattern)
        names = split_groups(groups, counts, settings.seed)
        logger.info(groups_table(groups, names, counts))
        parts = {part: [image_id for name in names[part] for image_id in groups[name]] for part in names}
    else:
        parts = split_ids(ids, counts, settings.seed)
    parts = {"trainval": parts["train"] + parts["val"], **parts}
    return {part: sorted(part_ids) for part, part_ids in parts.items()}


def part_counts(total: int, trainval_percent: float, train_percent: float) -> dict[str, int]:
    """{"test", "train", "val"}: number of images. Raises ValueError where train or val would be empty."""
    trainval_count = round(total * trainval_percent)
    train_count = round(trainval_count * train_percent)
    if not 0 < train_count < trainval_count:
        raise UserError(
            f"Of {total} images, trainval_percent={trainval_percent} and train_percent={train_percent} leave "
            f"{train_count} to train on and {trainval_count - train_count} to validate on; both need at least one."
        )
    return {"test": total - trainval_count, "train": train_count, "val": trainval_count - train_count}


def split_ids(ids: list[str], counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """{"test", "train", "val"}: ids, drawn one by one. counts: as from part_counts."""
    shuffled = random.Random(seed).sample(ids, len(ids))
    trainval_count = counts["train"] + counts["val"]
    return {
        "test": shuffled[trainval_count:],
        "train": shuffled[: counts["train"]],
        "val": shuffled[counts["train"] : trainval_count],
    }


def group_ids(ids: list[str], group_pattern: str) -> dict[str, list[str]]:
    """{group: its ids}; an id that group_pattern does not match names a group itself. Says how many those are.

    Raises ValueError where the pattern is no regular expression, matches nothing, or leaves only one group.
    """
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise UserError(
            f"group_pattern is {group_pattern!r}, which is no regular expression ({error}); expected one such as "
            "'(.+)_[0-9]+', or '' to split image by image."
        ) from error
    groups, alone = {}, []
    for image_id in ids:
        match = pattern.search(image_id)
        name = match[min(pattern.groups, 1)] if match else None
        if name is None:
            alone.append(image_id)
        groups.setdefault(image_id if name is None else name, []).append(image_id)
    if len(alone) == len(ids):
        raise UserError(
            f"group_pattern is {group_pattern!r}, which matches none of the {len(ids)} names of images, such as "
            f"{ids[0]!r}; correct it, or set it to '' to split image by image."
        )
    if len(groups) == 1:
        raise UserError(
            f"group_pattern is {group_pattern!r}, which puts all {len(ids)} images into one group, "
            f"{next(iter(groups))!r}; expected two or more, one of which is validated on. Let its first bracket hold "
            "what tells them apart."
        )
    if alone:
        logger.info(f"group_pattern does not match {len(alone)} names, which name a group each: {shorten_list(alone)}")
    return groups


def split_groups(groups: dict[str, list[str]], counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """{"test", "train", "val"}: names of groups, so that the numbers of images come close to counts.

    Large groups come first, and each goes to the split that lacks most images. The last ones go to splits that would
    stay empty; where there are too few for all, the test split does.
    """
    names = random.Random(seed).sample(list(groups), len(groups))
    names.sort(key=lambda name: len(groups[name]), reverse=True)  # stable: groups of one size stay shuffled
    parts, lacking = {"test": [], "train": [], "val": []}, dict(counts)
    for done, name in enumerate(names):
        empty = [part for part in ("train", "val", "test") if counts[part] and not parts[part]]
        left = len(names) - done
        part = max(empty[:left] if left <= len(empty) else counts, key=lacking.get)
        parts[part].append(name)
        lacking[part] -= len(groups[name])
    return parts


def groups_table(groups: dict[str, list[str]], parts: dict[str, list[str]], counts: dict[str, int]) -> str:
    """How many groups and images each split holds, and how many images the shares ask for. Returns text."""
    largest = max(groups, key=lambda name: len(groups[name]))
    lines = [
        f"{len(groups)} groups; the largest, {largest!r}, has {len(groups[largest])} images",
        f"{'':<5}  groups  images  by the shares",
    ]
    for part in ("train", "val", "test"):
        count = sum(len(groups[name]) for name in parts[part])
        lines.append(f"{part:<5}  {len(parts[part]):>6}  {count:>6}  {counts[part]:>13}")
    return "\n".join(lines)


def refuse_to_overwrite(paths: list[Path]) -> None:
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise UserError(f"{', '.join(present)} exist already; nothing was changed. --overwrite=True replaces them.")


def print_counts(xml_paths: list[Path]) -> None:
    """How many boxes each class has. Raises ValueError that names the files that cannot be read."""
    counts, broken = Counter(), []
    for path in map(str, xml_paths):
        try:
            counts.update(parse_voc_xml(path).names)
        except ValueError as error:
            broken.append(Finding("broken_annotation", path, str(error).removeprefix(f"{path}: ")))
    raise_errors(str(xml_paths[0].parent), broken)
    logger.info(f"{len(xml_paths)} annotation files in {xml_paths[0].parent}")
    for name, count in counts.most_common():
        logger.info(f"  {name}: {count} boxes")


def read_split(root: Path, name: str, ids: list[str] | None, class_names: list[str]) -> Annotations:
    """The annotations of a split that was just made, or (ids None) of one that lies in ImageSets/Main; prints what is
    wrong with them. Raises for what makes them unusable."""
    path = str(root / "ImageSets" / "Main" / f"{name}.txt")
    source = read_raw_annotations(path) if ids is None else read_voc(root, ids, path)
    annotations, findings = build_annotations(source, class_names)
    raise_errors(path, findings, class_names)
    logger.info(f"{name}: {len(annotations)} images, {len(annotations.classes)} boxes")
    if findings:
        logger.info(indent(findings_table(findings), "  "))
    if annotations.difficult.any():
        logger.info(f"  {annotations.difficult.sum()} boxes are marked difficult; a list file cannot say so.")
    return annotations


def list_lines(annotations: Annotations) -> list[str]:
    """One line per image: absolute path, then x1,y1,x2,y2,class for every box."""
    lines = []
    for index in range(len(annotations)):
        rows = zip(annotations.boxes(index).tolist(), annotations.labels(index).tolist(), strict=True)
        boxes = [",".join(f"{value:.7g}" for value in (*box, label)) for box, label in rows]
        lines.append(" ".join([os.path.abspath(annotations.path(index)), *boxes]))
    return lines


if __name__ == "__main__":
    run_script(main, read_constants(globals()))
