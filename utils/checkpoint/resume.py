"""Which run goes on, with which settings, and whether it may."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil

from utils.config.constants import to_plain
from utils.io.errors import UserError
from utils.io.text import counted
from utils.runtime.device import choose_gpus
from utils.runtime.distributed import broadcast_object, init_distributed, launch_id, restart_count
from utils.weights.metadata import check_metadata
from utils.weights.read import WeightFile, load_content

CHECKPOINT = "last_checkpoint.pth"
# What a run is. With another of these it would be another run.
RUN_IDENTITY = (
    "model_name",
    "backbone",
    "class_names",
    "input_shape",
    "resize_rule",
    "pixel_rule",
    "decode_rule",
    "strides",
    "optimizer_type",
)
# What only says how, where and how often: no result depends on it, so a change is no news.
NO_EFFECT_ON_RESULTS = (
    *("resume", "num_workers", "worker_timeout", "cpu_threads", "cache", "gpu_ids", "Cuda", "distributed", "save_dir"),
    *("save_period", "save_minutes", "keep_checkpoints", "model_path", "weights_format", "pretrained"),
    "report_language",
)
# The optimiser is the run's, also where an update of this project ships another one, or leaves its values open.
OPTIMISER = ("optimizer_type", "Init_lr", "momentum", "weight_decay", "lr_decay_type", "lr_scale", "clip_grad_norm")
# What the run began with, and what this start alone can know. Values that are given for the former would be of no use.
START_ONLY, LAUNCH_ONLY = ("Init_Epoch", "model_path", "pretrained"), ("distributed", "gpu_ids")
BATCH_SIZES = ("Freeze_batch_size", "Unfreeze_batch_size")
# Seconds by which the start of a process may move where the clock is set.
CLOCK_CHANGE = 2.0
CONTENT = ("model", "contract", "run", "training", "ranks", "log")


def resolve_resume(constants, values, given):
    """The settings of a training that may be a continued one.

    constants: {name: value} of train.py; values: with the command line's; given: the names it gives. Where resume (or
    a launcher that starts a failed training again) names a run, its settings count, but for those that the command line
    gives and those that were edited in train.py since; resume then is the path of the checkpoint. Raises ValueError
    where there is nothing to go on with.
    """
    choose_gpus(values["gpu_ids"])
    dist_info = init_distributed(values["distributed"], values["Cuda"])
    attempts = restart_count()
    path, run = broadcast_object(_found(values, attempts) if dist_info.is_main else None)
    if path is None:
        return values | {"resume": ""}
    then, file_then = run["settings"], run["constants"]
    now, file_now = to_plain(values), to_plain(constants)
    merged = dict(values)
    for name in values.keys() & then.keys():
        is_edited = name in file_then and file_now.get(name) != file_then[name]
        is_shipped = name == "optimizer_type" or (name in OPTIMISER and now[name] is None)
        is_given = name in given or (is_edited and not is_shipped)
        is_left_open = name in BATCH_SIZES and not now[name]  # the run has found its number
        counts = name in LAUNCH_ONLY or (is_given and name not in START_ONLY and not is_left_open)
        if not counts and now[name] != then[name]:
            merged[name] = then[name]
    return merged | {"resume": path, "save_dir": str(Path(path).parent.parent)}


def _found(values, attempts):
    path = find_checkpoint(values["resume"], values["save_dir"], attempts)
    return (str(path), read_checkpoint(path, mmap=True)["run"]) if path else (None, None)


def find_checkpoint(resume, save_dir, attempts=0):
    """The checkpoint that the constant resume means; None for a new run.

    resume: False, True for the newest run under save_dir, or a run's folder or checkpoint. attempts: how often the
    launcher has started this training before; what these left goes on without being asked for.
    """
    if resume in (False, ""):
        return checkpoint_of_this_launch(save_dir) if attempts else None
    if resume is not True:
        path = Path(resume) / CHECKPOINT if Path(resume).is_dir() else Path(resume)
        if not path.is_file():
            raise UserError(
                f"resume is {resume!r}, and there is no {path}; expected the folder of a run with its {CHECKPOINT}, or "
                "True for the newest run. To start a new training from weights set model_path instead."
            )
        return Path(os.path.abspath(path))  # '.' has no folder above it by its name
    paths = checkpoints(save_dir)
    if not paths:
        raise UserError(
            f"resume is True, but no run under save_dir {str(save_dir)!r} has a {CHECKPOINT}: set save_dir to where "
            "the run is, resume to its folder, or resume = False to begin."
        )
    return paths[-1]


def checkpoints(save_dir):
    """The checkpoints of all runs under save_dir, that of the newest run last."""
    return sorted(Path(save_dir).glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)


def checkpoint_of_this_launch(save_dir):
    """The checkpoint that an earlier attempt of the same launcher left; None where it came to none.

    The same --rdzv_id may have been used before, so it also has to be younger than the launcher.
    """
    begun = psutil.Process(os.getppid()).create_time()
    for path in (path for path in reversed(checkpoints(save_dir)) if path.stat().st_mtime > begun):
        with suppress(ValueError):  # a damaged one is none of this launch: these appear whole
            if read_checkpoint(path, mmap=True)["run"]["launch"] == launch_id():
                return path
    return None


def process():
    """What tells this process apart from all others: machine, number, start."""
    return [platform.node(), os.getpid(), psutil.Process().create_time()]


def is_running(identity):
    """Whether a process() of this machine is still there, and another one than this; None is not."""
    node, number, start = identity or ("", 0, 0.0)
    if node != platform.node() or number == os.getpid():
        return False
    try:
        other = psutil.Process(number)
        # One that was killed keeps its number until its parent asks for it, which in many containers nobody does.
        return other.status() != psutil.STATUS_ZOMBIE and abs(other.create_time() - start) < CLOCK_CHANGE
    except psutil.Error:
        return False


def read_checkpoint(path, mmap=False):
    """What a last_checkpoint.pth holds. Raises ValueError, naming the file, for anything else."""
    content = load_content(path, mmap)
    missing = [key for key in CONTENT if key not in content] if isinstance(content, dict) else CONTENT
    if missing:
        raise UserError(
            f"{path} is no checkpoint of a training (it lacks {', '.join(missing)}), so it cannot be resumed; expected "
            f"a {CHECKPOINT}. To start a new training from weights set model_path to them, and resume = False."
        )
    check_metadata(path, content["contract"])
    return content


def load_checkpoint(resume, runtime):
    """What the checkpoint of the constant resume holds, read by the main rank, on all ranks; None for a new run."""
    return broadcast_object(read_checkpoint(resume) if resume and runtime.dist.is_main else None)


def weights_of(path, content):
    """The weights of a checkpoint's content as read_weights gives those of a weight file."""
    return WeightFile(str(path), content["model"], content["contract"], "the weights of a run that goes on")


