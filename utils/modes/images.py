"""Detecting on pictures, one by one or a folder of them: boxes drawn and written down, objects cut out and counted."""

import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.data.formats.coco import find_images
from utils.image.codec import is_writable, write_image
from utils.image.draw import draw_boxes
from utils.inference.base import open_picture
from utils.io.errors import UserError
from utils.io.files import DISK_IS_FULL, IMAGE_SUFFIXES, files_below
from utils.io.logger import logger
from utils.io.text import counted
from utils.modes.label_files import DETECTIONS, LabelFiles
from utils.modes.window import Window

# Of a folder's results. Drawn pictures have a place of their own: a training that reads detections.json looks for
# pictures beside it, and would take those with painted boxes for the pictures themselves.
PICTURES, CROPS = "pictures", "crops"


def predict_image(detector, settings):
    """The picture of settings.image, or every path typed until an empty line; what was found is printed and saved.

    detector: a BaseDetector. settings: predict.py's constants. Raises FileNotFoundError and ValueError for a picture
    that cannot be used; of a typed one the message is printed.
    """
    with Window(settings.show) as window:
        if settings.image:
            window.show_until_key(_predict_one(detector, settings, settings.image, set()))
            return
        written = set()
        for path in _typed_paths():
            try:
                drawn = _predict_one(detector, settings, path, written)
            except (ValueError, OSError) as error:
                logger.info(error)
            else:
                window.show_until_key(drawn)


def _predict_one(detector, settings, path, written):
    """Detect on one picture, print and save. Returns what is drawn, uint8 RGB; written: see _target_of."""
    target = _target_of(Path(settings.dir_save_path, Path(path).name), written)
    refuse_overwriting({target}, {Path(path)})
    picture = open_picture(path, settings.max_megapixels)
    found = detector(picture, settings.confidence, settings.nms_iou, settings.max_boxes)
    drawn = save_picture(picture, found, target, detector.class_names)
    written.add(target)
    crops = save_crops(picture, found, target) if settings.crop else 0
    for name, score, box_xyxy in zip(found.names, found.scores, found.boxes_xyxy, strict=True):
        x1, y1, x2, y2 = np.round(box_xyxy).astype(int)
        logger.info(f"{name:16s} {score:.3f}  x {x1}-{x2}  y {y1}-{y2}")
    logger.info(
        f"{counted(len(found.scores), 'object')}; saved {target}" + f", {counted(crops, 'crop')}" * settings.crop
    )
    if sentence := fullness(found, settings.max_boxes):
        logger.warning(sentence)
    if settings.count:
        logger.info(count_table(Counter(found.names.tolist())))
    return drawn


def _target_of(place, written):
    """The Path of a picture's result: `place`, with a number where one of `written`, a set of paths, has it, and as
    .png where OpenCV writes no such files."""
    first = target = place if is_writable(place.name) else place.with_name(f"{place.name}.png")
    number = 1
    while target in written:
        number += 1
        target = first.with_name(f"{first.stem}_{number}{first.suffix}")
    return target


def _typed_paths():
    # "Copy as path" of Windows puts quotation marks around a path.
    try:
        yield from map(os.path.expanduser, iter(lambda: input("Picture (empty line ends): ").strip("\"' "), ""))
    except EOFError:
        logger.info("")


def predict_folder(detector, settings):
    """Every picture of the tree settings.dir_origin_path, into the same tree below pictures/ in dir_save_path.

    detector: a BaseDetector. settings: predict.py's constants. Raises ValueError where there are no pictures, where the
    results cannot be written, and, after all others are done, one that lists the pictures that failed.
    """
    folder, target_folder = Path(settings.dir_origin_path), Path(settings.dir_save_path)
    names = pictures_below(folder, target_folder)
    targets = _targets_of(names, folder, target_folder)
    counts, failed, full = Counter(), [], 0
    with (
        _told_of_the_disk(target_folder),
        LabelFiles(target_folder, detector.class_names, settings.voc_xml, settings.yolo_txt) as label_files,
        tqdm(total=len(names), desc="pictures", disable=None) as bar,
    ):
        for start in range(0, len(names), settings.batch_size):
            pictures, batch = {}, names[start : start + settings.batch_size]
            for name in batch:
                try:
                    label_files.check(name)
                    pictures[name] = open_picture(str(folder / name), settings.max_megapixels)
                except (OSError, ValueError) as error:
                    failed.append(str(error))
            options = settings.confidence, settings.nms_iou, settings.max_boxes
            results = detector(list(pictures.values()), *options, batch_size=settings.batch_size)
            for (name, picture), found in zip(pictures.items(), results, strict=True):
                with _listed(failed, name):
                    save_picture(picture, found, targets[name], detector.class_names)
                    if settings.crop:
                        save_crops(picture, found, target_folder / CROPS / name, folder_of_its_own=False)
                    label_files.add(name, picture.shape[:2], found)
                    counts.update(found.names.tolist())
                    full += len(found.scores) >= settings.max_boxes
            bar.update(len(batch))
    logger.info(
        f"{counted(len(names) - len(failed), 'picture')}, {counted(counts.total(), 'object')}; saved in {target_folder}"
    )
    if full:
        logger.warning(f"{counted(full, 'picture')} with as many objects as max_boxes = {settings.max_boxes} allows.")
    if settings.count:
        logger.info(count_table(counts))
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} pictures failed:\n  " + "\n  ".join(failed))


