from types import SimpleNamespace

import pytest
import torch

from tests.evaluation.tables import found
from tests.reporting.test_hints_classes import annotations_of
from tests.reporting.test_hints_curves import rows_of, settings_of
from utils.reporting import hints as module
from utils.reporting.hints import MOST, Run, collect_hints, data_wait_hint, most_workers, too_high
from utils.runtime.device import FLOAT32, RuntimeContext
from utils.runtime.distributed import DistInfo

RUN = Run(
    settings_of(input_shape=[416, 416], train_annotation_path="data.yaml"),
    *(["a", "b"], annotations_of([500, 4]), annotations_of([10, 10]), {}, 0),
)


def scores(*maps):
    rows = [
        {"name": name, "boxes": 10, "map50": value, "confidence": 0.5} for name, value in zip("ab", maps, strict=True)
    ]
    return {"map50": sum(maps) / len(maps), "classes": rows}


@pytest.mark.parametrize(
    ("epochs", "maps", "is_last", "topics"),
    [
        (5, (0.0, 0.0), False, []),
        (19, (0.2, 0.0), False, []),
        (20, (0.2, 0.0), False, ["few boxes"]),
        (5, (0.6, 0.0), False, ["few boxes"]),
        (20, (0.0, 0.0), False, ["few boxes"]),
        (5, (0.0, 0.0), True, ["not found, from scratch", "few boxes"]),
    ],
)
def test_classes_are_looked_at_when_it_is_time(epochs, maps, is_last, topics):
    """Prevents false alarms in the epochs in which nothing is found yet, of 40 in all."""
    falling = [8 * 0.95**epoch for epoch in range(epochs)]
    assert list(collect_hints(RUN, rows_of(falling), scores(*maps), found(), is_last)) == topics


def test_the_curves_stand_before_the_classes_and_the_wait_last():
    """Prevents what concerns the whole detector from being lost behind single classes."""
    rows = rows_of([8.0] * 12)
    for row in rows:
        row["data_wait"] = 0.5
    found_topics = list(collect_hints(RUN, rows, scores(0.0, 0.0), found(), is_last=True))
    assert found_topics == ["nothing learned", "not found, from scratch", "few boxes", "data wait"]
    assert len(found_topics) <= MOST


def test_what_was_wrong_from_the_start_stands_first():
    """Prevents the cause of bad or too good scores, said once before the first epoch, from being lost at the end."""
    row = ("critical", "40", "same image in train and val", "uses it: scores come out too high", "a.jpg")
    run, rows = RUN._replace(findings=[row], epoch_length=8), rows_of([8.0] * 40)
    hints = collect_hints(run, rows, scores(0.8, 0.0), found(), is_last=True)
    assert list(hints)[:2] == ["leaked images", "few steps"] and len(hints) > 2
    assert hints["leaked images"].startswith("These scores are too high: 40 images are in train and in val. Let val_an")
    assert hints["few steps"].endswith(" Until then the sentences below mean little.")
    assert not {"leaked images", "few steps"} & collect_hints(run, rows, scores(0.8, 0.0), found()).keys()
    assert "below" not in collect_hints(run, rows[:1], is_last=True)["few steps"]
    assert too_high([]) == ""


def test_the_first_epoch_does_not_count_as_waiting():
    """Prevents the start of the workers from being taken for a slow loader."""
    rows = rows_of([8.0, 7.0, 6.0])
    rows[0]["data_wait"] = 0.9
    assert collect_hints(RUN, rows) == {}


def test_nothing_to_say():
    """Prevents a crash before the first epoch, and without an evaluation."""
    assert collect_hints(RUN, []) == {}
    assert collect_hints(RUN, rows_of([8.0, 7.0]), None, None, is_last=True) == {}


@pytest.mark.parametrize(
    ("data_wait", "cache", "workers", "expected"),
    [
        (0.24, "", 0, set()),
        (0.25, "", 0, {"set cache = 'ram', which decodes each image once"}),
        (0.5, "ram", 2, {"raise num_workers (now 2; there are cores for 3)"}),
        (0.5, "ram", 3, {"lower input_shape, or mosaic_prob; a faster processor would help as well"}),
    ],
)
def test_a_slow_loader_names_the_constant_to_change(data_wait, cache, workers, expected):
    """Prevents trainings that wait for images half of the time while nobody knows what to do."""
    settings = SimpleNamespace(cache=cache, mosaic=True, mixup=False)
    hints = data_wait_hint({"data_wait": data_wait}, settings, workers, 3)
    start = "Much of the time goes into waiting for images (data wait): "
    assert hints == {f"{start}{change}." for change in expected}


@pytest.mark.parametrize(
    ("mosaic", "mixup", "names"),
    [(False, False, "input_shape;"), (True, True, "input_shape, mosaic_prob, or mixup_prob;")],
)
def test_a_slow_loader_with_few_augmentations(mosaic, mixup, names):
    """Prevents the advice to lower the probability of what is off."""
    settings = SimpleNamespace(cache="ram", mosaic=mosaic, mixup=mixup)
    (sentence,) = data_wait_hint({"data_wait": 0.5}, settings, 0, 0)
    assert f": lower {names} a faster" in sentence


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "expected"),
    [("cuda", 16, 1, 14), ("cuda", 16, 4, 3), ("cuda", 2, 1, 0), ("cpu", 16, 1, 0)],
)
def test_how_many_workers_there_are_cores_for(monkeypatch, device, cores, ranks, expected):
    """Prevents the advice to start more processes than a container or the ranks of a machine have cores for, or any on
    a CPU, which trains faster without."""
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert most_workers(RuntimeContext(torch.device(device), DistInfo(), FLOAT32)) == expected


def test_the_advice_on_workers_is_that_of_the_run():
    """Prevents a run whose cores are counted and then forgotten."""
    rows = rows_of([8.0, 7.0, 6.0])
    for row in rows:
        row["data_wait"] = 0.5
    run = RUN._replace(settings=settings_of(cache="ram"))
    assert "now 0; there are cores for 5" in collect_hints(run._replace(most_workers=5), rows)["data wait"]
    assert "num_workers" not in collect_hints(run, rows)["data wait"]
