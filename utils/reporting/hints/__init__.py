"""What holds a training back, in words: the one call that train.py makes after an evaluation and at the end."""

from typing import NamedTuple

import numpy as np

from utils.data.annotations import Annotations
from utils.data.quality.findings import KINDS
from utils.io.text import either
from utils.reporting.hints.classes import class_hints
from utils.reporting.hints.curves import curve_hints
from utils.reporting.hints.settings import few_steps_hint
from utils.runtime.device import CORES_OF_TRAINING, available_cores
from utils.runtime.distributed import local_world_size
from utils.training.phases import build_phases

MOST = 10
# Share of an epoch from which on the wait for images is worth a word.
MUCH_WAITING = 0.25
# From scratch nothing is found for many epochs, which says nothing. Classes are judged once half of the epochs are
# done, or once the detector finds so much on the whole that a class near zero stands out.
RIPE_SHARE, RIPE_MAP = 0.5, 0.3


class Run(NamedTuple):
    """What stays the same in a training. settings: train.py's; decode_rule: the network's, {} without anchors; workers:
    processes that prepare images; machine: [(name, text)] of versions and hardware; findings: of findings_rows;
    most_workers: of that function; epoch_length: samples of an epoch, 0 where that is not known.
    """

    settings: object
    class_names: list
    train_annotations: Annotations
    val_annotations: Annotations
    decode_rule: dict
    workers: int
    machine: list = ()
    findings: list = ()
    most_workers: int = 0
    epoch_length: int = 0


def most_workers(runtime):
    """How many processes may prepare images for this rank: the cores that training and other ranks leave.

    0 on a CPU, where the network needs them all.
    """
    return (available_cores() - CORES_OF_TRAINING) // local_world_size() if runtime.on_gpu else 0


def collect_hints(run, rows, scores=None, detections=None, is_last=False):
    """What would help, what helps most first: {topic: sentence}, MOST at most, {} where nothing stands out.

    rows: all rows of MetricsWriter so far. scores, detections: of the epoch just evaluated (Evaluation in
    utils.evaluation.evaluate), None where there are none. is_last: whether the training is over.
    A topic always means the same, whatever the numbers in its sentence: who has told one need not tell it again before
    the end.
    """
    if not rows:
        return {}
    remarks = _first_hints(run, rows[-1]["epoch"]) if is_last else {}
    few_steps = remarks.get("few steps")
    remarks |= curve_hints(rows, run.settings, is_last)
    if scores and (is_last or is_ripe(run.settings, rows, scores)):
        by_class = class_hints(run, scores, detections)
        # That a class is not found yet, for no other reason, says nothing on the way.
        remarks |= {topic: by_class[topic] for topic in by_class if is_last or not topic.startswith("not found")}
    waiting = float(np.mean([row["data_wait"] for row in rows[1:] or rows]))  # the first epoch starts the workers
    for sentence in data_wait_hint({"data_wait": waiting}, run.settings, run.workers, run.most_workers):
        remarks["data wait"] = sentence
    if few_steps and list(remarks)[-1] != "few steps":
        remarks["few steps"] = f"{few_steps} Until then the sentences below mean little."
    return dict(list(remarks.items())[:MOST])


def _first_hints(run, last_epoch):
    """What was said before the first epoch and counts more than all that the epochs show: {topic: sentence}."""
    leaked = too_high(run.findings)
    sentences = {
        "leaked images": leaked and f"{leaked} Let val_annotation_path name others.",
        "few steps": few_steps_hint(run.settings, build_phases(run.settings), run.epoch_length, last_epoch),
    }
    return {topic: sentence for topic, sentence in sentences.items() if sentence}


def too_high(findings):
    """A sentence where scores promise too much, because images are trained on and validated on; '' where none are.

    findings: of findings_rows.
    """
    what = KINDS["leaked_image"].what
    count = sum(int(count) for _, count, found, *_ in findings if found == what)
    if not count:
        return ""
    return f"These scores are too high: {count} image{'s are' if count > 1 else ' is'} in train and in val."


def is_ripe(settings, rows, scores):
    """Whether it is time to judge single classes."""
    done = (rows[-1]["epoch"] - settings.Init_Epoch) / (settings.UnFreeze_Epoch - settings.Init_Epoch)
    return done >= RIPE_SHARE or scores["map50"] >= RIPE_MAP


def data_wait_hint(row, settings, workers, most):
    """What to change where an epoch waited much for images: a set of one sentence or none.

    row: as in epoch_line. workers, most: how many processes prepare images, and how many may.
    """
    if row["data_wait"] < MUCH_WAITING:
        return set()
    if not settings.cache:
        change = "set cache = 'ram', which decodes each image once"
    elif workers < most:
        change = f"raise num_workers (now {workers}; there are cores for {most})"
    else:
        names = [f"{name}_prob" for name in ("mosaic", "mixup") if getattr(settings, name)]
        change = f"lower {either(['input_shape', *names])}; a faster processor would help as well"
    return {f"Much of the time goes into waiting for images (data wait): {change}."}
