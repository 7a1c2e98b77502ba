from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import train
from nets import build_model
from utils.config.cli import script_constants
from utils.data.annotations import Records
from utils.data.augment import AugmentSettings
from utils.data.loader import build_train_loader
from utils.data.sampling import TrainShapes
from utils.evaluation.evaluate import Evaluation, ground_truth
from utils.evaluation.scores import score_detections
from utils.evaluation.types import Detections
from utils.reporting import run_logger as run_log
from utils.reporting.hints import Run
from utils.reporting.run_logger import RunLog
from utils.training.engine import EpochResult
from utils.training.phases import Phase
from utils.weights import metadata as contract
from utils.weights.metadata import make_contract

NAMES = ["fish", "图"]
RESULT = EpochResult({"loss": 4.5, "box": 1.25}, 2e-3, 30.0, 0.1, 12.0, [])
PHASE = Phase(False, 0, 10, 2)


@pytest.fixture
def records(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path in paths:
        cv2.imencode(".png", np.full((64, 64, 3), 90, np.uint8))[1].tofile(path)
    boxes = [(5, 5, 30, 30), (10, 20, 50, 60), (8, 8, 40, 40)]
    return Records(paths, [(64, 64)] * 3, [1] * 3, boxes, [0, 1, 0])


@pytest.fixture
def model():
    return build_model("yolox_nano", 2)


def make_log(records, model, folder, said, progress=None, **changes):
    constants = script_constants(vars(train)) | {"save_dir": str(folder / "logs"), "UnFreeze_Epoch": 10} | changes
    settings = SimpleNamespace(**constants | {"input_shape": [64, 64]})
    kept = make_contract(model, NAMES, (64, 64), {"mode": "topleft", "pad": 114})
    return RunLog(settings, kept, Run(settings, NAMES, records, records, {}, 0), 1, said.append, progress)


@pytest.fixture(autouse=True)
def few_boxes_do(monkeypatch):
    monkeypatch.setattr(contract, "MIN_BOXES", 1)


def evaluation(records, confidence=0.75):
    """All boxes found, and one too many: the surest is right."""
    truth = ground_truth(records)
    scores = np.full(3, confidence)
    found = Detections(truth.image_ids, truth.boxes_xyxy, scores, truth.classes)
    return Evaluation(5.0, score_detections(truth, found, NAMES, 3), [], found)


def test_a_scored_epoch_leaves_numbers_pictures_weights_and_words(records, model, tmp_path):
    """Prevents a run whose folder misses what people look for, and weights without the confidences that fit them."""
    said = []
    log = make_log(records, model, tmp_path, said)
    loader = build_train_loader(records, AugmentSettings(), 0, TrainShapes([(64, 64)]), 2, 0)
    log.draw_data(loader, PHASE)
    assert not log.end_epoch(0, PHASE, RESULT, evaluation(records), model)
    log.close()
    log.saver.close()
    log.summarise()
    names = {path.name for path in log.folder.iterdir()}
    assert names > {"settings.json", "classes.txt", "results.csv", "best_epoch_weights.pth", "last_epoch_weights.pth"}
    pictures = ("labels", "train_batch", "val_pred", "confusion", "pr_curve", "f1_curve", "results", "epoch_map")
    assert names > {f"{name}.png" for name in pictures}
    saved = torch.load(log.folder / "best_epoch_weights.pth", weights_only=True)["contract"]
    assert (saved["epoch"], saved["scores"]["map50"]) == (1, pytest.approx(1.0))
    assert saved["confidence"] == pytest.approx({"fish": 0.75, "图": 0.75})
    assert any("P 1.00  R 1.00  mAP@0.5 1.000" in line for line in said)
    assert any(line.startswith("\nBest weights: ") for line in said)


def test_patience_ends_the_run(records, model, tmp_path):
    """Prevents a run that ends in an epoch without scores, whose weights then have none, or that ends without a word.

    Measured every second epoch; the second measurement is as good as the first, not better.
    """
    said = []
    log = make_log(records, model, tmp_path, said, patience=3)
    nothing, over = Evaluation(5.0, None, [], None), []
    for epoch in range(6):
        over.append(log.end_epoch(epoch, PHASE, RESULT, evaluation(records) if epoch % 2 else nothing, model))
    log.close()
    assert over == [False, False, False, False, False, True]
    assert "No better score since epoch 2, patience is 3: training stops here." in said


def test_patience_without_scores_is_said(records, model, tmp_path):
    """Prevents patience from being set in vain, where validation has no boxes."""
    said = []
    empty = Records([records.path(0)], [(64, 64)], [0], np.zeros((0, 4)), [])
    log = make_log(records, model, tmp_path, said, patience=1)
    none_found = Detections(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    scores = score_detections(ground_truth(empty), none_found, NAMES, 1)
    for epoch in range(3):
        assert not log.end_epoch(epoch, PHASE, RESULT, Evaluation(5.0, scores, [], none_found), model)
    log.close()
    assert sum(line.startswith("note: patience has no effect") for line in said) == 1
    assert any("mAP@0.5 -  AP -" in line for line in said)


def test_the_last_epoch_ends_the_run_without_scores(records, model, tmp_path):
    """Prevents a failure where the mAP is not measured: the lowest validation loss is the best."""
    said = []
    log = make_log(records, model, tmp_path, said, eval_flag=False, UnFreeze_Epoch=2)
    nothing = Evaluation(5.0, None, [], None)
    assert [log.end_epoch(epoch, PHASE, RESULT, nothing, model) for epoch in (0, 1)] == [False, True]
    log.close()
    log.saver.close()
    log.summarise()
    assert any("validation loss 5.000" in line for line in said)
    assert torch.load(log.folder / "last_epoch_weights.pth", weights_only=True)["contract"]["confidence"] == {}


def test_advice_is_told_once_on_the_way_and_whole_at_the_end(records, model, tmp_path, monkeypatch):
    """Prevents the same sentence after every evaluation, and an end that forgets what was said before."""
    said = []
    log = make_log(records, model, tmp_path, said, UnFreeze_Epoch=3)
    monkeypatch.setattr(run_log, "advise", lambda run, rows, *rest: {"rate": f"lower it ({len(rows)})"})
    broken = RESULT._replace(unreadable=["a.jpg"])
    for epoch in range(3):
        log.end_epoch(epoch, PHASE, broken, Evaluation(5.0, None, [], None), model)
    log.close()
    log.summarise()
    assert said.count("note: lower it (1)") == 1
    assert [line for line in said if "lower it" in line] == ["note: lower it (1)", "  - lower it (3)"]
    assert said.count("note: a.jpg cannot be decoded any more and is left out") == 1


def test_a_resumed_log_goes_on_in_its_folder(records, model, tmp_path):
    """Prevents a second folder, curves that begin anew, a best score that is forgotten, and notes said twice."""
    said, nothing = [], Evaluation(5.0, None, [], None)
    log = make_log(records, model, tmp_path, said, eval_flag=False)
    log.end_epoch(0, PHASE, RESULT._replace(unreadable=["a.jpg"]), nothing, model)
    log.close()
    log.saver.close()
    checkpoint, progress = log.folder / "last_checkpoint.pth", log.progress()
    assert (progress["told"], progress["files"]) == (["a.jpg"], {"best_score": -5.0, "best_epoch": 1})

    again = make_log(records, model, tmp_path, said, progress, eval_flag=False, resume=str(checkpoint))
    again.end_epoch(1, PHASE, RESULT._replace(unreadable=["a.jpg"]), nothing._replace(loss=6.0), model)
    again.close()
    again.saver.close()
    assert again.folder == log.folder and len(list(log.folder.parent.glob("loss_*"))) == 1
    assert [row["epoch"] for row in again.progress()["rows"]] == [1, 2]
    assert (log.folder / "epoch_val_loss.txt").read_text() == "5.0\n6.0\n"
    assert (again.files.best_score, again.files.best_epoch) == (-5.0, 1)
    assert said.count("note: a.jpg cannot be decoded any more and is left out") == 1


def test_what_went_wrong_with_images_and_steps_is_said(records, model, tmp_path):
    """Prevents steps and images that are left out without a word, or that are named again in each epoch."""
    said = []
    log = make_log(records, model, tmp_path, said, eval_flag=False)
    result = RESULT._replace(unreadable=["a.jpg", "a.jpg"], cut_off=["b.jpg"], skipped=2)
    for epoch in (0, 1):
        log.end_epoch(epoch, PHASE, result, Evaluation(5.0, None, [], None, ["c.jpg", "b.jpg"]), model)
    log.close()
    log.saver.close()
    notes = [line for line in said if "jpg" in line or "image of the epoch" in line]
    again = "note: 2 times another image of the epoch took the place of one that cannot be decoded"
    assert notes == [
        "note: a.jpg cannot be decoded any more and is left out",
        again,
        "note: b.jpg lacks its last bytes; what is there is used. Save or copy it anew",
        "note: c.jpg lacks its last bytes; what is there is used. Save or copy it anew",
        again,
    ]
    steps = [line for line in said if "steps were left out" in line]
    assert [line.split(":")[1] for line in steps] == [f" 2 steps were left out of epoch {epoch}" for epoch in (1, 2)]
