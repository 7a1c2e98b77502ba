"""Detections as files that labelling tools open: COCO JSON with scores, VOC XML, YOLO txt."""

import os
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from utils.io.class_names import write_class_names
from utils.io.errors import UserError
from utils.io.text import json_text

DETECTIONS = "detections.json"


class LabelFiles:
    """Writes down what was detected on the pictures of a folder.

    folder: gets classes.txt at once, and detections.json when the `with` block ends; where an error or Ctrl-C ends it,
    detections.partial.json, so that the whole file of an earlier run stays. voc_xml, yolo_txt: also write
    Annotations/NAME.xml and labels/NAME.txt, each at once; NAME keeps the picture's sub-folder. Raises ValueError where
    such a folder is there already, and where classes.txt has other names.
    """

    def __init__(self, folder, class_names, voc_xml=False, yolo_txt=False):
        self.folder, self.class_names, self.voc_xml, self.yolo_txt = Path(folder), class_names, voc_xml, yolo_txt
        self.images, self.annotations, self.picture_of = [], [], {}
        self.folders = ["Annotations"] * voc_xml + ["labels"] * yolo_txt
        if yolo_txt:
            self.picture_of["classes"] = "classes.txt"

    def __enter__(self):
        for name in self.folders:
            if (self.folder / name).exists():
                raise UserError(
                    f"{self.folder / name} is there already, and its boxes may have been corrected: move it away, or "
                    "let dir_save_path name another folder."
                )
        path = self.folder / "classes.txt"
        if path.exists() and path.read_text(encoding="utf-8", errors="replace").split("\n") != [*self.class_names, ""]:
            raise UserError(
                f"{path} is there already, and has other names than the {len(self.class_names)} classes of this "
                "detector: move it away, or let dir_save_path name another folder."
            )
        # At once, so that a folder that cannot be written to is noticed before all the pictures are looked at.
        for place in (self.folder, *([self.folder / "labels"] * self.yolo_txt)):
            place.mkdir(parents=True, exist_ok=True)
            write_class_names(str(place / "classes.txt"), self.class_names)
        return self

    def __exit__(self, error, *_):
        categories = [{"id": number, "name": name} for number, name in enumerate(self.class_names, 1)]
        content = {"images": self.images, "categories": categories, "annotations": self.annotations}
        temporary = self.folder / f"{DETECTIONS}.tmp"
        temporary.write_text(json_text(content) + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / ("detections.partial.json" if error else DETECTIONS))

    def check(self, name):
        """Raise ValueError where a picture's label file would take the place of another's; name: as for add."""
        other = self.picture_of.setdefault(_stem(name), name)
        if other != name and self.folders:
            raise UserError(f"{name} and {other} would share one label file, {_stem(name)}.*: rename one of them.")

    def add(self, name, size_hw, found):
        """Take in one picture.

        name: its path from the folder of the pictures, with forward slashes. size_hw: (height, width). found:
        Detections.
        """
        height, width = size_hw
        # First what may fail: a picture that did has no entry.
        if self.voc_xml:
            self._write("Annotations", f"{_stem(name)}.xml", voc_text(name, size_hw, found))
        if self.yolo_txt:
            self._write("labels", f"{_stem(name)}.txt", yolo_text(size_hw, found))
        self.images.append({"id": len(self.images) + 1, "file_name": name, "height": height, "width": width})
        for box_xyxy, score, class_id in zip(found.boxes_xyxy.tolist(), found.scores, found.class_ids, strict=True):
            x1, y1, x2, y2 = (round(value, 2) for value in box_xyxy)
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": len(self.images),
                "category_id": int(class_id) + 1,
            }
            annotation |= {"bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "iscrowd": 0, "segmentation": []}
            annotation |= {"area": round((x2 - x1) * (y2 - y1), 2), "score": round(float(score), 4)}
            self.annotations.append(annotation)

    def _write(self, folder, name, text):
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _stem(name):
    return str(PurePosixPath(name).with_suffix(""))


def voc_text(name, size_hw, found):
    """The content of a VOC annotation file; boxes in whole pixels, as the format wants."""
    path, (height, width) = PurePosixPath(name), size_hw
    tree = ElementTree.Element("annotation")
    _add(tree, folder=path.parent.name, filename=path.name)
    _add(ElementTree.SubElement(tree, "size"), width=width, height=height, depth=3)
    for class_name, box_xyxy in zip(found.names, found.boxes_xyxy, strict=True):
        item = ElementTree.SubElement(tree, "object")
        _add(item, name=class_name, pose="Unspecified", truncated=0, difficult=0)
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box_xyxy.round().astype(int), strict=True))
        _add(ElementTree.SubElement(item, "bndbox"), **corners)
    ElementTree.indent(tree)
    return ElementTree.tostring(tree, encoding="unicode") + "\n"


def _add(parent, **texts):
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def yolo_text(size_hw, found):
    """The content of a YOLO label file: lines `class cx cy w h`, in shares of the picture."""
    height, width = size_hw
    lines = []
    for class_id, (x1, y1, x2, y2) in zip(found.class_ids, found.boxes_xyxy.tolist(), strict=True):
        shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
        lines.append(f"{class_id} {' '.join(f'{share:.6f}' for share in shares)}\n")
    return "".join(lines)
