"""See every problem of your data before time is spent on training.

python tools/check_data.py [--train_annotation_path=... --val_annotation_path=... --classes_path=... ...]

Data, network and input size are those of train.py's constants as they stand, which can be changed here for one look in
the same way as there. Every image is decoded once. It prints what is wrong, the worst first, and what training will do
about it, and writes into save_dir:

    findings.csv        a row for each finding, with the image
    contact_sheet.jpg   random images with their boxes: the quickest way to see labels that are off
    classes.png         how often each class occurs in train and in val
    boxes.png           how large boxes are for the network, and how well its anchors fit them
    classes.txt         where classes_path is '': the names of the classes, for train.py's classes_path

Your files are never changed. The exit status is 1 where something makes training pointless, or its scores wrong.
"""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

import numpy as np
import torch
from tqdm import tqdm

from nets import build_model
from utils.config.cli import run_script
from utils.config.commands import data_command
from utils.config.constants import read_constants, require_literals, train_constants
from utils.config.rules import check_values
from utils.data.anchors import choose_decode_rule
from utils.data.image_cache import UnreadableImageError, decode
from utils.data.loader import MAX_REPLACEMENTS
from utils.data.quality import findings as data_findings  # its tables by name would count as constants of this script
from utils.data.quality.checks import box_sizes_at_input, class_counts, quick_findings, same_images
from utils.data.quality.findings import Finding, by_kind, findings_table, write_findings
from utils.data.quality.near_duplicates import join_hashes, near_duplicates, perceptual_hash
from utils.data.sources import read_data_sets
from utils.data.splits import split_advice
from utils.image.codec import write_image
from utils.image.opencv import cv2
from utils.io.class_names import write_class_names
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import shorten_list
from utils.visualize import data_report as pictures

# ----------------------------------------------------------------------------------------------------------------------
#   save_dir          The folder of the report: new, empty, or that of an earlier report, which is replaced.
#   num_pictures      How many images the contact sheet shows; 16 fill a screen.
#   seed              Chooses these images. Another number shows others.
# ----------------------------------------------------------------------------------------------------------------------
save_dir = "logs/data_report"
num_pictures = 16
seed = 0

_OF_TRAIN = (
    *("train_annotation_path", "val_annotation_path", "classes_path", "keep_difficult"),
    *("model_name", "input_shape", "tile", "anchors_path", "anchors_mask"),
)
# Each thread holds one decoded image: this bounds the memory. So many images are handed out at a time.
_MOST_THREADS, _CHUNK = 8, 512
_FILES = ("findings.csv", "contact_sheet.jpg", "classes.png", "boxes.png", "classes.txt")
# Below this share of boxes with a good anchor, anchors of one's own are worth a try.
_LEAST_RECALL = 0.95

_FIRST_STEPS = data_findings.REMEDIES | {
    "leaked_image": "Take these images out of one of the two sets, or {split}.",
    "no_val_boxes": "Check that val_annotation_path names the right annotations; scores need labelled images.",
}


class FileContent(NamedTuple):
    """What an image file's content tells. file_hash: of its bytes; look: see perceptual_hash. Both None where finding
    says that it cannot be read."""

    file_hash: bytes | None
    look: tuple | None
    finding: Finding | None


def constants():
    """All that the command line takes: the constants above, and train.py's."""
    return read_constants(globals()) | train_constants(_OF_TRAIN)


def check(values):
    """The settings as a namespace. Raises ValueError: parameter, got, expected."""
    require_literals(values, _OF_TRAIN)
    settings = check_values(values)
    if settings.num_pictures < 1:
        raise UserError(f"num_pictures is {settings.num_pictures}; expected 1 or more, such as 16.")
    folder = Path(settings.save_dir)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "findings.csv").exists())):
        raise UserError(f"save_dir is {settings.save_dir}, which holds other things; name a new folder.")
    return settings


