"""Draws small VOC folders for tests."""

from PIL import Image


def box_xml(name, corners, difficult=0):
    keys = ("xmin", "ymin", "xmax", "ymax")
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{bndbox}</bndbox></object>"


def make_voc(root, images, lines=None):
    """A VOC folder; images is {id: list of object XML}. Returns the path of its train split."""
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for image_id, objects in images.items():
        image_path, xml_path = root / "JPEGImages" / f"{image_id}.jpg", root / "Annotations" / f"{image_id}.xml"
        for path in (image_path, xml_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(image_path)
        xml = f"<annotation><filename>../../elsewhere.jpg</filename>{''.join(objects)}</annotation>"
        xml_path.write_text(xml, encoding="utf-8")
    split = root / "ImageSets" / "Main" / "train.txt"
    split.write_text("\n".join(images if lines is None else lines) + "\n", encoding="utf-8")
    return str(split)