def check_resumable(path, content, metadata, settings):
    """Raise ValueError where the constants describe another run than the checkpoint's, or leave it nothing to do."""
    if is_running(content["run"].get("process")):
        raise UserError(
            f"{path} is of a run that is still training, as process {content['run']['process'][1]}: stop that first "
            "(Ctrl-C saves all), or name another run by resume."
        )
    epoch, then = content["run"]["epoch"], content["run"]["settings"]
    before = content["contract"] | {"optimizer_type": then["optimizer_type"]}
    now = metadata | {"optimizer_type": settings.optimizer_type}
    for name in RUN_IDENTITY:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path} is of a run with {name} {before.get(name)!r}, and now it is {now.get(name)!r}: resume "
                "goes on with the same run. Set it back, or start a new training from its weights by model_path."
            )
    is_ended = content["run"]["is_over"] and settings.patience == then["patience"]
    if epoch >= settings.UnFreeze_Epoch or (is_ended and settings.UnFreeze_Epoch == then["UnFreeze_Epoch"]):
        raise UserError(
            f"{path} is of a run that is over, after epoch {epoch} of {settings.UnFreeze_Epoch}; to train it further "
            "raise UnFreeze_Epoch (and patience, if that ended it)."
        )


def resume_summary(path, content, settings):
    """What a person reads of a run that is taken up again: sentences."""
    run, now = content["run"], to_plain(vars(settings))
    images = f" and {counted(run['images'], 'image')}" if run["images"] else ""
    yield f"resumes {path}: {run['epoch']} of {settings.UnFreeze_Epoch} epochs{images} are done"
    if run["settings"]["UnFreeze_Epoch"] != settings.UnFreeze_Epoch:
        yield (
            f"UnFreeze_Epoch was {run['settings']['UnFreeze_Epoch']} and is {settings.UnFreeze_Epoch}: the schedule "
            "of the learning rate, the end of mosaic and the average of the weights are planned anew."
        )
    for name, then in run["settings"].items():
        if name in now and now[name] != then and name not in (*NO_EFFECT_ON_RESULTS, "UnFreeze_Epoch"):
            yield f"{name} was {then!r} and is {now[name]!r} from here on."
