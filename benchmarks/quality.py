"""How good a recipe is on several data sets: trains it on each, one training at a time, and scores the test splits.

python benchmarks/quality.py --sets=DATA/bccd,DATA/cards --weights=yolox_nano --recipes=shipped,adamw --against=shipped

A set is a folder in VOC layout with the splits train, val and test; classes.txt in it orders its classes. Results go to
results.csv in save_dir; what is there is not trained again, so that an interrupted benchmark goes on. Other weights, a
changed recipe and a set in another folder are trained anew. Two recipes are compared on the same images and seeds, with
a 95 % interval of the difference by paired resampling of the images of each set.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import numpy as np
import yaml

from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.evaluation.bootstrap import average_precisions, interval, resampled
from utils.evaluation.box_files import read_coco_pair
from utils.evaluation.curves import mean_over_classes
from utils.io.errors import UserError
from utils.io.files import PROJECT
from utils.io.logger import logger
from utils.io.text import format_table, json_text, shorten_list

# ----------------------------------------------------------------------------------------------------------------------
#   sets          Folders of the data sets, with commas between them. A set whose name stands in brackets, such as
#                 (DATA/aerial_cars), is in the table and not in the mean.
#   recipes       Names from recipes_path, with commas between them.
#   recipes_path  YAML file of {name: {constant of train.py: value}}.
#   against       The recipe that the others are compared with, if its results are there; '' compares nothing.
#   weights       Weights that every training starts from; '' trains from scratch.
#   seeds         Each recipe is trained on each set with each of these.
#   quick         For trying ideas: 12 epochs at 320 x 320. Conclusions take the full size: 30 epochs at 416 x 416.
#   resamplings   How often the test images are drawn anew for the intervals.
#   save_dir      Folder of results.csv and of the trainings.
# ----------------------------------------------------------------------------------------------------------------------
sets = ""
recipes = "shipped"
recipes_path = "benchmarks/recipes.yaml"
against = ""
weights = ""
seeds = [11, 12]
quick = False
resamplings = 1000
save_dir = "logs/quality"

# What a training is, and what came of it.
_TRAINING = ("recipe", "set", "seed", "size", "weights", "changes", "folder")
_RESULTS = ("AP", "AP50", "best_epoch", "cpu_seconds", "images_per_second")
_COLUMNS = (*_TRAINING, "commit", *_RESULTS)
_SIZES = {
    False: {"UnFreeze_Epoch": 30, "input_shape": [416, 416]},
    True: {"UnFreeze_Epoch": 12, "Freeze_Epoch": 4, "input_shape": [320, 320]},
}


class Training(NamedTuple):
    """recipe: its name; changes: {constant of train.py: value} of the recipe; folder: Path of the set."""

    recipe: str
    changes: dict
    folder: Path
    seed: int


def main(settings):
    """Train what is missing, then print the tables."""
    known = read_recipes(settings.recipes_path)
    recipes = {name: known.get(name) for name in settings.recipes.split(",") if name}
    for constant, names in (("recipes", recipes), ("against", filter(None, [settings.against]))):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"{constant} names {unknown[0]!r}; {settings.recipes_path} has {', '.join(known)}.")
    folders = read_sets(settings.sets)
    read_rows(settings)  # a file of another kind is met before the trainings
    todo = [
        Training(name, changes, folder, seed)
        for seed in settings.seeds
        for name, changes in recipes.items()
        for folder, _ in folders.values()
    ]
    for number, training in enumerate(todo, 1):
        if not find_row(settings, training):
            logger.info(f"{number}/{len(todo)}: {training.recipe} on {training.folder.name}, seed {training.seed}")
            add_row(settings, train_and_score(settings, training))
    against = {settings.against: known[settings.against]} if settings.against else {}
    for line in (score_table(settings, recipes, folders), difference_table(settings, recipes, folders, against)):
        logger.info(f"\n{line}")


def read_sets(sets):
    """{name: (Path, whether it counts in the mean)} of the constant sets. Raises UserError for a folder that is no set,
    and for two of one name, which the tables could not tell apart."""
    folders = {}
    for text in sets.split(","):
        folder = Path(text.strip("()"))
        if not (folder / "ImageSets" / "Main" / "test.txt").is_file():
            raise UserError(
                f"sets names {folder}, which has no ImageSets/Main/test.txt; expected a folder in VOC layout."
            )
        if folder.name in folders:
            raise UserError(
                f"sets names {folders[folder.name][0]} and {folder}, two folders of one name; rename one of them."
            )
        folders[folder.name] = folder, text[0] != "("
    return folders


def read_recipes(path):
    """{name: {constant: value}} of a YAML file. Raises UserError for another content."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(changes, dict) for changes in content.values()):
        raise UserError(f"{path} is no list of recipes; expected lines such as adamw: {{optimizer_type: adamw}}.")
    return content