def main(settings):
    """Check the data, print and write the report. Exits with status 1 where training would be pointless or wrong."""
    anchors_wh = anchors_of(settings)
    paths = {"train": settings.train_annotation_path, "val": settings.val_annotation_path}
    class_names, read = read_data_sets(paths, settings.classes_path, strict=False)
    sets = {name: part.annotations for name, part in read.items()}
    findings = [finding for part in read.values() for finding in part.findings]
    findings += quick_findings(
        *sets.values(), class_names, settings.input_shape, settings.keep_difficult, settings.tile
    )
    contents = {name: read_contents(annotations, name) for name, annotations in sets.items()}
    findings += [content.finding for part in contents.values() for content in part if content.finding]
    findings += row_that_stops_training(sets["train"], contents["train"])
    findings += compare_contents(sets, contents, {(finding.kind, finding.image) for finding in findings})

    folder = Path(settings.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:  # those of an earlier report
        (folder / name).unlink(missing_ok=True)
    write_findings(folder / "findings.csv", findings)
    if not settings.classes_path:
        write_class_names(folder / "classes.txt", class_names)
    draw_pictures(sets, contents, class_names, anchors_wh, settings, folder)

    logger.info(f"\n{set_table(sets)}\n\n{class_table(sets, class_names)}\n")
    for sentence in (anchor_sentence(sets["train"], anchors_wh, settings), findings_table(findings)):
        logger.info(f"{sentence}\n") if sentence else None
    written = [name for name in _FILES if (folder / name).exists()]
    logger.info(f"The report is in {folder}: {', '.join(written)}")
    if not settings.classes_path:
        logger.info(f'The classes are in it too: for training set classes_path = "{folder.as_posix()}/classes.txt".')
    sentence, is_fit = verdict(findings, class_names, split_advice(settings.train_annotation_path))
    logger.info(sentence)
    if not is_fit:
        sys.exit(1)


def anchors_of(settings):
    """The anchors (K, 2) that train.py would train with, as width and height in input pixels; (0, 2) for none."""
    with torch.device("meta"):  # takes no memory, and checks anchors_path and anchors_mask as training does
        model = build_model(settings.model_name, 1, None, choose_decode_rule(settings, {}))
    rule = {"anchors": [], "anchors_mask": []} | model.decode_rule
    used = sorted({number for mask in rule["anchors_mask"] for number in mask})
    return np.array([rule["anchors"][number] for number in used]).reshape(-1, 2)


def read_contents(annotations, set_name):
    """Decode every image of a set, several at a time. Returns a FileContent for each."""
    cv2.setNumThreads(1)  # the images are decoded side by side: OpenCV's own threads would only wait for each other
    found = []
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool,
        tqdm(total=len(annotations), desc=f"decoding {set_name}", unit="image", disable=None) as progress,
    ):
        for start in range(0, len(annotations), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(annotations)))
            for content in pool.map(lambda index: look_at(annotations, index), chunk):
                found.append(content)
                progress.update()
    return found


def row_that_stops_training(annotations, contents):
    """A Finding where so many training images in a row cannot be decoded that training finds none in their place."""
    most, length, total = min(len(contents), MAX_REPLACEMENTS), 0, len(contents)
    for index in range(2 * total):  # behind the last one comes the first
        length = 0 if contents[index % total].look else length + 1
        if length == most:
            detail = f"{most} of {total} in training, from {annotations.path((index + 1 - most) % total)} on"
            return [Finding("undecodable_row", "", detail)]
    return []


