"""Reading a VOC folder: Annotations/*.xml, JPEGImages/ and ImageSets/Main/<split>.txt."""

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.data.formats.base import RawAnnotations, RawAnnotationsBuilder
from utils.data.formats.voc_xml import parse_voc_xml
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES, files_below, is_inside, read_lines
from utils.io.lookup import FileIndex, words_on_near
from utils.io.text import did_you_mean, shorten_list

FLAGS = ("-1", "0", "1")  # of an image in the devkit's split of one class: without it, difficult, with it
WITH_ENDING = "it is there, but a split must name images without their ending"


def voc_root(annotation_path: str) -> Path | None:
    """The VOC folder of <root>/ImageSets/Main/<split>.txt; None for any other path."""
    folder = os.path.dirname(os.path.abspath(annotation_path))
    if Path(folder).parts[-2:] == ("ImageSets", "Main"):
        return Path(os.path.normpath(os.path.join(os.path.dirname(annotation_path), "..", "..")))
    return None


def read_voc_split(annotation_path: str) -> RawAnnotations:
    """Read the images that a split names. Raises FileNotFoundError where it is missing, ValueError where empty."""
    root = voc_root(annotation_path)
    if not os.path.isfile(annotation_path):
        raise MissingFileError(_missing_split_message(annotation_path, root))
    lines = [line.strip() for line in read_lines(annotation_path) if line.strip()]
    if not lines:
        raise UserError(f"{annotation_path} is empty; it must name at least one image.")
    return read_voc(root, lines, annotation_path)


def read_voc(root: Path, lines: Sequence[str], annotation_path: str) -> RawAnnotations:
    """Read the images of a VOC folder that the lines of a split name; annotation_path stands in messages only.

    Raises FileNotFoundError where root has no Annotations or JPEGImages.
    """
    # Looking ids up in listings keeps `../` in a split file from leading anywhere.
    xml_files, images = voc_files(root, "Annotations", (".xml",)), voc_files(root, "JPEGImages", IMAGE_SUFFIXES)
    builder, shared, written = RawAnnotationsBuilder(annotation_path), set(images.shared()), set(lines)
    folders = {name: [os.path.join(root, name)] for name in ("Annotations", "JPEGImages")}
    for line in tqdm(lines, desc=f"reading {annotation_path}", unit="file", disable=None, delay=1, leave=False):
        # The devkit writes `id` or `id flag`; ids of other tools may hold spaces and folders.
        image_id = line.replace("\\", "/")
        image_name = images.find(image_id, owned=written)
        if image_name is None and xml_files.find(image_id) is None:
            stem, *flag = image_id.rsplit(maxsplit=1)
            if flag and flag[0] in FLAGS:
                image_id = stem
                image_name = images.find(image_id, owned=written)
        if image_name is None:
            path = os.path.join(root, "JPEGImages", image_id)
            is_named = os.path.splitext(image_id)[0] in images.exact
            builder.report("missing_image", path, WITH_ENDING if is_named else _near(image_id, folders["JPEGImages"]))
            continue
        path = os.path.join(root, "JPEGImages", image_name)
        stem, ending = os.path.splitext(image_name)
        xml_name = xml_files.find(stem, ending, images.exact)
        if xml_name is None:
            builder.report("missing_annotation", path, words_on_near(stem, folders["Annotations"]))
            continue
        if stem in shared:
            builder.report("shared_label", path, "another image there has its name with another ending")
        _report_spelling(builder, path, image_id, stem, xml_name)
        add_voc_image(builder, path, os.path.join(root, "Annotations", xml_name))
    return builder.named_source()


def _near(image_id: str, folders: Sequence[str]) -> str:
    """words_on_near, but of no folder that a split leads to with `../`."""
    return words_on_near(image_id, folders) if is_inside(image_id) else ""


def add_voc_image(builder: RawAnnotationsBuilder, path: str, xml_path: str) -> None:
    """Add an image with the boxes of its annotation file, or report what is wrong with that."""
    try:
        annotation = parse_voc_xml(xml_path)
    except (OSError, ValueError) as error:
        builder.report("broken_annotation", xml_path, str(error).removeprefix(f"{xml_path}: "))
        return
    builder.add_image(path, annotation.size_hw)
    for name, box_xyxy, difficult in zip(*annotation[:3], strict=True):
        builder.add_named_box(box_xyxy, name, difficult)


def _report_spelling(builder: RawAnnotationsBuilder, path: str, image_id: str, stem: str, xml_name: str) -> None:
    spelled = [f"the split says {image_id}"] * (image_id != stem)
    spelled += [f"its annotation is {xml_name}"] * (os.path.splitext(xml_name)[0] != stem)
    if spelled:
        builder.report("other_spelling", path, ", ".join(spelled))


def voc_files(root: Path, folder: str, suffixes: tuple[str, ...]) -> FileIndex:
    """The files of a folder of a VOC data set by their ids. Raises FileNotFoundError where there is no such folder."""
    if not (root / folder).is_dir():
        raise MissingFileError(
            f"{root / folder} does not exist. A VOC data set has Annotations and JPEGImages folders."
        )
    return FileIndex(files_below(str(root / folder), suffixes), suffixes)


def _missing_split_message(annotation_path: str, root: Path) -> str:
    if (root / "Annotations").is_dir():
        present = sorted(path.name for path in Path(annotation_path).parent.glob("*.txt"))
        if present:
            question = did_you_mean(os.path.basename(annotation_path), present)
            return f"{annotation_path} does not exist; the splits there are: {shorten_list(present)}.{question}"
        return (
            f"{annotation_path} does not exist, and there are no splits. Make them by "
            f'`python tools/voc_annotation.py --annotation_mode=1 --VOCdevkit_path="{root}"`.'
        )
    return (
        f"{annotation_path} does not exist, and {root} has no Annotations folder. Copy your data set there "
        "(Annotations, JPEGImages), or name a split of the folder where it is."
    )
