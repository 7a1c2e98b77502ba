"""report.html: what a training brought, as one page that needs no other file and no network."""

import base64
import hashlib
import math
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.evaluation.bootstrap import with_intervals
from utils.io.text import printable
from utils.reporting.hints.classes import suspects_command
from utils.reporting.images import judge
from utils.reporting.page.pictures import label_suspects, worst_pictures
from utils.reporting.page.tables import ALWAYS_SHOWN, confusion_table, epoch_charts, pr_chart, settings_rows
from utils.visualize.charts import SIZE
from utils.weights.metadata import LEAST_CONFIDENCE, MIN_BOXES, USUAL_CONFIDENCE

_FOLDER = Path(__file__).parent
# Of many images each resampling takes longer, and fewer suffice for two digits.
MOST_RESAMPLINGS, LEAST_RESAMPLINGS, MOST_DRAWS = 1000, 200, 1_000_000
# Characters of a name from the data, and rows of the table of classes.
MOST_CHARACTERS, MOST_CLASSES = 160, 500


def report_page(name, run, rows, evaluation, hints, best_epoch):
    """{"report": the text of the page}.

    name: of the run's folder. run: a Run (utils/reporting/hints). rows: of MetricsWriter. evaluation: the Evaluation
    of the last row, whose scores may be None. hints: {topic: sentence}. best_epoch: None where there is none.
    """
    settings, scores = run.settings, evaluation.scores
    content = {
        "language": settings.report_language,
        "name": name,
        "settings": settings_rows(settings),
        "always_shown": ALWAYS_SHOWN,
        "epoch": rows[-1]["epoch"] if rows else None,
        "scored_epoch": max((row["epoch"] for row in rows if row["map50"] is not None), default=None),
        "best_epoch": best_epoch,
        "last_epoch": settings.UnFreeze_Epoch,
        "class_count": len(run.class_names),
        "images": (len(run.train_annotations), len(run.val_annotations)),
        "hints": list(hints.values()),
        "findings": run.findings,
        "machine": run.machine,
        "charts": epoch_charts(rows),
        **(_of_evaluation(run, scores, evaluation.detections) if scores else {"scores": None}),
    }
    # File names that are no UTF-8 cannot be written.
    return {"report": printable(_template().render(content))}


def _of_evaluation(run, scores, detections):
    annotations, class_names = run.val_annotations, run.class_names
    judged = judge(annotations, detections, scores)
    replicates = min(max(MOST_DRAWS // max(len(annotations), 1), LEAST_RESAMPLINGS), MOST_RESAMPLINGS)
    scores = with_intervals(scores, judged.truth, detections, replicates)
    pictures, totals = worst_pictures(annotations, detections, judged, class_names, scores["iou"])
    pr, pr_left_out = pr_chart(judged.curves, scores)
    return {
        "scores": scores | {"classes": scores["classes"][:MOST_CLASSES]},
        "pictures": pictures,
        "totals": totals,
        "suspects": label_suspects(annotations, detections, judged.truth, scores, class_names),
        "lowest_scores": (judged.confidences.min(), judged.confidences.max()),
        "score_rule": (LEAST_CONFIDENCE, USUAL_CONFIDENCE, MIN_BOXES),
        "suspects_command": suspects_command(run.settings),
        "pr": pr,
        "pr_left_out": pr_left_out,
        "confusion": confusion_table(judged.matrix, class_names) if totals["labelled"] else None,
    }


@cache
def _template():
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "short": _short}
    # The browser then runs no other script than this, whatever a name contains.
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    environment.globals |= {
        "script_hash": base64.b64encode(digest).decode("ascii"),
        "script": script,
        "chart_size": SIZE,
    }
    return environment.get_template("report.html.jinja")


def _score(number):
    """To three digits, "-" for what is not defined."""
    return "-" if number is None or math.isnan(number) else f"{number:.3f}"


def _short(text, most=MOST_CHARACTERS):
    """A text that may come from the data, cut in its middle where it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"
