"""What a training learns from and validates on, as the constants of train.py say."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from utils.config.commands import data_command
from utils.data.annotations import Annotations
from utils.data.copy_paste import find_donors
from utils.data.quality.checks import quick_findings
from utils.data.quality.findings import findings_table, raise_errors
from utils.data.sampling import epoch_length
from utils.data.sources import path_words, paths_of, read_data_sets, source_repeats, weights_words
from utils.data.tiles import tiled
from utils.image.tiles import TileOptions
from utils.io.logger import logger
from utils.io.text import shorten_list


@dataclass
class TrainingData:
    """What a training learns from, what it validates on, and what was found wrong with both.

    tiles: in which both are looked at. repeats: (N,) how often each entry is drawn in an epoch; None: once.
    """

    class_names: list[str]
    train: Annotations
    val: Annotations
    findings: list
    tiles: TileOptions = field(default_factory=TileOptions)
    repeats: np.ndarray | None = None

    @cached_property
    def entries(self):
        """What an epoch consists of: the images of train, or their tiles."""
        return tiled(self.train, self.tiles)

    @property
    def epoch_length(self):
        """How many samples an epoch has."""
        return epoch_length(len(self.entries), self.repeats)


def load_dataset(settings):
    """Read the annotations that the constants name, as TrainingData; what is wrong with them is logged.

    Raises UserError for what makes them unusable.
    """
    paths = {"train": settings.train_annotation_path, "val": settings.val_annotation_path}
    class_names, sets = read_data_sets(paths, settings.classes_path)
    train, val = (data_set.annotations for data_set in sets.values())
    findings = [finding for data_set in sets.values() for finding in data_set.findings]
    findings += quick_findings(train, val, class_names, settings.input_shape, settings.keep_difficult, settings.tile)
    raise_errors(path_words(settings.train_annotation_path), findings, class_names)
    if findings:
        table = findings_table(findings)
        deeper = data_command("tools/check_data.py", settings)
        logger.info(f"\nIn the data, the worst first ({deeper} looks deeper):\n{table}\n")
    tiles = TileOptions(settings.tile, settings.tile_overlap)
    data = TrainingData(class_names, learned(train, settings), val, findings, tiles)
    data.repeats = _repeats(settings, data, sets["train"].counts)
    return data


def learned(annotations, settings):
    """The annotations with the boxes that are learned; scores look at all of them."""
    return annotations if settings.keep_difficult else annotations.without_difficult()


def pasted_boxes(settings, data):
    """The Donors of copy_paste, which a line names; None where it is 0 or there are none. data: TrainingData."""
    if not settings.copy_paste:
        return None
    donors = find_donors(data.entries)
    if donors is None:
        logger.warning(
            f"copy_paste is {settings.copy_paste}, but no class has fewer boxes than another: nothing is pasted."
        )
        return None
    counts = np.bincount(data.entries.classes[donors.rows], minlength=len(data.class_names))
    order = [number for number in np.argsort(counts, kind="stable") if counts[number]]
    boxes = shorten_list([f"{data.class_names[number]} {counts[number]}" for number in order])
    logger.info(f"copy_paste: boxes that may be pasted: {boxes}")
    return donors


def _repeats(settings, data, source_counts):
    """(N,) how often each entry is drawn in an epoch, as source_weights and tile_empty say and lines show, or None.

    data: TrainingData. source_counts: images of each source of train_annotation_path, in the order of the images.
    """
    entries, share, repeats = data.entries, settings.tile_empty, None
    if len(set(settings.source_weights)) > 1:
        repeats = source_repeats(source_counts, settings.source_weights, getattr(entries, "images", None))
        logger.info(weights_words(paths_of(settings.train_annotation_path), source_counts, settings.source_weights))
    if not settings.tile:
        return repeats
    is_empty = np.diff(entries.offsets) == 0
    empty, count = int(is_empty.sum()), len(entries)
    drawn = empty if share == 1 else min(empty, round(share / (1 - share) * (count - empty)))
    words = f", {empty} of them without objects" + (f", of which each epoch draws {drawn}" if drawn < empty else "")
    logger.info(f"In tiles of {settings.tile} pixels, {len(data.train)} images are {count} to train on{words}.")
    if drawn == empty:
        return repeats
    return np.where(is_empty, drawn / empty, 1.0) * (1.0 if repeats is None else repeats)
