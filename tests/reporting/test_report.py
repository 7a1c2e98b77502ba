from types import SimpleNamespace

import pytest
import torch

from utils.reporting.hints import data_wait_advice
from utils.reporting.run_logger import epoch_line, report, result_row
from utils.training.engine import EpochResult
from utils.training.phases import Phase

RESULT = EpochResult({"loss": 4.5, "box": 1.25, "obj": 3.25}, 2e-3, 30.0, 0.125, 12.34, [])
SCORES = {"map50": 0.75, "AP": 0.5, "AP50": 0.75, "precision": 0.875, "recall": 0.625}


def row_of(scores, world_size=1):
    return result_row(6, Phase(True, 0, 10, 8), RESULT, SimpleNamespace(loss=5.5, scores=scores), world_size)


def test_a_row_counts_from_one_and_over_all_ranks():
    """Prevents epochs that are off by one in results.csv, and a speed that falls with every GPU that joins."""
    assert row_of(SCORES, world_size=4) == {
        "epoch": 7,
        "phase": "frozen",
        "loss": 4.5,
        "loss_box": 1.25,
        "loss_obj": 3.25,
        "val_loss": 5.5,
        "lr": 2e-3,
        "map50": 0.75,
        "ap": 0.5,
        "precision": 0.875,
        "recall": 0.625,
        "images_per_second": 120.0,
        "data_wait": 0.125,
        "gpu_memory": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "seconds": 12.34,
    }
    row = row_of(None)
    assert (row["map50"], row["ap"], row["images_per_second"]) == (None, None, 30.0)
    assert (row["precision"], row["recall"]) == (None, None)


def test_the_line_of_an_epoch():
    """Prevents a run that cannot be followed: losses of any network, and scores where there are some."""
    line = (
        "epoch   7/100 frozen    loss  4.500 (box 1.25 obj 3.25)  val  5.500  lr 2.0e-03  30 images/s  data wait 12%  "
        "12.3 s"
    )
    assert epoch_line(row_of(None), 100) == line
    assert epoch_line(row_of(SCORES), 100) == line + "  P 0.88  R 0.62  mAP@0.5 0.750  AP 0.500"


def said(tmp_path, best_score, scores=None, **changes):
    files = SimpleNamespace(best_score=best_score, best_epoch=3, folder=tmp_path / "loss_1")
    settings = SimpleNamespace(**{"eval_flag": True, "save_dir": "logs"} | changes)
    lines = []
    report(files, scores, 30, settings, lines.append)
    return "\n".join(lines)


def test_the_end_says_where_the_weights_lie(tmp_path):
    """Prevents a user who has to search for the result, or a command that opens other weights than these."""
    folder = tmp_path / "loss_1"
    assert said(tmp_path, 0.75) == (
        f"\nBest weights: {folder / 'best_epoch_weights.pth'} (mAP@0.5 0.750, epoch 3)\n"
        f"Last weights: {folder / 'last_epoch_weights.pth'}\n"
        "Both are also in logs/. Draw boxes with them: python predict.py"
    )
    text = said(tmp_path, -2.5, eval_flag=False, save_dir="elsewhere")
    assert "(validation loss 2.500, epoch 3)" in text
    newest = tmp_path / "best_epoch_weights.pth"
    assert text.endswith(f"Both are also in elsewhere/. Draw boxes with them: python predict.py --model_path={newest}")


def test_a_run_without_a_score_says_so(tmp_path):
    """Prevents a path to best weights that do not exist."""
    assert said(tmp_path, None) == (
        "\nNo epoch could be scored: the validation set holds no boxes, or its loss was not a number."
    )


@pytest.mark.parametrize(
    ("data_wait", "cache", "workers", "expected"),
    [
        (0.24, "", 0, set()),
        (0.25, "", 0, {"set cache = 'ram', which decodes each image once"}),
        (0.5, "ram", 2, {"raise num_workers (now 2; this machine has 4 cores)"}),
        (0.5, "ram", 3, {"lower input_shape, or mosaic_prob and mixup_prob; a faster processor would help as well"}),
    ],
)
def test_a_slow_loader_names_the_constant_to_change(monkeypatch, data_wait, cache, workers, expected):
    """Prevents trainings that wait for images half of the time while nobody knows what to do."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    advice = data_wait_advice({"data_wait": data_wait}, SimpleNamespace(cache=cache), workers)
    start = "Much of the time goes into waiting for images (data wait): "
    assert advice == {f"{start}{change}." for change in expected}
