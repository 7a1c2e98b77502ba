"""Which format an annotation is in, by its path."""

import codecs
import os

from utils.data.formats.base import RawAnnotations
from utils.data.formats.coco import read_coco_json
from utils.data.formats.list_file import read_list_file
from utils.data.formats.voc import read_voc_split, voc_root
from utils.data.formats.voc_xml import other_root
from utils.data.formats.yolo import read_darknet_data, read_yolo_folder, read_yolo_list, read_yolo_yaml
from utils.io.errors import MissingFileError, UserError
from utils.io.files import IMAGE_SUFFIXES

# What people name by mistake: {ending: what to do}.
_UNPACK = "is an archive; unpack it, and name the annotations in it"
_EXPORT = "which is not read; export the annotations as VOC, COCO or YOLO"
OTHER_FILES = {
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".xls", ".ods"), f"is a table, {_EXPORT}"),
    **dict.fromkeys((".tfrecord", ".tfrecords", ".record"), f"is a TFRecord of TensorFlow, {_EXPORT}"),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), f"is a table of Hugging Face or Arrow, {_EXPORT}"),
    **dict.fromkeys((".ndjson", ".jsonl"), f"has a JSON text in each line, {_EXPORT}"),
    **dict.fromkeys(
        (".mat", ".pkl", ".pickle", ".npz", ".npy", ".h5", ".hdf5", ".db"), f"is a file of data, {_EXPORT}"
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), _UNPACK),
    ".names": "names classes; set classes_path to it, and name the annotations here",
    **dict.fromkeys(IMAGE_SUFFIXES, "is an image; name the folder of the images, or a file of annotations"),
}
_BINARY = f"is no text, so a file of another kind, {_EXPORT}"
LOOKED_AT = 4096  # bytes
_ONE_XML = "is the annotation of one image; name a split, as in VOCdevkit/VOC2007/ImageSets/Main/train.txt"


def read_raw_annotations(annotation_path: str, split: str = "train") -> RawAnnotations:
    """What the annotation says, before any image is looked at. The format is recognised from what the path is:

    - <root>/ImageSets/Main/<split>.txt: a split of a VOC folder, with <root>/Annotations and <root>/JPEGImages;
    - a file that ends in .json: COCO annotations;
    - a file that ends in .yaml or .yml: YOLO's description of a data set; split, "train" or "val", chooses its part;
    - a file that ends in .data: Darknet's description of a data set, as CVAT writes it;
    - a folder: images in YOLO's layout, with a text file of boxes for each, or with an XML file of VOC or a JSON file
      of LabelMe for each;
    - any other file: a list with lines `path x1,y1,x2,y2,class ...`, or paths alone of images in YOLO's layout.

    Raises FileNotFoundError where it does not exist, ValueError where it is empty or no such file at all. What is wrong
    with single images and boxes are findings of the result.
    """
    annotation_path = os.fspath(annotation_path)
    suffix = os.path.splitext(annotation_path)[1].lower()
    if os.path.isdir(os.path.join(annotation_path, "ImageSets", "Main")):
        split_path = os.path.join(annotation_path, "ImageSets", "Main", f"{split}.txt")
        raise UserError(f"{annotation_path} is a VOC folder; name one of its splits, as in {split_path}.")
    if os.path.isdir(annotation_path):
        return read_yolo_folder(annotation_path, split)
    if voc_root(annotation_path) is not None:
        return read_voc_split(annotation_path)
    if not os.path.isfile(annotation_path):
        raise MissingFileError(
            f"{annotation_path} does not exist; correct the path, or name another annotation file or folder."
        )
    if suffix == ".json":
        return read_coco_json(annotation_path)
    if suffix in (".yaml", ".yml"):
        return read_yolo_yaml(annotation_path, split)
    if suffix == ".xml":
        other = other_root(annotation_path)
        words = f"is {other}, {_EXPORT}" if other else _ONE_XML
        raise UserError(f"{annotation_path} {words}.")
    if suffix in OTHER_FILES:
        raise UserError(f"{annotation_path} {OTHER_FILES[suffix]}.")
    if suffix == ".data":
        return read_darknet_data(annotation_path, split)
    if _is_binary(annotation_path):
        raise UserError(f"{annotation_path} {_BINARY}.")
    return read_yolo_list(annotation_path) or read_list_file(annotation_path)


def _is_binary(path: str) -> bool:
    """Whether a file holds zero bytes, and no mark of UTF-16, which has such."""
    with open(path, "rb") as file:
        head = file.read(LOOKED_AT)
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
