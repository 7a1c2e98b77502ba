"""What a person reads while a training runs and when it is over."""

import os

import torch

from utils import outputs
from utils.eval.scores import format_scores

# Share of an epoch from which on the wait for images is worth a word.
MUCH_WAITING = 0.25


def epoch_line(row, last_epoch):
    """What a person reads of one epoch; row: as in History.add_epoch."""
    parts = " ".join(f"{key.removeprefix('loss_')} {row[key]:.2f}" for key in row if key.startswith("loss_"))
    text = f"epoch {row['epoch']:3d}/{last_epoch} {row['phase']:8s}  loss {row['loss']:6.3f} ({parts})"
    text += f"  val {row['val_loss']:6.3f}  lr {row['lr']:.1e}  {row['images_per_second']:.0f} images/s"
    text += f"  data wait {row['data_wait']:.0%}  {row['seconds']:.1f} s"
    if row["map50"] is None:
        return text
    scores = f"P {row['precision']:.2f}  R {row['recall']:.2f}  mAP@0.5 {row['map50']:.3f}  AP {row['ap']:.3f}"
    return f"{text}  {scores.replace('nan', '-')}"


def data_wait_advice(row, settings, workers):
    """What to change where an epoch waited much for images: a set of one sentence or none; row as in epoch_line."""
    if row["data_wait"] < MUCH_WAITING:
        return set()
    cores = os.cpu_count() or 1
    if settings.cache != "ram":
        change = "set cache = 'ram', which decodes each image once"
    elif workers < cores - 1:
        change = f"raise num_workers (now {workers}; this machine has {cores} cores)"
    else:
        change = "lower input_shape, or mosaic_prob and mixup_prob; a faster processor would help as well"
    return {f"Much of the time goes into waiting for images (data wait): {change}."}


def result_row(epoch, phase, result, evaluation, world_size):
    """One epoch as History takes it; epoch counts from 0."""
    scores = evaluation.scores
    losses = {key if key == "loss" else f"loss_{key}": value for key, value in result.losses.items()}
    return {
        "epoch": epoch + 1,
        "phase": phase.name,
        **losses,
        "val_loss": evaluation.loss,
        "lr": result.learning_rate,
        "map50": scores["map50"] if scores else None,
        "ap": scores["AP"] if scores else None,
        "precision": scores["precision"] if scores else None,
        "recall": scores["recall"] if scores else None,
        "images_per_second": result.images_per_second * world_size,
        "data_wait": result.data_wait,
        "gpu_memory": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,  # GiB
        "seconds": result.seconds,
    }


def report(files, scores, scored_epoch, settings, say):
    """Say at the end what came out and where it lies. scores: of the last evaluation, after epoch scored_epoch."""
    if scores:
        say(f"\nThe last evaluation, after epoch {scored_epoch}:\n{format_scores(scores)}")
    if files.best_score is None:
        say("\nNo epoch could be scored: the validation set holds no boxes, or its loss was not a number.")
        return
    best = f"mAP@0.5 {files.best_score:.3f}" if settings.eval_flag else f"validation loss {-files.best_score:.3f}"
    say(f"\nBest weights: {files.folder / outputs.BEST} ({best}, epoch {files.best_epoch})")
    say(f"Last weights: {files.folder / outputs.LAST}")
    newest = files.folder.parent / outputs.BEST
    command = "python predict.py" if settings.save_dir == "logs" else f"python predict.py --model_path={newest}"
    say(f"Both are also in {settings.save_dir}/. Draw boxes with them: {command}")
