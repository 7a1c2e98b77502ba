"""What a training writes and says while it runs: numbers, pictures, weights and words. The main rank's alone."""

import math

from utils import outputs
from utils.advice.advise import advise
from utils.config import plain
from utils.data.class_names import write_class_names
from utils.history import History
from utils.pictures.images import batch_picture
from utils.pictures.labels import label_picture
from utils.pictures.run import evaluation_pictures, first_batches
from utils.report import epoch_line, report, result_row
from utils.weights.contract import best_confidences


class RunLog:
    """Keeps the folder of a run.

    settings: train.py's. contract: of the weight files; it grows by what each epoch adds. run: see
    utils.advice.advise.Run. world_size: how many ranks train. say: prints.
    """

    def __init__(self, settings, contract, run, world_size, say):
        self.settings, self.contract, self.run, self.world_size, self.say = settings, contract, run, world_size, say
        self.files = outputs.WeightFiles(outputs.new_run_folder(settings.save_dir), settings.save_period)
        self.folder = self.files.folder
        self.history = History(self.folder)
        self.scores, self.scored_epoch, self.told, self.remarks = None, None, set(), {}
        outputs.save_settings(self.folder, plain(vars(settings)))
        write_class_names(self.folder / "classes.txt", run.class_names)
        say(f"\nresults go to {self.folder}\n")

    def draw_data(self, train_loader):
        """Draw the labels, and the first batches as the network will see them; the loader stands at the first epoch."""
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
        for path in sorted({*result.unreadable, *evaluation.unreadable} - self.told):
            self._tell(path, f"{path} cannot be decoded any more and is left out")
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
        """Draw the pictures a last time and close the files."""
        self.history.close()

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

    def _tell(self, topic, sentence):
        if topic not in self.told:
            self.told.add(topic)
            self.say(f"note: {sentence}")
