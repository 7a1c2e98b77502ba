"""Split a data set of any layout into training and validation.

python tools/split_data.py --annotation_path=my_data [--train_percent=0.9 "--group_pattern=(.+)_[0-9]+" ...]

annotation_path is what train.py takes: a folder of images with their label files, a data.yaml, a COCO file, or a list.
It writes files that train.py reads, says which to name for train_annotation_path and val_annotation_path, and changes
no other:

    a COCO file a.json      a_train.json and a_val.json beside it
    a list a.txt            a_train.txt and a_val.txt beside it, with the boxes that it holds
    a.yaml or a.data        a_train.txt and a_val.txt beside it, lists of the images, and a_split.yaml, which names both
                            lists and the classes
    a folder                train.txt and val.txt, lists of the images, in it

Folders of the VOC format have tools/voc_annotation.py.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.formats.list_file import LIST_LINE
from utils.data.formats.voc import voc_root
from utils.data.quality.findings import raise_errors
from utils.data.splits import make_splits, refuse_overwriting, split_command
from utils.io.errors import UserError
from utils.io.files import is_inside, read_lines
from utils.io.logger import logger
from utils.io.text import counted, is_text, json_text
from utils.io.yaml_files import load_yaml

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_path   The data set as a whole.
#   train_percent     Share of the images that is trained on, 0 to 1; the rest is the validation split.
#   seed              The same number always makes the same split. Choose once and keep it: results on different splits
#                     cannot be compared.
#   group_pattern     A regular expression for images that stay together; '' splits image by image. Where several images
#                     show nearly the same (frames of one video), write a regular expression whose first bracket is what
#                     these have in common in their paths, as in (.+)_[0-9]+ for street_01 and street_02: a group is
#                     never divided.
#   overwrite         False: where a file that would be written exists already, stop and change nothing.
# ----------------------------------------------------------------------------------------------------------------------
annotation_path = ""
train_percent = 0.9
seed = 0
group_pattern = ""
overwrite = False

# Files that describe a data set, which may have parts.
DESCRIPTIONS = (".yaml", ".yml", ".data")


def main(settings):
    """Write the files, and say how to use them. Nothing is written where ValueError is raised for a mistake."""
    if not 0 < settings.train_percent < 1:
        raise UserError(f"train_percent is {settings.train_percent}; expected a share between 0 and 1, as 0.9.")
    path = Path(settings.annotation_path)
    if not settings.annotation_path or not path.exists():
        raise UserError(f"annotation_path is {settings.annotation_path!r}, which does not exist; name the data set.")
    texts = split_coco(path, settings) if path.suffix.lower() == ".json" else split_paths(path, settings)
    if not settings.overwrite:
        refuse_overwriting(texts)
    for target, text in texts.items():
        target.write_text(text, encoding="utf-8")
    named = [target for target in texts if target.suffix == ".yaml"] * 2 or texts
    constants = zip(("train_annotation_path", "val_annotation_path"), named, strict=True)
    logger.info("For train.py:\n" + "\n".join(f'{name} = "{target.as_posix()}"' for name, target in constants))


def parts_of(names, settings):
    """(names of train, names of val), each in the order of `names`."""
    if unreadable := [name for name in names if not is_text(name)]:
        raise UserError(f"{len(unreadable)} file names are no UTF-8, such as {unreadable[0]!r}; rename them.")
    splits = make_splits(names, 1.0, settings.train_percent, settings.seed, settings.group_pattern)
    chosen = set(splits["train"])
    parts = [name for name in names if name in chosen], [name for name in names if name not in chosen]
    logger.info(f"{counted(len(parts[0]), 'image')} to train on, {len(parts[1])} to validate on")
    return parts


def split_coco(path, settings):
    """{path: content} of the two COCO files: each has all that belongs to its images, and what belongs to none.

    Where the reader looks for images depends on the name of the file, so the new ones name the folders of theirs.
    """
    source = read_raw_annotations(path)
    raise_errors(str(path), source.findings)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    texts, parts = {}, parts_of([item["file_name"] for item in content["images"]], settings)
    found = list(zip(content["images"], source.paths, strict=True))
    for part, names in zip(("train", "val"), map(set, parts), strict=True):
        images = [
            item | {"file_name": name_from(path.parent, image)} for item, image in found if item["file_name"] in names
        ]
        ids = {item["id"] for item in images}
        boxes = [item for item in content["annotations"] if item["image_id"] in ids]
        text = json_text(content | {"images": images, "annotations": boxes})
        texts[path.with_name(f"{path.stem}_{part}.json")] = text
    return texts


def name_from(folder, image):
    """The path of an image from a folder, or, where it lies elsewhere, from the folder above, as COCO files name it."""
    name = os.path.relpath(image, folder)
    return Path(name if is_inside(name) else os.path.relpath(image, folder / "..")).as_posix()


def split_paths(path, settings):
    """{path: content} of two lists: of the images, or, for a list with boxes, of its lines; and of a description."""
    main = path / "ImageSets" / "Main"
    split = main / "train.txt" if main.is_dir() else path
    if voc_root(str(split)) is not None:
        kind = "a VOC data set" if main.is_dir() else "a split of a VOC data set"
        raise UserError(f"{path} is {kind}; {split_command(str(split))} makes all of its splits anew.")
    source = read_raw_annotations(path)
    raise_errors(str(path), source.findings)
    is_description = path.is_file() and path.suffix.lower() in DESCRIPTIONS
    is_list = path.is_file() and not is_description
    if not is_list:
        refuse_parts(path, source.paths)
    images = list(map(os.path.normpath, source.paths))
    lines_of = {image: [os.path.abspath(image)] for image in images}
    if is_list and (lines := lines_with_boxes(path)):
        lines_of = {image: [] for image in images}
        # An image may stand on several lines, which must not be divided.
        for image, line in zip(images, lines, strict=True):
            lines_of[image].append(line)
    folder, stem = (path, "") if path.is_dir() else (path.parent, f"{path.stem}_")
    parts = zip(("train", "val"), parts_of(list(lines_of), settings), strict=True)
    texts = {
        folder / f"{stem}{part}.txt": "".join(f"{line}\n" for image in images for line in lines_of[image])
        for part, images in parts
    }
    return texts | ({folder / f"{stem}split.yaml": description(path, source.names)} if is_description else {})


def description(path, names):
    """The content of a data.yaml of the two lists, with what the lists do not say: the names of the classes, and the
    shape of key points, of the description that was split."""
    lines = [f"{part}: {json_text(f'{path.stem}_{part}.txt')}" for part in ("train", "val")]
    lines.append(f"names: {json_text(names)}")
    if path.suffix.lower() != ".data" and (shape := load_yaml(str(path)).get("kpt_shape")):
        lines.append(f"kpt_shape: {json_text(list(map(int, shape)))}")
    return "\n".join([*lines, ""])


def lines_with_boxes(path):
    """The lines of a list of images and boxes; none where it names images alone."""
    lines = [line.strip() for line in read_lines(str(path)) if line.strip()]
    return lines if any(LIST_LINE.match(line)["boxes"] for line in lines) else []


def refuse_parts(path, train_paths):
    """Raise ValueError where a data set has a validation part of its own, which would be left out."""
    try:
        val_paths = read_raw_annotations(path, "val").paths
    except (OSError, ValueError):  # it names none, or none that is there
        return
    if set(val_paths) != set(train_paths):
        raise UserError(
            f"{path} is split already: {len(train_paths)} images to train on, {len(val_paths)} to validate on. Name it "
            "for both train_annotation_path and val_annotation_path, or split the folder of one of its parts."
        )


if __name__ == "__main__":
    run_script(main, read_constants(globals()))
