"""What a training writes and says while it runs: numbers, pictures, weights and words. The main rank's alone."""

import math
from pathlib import Path

import torch

from utils.checkpoint.run_folder import BEST, LAST, WeightSaver, new_run_folder, save_settings
from utils.checkpoint.writer import BackgroundWriter
from utils.config.commands import command
from utils.config.constants import to_plain
from utils.data.quality.findings import findings_rows, write_findings
from utils.evaluation.scores import format_scores
from utils.io.class_names import write_class_names
from utils.io.errors import UserError
from utils.io.logger import log_to_file, logger
from utils.io.text import either
from utils.reporting.hints import Run, collect_hints, most_workers, too_high
from utils.reporting.hints.settings import setting_hints
from utils.reporting.images import evaluation_pictures, first_batches
from utils.reporting.metrics import MetricsWriter
from utils.reporting.page import report_page
from utils.runtime.device import describe
from utils.runtime.distributed import describe_ranks
from utils.training.advice import shorten_steps
from utils.training.build import run_metadata
from utils.training.freezing import lr_groups, trainable_table
from utils.training.lr_schedule import preview_lr
from utils.training.nonfinite import STEPS_TO_DOUBLE, usual_skips
from utils.training.phases import count_steps
from utils.visualize.epochs import draw_lr_preview
from utils.visualize.images import batch_picture
from utils.visualize.labels import label_picture
from utils.weights.metadata import best_confidences


def start_run(settings, data, model, phases, runtime, workers, checkpoint=None):
    """Say what a training will do, and open its folder. Returns a RunLogger, on other ranks than the main one a Silent.

    data: TrainingData, whose findings are written and dropped: every worker would get a copy of what may be hundreds of
    thousands. workers: processes that prepare images. checkpoint: of the run that goes on. Raises UserError where
    nothing can be written.
    """
    for sentence in setting_hints(settings, phases, data.epoch_length, runtime.dist.world_size):
        logger.warning(sentence)
    logger.info("\n" + trainable_table(model, settings, phases))
    if not runtime.dist.is_main:
        data.findings.clear()
        return Silent()
    metadata = run_metadata(settings, model, data.class_names)
    machine = [*describe(runtime.device), *describe_ranks(), ("precision", runtime.precision.sentence)]
    findings = findings_rows(data.findings)
    constant = data.class_names, data.train, data.val, model.decode_rule, workers, machine, findings
    run = Run(settings, *constant, most_workers(runtime), data.epoch_length)
    try:
        run_logger = RunLogger(settings, metadata, run, runtime, checkpoint and checkpoint["log"])
        write_findings(run_logger.folder / "findings.csv", data.findings)
        data.findings.clear()
        groups = lr_groups(model, settings, phases)
        preview = preview_lr(settings, phases, groups)
        draw_lr_preview(*preview, groups, settings.lr_decay_type, run_logger.folder / "planned_lr.png")
    except OSError as error:
        raise UserError(
            f"save_dir is {settings.save_dir!r}, and {error.filename or 'a file'} could not be written there "
            f"({error.strerror}): make room or give the right to write, or choose another save_dir."
        ) from error
    return run_logger


class Silent:
    """What the other ranks have in the place of a RunLogger: it writes nothing and knows nothing."""

    folder = scores = None

    def draw_data(self, *_):
        pass

    def end_epoch(self, *_):
        pass

    def close(self):
        pass

    def summarise(self):
        pass


