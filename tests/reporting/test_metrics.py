import csv
import errno
import math
import threading

import cv2
import numpy as np
import pytest

from utils.io.files import replace_file
from utils.reporting import metrics as module
from utils.reporting.metrics import MetricsWriter


def row(epoch, **changes):
    values = {"epoch": epoch, "phase": "unfrozen", "loss": 4.0 / epoch, "loss_box": 1.5, "val_loss": 5.0 / epoch}
    scores = {"map50": None, "ap": None, "precision": None, "recall": None}
    return {**values, **scores, "lr": 0.01, "images_per_second": 30.0, "gpu_memory": None, "seconds": 2.0, **changes}


def read_rows(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_epoch_is_on_disk_before_the_run_ends(tmp_path):
    """Numbers kept in a buffer until close() are lost when a run crashes."""
    metrics = MetricsWriter(tmp_path / "run", tensorboard=False)
    metrics.add_epoch(row(1))
    metrics.add_epoch(row(2, map50=np.float32(0.5), ap=0.25, loss_l1=0.75))
    rows = read_rows(metrics.folder)
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert rows[0]["loss"] == "4.0" and rows[0]["map50"] == "" and rows[0]["loss_l1"] == ""
    assert rows[1]["map50"] == "0.5" and rows[1]["ap"] == "0.25" and rows[1]["loss_l1"] == "0.75"
    assert (metrics.folder / "epoch_loss.txt").read_text() == "4.0\n2.0\n"
    assert (metrics.folder / "epoch_val_loss.txt").read_text() == "5.0\n2.5\n"
    assert (metrics.folder / "epoch_map.txt").read_text() == "2 0.5\n"


def test_missing_and_nan_numbers_keep_their_line(tmp_path):
    """A run without val images must not shift epoch_val_loss.txt against the epochs, nor fail when drawing."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1, val_loss=None, lr=None))
    metrics.add_epoch(row(2, val_loss=math.nan, loss=math.nan, map50=math.nan))
    metrics.close()
    assert (tmp_path / "epoch_val_loss.txt").read_text() == "nan\nnan\n"
    assert (tmp_path / "epoch_map.txt").read_text() == "2 nan\n"
    assert read_rows(tmp_path)[1]["loss"] == "nan"
    assert cv2.imread(str(tmp_path / "epoch_map.png")).shape == (450, 1500, 3)


def test_first_row_fixes_the_columns(tmp_path):
    """A key that appears later has no column: dropping it silently would lose it, writing it would break the table."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1, loss_box=2.0))
    assert read_rows(tmp_path)[0]["loss_box"] == "2.0"
    with pytest.raises(ValueError, match="no column loss_new"):
        metrics.add_epoch(row(2, loss_new=1.0))
    assert len(read_rows(tmp_path)) == 1


def test_results_of_another_run_are_never_mixed_in(tmp_path):
    """Two runs in one folder would give one curve with two beginnings."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1))
    with pytest.raises(ValueError, match="already holds"):
        MetricsWriter(tmp_path, tensorboard=False)


def test_a_run_without_epochs_closes(tmp_path):
    """A run that fails before its first epoch ends must not fail again while it closes."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.close()
    metrics.close()
    assert list(tmp_path.iterdir()) == []


def test_precision_and_recall_have_their_columns(tmp_path):
    """Prevents columns at other places than before, for people who read the first ones by number."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1, map50=0.5, ap=0.25, precision=0.75, recall=np.float64(0.625), gpu_memory=2.5))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines == [
        "epoch,phase,loss,loss_box,loss_obj,loss_cls,loss_l1,val_loss,lr,map50,ap,precision,recall,images_per_second,"
        "data_wait,gpu_memory,seconds",
        "1,unfrozen,4.0,1.5,,,,5.0,0.01,0.5,0.25,0.75,0.625,30.0,,2.5,2.0",
    ]


def test_rows_without_precision_and_recall_are_taken(tmp_path):
    """Prevents a program that knows the older columns alone from failing."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch({"epoch": 1, "phase": "unfrozen", "loss": 2.0, "map50": 0.5, "ap": 0.25})
    metrics.close()
    assert {path.name for path in tmp_path.glob("*.png")} == {"epoch_loss.png", "epoch_map.png", "results.png"}


def test_pictures_show_the_last_epoch(tmp_path, monkeypatch):
    """Prevents curves that end before the run did, where drawing was left out to save time."""
    drawn = []
    monkeypatch.setattr("utils.reporting.metrics.epoch_pictures", lambda rows: drawn.append(len(rows)) or {})
    monkeypatch.setattr("utils.reporting.images.MAX_TIME_SHARE", 1e-12)
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    for epoch in (1, 2, 3):
        metrics.add_epoch(row(epoch))
    assert drawn == [1]
    metrics.close()
    metrics.close()
    assert drawn == [1, 3]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    """None written as a scalar raises, and an event file without the epoch as step cannot be compared."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = MetricsWriter(tmp_path)
    metrics.add_epoch(row(1))
    metrics.add_epoch(row(2, map50=0.5, ap=0.25, precision=0.75, recall=0.625, gpu_memory=2.5))
    metrics.draw(2, lambda: {"labels": np.full((3, 4, 3), 200, np.uint8)})
    metrics.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("loss/train", "loss/val", "loss/box", "score/mAP_0.5", "score/AP_0.5_0.95"),
        *("score/precision", "score/recall"),
        *("run/lr", "run/images_per_second", "run/gpu_memory", "run/seconds"),
    }
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 4.0), (2, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("score/mAP_0.5")] == [(2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("loss/box")] == [(1, 1.5), (2, 1.5)]
    tags = {"pictures/epoch_loss", "pictures/epoch_map", "pictures/results", "pictures/labels"}
    assert set(events.Tags()["images"]) == tags
    (picture,) = events.Images("pictures/labels")
    assert (picture.step, picture.width, picture.height) == (2, 4, 3)
    assert [e.step for e in events.Images("pictures/results")] == [1, 2]


def test_a_run_that_goes_on_shows_its_own_epochs_alone(tmp_path):
    """Prevents an epoch that is listed twice: a killed run may have written more than its checkpoint knows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = MetricsWriter(tmp_path)
    metrics.add_epoch(row(1, loss_l1=0.5))
    rows = [dict(row) for row in metrics.rows]
    metrics.add_epoch(row(2, map50=0.5))
    metrics.add_epoch(row(3))
    metrics.close()
    assert (tmp_path / "epoch_map.txt").read_text() == "2 0.5\n"
    metrics = MetricsWriter(tmp_path, rows=rows)
    assert [r["epoch"] for r in read_rows(tmp_path)] == ["1"]
    assert (tmp_path / "epoch_loss.txt").read_text() == "4.0\n"
    assert not (tmp_path / "epoch_map.txt").exists()
    metrics.add_epoch(row(2, loss=1.5, loss_l1=0.25))
    metrics.close()
    assert [(r["epoch"], r["loss"], r["loss_l1"]) for r in read_rows(tmp_path)] == [
        ("1", "4.0", "0.5"),
        ("2", "1.5", "0.25"),
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 4.0), (2, 1.5)]


