"""The habits of a training, with a network of queries: frozen phase, accumulate, resume, scores, pictures, export."""

import json
import signal

import numpy as np
import pytest
import torch

import train
from utils.checkpoint.resume import CHECKPOINT
from utils.export import verify
from utils.export.onnx import write_onnx
from utils.export.verify import compare
from utils.inference.detector import Detector
from utils.inference.onnx import OnnxDetector
from utils.runtime.signals import Stopped
from utils.training.optim import ModelEMA
from utils.weights.read import read_weights

SETTINGS = {"model_name": "dfine_n", "model_path": "", "input_shape": [128, 128], "Cuda": False, "eval_period": 1}
SETTINGS |= {"UnFreeze_Epoch": 2, "Unfreeze_batch_size": 16, "num_workers": 0}
FROZEN = {"Freeze_Train": True, "Freeze_Epoch": 1, "Freeze_batch_size": 16}


def run(folder, **changes):
    settings = SETTINGS | {"save_dir": str(folder)} | changes
    return train.main(train.config(**settings))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two epochs on the drawn sample, all at once: the folder of the run."""
    return run(tmp_path_factory.mktemp("whole"), **FROZEN)[0]


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(whole, tmp_path, monkeypatch):
    """Prevents other noise of the denoising queries after a resume, and a frozen phase that moves the backbone."""
    steps, update = [], ModelEMA.update

    def update_and_be_stopped(*arguments):
        update(*arguments)
        steps.append(1)
        if len(steps) == 9:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ModelEMA, "update", update_and_be_stopped)
    with pytest.raises(Stopped, match=r"Stopped by SIGTERM in epoch 2"):
        run(tmp_path, **FROZEN)
    folder, _ = train.main(train.config(save_dir=str(tmp_path), resume=True, Cuda=False))
    assert len(steps) == 14
    ours, theirs = (torch.load(path / CHECKPOINT, weights_only=True)["model"] for path in (folder, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.slow
def test_a_file_opens_as_any_other(whole):
    """Prevents a network whose files need constants: classes, rules and size come from the file."""
    detector = Detector(whole / "last_epoch_weights.pth")
    images = [np.full((90, 160, 3), value, np.uint8) for value in (10, 200)]
    found = detector(images, confidence=0.0, max_boxes=50)
    assert [part.boxes_xyxy.shape for part in found] == [(50, 4)] * 2
    assert detector.resize_rule["mode"] == "stretch" and detector.metadata["model_name"] == "dfine_n"
    assert Detector(whole / "last_epoch_weights.pth", tta_flip=True)(images[0], 0.0).boxes_xyxy.shape[1] == 4


def choosing_otherwise(is_other):
    """in_order_of that says of one image after another whether the two programs chose other queries."""
    align = verify.in_order_of

    def aligned(tokens, *others):
        return align(tokens, *others)[0], ~np.array([next(is_other) for _ in tokens])

    return aligned


@pytest.mark.slow
def test_an_exported_file_gives_the_same(whole, tmp_path, monkeypatch):
    """Prevents a file with suppression, or for batches of one size alone."""
    detector = Detector(whole / "last_epoch_weights.pth")
    path = str(tmp_path / "dfine.onnx")
    write_onnx(path, detector, detector.options_of(0.0, 0.5, 20))
    pictures = {
        str(number): np.random.default_rng(number).integers(0, 255, (90, 160, 3), np.uint8) for number in range(5)
    }
    report = compare(path, detector, pictures)
    assert report["agrees"] and report["other_queries"] == 0 and json.dumps(report)
    # Where one picture's queries are a matter of the last digit, the others tell; not where most are.
    for number, agrees in ((1, True), (3, False)):
        with monkeypatch.context() as patch:
            patch.setattr(verify, "in_order_of", choosing_otherwise(iter([True] * number + [False] * 5)))
            report = compare(path, detector, pictures)
        assert (report["agrees"], report["other_queries"]) == (agrees, number)
    assert len(OnnxDetector(path)(pictures["0"], max_boxes=7).scores) == 7


@pytest.mark.slow
def test_accumulated_batches_learn(tmp_path):
    """Prevents terms that are divided by other counts than the engine thinks: two small batches are one step."""
    folder, scores = run(tmp_path, UnFreeze_Epoch=1, Unfreeze_batch_size=8, accumulate=2)
    state = read_weights(folder / "last_epoch_weights.pth").state
    assert scores is not None and all(value.isfinite().all() for value in state.values())
