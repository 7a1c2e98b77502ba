from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import train
from nets import build_model
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.loader import build_train_loader
from utils.data.quality.findings import Finding
from utils.data.sampling import MultiScale
from utils.evaluation.evaluate import Evaluation, ground_truth
from utils.evaluation.scores import score_detections
from utils.evaluation.types import DetectionTable
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.reporting import run_logger as module
from utils.reporting.hints import Run
from utils.reporting.run_logger import RunLogger, Silent, epoch_line, result_row, start_run, summary_lines
from utils.runtime.device import FLOAT32, Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training.dataset import TrainingData
from utils.training.engine import EpochResult
from utils.training.phases import Phase, build_phases
from utils.weights import metadata
from utils.weights.metadata import make_metadata

NAMES = ["fish", "图"]
RESULT = EpochResult({"loss": 4.5, "box": 1.25}, 2e-3, 30.0, 0.1, 12.0, [])
PHASE = Phase(False, 0, 10, 2)


@pytest.fixture
def annotations(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path in paths:
        cv2.imencode(".png", np.full((64, 64, 3), 90, np.uint8))[1].tofile(path)
    boxes = [(5, 5, 30, 30), (10, 20, 50, 60), (8, 8, 40, 40)]
    return Annotations(paths, [(64, 64)] * 3, [1] * 3, boxes, [0, 1, 0])


@pytest.fixture
def model():
    return build_model("yolox_nano", 2)


RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), FLOAT32)


def make_logger(annotations, model, folder, state=None, runtime=RUNTIME, **changes):
    constants = read_constants(vars(train)) | {"save_dir": str(folder / "logs"), "UnFreeze_Epoch": 10} | changes
    settings = SimpleNamespace(**fill_in(constants | {"input_shape": [64, 64]}))
    of_weights = make_metadata(model, NAMES, (64, 64), {"mode": "topleft", "pad": 114})
    return RunLogger(settings, of_weights, Run(settings, NAMES, annotations, annotations, {}, 0), runtime, state)


@pytest.fixture
def said(capsys):
    """A function: the lines on the screen since it was last called."""
    return lambda: capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def few_boxes_do(monkeypatch):
    monkeypatch.setattr(metadata, "MIN_BOXES", 1)


def evaluation(annotations, confidence=0.75):
    """All boxes found, and one too many: the surest is right."""
    truth = ground_truth(annotations)
    scores = np.full(3, confidence)
    found = DetectionTable(truth.image_ids, truth.boxes_xyxy, scores, truth.classes)
    return Evaluation(5.0, score_detections(truth, found, NAMES, 3), [], found)


def test_a_scored_epoch_leaves_numbers_pictures_weights_and_words(annotations, model, tmp_path, said):
    """Prevents a run whose folder misses what people look for, and weights without the confidences that fit them."""
    run_logger = make_logger(annotations, model, tmp_path)
    loader = build_train_loader(annotations, AugmentOptions(), 0, MultiScale([(64, 64)]), 2)
    run_logger.draw_data(loader, PHASE)
    assert not run_logger.end_epoch(0, PHASE, RESULT, evaluation(annotations), model)
    run_logger.close()
    run_logger.writer.close()
    run_logger.summarise()
    names = {path.name for path in run_logger.folder.iterdir()}
    assert names > {"settings.json", "classes.txt", "results.csv", "best_epoch_weights.pth", "last_epoch_weights.pth"}
    pictures = ("labels", "train_batch", "val_pred", "confusion", "pr_curve", "f1_curve", "results", "epoch_map")
    assert names > {f"{name}.png" for name in pictures}
    page = (run_logger.folder / "report.html").read_text("utf-8")
    assert "mAP@0.5" in page and "图" in page and "data:image/jpeg" not in page  # all is found, so no picture is bad
    saved = torch.load(run_logger.folder / "best_epoch_weights.pth", weights_only=True)["contract"]
    assert (saved["epoch"], saved["scores"]["map50"]) == (1, pytest.approx(1.0))
    assert saved["confidence"] == pytest.approx({"fish": 0.75, "图": 0.75})
    lines = said()
    assert any("P 1.00  R 1.00  mAP@0.5 1.000" in line for line in lines)
    assert any(line.startswith("Best weights: ") for line in lines)