def test_a_run_that_goes_on_in_its_first_epoch(tmp_path):
    """Prevents a run that cannot be resumed: the first epoch was written, its checkpoint was not yet."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1, map50=0.5))
    metrics.close()
    metrics = MetricsWriter(tmp_path, tensorboard=False, rows=[])
    assert list(tmp_path.glob("*.csv")) + list(tmp_path.glob("*.txt")) == []
    metrics.add_epoch(row(1, loss=2.0))
    assert (tmp_path / "epoch_loss.txt").read_text() == "2.0\n"


def test_a_full_disk_is_said_once_and_made_good(tmp_path, monkeypatch, capsys):
    """Prevents the end of a training by a line of text, half a table, and the same words in each epoch."""
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    metrics.add_epoch(row(1))
    before = (tmp_path / "results.csv").read_bytes()

    def full(path, _write):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "replace_file", full)
    metrics.add_epoch(row(2))
    metrics.add_epoch(row(3))
    name = tmp_path / "results.csv"
    said = f"note: {name} could not be written: No space left on device. A later epoch makes up for it.\n"
    assert capsys.readouterr().out == said
    assert (tmp_path / "results.csv").read_bytes() == before
    monkeypatch.setattr(module, "replace_file", replace_file)
    metrics.add_epoch(row(4))
    assert [r["epoch"] for r in read_rows(tmp_path)] == ["1", "2", "3", "4"]
    assert (tmp_path / "epoch_val_loss.txt").read_text() == "5.0\n2.5\n1.6666666666666667\n1.25\n"
    assert capsys.readouterr().out == ""


def test_a_broken_tensorboard_file_is_given_up(tmp_path, monkeypatch, capsys):
    """Prevents a full disk from ending the training through TensorBoard's thread, and its trace in what people read."""
    from tensorboard.compat.tensorflow_stub.io.gfile import GFile

    metrics = MetricsWriter(tmp_path)
    metrics.add_epoch(row(1))

    def full(_file, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GFile, "write", full)
    for epoch in (2, 3):
        metrics.add_epoch(row(epoch))
    metrics.close()
    text = "TensorBoard gets no more of this run, its file could not be written: [Errno 28] No space left on device."
    assert capsys.readouterr() == (f"note: {text}\n", "")
    assert len(read_rows(tmp_path)) == 3


def test_a_tensorboard_file_that_cannot_be_made_is_given_up(tmp_path, monkeypatch, capsys):
    """Prevents a run that cannot go on because of its curves."""
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.__init__", failing_writer)
    metrics = MetricsWriter(tmp_path, rows=[row(1)])
    metrics.add_epoch(row(2))
    metrics.close()
    assert capsys.readouterr().out.count("TensorBoard gets no more of this run") == 1


def failing_writer(*_arguments, **_options):
    raise OSError(errno.EROFS, "Read-only file system")


def test_the_traces_of_other_threads_stay(monkeypatch, tmp_path):
    """Prevents errors in threads that nobody sees."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_type))
    MetricsWriter(tmp_path).close()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert seen == [ZeroDivisionError]
