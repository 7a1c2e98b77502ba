from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train
from nets.losses import Criterion
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.io.errors import UserError
from utils.runtime import distributed
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.runtime.signals import Stopped
from utils.training import interruptions as module
from utils.training.engine import OptimWrapper
from utils.training.interruptions import explain_nonfinite, interruptions
from utils.training.nonfinite import NonFiniteLossError
from utils.training.phases import Phase

NAN = float("nan")
SETTINGS = SimpleNamespace(**fill_in(read_constants(vars(train)) | {"input_shape": [64, 64], "seed": 3}))
FROZEN, UNFROZEN = Phase(True, 0, 2, 16), Phase(False, 2, 6, 8)


class Recorder:
    """Stands for a run's logger, its Checkpointer and its signals: notes what is called, in order."""

    def __init__(self, folder, phase=UNFROZEN):
        self.calls, self.folder, self.path = [], folder, folder / "last_checkpoint.pth"
        self.phase, self.epoch, self.signals = phase, 4, self

    def __enter__(self):
        self.calls.append("signals heard")

    def __exit__(self, *_):
        self.calls.append("signals as before")

    def close(self):
        self.calls.append("closed")


class MeanLoss(Criterion):
    def forward(self, raw, _targets):
        return {"loss": raw.mean(), "count": torch.ones(2)}


def optim_of(rank=0):
    runtime = RuntimeContext(torch.device("cpu"), DistInfo(rank), Precision(torch.float32, False, ""))
    model = nn.Sequential(nn.Linear(2, 1))
    return OptimWrapper(model, MeanLoss(), torch.optim.SGD(model.parameters(), 0.1), None, runtime)


def loader_of(sentence=""):
    annotations = SimpleNamespace(path=lambda index: f"{index}.jpg")
    return SimpleNamespace(dataset=SimpleNamespace(annotations=annotations), worker_error=lambda error: sentence)


def left_by(tmp_path, error, phase=UNFROZEN, sentence=""):
    """What comes out of a training that this error leaves, and what was called: (error or None, logger's, all)."""
    run_logger, checkpointer = Recorder(tmp_path), Recorder(tmp_path, phase)
    try:
        with interruptions(run_logger, checkpointer, optim_of(), loader_of(sentence), SETTINGS):
            if error:
                raise error
    except BaseException as left:
        return left, run_logger.calls, checkpointer.calls
    return None, run_logger.calls, checkpointer.calls


@pytest.mark.parametrize(
    "error",
    [
        None,
        Stopped("Stopped by SIGTERM.", "SIGTERM"),
        UserError("No space left."),
        RuntimeError("The size of tensor a (3) must match"),
        KeyError("bug"),
        SystemExit(3),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_the_run_is_closed_on_every_way_out(tmp_path, error, monkeypatch):
    """Prevents pictures and weights that are missing for the reason that a training ended early; signals that stay
    deaf after it; and ranks that are left without a word."""
    ended = []
    monkeypatch.setattr(module, "shut_down", lambda: ended.append(True))
    left, of_logger, of_checkpointer = left_by(tmp_path, error)
    assert (of_logger, ended) == (["closed"], [True])
    assert of_checkpointer == ["signals heard", *(["closed"] if error is None else []), "signals as before"]
    is_explained = isinstance(error, torch.OutOfMemoryError)
    assert (left is error) is not is_explained


def test_ctrl_c_leaves_at_once(tmp_path, capsys):
    """Prevents the wait for last pictures, which is what a second Ctrl-C is pressed against."""
    error = KeyboardInterrupt()
    left, of_logger, _ = left_by(tmp_path, error)
    assert (left, of_logger) == (error, [])
    assert capsys.readouterr().out == f"\nLeft at once. What was saved last is in {tmp_path / 'last_checkpoint.pth'}.\n"


@pytest.mark.parametrize(
    ("error", "phase", "name"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), FROZEN, "Freeze_batch_size = 16"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), UNFROZEN, "Unfreeze_batch_size = 8"),
    ],
)
def test_out_of_memory_names_what_to_lower(tmp_path, error, phase, name):
    """Prevents a trace after hours, and advice to lower the batch size of the other phase."""
    left, of_logger, _ = left_by(tmp_path, error, phase)
    assert isinstance(left, UserError) and left.__cause__ is error and of_logger == ["closed"]
    assert str(left).startswith(
        f"Memory does not suffice for the {phase.name} phase with {name} and input_shape = [64,"
    )


