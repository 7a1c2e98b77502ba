"""How good a recipe is on several data sets: trains it on each, one training at a time, and scores the test splits.

python benchmarks/quality.py --sets=DATA/bccd,DATA/cards --weights=yolox_nano --recipes=shipped,adamw --against=shipped

A set is a folder in VOC layout with the splits train, val and test; classes.txt in it orders its classes. Results go to
results.csv in save_dir; what is there is not trained again, so that an interrupted benchmark goes on. Two recipes are
compared on the same images and seeds, with a 95 % interval of the difference by paired resampling of the images of each
set.
"""

import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

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
from utils.io.text import format_table

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

_COLUMNS = ("recipe", "set", "seed", "size", "commit", "AP", "AP50", "best_epoch", "cpu_seconds", "images_per_second")
_SIZES = {
    False: {"UnFreeze_Epoch": 30, "input_shape": [416, 416]},
    True: {"UnFreeze_Epoch": 12, "Freeze_Epoch": 4, "input_shape": [320, 320]},
}


def main(settings):
    """Train what is missing, then print the tables."""
    known = read_recipes(settings.recipes_path)
    names = [name for name in settings.recipes.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"recipes names {unknown[0]!r}; {settings.recipes_path} has {', '.join(known)}.")
    folders = {
        Path(text.strip("()")).name: (Path(text.strip("()")), text[0] != "(") for text in settings.sets.split(",")
    }
    for folder, _ in folders.values():
        if not (folder / "ImageSets" / "Main" / "test.txt").is_file():
            raise UserError(
                f"sets names {folder}, which has no ImageSets/Main/test.txt; expected a folder in VOC layout."
            )
    todo = [(seed, name, data) for seed in settings.seeds for name in names for data in folders]
    for number, (seed, name, data) in enumerate(todo, 1):
        if not find_row(settings, name, data, seed):
            logger.info(f"{number}/{len(todo)}: {name} on {data}, seed {seed}")
            add_row(settings, train_and_score(settings, name, known[name], folders[data][0], seed))
    for line in (score_table(settings, names, folders), difference_table(settings, names, folders)):
        logger.info(f"\n{line}")


def read_recipes(path):
    """{name: {constant: value}} of a YAML file. Raises UserError for another content."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(changes, dict) for changes in content.values()):
        raise UserError(f"{path} is no list of recipes; expected lines such as adamw: {{optimizer_type: adamw}}.")
    return content


def train_and_score(settings, recipe, changes, folder, seed):
    """Train a recipe on one set, in a process of its own, and score the test split. Returns a row of results.csv."""
    run_dir = run_folder(settings, recipe, folder.name, seed)
    lists = {f"{part}_annotation_path": str(folder / "ImageSets" / "Main" / f"{part}.txt") for part in ("train", "val")}
    classes = folder / "classes.txt"
    constants = (
        _SIZES[settings.quick] | lists | {"classes_path": str(classes) if classes.is_file() else "", "seed": seed}
    )
    constants |= {"model_path": settings.weights, "save_dir": str(run_dir)} | changes
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run("train.py", constants, run_dir / "train.txt")
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    test = {"annotation_path": str(folder / "ImageSets" / "Main" / "test.txt"), "map_out_path": str(run_dir / "test")}
    run(
        "tools/get_map.py",
        test | {"model_path": str(run_dir / "best_epoch_weights.pth"), "resamplings": 0},
        run_dir / "test.txt",
    )
    scores = json.loads((run_dir / "test" / "results.json").read_text(encoding="utf-8"))
    epochs = next(run_dir.glob("loss_*/results.csv")).read_text(encoding="utf-8")
    rows = list(csv.DictReader(epochs.splitlines()))
    scored = [row for row in rows if row["map50"]]
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in rows)
    return {
        "recipe": recipe,
        "set": folder.name,
        "seed": seed,
        "size": size_name(settings),
        "commit": commit(),
        "AP": round(scores["AP"], 4),
        "AP50": round(scores["AP50"], 4),
        "best_epoch": max(scored, key=lambda row: float(row["map50"]))["epoch"] if scored else "",
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
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


def run_folder(settings, recipe, data, seed):
    """Where a training of the benchmark lies."""
    return Path(settings.save_dir).resolve() / size_name(settings) / f"{recipe}_{data}_{seed}"


def size_name(settings):
    return "quick" if settings.quick else "full"


def commit():
    """The commit of the project, with + where files differ from it; '' without git."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def results_path(settings):
    return Path(settings.save_dir) / "results.csv"


def read_rows(settings):
    """The rows of results.csv, [] where there is none."""
    path = results_path(settings)
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def find_row(settings, recipe, data, seed):
    """The row of one training, None where it was not made."""
    wanted = {"recipe": recipe, "set": data, "seed": str(seed), "size": size_name(settings)}
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


def score_table(settings, names, folders):
    """AP, AP50, best epoch, CPU seconds and images per second of each recipe and set, means over the seeds; and the
    mean over the sets that count, as lines."""
    lines = [("recipe", "set", "AP", "AP50", "best epoch", "CPU s", "images/s")]
    for name in names:
        means = {}
        for data in folders:
            rows = [find_row(settings, name, data, seed) for seed in settings.seeds]
            means[data] = [np.mean([float(row[key] or 0) for row in rows]) for key in _COLUMNS[5:]]
        counted = [means[data] for data, (_, counts) in folders.items() if counts]
        for data, values in (*means.items(), ("mean", np.mean(counted or list(means.values()), axis=0))):
            ap, ap50, epoch, seconds, speed = values
            lines.append((name, data, f"{ap:.3f}", f"{ap50:.3f}", f"{epoch:.0f}", f"{seconds:.0f}", f"{speed:.1f}"))
    return format_table(lines, right=range(2, 7))


def difference_table(settings, names, folders):
    """AP of each recipe minus that of `against`, with its 95 % interval, as lines; '' where there is nothing to
    compare."""
    others = [name for name in names if name != settings.against]
    pairs = [(settings.against, data, seed) for data in folders for seed in settings.seeds]
    if not settings.against or not all(find_row(settings, *pair) for pair in pairs):
        return ""
    lines = [("recipe", "set", f"AP minus that of {settings.against}", "95 % interval")]
    base = {data: resampled_ap(settings, settings.against, data) for data in folders}
    for name in others:
        differences = {data: resampled_ap(settings, name, data) - base[data] for data in folders}
        counted = [differences[data] for data, (_, counts) in folders.items() if counts]
        for data, values in (*differences.items(), ("mean", np.mean(counted or list(differences.values()), axis=0))):
            low, high = interval(values[0], values[1:])
            lines.append((name, data, f"{values[0]:+.3f}", f"[{low:+.3f}, {high:+.3f}]"))
    return format_table(lines, right=(2, 3))


def resampled_ap(settings, recipe, data):
    """(1 + resamplings,) AP on the test split, the mean of the seeds: of the images themselves, then resampled.

    The resamplings of a set are the same for all recipes, so that differences are paired.
    """
    values = []
    for seed in settings.seeds:
        folder = run_folder(settings, recipe, data, seed) / "test"
        found = read_coco_pair(folder / "ground_truth.json", folder / "detections.json")
        images, classes = len(found.image_names), len(found.class_names)
        weights = np.hstack([np.ones((images, 1)), resampled(images, settings.resamplings)])
        by_class = average_precisions(found.ground_truth, found.detections, classes, weights)["AP"]
        values.append(mean_over_classes(by_class))
    return np.mean(values, axis=0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    run_script(main, read_constants(globals()))
