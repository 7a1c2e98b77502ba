"""Dividing the images of a data set into parts to train on, to validate on, and to test with."""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.data.formats.voc import voc_root
from utils.data.formats.yolo import places_of_parts
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import json_text, shorten_list


def split_command(annotation_path: str) -> str:
    """The command that splits a data set anew, whose training or validation part annotation_path names."""
    root = voc_root(annotation_path)
    if root is not None:
        return f'`python tools/voc_annotation.py --annotation_mode=1 --VOCdevkit_path="{root}"`'
    return f'`python tools/split_data.py --annotation_path="{annotation_path}"`'


def split_advice(annotation_path: str | Sequence[str]) -> str:
    """`split anew with ...`: how to split a data set that split_command takes, or that has parts already, which it
    refuses; of several sources each."""
    if not isinstance(annotation_path, str):
        return ", or ".join(map(split_advice, annotation_path))
    try:
        places = [] if voc_root(annotation_path) is not None else places_of_parts(annotation_path)
    except (OSError, ValueError):  # it was read when the training began, and may have changed
        places = []
    if not places:
        return f"split anew with {split_command(annotation_path)}"
    folder = Path(annotation_path) if Path(annotation_path).is_dir() else Path(annotation_path).parent
    whole = (folder / "whole.yaml").as_posix()
    keys = "keys path and names of" if Path(annotation_path).is_file() else "key names, the classes of"
    return (
        f"split anew: write {whole} with `train: {json_text(places)}` and the {keys} {annotation_path}, but no val, "
        f"and run {split_command(whole)}"
    )


def make_splits(
    ids: list[str], trainval_percent: float, train_percent: float, seed: int, group_pattern: str = ""
) -> dict[str, list[str]]:
    """{"trainval", "test", "train", "val"}: ids, sorted; says what became of groups. Raises as the functions below.

    trainval_percent: share of all images that is no test split. train_percent: share of these that is trained on.
    group_pattern: see group_ids.
    """
    counts = part_counts(len(ids), trainval_percent, train_percent)
    if group_pattern:
        groups = group_ids(ids, group_pattern)
        names = split_groups(groups, counts, seed)
        logger.info(groups_table(groups, names, counts))
        parts = {part: [image_id for name in names[part] for image_id in groups[name]] for part in names}
    else:
        parts = split_ids(ids, counts, seed)
    parts = {"trainval": parts["train"] + parts["val"], **parts}
    return {part: sorted(part_ids) for part, part_ids in parts.items()}


def refuse_overwriting(paths: Iterable[Path]) -> None:
    """Raise ValueError where a file that a split would be written to is there."""
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise UserError(f"{', '.join(present)} exist already; nothing was changed. --overwrite=True replaces them.")


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