def test_a_worker_that_died_is_explained(tmp_path):
    """Prevents torch's words, which may come up anywhere in the main thread, from standing where image and cause are
    known."""
    error, sentence = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "A worker was killed."
    left, of_logger, _ = left_by(tmp_path, error, sentence=sentence)
    assert isinstance(left, UserError) and left.__cause__ is error
    assert (str(left), of_logger) == (sentence, ["closed"])
    assert left_by(tmp_path, error, sentence="")[0] is error


def bad_batches():
    images = torch.tensor([[NAN, 2.0], [3.0, 5.0]])
    return [SimpleNamespace(images=images, targets=torch.zeros(2), indices=[7, 8])] * 3


def test_losses_that_are_no_numbers_are_explained(tmp_path):
    """Prevents an end without the cause, the images, and the batch for a closer look."""
    left, of_logger, _ = left_by(tmp_path, NonFiniteLossError("No finite number in 5 steps.", bad_batches()))
    assert (type(left), left.exit_status, of_logger) == (NonFiniteLossError, 3, ["closed"])
    assert str(left) == (
        "No finite number in 5 steps. In epoch 5, first of all the output of layer 0, with the images 7.jpg, 8.jpg, "
        "7.jpg, 8.jpg .... These steps were left out, so the weights are those before. Before you go on with "
        f"--resume={tmp_path}, lower Init_lr from 0.008 to 0.002 (the highest rate is then 2.5e-04 instead of "
        f"1.0e-03), or lower clip_grad_norm (now 10). {tmp_path / 'black_box.pth'} holds the batch for a closer look."
    )
    dump = torch.load(tmp_path / "black_box.pth", weights_only=True)
    assert (dump["epoch"], dump["settings"]["seed"], len(dump["images"])) == (5, 3, 3)


def test_mixed_precision_is_a_cause_only_where_it_is_used(tmp_path):
    """Prevents the advice to set fp16 = False in a run in float32, as above."""
    optim, error = optim_of(), NonFiniteLossError("Bad.", bad_batches())
    optim.runtime = optim.runtime._replace(precision=Precision(torch.bfloat16, False, ""))
    explained = explain_nonfinite(error, Recorder(tmp_path), Recorder(tmp_path), optim, loader_of(), SETTINGS)
    assert "or rule out mixed precision by fp16 = False. " in str(explained)


def test_each_rank_dumps_its_own_batch(tmp_path, monkeypatch):
    """Prevents ranks that write over each other's dump, or into a folder that the main one alone sees."""
    error, silent = NonFiniteLossError("Bad.", bad_batches()), SimpleNamespace(folder=None)
    checkpointer = Recorder(tmp_path)
    monkeypatch.setattr(module, "broadcast_object", lambda _own: str(tmp_path))
    explain_nonfinite(error, silent, checkpointer, optim_of(rank=1), loader_of(), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["black_box_rank1.pth"]
    monkeypatch.setattr(module, "broadcast_object", lambda _own: str(tmp_path / "elsewhere"))
    explained = explain_nonfinite(error, silent, checkpointer, optim_of(rank=1), loader_of(), SETTINGS)
    assert str(explained).endswith("(now 10). black_box.pth holds the batch for a closer look.")
    assert f"--resume={tmp_path / 'elsewhere'}, " in str(explained)
    assert len(list(tmp_path.iterdir())) == 1


def test_ranks_part_where_all_are_done(tmp_path, monkeypatch):
    """Prevents a process group that outlives the training; while an error is on its way it stays, as the others would
    fail in turn."""
    ended = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: ended.append(True))
    left_by(tmp_path, UserError("No space left."))
    assert ended == []
    left_by(tmp_path, None)
    assert ended == [True]