def test_patience_ends_the_run(annotations, model, tmp_path, said):
    """Prevents a run that ends in an epoch without scores, whose weights then have none, or that ends without a word.

    Measured every second epoch; the second measurement is as good as the first, not better.
    """
    run_logger = make_logger(annotations, model, tmp_path, patience=3)
    nothing, over = Evaluation(5.0, None, [], None), []
    for epoch in range(6):
        over.append(
            run_logger.end_epoch(epoch, PHASE, RESULT, evaluation(annotations) if epoch % 2 else nothing, model)
        )
    run_logger.close()
    assert over == [False, False, False, False, False, True]
    assert "No better score since epoch 2, patience is 3: training stops here." in said()


def test_patience_without_scores_is_said(annotations, model, tmp_path, said):
    """Prevents patience from being set in vain, where validation has no boxes."""
    empty = Annotations([annotations.path(0)], [(64, 64)], [0], np.zeros((0, 4)), [])
    run_logger = make_logger(annotations, model, tmp_path, patience=1)
    none_found = DetectionTable(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    scores = score_detections(ground_truth(empty), none_found, NAMES, 1)
    for epoch in range(3):
        assert not run_logger.end_epoch(epoch, PHASE, RESULT, Evaluation(5.0, scores, [], none_found), model)
    run_logger.close()
    lines = said()
    assert sum(line.startswith("note: patience has no effect") for line in lines) == 1
    assert any("mAP@0.5 -  AP -" in line for line in lines)


def test_the_last_epoch_ends_the_run_without_scores(annotations, model, tmp_path, said):
    """Prevents a failure where the mAP is not measured: the lowest validation loss is the best."""
    run_logger = make_logger(annotations, model, tmp_path, eval_flag=False, UnFreeze_Epoch=2)
    nothing = Evaluation(5.0, None, [], None)
    assert [run_logger.end_epoch(epoch, PHASE, RESULT, nothing, model) for epoch in (0, 1)] == [False, True]
    run_logger.close()
    run_logger.writer.close()
    run_logger.summarise()
    assert any("validation loss 5.000" in line for line in said())
    assert "<bdi>validation</bdi> 5" in (run_logger.folder / "report.html").read_text("utf-8")
    assert torch.load(run_logger.folder / "last_epoch_weights.pth", weights_only=True)["contract"]["confidence"] == {}


def test_hints_are_told_once_on_the_way_and_whole_at_the_end(annotations, model, tmp_path, said, monkeypatch):
    """Prevents the same sentence after every evaluation, and an end that forgets what was said before."""
    run_logger = make_logger(annotations, model, tmp_path, UnFreeze_Epoch=3)
    monkeypatch.setattr(module, "collect_hints", lambda run, rows, *rest: {"rate": f"lower it ({len(rows)})"})
    broken = RESULT._replace(unreadable=["a.jpg"])
    for epoch in range(3):
        run_logger.end_epoch(epoch, PHASE, broken, Evaluation(5.0, None, [], None), model)
    run_logger.close()
    run_logger.summarise()
    lines = said()
    assert lines.count("note: lower it (1)") == 1
    assert [line for line in lines if "lower it" in line] == ["note: lower it (1)", "  - lower it (3)"]
    assert lines.count("note: a.jpg cannot be decoded any more and is left out") == 1


def test_a_resumed_log_goes_on_in_its_folder(annotations, model, tmp_path, said):
    """Prevents a second folder, curves that begin anew, a best score that is forgotten, and notes said twice."""
    nothing = Evaluation(5.0, None, [], None)
    run_logger = make_logger(annotations, model, tmp_path, eval_flag=False)
    run_logger.end_epoch(0, PHASE, RESULT._replace(unreadable=["a.jpg"]), nothing, model)
    run_logger.close()
    run_logger.writer.close()
    checkpoint, state = run_logger.folder / "last_checkpoint.pth", run_logger.state_dict()
    assert (state["told"], state["files"]) == (["a.jpg"], {"best_score": -5.0, "best_epoch": 1})

    again = make_logger(annotations, model, tmp_path, state, eval_flag=False, resume=str(checkpoint))
    again.end_epoch(1, PHASE, RESULT._replace(unreadable=["a.jpg"]), nothing._replace(loss=6.0), model)
    again.close()
    again.writer.close()
    assert again.folder == run_logger.folder and len(list(run_logger.folder.parent.glob("loss_*"))) == 1
    assert [row["epoch"] for row in again.state_dict()["rows"]] == [1, 2]
    assert (run_logger.folder / "epoch_val_loss.txt").read_text() == "5.0\n6.0\n"
    assert (again.weights.best_score, again.weights.best_epoch) == (-5.0, 1)
    assert said().count("note: a.jpg cannot be decoded any more and is left out") == 1


def test_what_went_wrong_with_images_and_steps_is_said(annotations, model, tmp_path, said):
    """Prevents steps and images that are left out without a word, or that are named again in each epoch."""
    run_logger = make_logger(annotations, model, tmp_path, eval_flag=False)
    result = RESULT._replace(unreadable=["a.jpg", "a.jpg"], truncated=["b.jpg"], skipped=2)
    for epoch in (0, 1):
        run_logger.end_epoch(epoch, PHASE, result, Evaluation(5.0, None, [], None, ["c.jpg", "b.jpg"]), model)
    run_logger.close()
    run_logger.writer.close()
    lines = said()
    notes = [line for line in lines if "jpg" in line or "image of the epoch" in line]
    again = "note: 2 times another image of the epoch took the place of one that cannot be decoded"
    assert notes == [
        "note: a.jpg cannot be decoded any more and is left out",
        again,
        "note: b.jpg lacks its last bytes; what is there is used. Save or copy it anew",
        "note: c.jpg lacks its last bytes; what is there is used. Save or copy it anew",
        again,
    ]
    steps = [line for line in lines if "steps were left out" in line]
    assert steps[0].endswith(
        "; if it happens again, lower Init_lr from 0.008 to 0.0032 (the highest rate is then 1.0e-04 instead of "
        "2.5e-04), or lower clip_grad_norm (now 10)."
    )
    assert [line.split(":")[1] for line in steps] == [f" 2 steps were left out of epoch {epoch}" for epoch in (1, 2)]


def test_float16_leaves_steps_out_while_it_looks_for_its_scale(annotations, model, tmp_path, said):
    """Prevents the advice to lower Init_lr in all trainings on a GPU without bfloat16; too many steps are no search."""
    runtime = RUNTIME._replace(precision=Precision(torch.float16, True, ""))
    run_logger = make_logger(annotations, model, tmp_path, runtime=runtime, eval_flag=False)
    for epoch, skipped in enumerate((16, 2, 3)):
        result = RESULT._replace(skipped=skipped)
        run_logger.end_epoch(epoch, PHASE, result, Evaluation(5.0, None, [], None), model)
    run_logger.close()
    run_logger.writer.close()
    first, second = [line for line in said() if "left out" in line]
    assert first == (
        "note: 16 steps were left out of epoch 1 while float16 looked for the scale of its gradients. Some at the "
        "start, then one in about 2,000 steps, are usual and not told again."
    )
    assert second.startswith("note: 3 steps were left out of epoch 3: the loss or its gradient was no finite number.")


def test_a_measure_that_changed_begins_anew(annotations, model, tmp_path):
    """Prevents a mAP from being held against a validation loss: eval_flag was edited before a resume."""
    run_logger = make_logger(annotations, model, tmp_path, eval_flag=False)
    run_logger.end_epoch(0, PHASE, RESULT, Evaluation(5.0, None, [], None), model)
    run_logger.close()
    resume, state = str(run_logger.folder / "last_checkpoint.pth"), run_logger.state_dict()
    again = make_logger(annotations, model, tmp_path, state, eval_flag=True, resume=resume)
    assert again.weights.state_dict() == {"best_score": None, "best_epoch": None}
    again.close()


def test_the_log_of_a_run_holds_what_was_said_before_its_folder_was_there(annotations, model, tmp_path, capsys):
    """Prevents a train.log that lacks device, data and weights, which are said first, or what the run says later; and
    one that a resume empties, or to which the next training in this process adds."""
    logger.info("device         CPU")
    logger.warning("sync_bn is True")
    first = make_logger(annotations, model, tmp_path)
    first.close()
    shown = capsys.readouterr().out
    assert shown == f"device         CPU\nnote: sync_bn is True\n\nresults go to {first.folder}\n\n"
    assert (first.folder / "train.log").read_text("utf-8") == shown

    second = make_logger(annotations, model, tmp_path)
    second.close()
    resumed = make_logger(annotations, model, tmp_path, first.state_dict(), resume=str(first.folder / "x.pth"))
    logger.info("epoch 2: 图")
    resumed.close()
    text = (first.folder / "train.log").read_text("utf-8")
    assert text == f"{shown}\nresults go to {first.folder}\n\nepoch 2: 图\n"
    assert (second.folder / "train.log").read_text("utf-8") == f"\nresults go to {second.folder}\n\n"


def begin(annotations, model, folder, rank=0, **changes):
    """What start_run gives for a training of two epochs, and the findings that are left then."""
    constants = read_constants(vars(train)) | {"save_dir": str(folder / "logs"), "UnFreeze_Epoch": 2}
    settings = SimpleNamespace(**fill_in(constants | {"input_shape": [64, 64]} | changes))
    data = TrainingData(NAMES, annotations, annotations, [Finding("background", "a.jpg")])
    runtime = RuntimeContext(torch.device("cpu"), DistInfo(rank, rank, rank + 1), Precision(torch.float32, False, ""))
    return start_run(settings, data, model, build_phases(settings), runtime, 0), data.findings


def test_a_run_begins_with_its_plan(annotations, model, tmp_path, said):
    """Prevents settings that train badly, or layers that do not train, without a word; and findings that every worker
    would get a copy of."""
    run_logger, findings = begin(annotations, model, tmp_path)
    run_logger.close()
    lines = said()
    assert lines[0].startswith("note: Only 2 optimiser steps in all; training from scratch wants at least 1000")
    assert "part      parameters  epochs 1-2" in lines and findings == []
    assert "info,image without boxes,a.jpg" in (run_logger.folder / "findings.csv").read_text("utf-8-sig")
    assert (run_logger.folder / "planned_lr.png").is_file()


def test_other_ranks_write_nothing(annotations, model, tmp_path):
    """Prevents a second folder of the same run; what train.py calls does nothing on the other ranks."""
    run_logger, findings = begin(annotations, model, tmp_path, rank=1)
    assert isinstance(run_logger, Silent) and findings == []
    run_logger.draw_data(None, PHASE)
    assert not run_logger.end_epoch(0, PHASE, RESULT, None, model)
    run_logger.close(), run_logger.summarise()
    assert (run_logger.folder, run_logger.scores) == (None, None)
    assert not (tmp_path / "logs").exists()


def test_a_folder_that_cannot_be_written_to(annotations, model, tmp_path, monkeypatch):
    """Prevents a trace where the disk is full before the first epoch; the sentence names the constant."""

    def full(path, _findings):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_findings", full)
    with pytest.raises(UserError) as error:
        begin(annotations, model, tmp_path)
    assert str(error.value).startswith(f"save_dir is '{tmp_path / 'logs'}', and {tmp_path / 'logs'}/loss_")
    assert str(error.value).endswith(
        "findings.csv could not be written there (No space left on device): make room or give the right to write, or "
        "choose another save_dir."
    )


FROZEN_RESULT = EpochResult({"loss": 4.5, "box": 1.25, "obj": 3.25}, 2e-3, 30.0, 0.125, 12.34, [])
SCORES = {"map50": 0.75, "AP": 0.5, "AP50": 0.75, "precision": 0.875, "recall": 0.625}


def row_of(scores, world_size=1):
    return result_row(6, Phase(True, 0, 10, 8), FROZEN_RESULT, SimpleNamespace(loss=5.5, scores=scores), world_size)


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
        "gpu_memory": None,
        "seconds": 12.34,
    }
    row = row_of(None)
    assert (row["map50"], row["ap"], row["images_per_second"]) == (None, None, 30.0)
    assert (row["precision"], row["recall"]) == (None, None)