class RunLogger:
    """Keeps the folder of a run.

    settings: train.py's. metadata: of the weight files; it grows by what each epoch adds. run: a Run. state: of a
    run that goes on in the folder of settings.resume, its state_dict.
    """

    def __init__(self, settings, metadata, run, runtime, state=None):
        self.settings, self.metadata, self.run, self.runtime = settings, metadata, run, runtime
        self.writer = BackgroundWriter()
        self.folder = Path(settings.resume).parent if state else new_run_folder(settings.save_dir)
        log_to_file(self.folder / "train.log")
        self.weights = WeightSaver(self.folder, settings.save_period, settings.keep_checkpoints, self.writer)
        self.metrics = MetricsWriter(self.folder, rows=state["rows"] if state else None)
        self.scores, self.scored_epoch, self.hints = None, None, {}
        self.warned = set(state["told"] if state else ())
        if state:
            # A score of another measure says nothing about those to come.
            is_same_measure = state["eval_flag"] == settings.eval_flag
            nothing = {"best_score": None, "best_epoch": None}
            self.weights.load_state_dict(state["files"] if is_same_measure else nothing)
        save_settings(self.folder, to_plain(vars(settings)))
        if not state:
            write_class_names(self.folder / "classes.txt", run.class_names)
        logger.info(f"\nresults go to {self.folder}\n")

    def state_dict(self):
        """What a run that goes on needs of all this, as plain types."""
        state = {"rows": self.metrics.rows, "files": self.weights.state_dict(), "told": sorted(self.warned)}
        return state | {"eval_flag": self.settings.eval_flag}

    def draw_data(self, train_loader, phase):
        """Draw the labels, and the first batches of a phase as the network will see them."""
        train_loader.batch_sampler.set_epoch(phase.first, phase.batch_size)
        run, sizes = self.run, (tuple(self.settings.input_shape), self.settings.tile)
        self.metrics.draw(0, label_picture, run.train_annotations, run.val_annotations, run.class_names, *sizes)
        entries = train_loader.dataset.annotations
        self.metrics.draw(0, batch_picture, first_batches(train_loader), entries, run.class_names)

    def end_epoch(self, epoch, phase, result, evaluation, model):
        """Write and say what an epoch, counted from 0, brought. Returns whether training is over.

        result: an EpochResult; evaluation: an Evaluation; model: the one that was evaluated.
        """
        settings, scores = self.settings, evaluation.scores
        is_last = epoch + 1 == settings.UnFreeze_Epoch
        row = result_row(epoch, phase, result, evaluation, self.runtime.dist.world_size)
        if scores:
            self.scores, self.scored_epoch = scores, epoch + 1
        self.metrics.add_epoch(row)
        logger.info(epoch_line(row, settings.UnFreeze_Epoch))
        self._warn_of_images(result, evaluation)
        self._warn_of_skipped(result.skipped, epoch, phase)
        if scores:
            annotations, detections = self.run.val_annotations, evaluation.detections
            self.metrics.draw(epoch + 1, evaluation_pictures, annotations, detections, scores, settings.seed)
        self.metadata |= {"epoch": epoch + 1, "scores": {key: row[key] for key in ("map50", "ap")}}
        self.metadata["confidence"] = best_confidences(scores)
        score = row["map50"] if settings.eval_flag else -row["val_loss"]
        self.weights.save(model, self.metadata, epoch + 1, is_last, row["loss"], row["val_loss"], score)
        # Only a measured epoch can tell, and leaves weights whose scores are known.
        is_measured = bool(scores) or not settings.eval_flag
        is_stalled = is_measured and self.weights.has_stalled(epoch + 1, settings.patience)
        if is_stalled and not is_last:
            best = self.weights.best_epoch
            logger.info(f"No better score since epoch {best}, patience is {settings.patience}: training stops here.")
        if settings.patience and scores and math.isnan(scores["map50"]):
            self._warn_once("patience", "patience has no effect: without boxes to validate on there is no score.")
        self._collect_hints(scores, evaluation.detections, is_last or is_stalled)
        if is_measured or is_last:
            page = self.folder.name, self.run, self.metrics.rows, evaluation, self.hints, self.weights.best_epoch
            self.metrics.draw(epoch + 1, report_page, *page)
        return is_last or is_stalled

    def close(self):
        """Draw the pictures a last time, close the files, and wait until what is being saved is on disk."""
        self.metrics.close()
        self.writer.wait()

    def summarise(self):
        """Say what came out, where it lies, and what would help."""
        self.writer.close()
        for line in summary_lines(
            self.weights, self.scores, self.scored_epoch, self.settings, too_high(self.run.findings)
        ):
            logger.info(line)
        if self.hints:
            logger.info("\nWhat would help, the most helpful first:")
            for sentence in self.hints.values():
                logger.info(f"  - {sentence}")

    def _collect_hints(self, scores, detections, is_over):
        """On the way each topic is told once; at the end summarise() tells all that still holds."""
        self.hints = collect_hints(self.run, self.metrics.rows, scores, detections, is_over)
        for topic in () if is_over else self.hints:
            self._warn_once(topic, self.hints[topic])

    def _warn_of_images(self, result, evaluation):
        unreadable = {*result.unreadable, *evaluation.unreadable}
        for path in sorted(unreadable):
            self._warn_once(path, f"{path} cannot be decoded any more and is left out")
        if result.unreadable:
            count = len(result.unreadable)
            logger.warning(f"{count} times another image of the epoch took the place of one that cannot be decoded")
        for path in sorted({*result.truncated, *evaluation.truncated} - unreadable):
            self._warn_once(
                f"cut off {path}", f"{path} lacks its last bytes; what is there is used. Save or copy it anew"
            )

    def _warn_of_skipped(self, count, epoch, phase):
        if not count:
            return
        settings, one = self.settings, phase._replace(first=epoch, last=epoch + 1)
        words = f"{'1 step was' if count == 1 else f'{count} steps were'} left out of epoch {epoch + 1}"
        steps = count_steps([one], len(self.run.train_annotations), settings.accumulate)
        if self.runtime.precision.scales and count <= usual_skips(steps, epoch == phase.first):
            self._warn_once(
                "float16 scale",
                f"{words} while float16 looked for the scale of its gradients. Some at the start, then one in about "
                f"{STEPS_TO_DOUBLE:,} steps, are usual and not told again.",
            )
        else:
            logger.warning(
                f"{words}: the loss or its gradient was no finite number. The weights are as if there had been no such "
                f"step; if it happens again, {either(shorten_steps(settings, phase))}."
            )

    def _warn_once(self, topic, sentence):
        if topic not in self.warned:
            self.warned.add(topic)
            logger.warning(sentence)


