"""Split a VOC data set, and list it.

python tools/voc_annotation.py [--VOCdevkit_path=VOCdevkit/VOC2007 --classes_path=... "--group_pattern=(.+)_[0-9]+" ...]

Writes ImageSets/Main/{trainval,test,train,val}.txt in the VOC folder, and 2007_train.txt and 2007_val.txt, with lines
`path x1,y1,x2,y2,class ...`, in the current directory. train.py reads either kind.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import utils.runtime.startup  # noqa: F401 # isort: skip

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.data.annotations import Annotations, build_annotations
from utils.data.formats.detect_format import read_raw_annotations
from utils.data.formats.voc import read_voc, voc_files
from utils.data.formats.voc_xml import parse_voc_xml
from utils.data.quality.findings import Finding, findings_table, raise_errors
from utils.data.splits import make_splits, refuse_overwriting
from utils.io.class_names import read_class_names
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES
from utils.io.logger import logger
from utils.io.text import counted, is_text, shorten_list

# ----------------------------------------------------------------------------------------------------------------------
#   annotation_mode   What to write: 0 both, 1 the splits, 2 the lists. train.py needs the splits alone. Splits are the
#                     files in ImageSets/Main; lists are 2007_train.txt and 2007_val.txt, from the splits that are
#                     there.
#   VOCdevkit_path    The folder that holds Annotations and JPEGImages.
#   classes_path      The file of class names, one per line; it gives the class numbers in the lists.
#   trainval_percent  Share of all images for training and validation together, 0 to 1; the rest is the test split.
#   train_percent     Share of these that is trained on, 0 to 1; the rest is the validation split.
#   seed              The same number always makes the same splits. Choose once and keep it: results on different splits
#                     cannot be compared.
#   group_pattern     A regular expression for images that stay together; '' splits image by image. Where several images
#                     show nearly the same (frames of one video, pictures of one patient), a model would be validated on
#                     what it was trained on. Then write a regular expression that finds what these images share in
#                     their names (without the ending): its first bracket, or all that it matches where it has none,
#                     names the group. A group is never divided.
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
        ids = annotated_ids(root)
        splits = make_splits(
            ids, settings.trainval_percent, settings.train_percent, settings.seed, settings.group_pattern
        )
    if mode in (0, 2):
        class_names = read_class_names(settings.classes_path)
        lists = {name: read_split(root, name, splits.get(name), class_names) for name in ("train", "val")}

    texts = {root / "ImageSets" / "Main" / f"{name}.txt": part for name, part in splits.items()}
    texts |= {Path(f"2007_{name}.txt"): list_lines(annotations) for name, annotations in lists.items()}
    if not settings.overwrite:
        refuse_overwriting(texts)
    for path, lines in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        logger.info(f"{path}: {counted(len(lines), 'image')}")


def check(settings: SimpleNamespace) -> None:
    if settings.annotation_mode not in (0, 1, 2):
        raise UserError(f"annotation_mode is {settings.annotation_mode}; it must be 0, 1 or 2.")
    for name in ("trainval_percent", "train_percent"):
        value = getattr(settings, name)
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}; it is a share and must lie above 0 and at most at 1, as in 0.9.")


def annotated_ids(root: Path) -> list[str]:
    """The ids of the images with an annotation file, in alphabetical order, sub-folders with them; says how many boxes
    each class has, and which images and annotations have no partner."""
    folder = root / "Annotations"
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist. VOCdevkit_path must name the folder that holds Annotations.")
    xml_files = voc_files(root, "Annotations", (".xml",))
    if not xml_files.names:
        raise UserError(f"{folder} holds no .xml files. Copy your annotations there.")
    images = voc_files(root, "JPEGImages", IMAGE_SUFFIXES)
    refuse_unprintable([*xml_files.names, *images.names])
    print_counts(folder, sorted(xml_files.names))
    ids = sorted(stem for stem, name in images.exact.items() if xml_files.find(stem, os.path.splitext(name)[1]))
    lone = sorted(images.exact.keys() - set(ids))
    if lone:
        logger.warning(
            f"without an annotation in {root / 'JPEGImages'}, {counted(len(lone), 'image')}: {shorten_list(lone)}"
        )
    if missing := xml_files.unused():
        logger.warning(f"{len(missing)} annotations in {folder} have no image: {shorten_list(missing)}")
    # An annotation without its image belongs to the data set: the image is missed when the split is read.
    return sorted([*ids, *(os.path.splitext(name)[0] for name in missing)])


def refuse_unprintable(names: list[str]) -> None:
    """Raise ValueError where file names are no UTF-8, so that no text file can name them."""
    broken = [name.encode("utf-8", "surrogateescape") for name in names if not is_text(name)]
    if broken:
        raise UserError(
            f"{len(broken)} file names are no UTF-8, as after unpacking a zip of another system: "
            f"{shorten_list(list(map(repr, broken)), 3)}. Rename them, or unpack the archive anew, as by `unzip -O "
            "GBK`."
        )


def print_counts(folder: Path, names: list[str]) -> None:
    """How many boxes each class has. Raises ValueError that names the files that cannot be read."""
    counts, broken = Counter(), []
    for path in (os.path.join(folder, name) for name in names):
        try:
            counts.update(parse_voc_xml(path).names)
        except ValueError as error:
            broken.append(Finding("broken_annotation", path, str(error).removeprefix(f"{path}: ")))
    raise_errors(str(folder), broken)
    logger.info(f"{len(names)} annotation files in {folder}")
    for name, count in counts.most_common():
        logger.info(f"  {name}: {counted(count, 'box')}")


def read_split(root: Path, name: str, ids: list[str] | None, class_names: list[str]) -> Annotations:
    """The annotations of a split that was just made, or (ids None) of one that lies in ImageSets/Main; prints what is
    wrong with them. Raises for what makes them unusable."""
    path = str(root / "ImageSets" / "Main" / f"{name}.txt")
    source = read_raw_annotations(path) if ids is None else read_voc(root, ids, path)
    annotations, findings = build_annotations(source, class_names)
    raise_errors(path, findings, class_names)
    logger.info(f"{name}: {counted(len(annotations), 'image')}, {counted(len(annotations.classes), 'box')}")
    if findings:
        logger.info(indent(findings_table(findings), "  "))
    if annotations.difficult.any():
        logger.info(f"  {counted(annotations.difficult.sum(), 'box')} marked difficult; a list file cannot say so.")
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