@pytest.mark.parametrize(("of_training", "now", "expected"), [(2, 1, 2.0), (2, 3, 3.0), (None, 3, None)])
def test_memory_is_that_of_training_and_validation(monkeypatch, of_training, now, expected):
    """Prevents a peak without the training's, which is forgotten once it is held against the forecast; and a peak of 0
    where a GPU is there and not used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: now * 2**30)
    result = FROZEN_RESULT._replace(peak_memory=of_training and of_training * 2**30)
    assert result_row(0, PHASE, result, SimpleNamespace(loss=5.5, scores=None), 1)["gpu_memory"] == expected


def test_the_line_of_an_epoch():
    """Prevents a run that cannot be followed: losses of any network, and scores where there are some."""
    line = (
        "epoch   7/100 frozen    loss  4.500 (box 1.25 obj 3.25)  val  5.500  lr 2.0e-03  30 images/s  data wait 12%  "
        "12.3 s"
    )
    assert epoch_line(row_of(None), 100) == line
    assert epoch_line(row_of(SCORES), 100) == line + "  P 0.88  R 0.62  mAP@0.5 0.750  AP 0.500"


def summary(tmp_path, best_score, scores=None, **changes):
    weights = SimpleNamespace(best_score=best_score, best_epoch=3, folder=tmp_path / "loss_1")
    settings = SimpleNamespace(**{"eval_flag": True, "save_dir": "logs"} | changes)
    return "\n".join(summary_lines(weights, scores, 30, settings))


def test_a_doubt_stands_right_above_the_scores(annotations):
    """Prevents scores that are too high from being read without the sentence that scrolled away."""
    weights = SimpleNamespace(best_score=None)
    doubt = "These scores are too high: 1 image is in train and in val."
    lines = list(summary_lines(weights, evaluation(annotations).scores, 30, None, doubt))
    assert lines[:2] == ["\nThe last evaluation, after epoch 30:", doubt] and lines[2].startswith("class")


def test_the_end_says_where_the_weights_lie(tmp_path):
    """Prevents a user who has to search for the result, or a command that opens other weights than these."""
    folder = Path("logs", "loss_1")
    assert summary(Path("logs"), 0.75) == (
        f"\nBest weights: {folder / 'best_epoch_weights.pth'} (mAP@0.5 0.750, epoch 3)\n"
        f"Last weights: {folder / 'last_epoch_weights.pth'}\n"
        "Both are also in logs/. Draw boxes with them: python predict.py"
    )
    text = summary(tmp_path, -2.5, eval_flag=False, save_dir="elsewhere")
    assert "(validation loss 2.500, epoch 3)" in text
    newest = tmp_path / "best_epoch_weights.pth"
    assert text.endswith(f"Both are also in elsewhere/. Draw boxes with them: python predict.py --model_path={newest}")


def test_a_folder_with_spaces_is_quoted(tmp_path):
    """Prevents a command that breaks where a path has spaces."""
    text = summary(tmp_path / "my runs", 0.75, save_dir="my runs")
    assert text.endswith(f'predict.py --model_path="{tmp_path / "my runs" / "best_epoch_weights.pth"}"')


def test_a_run_without_a_score_says_so(tmp_path):
    """Prevents a path to best weights that do not exist."""
    assert summary(tmp_path, None) == (
        "\nNo epoch could be scored: the validation set holds no boxes, or its loss was not a number."
    )