def epoch_line(row, last_epoch):
    """What a person reads of one epoch; row: as in MetricsWriter.add_epoch."""
    parts = " ".join(f"{key.removeprefix('loss_')} {row[key]:.2f}" for key in row if key.startswith("loss_"))
    text = f"epoch {row['epoch']:3d}/{last_epoch} {row['phase']:8s}  loss {row['loss']:6.3f} ({parts})"
    text += f"  val {row['val_loss']:6.3f}  lr {row['lr']:.1e}  {row['images_per_second']:.0f} images/s"
    text += f"  data wait {row['data_wait']:.0%}  {row['seconds']:.1f} s"
    if row["map50"] is None:
        return text
    scores = f"P {row['precision']:.2f}  R {row['recall']:.2f}  mAP@0.5 {row['map50']:.3f}  AP {row['ap']:.3f}"
    return f"{text}  {scores.replace('nan', '-')}"


def result_row(epoch, phase, result, evaluation, world_size):
    """One epoch as MetricsWriter takes it; epoch counts from 0."""
    scores, peak = evaluation.scores, result.peak_memory
    if peak is not None:
        peak = max(peak, torch.cuda.max_memory_allocated()) / 2**30  # that of the validation, too
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
        "gpu_memory": peak,  # GiB
        "seconds": result.seconds,
    }


def summary_lines(weights, scores, scored_epoch, settings, doubt=""):
    """Yield what came out at the end and where it lies. scores: of the last evaluation, after epoch scored_epoch;
    doubt: a sentence on why they cannot be trusted."""
    if scores:
        yield f"\nThe last evaluation, after epoch {scored_epoch}:"
        if doubt:
            yield doubt
        yield format_scores(scores)
    if weights.best_score is None:
        yield "\nNo epoch could be scored: the validation set holds no boxes, or its loss was not a number."
        return
    best = f"mAP@0.5 {weights.best_score:.3f}" if settings.eval_flag else f"validation loss {-weights.best_score:.3f}"
    yield f"\nBest weights: {weights.folder / BEST} ({best}, epoch {weights.best_epoch})"
    yield f"Last weights: {weights.folder / LAST}"
    predict = command("predict.py", {"model_path": (weights.folder.parent / BEST).as_posix()})
    yield f"Both are also in {settings.save_dir}/. Draw boxes with them: {predict}"