def train_and_score(settings, training):
    """Train a recipe on one set, in a process of its own, and score the test split. Returns a row of results.csv.

    The CPU seconds are empty on Windows, which does not tell those of a process that has ended.
    """
    folder, run_dir = training.folder, run_folder(settings, training)
    lists = {f"{part}_annotation_path": str(folder / "ImageSets" / "Main" / f"{part}.txt") for part in ("train", "val")}
    classes = folder / "classes.txt"
    constants = (
        _SIZES[settings.quick]
        | lists
        | {"classes_path": str(classes) if classes.is_file() else "", "seed": training.seed}
    )
    constants |= {"model_path": settings.weights, "save_dir": str(run_dir)} | training.changes
    before, start = os.times(), time.perf_counter()
    run("train.py", constants, run_dir / "train.txt")
    after, seconds = os.times(), time.perf_counter() - start
    cpu_seconds = sum(after[2:4]) - sum(before[2:4])  # those of child processes
    test = {"annotation_path": str(folder / "ImageSets" / "Main" / "test.txt"), "map_out_path": str(run_dir / "test")}
    run(
        "tools/get_map.py",
        test | {"model_path": str(run_dir / "best_epoch_weights.pth"), "resamplings": 0},
        run_dir / "test.txt",
    )
    scores = json.loads((run_dir / "test" / "results.json").read_text(encoding="utf-8"))
    # A training that was interrupted has left a folder there too.
    newest = max(run_dir.glob("loss_*/results.csv"), key=lambda path: path.stat().st_mtime_ns)
    rows = list(csv.DictReader(newest.read_text(encoding="utf-8").splitlines()))
    scored = [row for row in rows if row["map50"]]
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in rows)
    return identity_of(settings, training) | {
        "commit": commit(),
        "AP": round(scores["AP"], 4),
        "AP50": round(scores["AP50"], 4),
        "best_epoch": max(scored, key=lambda row: float(row["map50"]))["epoch"] if scored else "",
        "cpu_seconds": round(cpu_seconds) or "",
        "images_per_second": round(images / seconds, 1),
    }


def run(script, constants, log_path):
    """Run a script of this project with constants; its output goes to a file. Raises UserError where it fails."""
    arguments = [f"--{name}={value}" for name, value in constants.items()]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "w", encoding="utf-8") as file:
        command = [sys.executable, str(PROJECT / script), *arguments]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=PROJECT, check=False).returncode
    if status:
        raise UserError(f"{script} ended with status {status}; {log_path} says why.")


def identity_of(settings, training):
    """{column of results.csv: text} of all that makes a training the same as an earlier one."""
    recipe, changes, folder, seed = training
    values = recipe, folder.name, seed, size_name(settings), settings.weights, json_text(changes), folder.resolve()
    return dict(zip(_TRAINING, map(str, values), strict=True))


def run_folder(settings, training):
    """Where a training of the benchmark lies; the name ends in a digest of what is too long for one."""
    identity = identity_of(settings, training)
    digest = hashlib.sha256(json_text(list(identity.values())).encode("utf-8")).hexdigest()[:8]
    name = "_".join([*(identity[key] for key in ("recipe", "set", "seed")), digest])
    return Path(settings.save_dir).resolve() / size_name(settings) / name


def size_name(settings):
    return "quick" if settings.quick else "full"