def look_at(annotations, index):
    """The FileContent of one image."""
    path = annotations.path(index)
    try:
        file_hash = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
        truncated = set()
        look = perceptual_hash(decode(annotations, index, truncated=truncated))
        return FileContent(file_hash, look, Finding("truncated_image", path) if truncated else None)
    except (OSError, UnreadableImageError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        return FileContent(None, None, Finding("undecodable_image", path, reason))


def compare_contents(sets, contents, known):
    """Findings on identical files, and on images of val that look like images of train.

    sets: {"train", "val"}: Annotations. contents: a FileContent for each image of these. known: (kind, image) of what
    was found already, which is not said again.
    """
    hashes = [[content.file_hash for content in contents[name]] for name in ("train", "val")]
    findings = [
        finding._replace(detail=f"identical file, {finding.detail}")
        for finding in same_images(sets["train"], sets["val"], *hashes)
        if (finding.kind, finding.image) not in known
    ]
    leaked = {image for kind, image in known if kind == "leaked_image"}
    leaked |= {finding.image for finding in findings if finding.kind == "leaked_image"}
    decoded = {name: [i for i, content in enumerate(part) if content.look] for name, part in contents.items()}
    seen = {name: join_hashes([contents[name][index].look for index in decoded[name]]) for name in sets}
    for val_index, train_index, count in near_duplicates(seen["train"], seen["val"]):
        path = sets["val"].path(decoded["val"][val_index])
        more = f" and {count - 1} more" if count > 1 else ""
        if path not in leaked:
            detail = f"like {sets['train'].path(decoded['train'][train_index])}{more}"
            findings.append(Finding("leaked_near_duplicate", path, detail))
    return findings


def draw_pictures(sets, contents, class_names, anchors_wh, settings, folder):
    """Write contact_sheet.jpg (where any image decodes), classes.png and boxes.png."""
    decoded = [(name, i) for name, part in contents.items() for i, content in enumerate(part) if content.look]
    if decoded:
        random = np.random.default_rng(settings.seed)
        chosen = sorted(random.choice(len(decoded), min(settings.num_pictures, len(decoded)), replace=False).tolist())
        samples = [(sets[name], index, name) for name, index in (decoded[number] for number in chosen)]
        write_image(str(folder / "contact_sheet.jpg"), pictures.contact_sheet(samples, class_names))
    counts = [class_counts(annotations, len(class_names)) for annotations in sets.values()]
    write_image(str(folder / "classes.png"), pictures.class_chart(*counts, class_names))
    sizes_wh = [box_sizes_at_input(annotations, settings.input_shape, settings.tile) for annotations in sets.values()]
    chart = pictures.box_chart(*sizes_wh, settings.input_shape, anchors_wh, settings.model_name, settings.seed)
    write_image(str(folder / "boxes.png"), chart)


def set_table(sets):
    """A line for each set: how much there is. Returns text."""
    lines = ["set    images    boxes  boxes per image  images without boxes  classes with boxes"]
    for name, annotations in sets.items():
        empty = (np.diff(annotations.offsets) == 0).sum()
        mean = len(annotations.classes) / max(len(annotations), 1)
        classes = len(np.unique(annotations.classes))
        lines.append(
            f"{name:<5}{len(annotations):>8}{len(annotations.classes):>9}{mean:>17.1f}{empty:>22}{classes:>20}"
        )
    return "\n".join(lines)


def class_table(sets, class_names):
    """A line for each class, the frequent ones first: boxes, and share of all boxes, in each set. Returns text."""
    counts = np.stack([class_counts(annotations, len(class_names)) for annotations in sets.values()])
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    lines = ["boxes of train        %   of val        %  class"]
    for class_id in np.argsort(-counts.sum(axis=0), kind="stable"):
        (train, val), (train_share, val_share) = counts[:, class_id], shares[:, class_id]
        lines.append(f"{train:>14}{train_share:>9.1f}{val:>9}{val_share:>9.1f}  {class_names[class_id]}")
    return "\n".join(lines)


def anchor_sentence(annotations, anchors_wh, settings):
    """How well the anchors fit the training boxes, and what to do where they do not; '' without anchors or boxes."""
    if not len(anchors_wh) or not len(annotations.classes):
        return ""
    sizes_wh = box_sizes_at_input(annotations, settings.input_shape, settings.tile)
    recall, mean_iou = pictures.anchor_recall(sizes_wh, anchors_wh)
    better = data_command("tools/kmeans_for_anchors.py", settings)
    hint = "" if recall >= _LEAST_RECALL else f" Anchors of your own may help: {better}"
    return (
        f"Anchors of {settings.model_name}: {recall:.1%} of the training boxes have one with an IoU over "
        f"{pictures.GOOD_IOU:g}; the mean best IoU is {mean_iou:.2f}.{hint}"
    )


def verdict(findings, class_names, split):
    """(a sentence on what to do now, whether the data are fit for training). split: how to split
    anew, see split_advice."""
    groups = by_kind(findings)
    if not groups:
        return "Nothing is wrong with these data. Enjoy the training.", True
    kind, found = next(iter(groups.items()))
    level, what, _ = data_findings.KINDS[kind]
    times = "once" if len(found) == 1 else f"{len(found)} times"
    if level in ("error", "critical"):
        step = _FIRST_STEPS[kind].format(names=shorten_list(class_names, data_findings.MAX_CLASSES_NAMED), split=split)
        return f"Do this first, for {what} ({times}): {step[0].lower()}{step[1:]}", False
    if level == "warning":
        return f"Training can start. Most worth a look before it: {what} ({times}).", True
    return "Training can start: nothing here harms it.", True


if __name__ == "__main__":
    run_script(main, constants(), check)
