"""Why single classes are found badly: the reasons that lie in the data, and what changes them."""

import math
from pathlib import Path

import numpy as np

from utils.checkpoint.run_folder import BEST
from utils.config.commands import command, data_command
from utils.data.anchors import best_anchor_iou
from utils.data.quality.checks import FEW_BOXES, LARGEST_INPUT, RARE_BOXES, box_sizes_at_input, class_counts
from utils.data.quality.findings import MAX_CLASSES_NAMED
from utils.data.sources import paths_of
from utils.data.splits import split_advice
from utils.evaluation.evaluate import ground_truth
from utils.evaluation.label_suspects import TRUSTED_MAP
from utils.evaluation.matching import confusion_matrix
from utils.io.text import shorten_list
from utils.training.phases import is_pretrained

# Below this mAP@0.5 a class is as good as not found.
LOW_MAP = 0.1
# Pixels of the input, as train.py advises for input_shape: the finest map has a cell every 8, and smaller boxes leave
# less than one cell's trace.
SMALL_SIDE = 10
# An anchor is matched well from this IoU on; where under half of a class's boxes have one, it learns little.
GOOD_IOU, LEAST_FITTING = 0.5, 0.5
# This share of a class's boxes, found as one other class, is no accident; what is less sure than SURE is no finding.
CONFUSED, SURE = 1 / 3, 0.1
# Shown from 0.5 on, as people are used to, a class whose best threshold lies so low hardly appears.
LOW_CONFIDENCE = 0.25
_SENTENCES = {
    "no training boxes": "No training boxes: {}. Label some in train_annotation_path, or take the class out of "
    "classes_path.",
    "few boxes": f"Few training boxes: {{}}. Under {FEW_BOXES} nothing is learned, {RARE_BOXES} are a start: label "
    "more.",
    "small boxes": f"Small boxes: {{}}. Under {SMALL_SIDE} pixels of the input little is found: raise input_shape, or "
    "{tiling}.",
    "anchors": "The anchors do not fit: {}. `{anchors}` finds better ones for anchors_path.",
    "confused": f"Taken for another class, counted from a score of {SURE:g} on: {{}}. Compare their labels{{suspects}}"
    ", and label more of both; where colour tells them apart, lower the hue of colour_jitter, where left and right do, "
    "flip_prob.",
    "not found": "Hardly found, though the data show no reason: {}. Raise UnFreeze_Epoch, and check their labels"
    "{suspects}.",
    "not found, from scratch": "Hardly found, though the data show no reason: {}. Start from weights (model_path), or "
    "raise UnFreeze_Epoch much: from scratch takes thousands of images or hundreds of epochs.",
    "low scores": "Found, but with low scores: {}. predict.py shows them as it is; with a confidence of your own it "
    "takes one as low.",
    "no validation boxes": "No validation boxes: {}. Nothing tells how well they are found: {split}.",
}
# These only keep a class from being judged or shown.
_LAST = ("low scores", "no validation boxes")


def class_hints(run, scores, detections):
    """{topic: sentence} on classes that are hardly found; first what concerns most of them.

    run: Run of utils.reporting.hints. scores, detections: of its validation set, see utils.evaluation.scores.
    """
    train_counts = class_counts(run.train_annotations, len(run.class_names))
    matrix = None
    if any(row["map50"] < LOW_MAP for row in scores["classes"]):
        matrix = confusion_matrix(ground_truth(run.val_annotations), detections, len(run.class_names), SURE)
    reasons, train = {}, run.train_annotations
    sizes_wh = box_sizes_at_input(train, run.settings.input_shape, run.settings.tile)
    # The sizes class by class: to look for each class in all of them takes a minute for 1000 classes.
    sizes_wh = np.split(sizes_wh[np.argsort(train.classes, kind="stable")], np.cumsum(train_counts)[:-1])
    for class_id, row in enumerate(scores["classes"]):
        topic, detail = _reason(run, class_id, row, sizes_wh[class_id], matrix)
        if topic:
            reasons.setdefault(topic, []).append(f"{row['name']}{f' ({detail})' if detail else ''}")
    tile = run.settings.tile
    words = {"split": split_advice(run.settings.train_annotation_path)}
    words["suspects"] = f" (`{suspects_command(run.settings)}`)" if scores["map50"] >= TRUSTED_MAP else ""
    words["anchors"] = data_command("tools/kmeans_for_anchors.py", run.settings)
    words["tiling"] = f"lower tile (now {tile})" if tile else "set tile"
    order = sorted(reasons, key=lambda topic: (topic in _LAST, -len(reasons[topic])))
    return {
        topic: _SENTENCES[topic].format(shorten_list(reasons[topic], MAX_CLASSES_NAMED), **words) for topic in order
    }


def suspects_command(settings):
    """The command that looks through all labels of a training, with the best weights of the newest run."""
    paths = [*paths_of(settings.train_annotation_path), *paths_of(settings.val_annotation_path)]
    weights = (Path(settings.save_dir) / BEST).as_posix()
    # A data.yaml stands for both, and the weights know the classes.
    values = {"model_path": weights, "annotation_path": ",".join(dict.fromkeys(map(str, paths)))}
    return command("tools/label_suspects.py", values)


def _reason(run, class_id, row, sizes_wh, matrix):
    """(topic, detail) of one class: the first cause that holds, causes before their effects; "" where there is none.

    sizes_wh: (M, 2) of its training boxes, in pixels of the input.
    """
    train_count = len(sizes_wh)
    if not train_count:
        return "no training boxes", f"{row['boxes']} in validation"
    if not row["boxes"]:
        return "no validation boxes", f"{train_count} in training"
    if row["map50"] >= LOW_MAP:
        is_low = row["confidence"] < LOW_CONFIDENCE
        return ("low scores", f"best from {row['confidence']:.2f} on") if is_low else ("", "")
    if train_count < FEW_BOXES:
        return "few boxes", f"{train_count}"
    side = float(np.median(sizes_wh.min(axis=1)))
    if side < SMALL_SIDE:
        larger = [32 * math.ceil(length * SMALL_SIDE / max(side, 0.1) / 32) for length in run.settings.input_shape]
        grown = side * larger[0] / run.settings.input_shape[0]
        better = f", {grown:.0f} with input_shape = {larger}" if max(larger) <= LARGEST_INPUT else ""
        return "small boxes", f"half of them under {side:.1f} pixels{better}"
    anchors_wh = [run.decode_rule["anchors"][n] for mask in run.decode_rule.get("anchors_mask", ()) for n in mask]
    fitting = (best_anchor_iou(sizes_wh, anchors_wh) >= GOOD_IOU).mean() if anchors_wh else 1
    if fitting < LEAST_FITTING:
        return "anchors", f"only {fitting:.0%} of the boxes have one with an IoU of {GOOD_IOU:g}"
    taken = np.delete(matrix[class_id], class_id)[:-1] / row["boxes"]  # without itself and without what was missed
    if taken.max(initial=0) >= CONFUSED:
        other = int(taken.argmax())
        return "confused", f"{taken.max():.0%} for {run.class_names[other + (other >= class_id)]}"
    if train_count < RARE_BOXES:
        return "few boxes", f"{train_count}"
    start = "" if is_pretrained(run.settings) else ", from scratch"
    return f"not found{start}", f"AP@0.5 {row['map50']:.3f}, {train_count} training boxes"