def _targets_of(names, folder, target_folder):
    """{name: Path of the drawn picture} of the pictures of a folder. Raises as refuse_overwriting does, and warns of
    what a later training would mistake for them."""
    targets, written = {}, set()
    for name in names:
        targets[name] = _target_of(target_folder / PICTURES / name, written)
        written.add(targets[name])
    refuse_overwriting(written | {target_folder / name for name in names}, {folder / name for name in names})
    taken = [name for name in names if (target_folder / name).exists()]
    # Where it would not find all of them, a training refuses to start.
    if taken and all(find_images(str(target_folder / DETECTIONS), names, [])):
        logger.warning(
            f"{target_folder} holds a picture {taken[0]} already: before you train on {target_folder / DETECTIONS}, "
            f"move it to a folder without {taken[0]}"
        )
    return targets


@contextmanager
def _listed(failed, name):
    """What goes wrong with the results of one picture becomes a sentence of a list, but for a disk that takes none."""
    try:
        yield
    except ValueError as error:
        failed.append(str(error))
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise
        failed.append(f"{name}: {error.filename} cannot be written: {error.strerror}.")


@contextmanager
def _told_of_the_disk(folder):
    """A folder that cannot be written to, or whose disk is full, as one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"dir_save_path is {str(folder)!r}, where {error.filename or 'a result'} cannot be written: "
            f"{error.strerror}. Free space there, or choose a folder that can be written to."
        ) from error


def pictures_below(folder, without):
    """Names of the pictures in a folder and its sub-folders, with forward slashes; what lies in `without`, the results
    of an earlier run, does not count. A line names the endings of files that are no pictures. Raises ValueError where
    there are none."""
    if folder.is_file():
        raise UserError(
            f"dir_origin_path is {str(folder)!r}, which is a file; expected a folder. For one picture take "
            f'--mode=predict --image="{folder}".'
        )
    if not folder.is_dir():
        raise UserError(f"dir_origin_path is {str(folder)!r}, and there is no such folder; correct the path.")
    results = without.resolve()
    is_own = folder.resolve().is_relative_to(results)
    names = files_below(str(folder), IMAGE_SUFFIXES)
    names = [name for name in names if is_own or not (folder / name).resolve().is_relative_to(results)]
    if not names:
        raise UserError(f"dir_origin_path is {str(folder)!r}, which holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    files = (path for path in folder.rglob("*") if path.is_file() and (is_own or results not in path.resolve().parents))
    shown = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    others = Counter(path.suffix.lower() or "without an ending" for path in shown)
    if left_out := [f"{count} {ending}" for ending, count in others.items() if ending not in IMAGE_SUFFIXES]:
        logger.warning(f"{folder} also holds files that are no pictures known here: {', '.join(sorted(left_out))}")
    return names


def refuse_overwriting(targets, sources):
    """Raise ValueError where a result would take the place of a picture of the user; both are sets of paths."""
    lost = {path.resolve() for path in targets} & {path.resolve() for path in sources}
    if lost:
        raise UserError(
            f"dir_save_path is where the pictures themselves are: {sorted(lost)[0]} would be overwritten. Choose "
            "another folder."
        )


def save_picture(picture, found, target, class_names):
    """Write a picture with its boxes. Returns what was written, (H, W, 3) uint8 RGB."""
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_boxes(picture, found.boxes_xyxy, found.class_ids, found.scores, class_names)
    write_image(str(target), drawn)
    return drawn


def save_crops(picture, found, target, folder_of_its_own=True):
    """Write every object as a PNG of its own, see crops.

    target: the place of the picture; crops go to its folder, or to crops/ in it. Returns how many there are.
    """
    folder = target.parent / CROPS if folder_of_its_own else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in crops(picture, found, target.name):
        write_image(str(folder / name), pixels)
    return len(found.scores)


def crops(picture, found, picture_name, suffix=".png"):
    """Yield (file name, (h, w, 3) uint8 RGB) of every object: street.jpg_car_2.png is the second object of street.jpg,
    counted from the surest."""
    height, width = picture.shape[:2]
    for number, (box_xyxy, name) in enumerate(zip(found.boxes_xyxy, found.names, strict=True), 1):
        # Whole pixels, at least one: what the box touches.
        x1, y1 = np.minimum(np.floor(box_xyxy[:2]), (width - 1, height - 1)).astype(int)
        x2, y2 = np.maximum(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1)).astype(int)
        yield f"{picture_name}_{file_name_of(name)}_{number}{suffix}", picture[y1:y2, x1:x2]


def file_name_of(text):
    """A text as a part of a file name, without what no file name may hold."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", text)


def fullness(found, max_boxes):
    """A sentence where a picture has as many objects as max_boxes allows, '' where it has fewer."""
    sentence = f"max_boxes = {max_boxes} allows no more of a picture; there may be more objects."
    return sentence if len(found.scores) >= max_boxes else ""


def count_table(counts):
    """Lines `class  number`, the most frequent first; a sentence where nothing was found."""
    width = max(map(len, counts), default=0)
    return "\n".join(f"  {name:<{width}}  {count}" for name, count in counts.most_common()) or "  no objects"
