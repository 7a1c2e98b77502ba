"""benchmarks/quality.py: what is trained, what is kept, and what its tables say."""

import json
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

    def train(settings, recipe, changes, folder, seed):
        made.append((recipe, folder.name, seed))
        out = quality.run_folder(settings, recipe, folder.name, seed) / "test"
        out.mkdir(parents=True)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(8)]
        labels = [{"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "area": 400, "iscrowd": 0} for i in range(8)]
        truth = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": labels}
        found = [{"image_id": i, "category_id": 1, "bbox": BOX if recipe == "b" else [90, 90, 5, 5]} for i in range(8)]
        (out / "ground_truth.json").write_text(json.dumps(truth))
        (out / "detections.json").write_text(json.dumps([item | {"score": 0.9} for item in found]))
        scores = {"AP": float(recipe == "b"), "AP50": float(recipe == "b"), "best_epoch": 5, "cpu_seconds": 7}
        row = {"recipe": recipe, "set": folder.name, "seed": seed, "size": "full", "commit": ""}
        return row | scores | {"images_per_second": 2.5}

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
        ({"sets": "nowhere"}, "sets names nowhere, which has no ImageSets/Main/test.txt"),
    ],
)
def test_what_is_not_there_is_named(settings, trained, changes, message):
    """Prevents hours of training before a mistyped name is met."""
    vars(settings).update(changes)
    with pytest.raises(UserError, match=f"^{message}"):
        quality.main(settings)
    assert trained == []
