"""benchmarks/quality.py: what is trained, what is kept, and what its tables say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import quality
from utils.io.errors import UserError

BOX = [10, 10, 20, 20]


def make_set(folder):
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    return folder


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "recipes.yaml").write_text("a: {}\nb: {seed: 3}\n")
    sets = f"{make_set(tmp_path / 'one')},({make_set(tmp_path / 'two')})"
    values = {"sets": sets, "recipes": "a,b", "recipes_path": str(tmp_path / "recipes.yaml"), "against": "a"}
    values |= {"weights": "", "seeds": [1], "quick": False, "resamplings": 10, "save_dir": str(tmp_path / "out")}
    (tmp_path / "out").mkdir()
    return SimpleNamespace(**values)


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the trainings: recipe b finds the one object of each image, a none. Holds what was trained."""
    made = []

    def train(settings, training):
        recipe, _, folder, seed = training
        made.append((recipe, folder.name, seed))
        out = quality.run_folder(settings, training) / "test"
        out.mkdir(parents=True)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(8)]
        labels = [{"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "area": 400, "iscrowd": 0} for i in range(8)]
        truth = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": labels}
        found = [{"image_id": i, "category_id": 1, "bbox": BOX if recipe == "b" else [90, 90, 5, 5]} for i in range(8)]
        (out / "ground_truth.json").write_text(json.dumps(truth))
        (out / "detections.json").write_text(json.dumps([item | {"score": 0.9} for item in found]))
        scores = {"AP": float(recipe == "b"), "AP50": float(recipe == "b"), "best_epoch": 5, "cpu_seconds": 7}
        return quality.identity_of(settings, training) | scores | {"commit": "", "images_per_second": 2.5}

    monkeypatch.setattr(quality, "train_and_score", train)
    return made


def test_each_recipe_is_trained_on_each_set_once(settings, trained):
    """Prevents an interrupted benchmark from beginning again, and a set or recipe that is left out."""
    quality.main(settings)
    assert trained == [("a", "one", 1), ("a", "two", 1), ("b", "one", 1), ("b", "two", 1)]
    settings.seeds = [1, 2]
    quality.main(settings)
    assert trained[4:] == [("a", "one", 2), ("a", "two", 2), ("b", "one", 2), ("b", "two", 2)]


def test_the_tables(settings, trained, capsys):
    """Prevents a mean that counts a set in brackets, and a difference with the wrong sign."""
    quality.main(settings)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["b", "two", "1.000", "1.000", "5", "7", "2.5"] in shown
    assert ["b", "mean", "1.000", "1.000", "5", "7", "2.5"] in shown
    assert ["b", "mean", "+1.000", "[+1.000,", "+1.000]"] in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": "c"}, "recipes names 'c'; "),
        ({"against": "c"}, "against names 'c'; "),
        ({"sets": "nowhere"}, "sets names nowhere, which has no ImageSets/Main/test.txt"),
    ],
)
def test_what_is_not_there_is_named(settings, trained, changes, message):
    """Prevents hours of training before a mistyped name is met."""
    vars(settings).update(changes)
    with pytest.raises(UserError, match=f"^{message}"):
        quality.main(settings)
    assert trained == []


def test_other_weights_recipes_and_folders_are_trained_anew(settings, trained, tmp_path):
    """Prevents the numbers of an earlier start from passing for those of other weights, a changed recipe, or a set of
    the same name, and their files from being mixed."""
    vars(settings).update(sets=str(tmp_path / "one"), recipes="a")
    quality.main(settings)
    settings.weights = "yolox_tiny"
    quality.main(settings)
    (tmp_path / "recipes.yaml").write_text("a: {Init_lr: 0.1}\n")
    quality.main(settings)
    settings.sets = str(make_set(tmp_path / "elsewhere" / "one"))
    quality.main(settings)
    assert trained == [("a", "one", 1)] * 4
    assert len(list((tmp_path / "out/full").iterdir())) == 4
    quality.main(settings)
    assert len(trained) == 4


def test_two_sets_of_one_name(settings, trained, tmp_path):
    """Prevents one of two sets from being left out without a word."""
    settings.sets += f",{make_set(tmp_path / 'elsewhere' / 'one')}"
    with pytest.raises(UserError, match="two folders of one name; rename one of them"):
        quality.main(settings)
    assert trained == []


def test_results_with_other_columns(settings, trained, tmp_path):
    """Prevents rows that do not fit the head of their file."""
    (tmp_path / "out/results.csv").write_text("recipe,set\na,one\n")
    with pytest.raises(UserError, match=r"results.csv has the columns recipe, set; expected recipe, set, seed, "):
        quality.main(settings)
    assert trained == []


def test_the_newest_run_counts(settings, tmp_path, monkeypatch):
    """Prevents the epochs of an earlier training, which was interrupted, in the row of one that is whole."""
    training = quality.Training("a", {}, tmp_path / "one", 1)
    folder = quality.run_folder(settings, training)

    def write(name, epochs, seconds):
        (folder / name).mkdir(parents=True)
        lines = [f"{epoch},{epoch / 10},50,10\n" for epoch in range(1, epochs + 1)]
        (folder / name / "results.csv").write_text("epoch,map50,images_per_second,seconds\n" + "".join(lines))
        os.utime(folder / name / "results.csv", (seconds, seconds))

    def stand_in(script, constants, log_path):
        if script == "tools/get_map.py":
            (folder / "test").mkdir()
            (folder / "test/results.json").write_text('{"AP": 0.5, "AP50": 0.6}')

    monkeypatch.setattr(quality, "run", stand_in)
    for number, epochs in enumerate((1, 2, 5)):
        write(f"loss_{number}", epochs, 100 + 10 * (number == 1))
    row = quality.train_and_score(settings, training)
    assert (row["best_epoch"], row["AP"], row["cpu_seconds"]) == ("2", 0.5, "")


def test_it_starts_where_resource_is_missing():
    """Prevents a benchmark that does not start on Windows."""
    code = "import sys; sys.modules['resource'] = None; import benchmarks.quality"
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
