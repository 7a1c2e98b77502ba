"""Split a VOC data set, and list it.

python tools/voc_annotation.py [--VOCdevkit_path=VOCdevkit/VOC2007 --classes_path=... --trainval_percent=0.9 ...]

Writes ImageSets/Main/{trainval,test,train,val}.txt in the VOC folder, and 2007_train.txt and 2007_val.txt, with lines
`path x1,y1,x2,y2,class ...`, in the current directory. train.py reads either kind.
"""

import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from utils.config import run_script, script_constants
from utils.data.annotations import parse_voc_xml, read_annotations, read_class_names, read_voc
from utils.data.records import Records

# ----------------------------------------------------------------------------------------------------------------------
# annotation_mode   0: splits and lists. 1: only the splits in ImageSets/Main, which is all that train.py needs.
#                   2: only 2007_train.txt and 2007_val.txt, from the splits that are there.
# ----------------------------------------------------------------------------------------------------------------------
annotation_mode = 0
# ----------------------------------------------------------------------------------------------------------------------
# VOCdevkit_path    The folder that holds Annotations and JPEGImages.
# classes_path      The file of class names, one per line; it gives the class numbers in the lists.
# ----------------------------------------------------------------------------------------------------------------------
VOCdevkit_path = "VOCdevkit/VOC2007"
classes_path = "model_data/voc_classes.txt"
# ----------------------------------------------------------------------------------------------------------------------
# trainval_percent  Share of all images for training and validation together, 0 to 1; the rest is the test split.
# train_percent     Share of these that is trained on, 0 to 1; the rest is the validation split.
# seed              The same number always makes the same splits. Choose once and keep it: results on different splits
#                   cannot be compared.
# ----------------------------------------------------------------------------------------------------------------------
trainval_percent = 0.9
train_percent = 0.9
seed = 0
# ----------------------------------------------------------------------------------------------------------------------
# overwrite         False: where a file that would be written exists already, stop and change nothing.
# ----------------------------------------------------------------------------------------------------------------------
overwrite = False


def main(settings: SimpleNamespace) -> None:
    """Run with the constants above as attributes of settings. Nothing is written where ValueError or FileNotFoundError
    is raised for a user's mistake."""
    check(settings)
    root, mode = Path(settings.VOCdevkit_path), settings.annotation_mode
    splits, lists = {}, {}
    if mode in (0, 1):
        xml_paths = annotation_files(root / "Annotations")
        print_counts(xml_paths)
        ids = [path.stem for path in xml_paths]
        splits = split_ids(ids, settings.trainval_percent, settings.train_percent, settings.seed)
    if mode in (0, 2):
        class_names = read_class_names(settings.classes_path)
        lists = {name: read_split(root, name, splits.get(name), class_names) for name in ("train", "val")}

    texts = {root / "ImageSets" / "Main" / f"{name}.txt": part for name, part in splits.items()}
    texts |= {Path(f"2007_{name}.txt"): list_lines(records) for name, records in lists.items()}
    if not settings.overwrite:
        refuse_to_overwrite(list(texts))
    for path, lines in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines)} images")


def check(settings: SimpleNamespace) -> None:
    if settings.annotation_mode not in (0, 1, 2):
        raise ValueError(f"annotation_mode is {settings.annotation_mode}; it must be 0, 1 or 2.")
    for name in ("trainval_percent", "train_percent"):
        value = getattr(settings, name)
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; it is a share and must lie above 0 and at most at 1, as in 0.9.")


def annotation_files(folder: Path) -> list[Path]:
    """All annotation files in a folder, in alphabetical order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist. VOCdevkit_path must name the folder that holds Annotations.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
    if not paths:
        raise ValueError(f"{folder} holds no .xml files. Copy your annotations there.")
    return paths


def split_ids(ids: list[str], trainval_percent: float, train_percent: float, seed: int) -> dict[str, list[str]]:
    """{"trainval", "test", "train", "val"}: ids, sorted. Raises ValueError where train or val would be empty."""
    trainval_count = round(len(ids) * trainval_percent)
    train_count = round(trainval_count * train_percent)
    if not 0 < train_count < trainval_count:
        raise ValueError(
            f"Of {len(ids)} images, trainval_percent={trainval_percent} and train_percent={train_percent} leave "
            f"{train_count} to train on and {trainval_count - train_count} to validate on; both need at least one."
        )
    shuffled = random.Random(seed).sample(ids, len(ids))
    parts = {
        "trainval": shuffled[:trainval_count],
        "test": shuffled[trainval_count:],
        "train": shuffled[:train_count],
        "val": shuffled[train_count:trainval_count],
    }
    return {name: sorted(part) for name, part in parts.items()}


def refuse_to_overwrite(paths: list[Path]) -> None:
    present = [str(path) for path in paths if path.exists()]
    if present:
        raise ValueError(f"{', '.join(present)} exist already; nothing was changed. --overwrite=True replaces them.")


def print_counts(xml_paths: list[Path]) -> None:
    counts = Counter(name for path in xml_paths for name in parse_voc_xml(str(path))[0])
    print(f"{len(xml_paths)} annotation files in {xml_paths[0].parent}")
    for name, count in counts.most_common():
        print(f"  {name}: {count} boxes")


def read_split(root: Path, name: str, ids: list[str] | None, class_names: list[str]) -> Records:
    """The records of a split that was just made, or (ids None) of one that lies in ImageSets/Main; prints the notes."""
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if ids is None:
        records, notes = read_annotations(path, class_names)
    else:
        records, notes = read_voc(root, ids, class_names, str(path))
    if records.difficult.any():
        notes.append(f"{records.difficult.sum()} boxes are marked difficult; a list file cannot say so.")
    print(f"{name}: {len(records)} images, {len(records.classes)} boxes", *notes, sep="\n  ")
    return records


def list_lines(records: Records) -> list[str]:
    """One line per image: absolute path, then x1,y1,x2,y2,class for every box."""
    lines = []
    for index in range(len(records)):
        rows = zip(records.boxes(index).tolist(), records.labels(index).tolist(), strict=True)
        boxes = [",".join(f"{value:.7g}" for value in (*box, label)) for box, label in rows]
        lines.append(" ".join([os.path.abspath(records.path(index)), *boxes]))
    return lines


if __name__ == "__main__":
    run_script(main, script_constants(globals()))
