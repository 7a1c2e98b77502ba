"""A small data set in YOLO's layout, for tests."""

from pathlib import Path

from PIL import Image


def make_yolo(root, labels, folder="images", suffix=".jpg"):
    """Images of 100 x 50 pixels in root/<folder>, and the label files {stem: text, or None} in its twin. Returns the
    folder of the images."""
    for stem, text in labels.items():
        image_path = root / folder / f"{stem}{suffix}"
        label_path = Path(*["labels" if part == "images" else part for part in Path(folder).parts], f"{stem}.txt")
        for path in (image_path, root / label_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(image_path)
        if text is not None:
            (root / label_path).write_text(text, encoding="utf-8")
    return str(root / folder)


def make_yaml(root, text):
    """root/data.yaml with a text. Returns its path."""
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return str(root / "data.yaml")
