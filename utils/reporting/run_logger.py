"""What a training writes and says while it runs: numbers, pictures, weights and words. The main rank's alone."""

import math
from pathlib import Path

import torch

from utils.checkpoint.run_folder import BEST, LAST, WeightFiles, new_run_folder, save_settings
from utils.checkpoint.writer import Saver
from utils.config.cli import plain
from utils.evaluation.scores import format_scores
from utils.io.class_names import write_class_names
from utils.reporting.hints import advise
from utils.reporting.images import evaluation_pictures, first_batches
from utils.reporting.metrics import History
from utils.visualize.images import batch_picture
from utils.visualize.labels import label_picture
from utils.weights.metadata import best_confidences


class RunLog:
    """Keeps the folder of a run.

    settings: train.py's. contract: of the weight files; it grows by what each epoch adds. run: see
    utils.advice.advise.Run. world_size: how many ranks train. say: prints. progress: of a run that goes on in the
    folder of settings.resume, see progress().
    """

    def __init__(self, settings, contract, run, world_size, say, progress=None):
        self.settings, self.contract, self.run, self.world_size, self.say = settings, contract, run, world_size, say
        self.saver = Saver(say)
        self.folder = Path(settings.resume).parent if progress else new_run_folder(settings.save_dir)
        self.files = WeightFiles(self.folder, settings.save_period, settings.keep_checkpoints, self.saver)
        self.history = History(self.folder, rows=progress["rows"] if progress else None)
        self.scores, self.scored_epoch, self.remarks = None, None, {}
        self.told = set(progress["told"] if progress else ())
        if progress:
            # A score of another measure says nothing about those to come.
            is_same_measure = progress["eval_flag"] == settings.eval_flag
            self.files.restore(progress["files"] if is_same_measure else {"best_score": None, "best_epoch": None})
        save_settings(self.folder, plain(vars(settings)))
        if not progress:
            write_class_names(self.folder / "classes.txt", run.class_names)
        say(f"\nresults go to {self.folder}\n")

    def progress(self):
        """What a run that goes on needs of all this, as plain types."""
        progress = {"rows": self.history.rows, "files": self.files.progress(), "told": sorted(self.told)}
        return progress | {"eval_flag": self.settings.eval_flag}

    def draw_data(self, train_loader, phase):
        """Draw the labels, and the first batches of a phase as the network will see them."""
        train_loader.batch_sampler.set_epoch(phase.first, phase.batch_size)
        run, input_shape = self.run, tuple(self.settings.input_shape)
        self.history.draw(0, label_picture, run.train_records, run.val_records, run.class_names, input_shape)
        self.history.draw(0, batch_picture, first_batches(train_loader), run.train_records, run.class_names)

    def end_epoch(self, epoch, phase, result, evaluation, model):
        """Write and say what an epoch, counted from 0, brought. Returns whether training is over.

        result: an EpochResult; evaluation: an Evaluation; model: the one that was evaluated.
        """
        settings, scores = self.settings, evaluation.scores
        is_last = epoch + 1 == settings.UnFreeze_Epoch
        row = result_row(epoch, phase, result, evaluation, self.world_size)
        if scores:
            self.scores, self.scored_epoch = scores, epoch + 1
        self.history.add_epoch(row)
        self.say(epoch_line(row, settings.UnFreeze_Epoch))
        self._tell_of_images(result, evaluation)
        if result.skipped:
            steps = "1 step was" if result.skipped == 1 else f"{result.skipped} steps were"
            self.say(
                f"note: {steps} left out of epoch {epoch + 1}: the loss or its gradient was no finite number. The "
                "weights are as if there had been no such step; if it happens again, lower Init_lr or set "
                "clip_grad_norm = 10."
            )
        if scores:
            records, detections = self.run.val_records, evaluation.detections
            self.history.draw(epoch + 1, evaluation_pictures, records, detections, scores, settings.seed)
        self.contract |= {"epoch": epoch + 1, "scores": {key: row[key] for key in ("map50", "ap")}}
        self.contract["confidence"] = best_confidences(scores)
        score = row["map50"] if settings.eval_flag else -row["val_loss"]
        self.files.save(model, self.contract, epoch + 1, is_last, row["loss"], row["val_loss"], score)
        # Only a measured epoch can tell, and leaves weights whose scores are known.
        is_measured = bool(scores) or not settings.eval_flag
        is_stalled = is_measured and self.files.has_stalled(epoch + 1, settings.patience)
        if is_stalled and not is_last:
            best = self.files.best_epoch
            self.say(f"No better score since epoch {best}, patience is {settings.patience}: training stops here.")
        if settings.patience and scores and math.isnan(scores["map50"]):
            self._tell("patience", "patience has no effect: without boxes to validate on there is no score.")
        self._advise(scores, evaluation.detections, is_last or is_stalled)
        return is_last or is_stalled

    def close(self):
        """Draw the pictures a last time, close the files, and wait until what is being saved is on disk."""
        self.history.close()
        self.saver.wait()

    def summarise(self):
        """Say what came out, where it lies, and what would help."""
        report(self.files, self.scores, self.scored_epoch, self.settings, self.say)
        if self.remarks:
            self.say("\nWhat would help, the most helpful first:")
            for sentence in self.remarks.values():
                self.say(f"  - {sentence}")

    def _advise(self, scores, detections, is_over):
        """On the way each topic is told once; at the end summarise() tells all that still holds."""
        self.remarks = advise(self.run, self.history.rows, scores, detections, is_over)
        for topic in () if is_over else self.remarks:
            self._tell(topic, self.remarks[topic])

    def _tell_of_images(self, result, evaluation):
        unreadable = {*result.unreadable, *evaluation.unreadable}
        for path in sorted(unreadable):
            self._tell(path, f"{path} cannot be decoded any more and is left out")
        if result.unreadable:
            count = len(result.unreadable)
            self.say(f"note: {count} times another image of the epoch took the place of one that cannot be decoded")
        for path in sorted({*result.cut_off, *evaluation.cut_off} - unreadable):
            self._tell(f"cut off {path}", f"{path} lacks its last bytes; what is there is used. Save or copy it anew")

    def _tell(self, topic, sentence):
        if topic not in self.told:
            self.told.add(topic)
            self.say(f"note: {sentence}")


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
    say(f"\nBest weights: {files.folder / BEST} ({best}, epoch {files.best_epoch})")
    say(f"Last weights: {files.folder / LAST}")
    newest = files.folder.parent / BEST
    command = "python predict.py" if settings.save_dir == "logs" else f"python predict.py --model_path={newest}"
    say(f"Both are also in {settings.save_dir}/. Draw boxes with them: {command}")