def commit():
    """The commit of the project, with + where files differ from it; '' without git."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def results_path(settings):
    return Path(settings.save_dir) / "results.csv"


def read_rows(settings):
    """The rows of results.csv, [] where there is none. Raises UserError for a file with other columns."""
    path = results_path(settings)
    if not path.is_file():
        return []
    reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise UserError(
            f"{path} has the columns {shorten_list(reader.fieldnames or [], len(_COLUMNS))}; expected "
            f"{', '.join(_COLUMNS)}: name another save_dir, or move the file away."
        )
    return list(reader)


def find_row(settings, training):
    """The row of one training, None where it was not made."""
    wanted = identity_of(settings, training)
    return next((row for row in read_rows(settings) if wanted.items() <= row.items()), None)


def add_row(settings, row):
    """Append a row to results.csv."""
    path = results_path(settings)
    is_new = not path.is_file()
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def score_table(settings, recipes, folders):
    """AP, AP50, best epoch, CPU seconds and images per second of each recipe and set, means over the seeds; and the
    mean over the sets that count, as lines.

    recipes: {name: changes}; folders: of read_sets.
    """
    lines = [("recipe", "set", "AP", "AP50", "best epoch", "CPU s", "images/s")]
    for name, changes in recipes.items():
        means = {}
        for data, (folder, _) in folders.items():
            rows = [find_row(settings, Training(name, changes, folder, seed)) for seed in settings.seeds]
            means[data] = [np.mean([float(row[key] or 0) for row in rows]) for key in _RESULTS]
        counted = [means[data] for data, (_, counts) in folders.items() if counts]
        for data, values in (*means.items(), ("mean", np.mean(counted or list(means.values()), axis=0))):
            ap, ap50, epoch, seconds, speed = values
            lines.append((name, data, f"{ap:.3f}", f"{ap50:.3f}", f"{epoch:.0f}", f"{seconds:.0f}", f"{speed:.1f}"))
    return format_table(lines, right=range(2, 7))


def difference_table(settings, recipes, folders, against):
    """AP of each recipe minus that of the one that they are compared with, with its 95 % interval, as lines; '' where
    there is nothing to compare.

    recipes: {name: changes}; against: the same of one recipe, or of none; folders: of read_sets.
    """
    needed = [
        Training(name, changes, folder, seed)
        for name, changes in against.items()
        for folder, _ in folders.values()
        for seed in settings.seeds
    ]
    if not needed or not all(find_row(settings, training) for training in needed):
        return ""
    lines = [("recipe", "set", f"AP minus that of {settings.against}", "95 % interval")]
    base = resampled_aps(settings, settings.against, against[settings.against], folders)
    for name, changes in recipes.items():
        if name in against:
            continue
        of_sets = resampled_aps(settings, name, changes, folders)
        differences = {data: of_sets[data] - base[data] for data in folders}
        counted = [differences[data] for data, (_, counts) in folders.items() if counts]
        for data, values in (*differences.items(), ("mean", np.mean(counted or list(differences.values()), axis=0))):
            low, high = interval(values[0], values[1:])
            lines.append((name, data, f"{values[0]:+.3f}", f"[{low:+.3f}, {high:+.3f}]"))
    return format_table(lines, right=(2, 3))


def resampled_aps(settings, recipe, changes, folders):
    """{name of the set: (1 + resamplings,) AP on its test split, the mean of the seeds}: of the images themselves, then
    resampled.

    The resamplings of a set are the same for all recipes, so that differences are paired.
    """
    return {
        data: np.mean([resampled_ap(settings, Training(recipe, changes, folder, seed)) for seed in settings.seeds], 0)
        for data, (folder, _) in folders.items()
    }


def resampled_ap(settings, training):
    """(1 + resamplings,) AP of one training on the test split."""
    folder = run_folder(settings, training) / "test"
    found = read_coco_pair(folder / "ground_truth.json", folder / "detections.json")
    images, classes = len(found.image_names), len(found.class_names)
    weights = np.hstack([np.ones((images, 1)), resampled(images, settings.resamplings)])
    return mean_over_classes(average_precisions(found.ground_truth, found.detections, classes, weights)["AP"])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    run_script(main, read_constants(globals()))
