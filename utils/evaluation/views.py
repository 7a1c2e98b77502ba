"""What a detector finds in images as they are, in a mirror, and in both together; and what is doubtful of it."""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.data.loader import LoaderOptions, build_val_loader
from utils.data.tiles import tiled
from utils.evaluation.evaluate import join_detections, join_images
from utils.evaluation.matching import paired_iou, same_class_pairs
from utils.evaluation.types import DetectionTable
from utils.inference.postprocess import TestTimeAugmentation, detect, to_image
from utils.io.text import shorten_list

# Reasons for which a box is doubtful, as doubts_of counts them: {name: words}.
COUNTS = {
    "below_threshold": "below the threshold",
    "one_view_only": "in one view only",
    "class_left_out": "class left out",
}


class Views(NamedTuple):
    """DetectionTables of the same images, in their order. found: of all views together. single: of each view alone,
    as it is and mirrored; () for a detector without tta_flip. unreadable: paths that did not decode."""

    found: DetectionTable
    single: tuple[DetectionTable, ...]
    unreadable: list[str]


@torch.no_grad()
def detect_views(detector, annotations, batch_size, num_workers, options):
    """Run a utils.inference.Detector over the images of Annotations, whose boxes do not count. Returns Views.

    options: NMSOptions. A network with tta_flip sees each image twice, as it does without this.
    """
    entries, model = tiled(annotations, detector.tiles), detector.model.eval()
    workers = LoaderOptions(num_workers)
    loader = build_val_loader(entries, detector.input_shape, detector.resize_rule, batch_size, workers)
    has_views = isinstance(model, TestTimeAugmentation) and model.flip
    tables, unreadable = [[] for _ in range(3 if has_views else 1)], set()
    for batch in tqdm(loader, desc="detecting", leave=False, disable=None):
        raw = model(batch.images.to(detector.device))
        parts = [raw, *_by_mirror(raw)] if has_views else [raw]
        unreadable.update(batch.unreadable)
        for table, part in zip(tables, parts, strict=True):
            results = zip(detect(model, part, options), batch.placements, batch.indices, strict=True)
            table += [(index, to_image(result, placed, entries.sizes_hw[index])) for result, placed, index in results]
    found, *single = map(join_detections, tables)
    if detector.tiles.tile:
        found, *single = (join_images(table, entries, options) for table in (found, *single))
    # In the place of an unreadable image the network saw a grey one.
    grey = [index for index in range(len(annotations)) if annotations.path(index) in unreadable] if unreadable else []
    found, *single = (rows_of(table, ~np.isin(table.image_ids, grey)) for table in (found, *single))
    return Views(found, tuple(single), sorted(unreadable))


def rows_of(table, rows):
    """Some rows of a DetectionTable, by their numbers or as a mask."""
    return DetectionTable(*(column[rows] for column in table))


def _by_mirror(views):
    """What TestTimeAugmentation.forward gives, parted by whether a view is mirrored."""
    return [[view for view in views if view[2] == mirrored] for mirrored in (False, True)]


def seen_by(table, other, num_classes, iou=0.5):
    """(D,) bool: which boxes of a DetectionTable overlap a box of the same image and class in another one."""
    seen = np.zeros(len(table.scores), bool)
    for rows, others in same_class_pairs(other, table, num_classes):
        near = paired_iou(other.boxes_xyxy[others], table.boxes_xyxy[rows]) >= iou
        seen[rows[near]] = True
    return seen


def seen_by_all(views, num_classes):
    """(D,) bool: which boxes of views.found each single view shows."""
    seen = [seen_by(views.found, view, num_classes) for view in views.single]
    return np.all([np.ones(len(views.found.scores), bool), *seen], axis=0)


def doubts_of(table, is_seen, confidences, class_names):
    """What is doubtful about one image: {"doubt", each of COUNTS, "what" in words}; {} where nothing is.

    table: a DetectionTable of its boxes. is_seen: (D,) bool, of seen_by_all. confidences: (C,) from which on a class is
    sure, NaN for one that is left out. The doubt is the sum over doubtful boxes: how near one below its threshold comes
    to it, the score of one whose class is left out, and 1 for one that is sure and that one of the views does not show.
    """
    limits = confidences[table.classes]
    is_left_out, is_sure = np.isnan(limits), table.scores >= limits
    is_below = ~is_left_out & ~is_sure
    chosen = dict(zip(COUNTS, (is_below, is_sure & ~is_seen, is_left_out), strict=True))
    doubt = (table.scores / limits)[is_below].sum() + table.scores[is_left_out].sum() + chosen["one_view_only"].sum()
    boxes = [f"{class_names[number]} {score:.2f}" for number, score in zip(table.classes, table.scores, strict=True)]
    named = {key: [boxes[at] for at in np.flatnonzero(found)] for key, found in chosen.items()}
    what = "; ".join(f"{COUNTS[key]}: {shorten_list(some)}" for key, some in named.items() if some)
    return {"doubt": float(doubt), **{key: len(some) for key, some in named.items()}, "what": what} if what else {}
