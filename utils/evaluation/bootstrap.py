"""How far a score can be trusted: scores of resampled image sets (Efron, Bootstrap methods, 1979).

Each resampling draws as many images as there are, with replacement. Detections are matched once; a resampling only
counts an image's matches as often as it was drawn.
"""

import numpy as np

from utils.evaluation.average_precision import coco_average_precisions, voc_average_precisions
from utils.evaluation.curves import mean_over_classes
from utils.evaluation.matching import AREAS, areas_of

LEVEL = 0.95
# Of fewer images no resampling tells much: five that agree do so by chance in 6 % of the cases.
MIN_IMAGES = 6


def resampled(num_images, replicates, seed=0):
    """How often each resampling draws each image: (num_images, replicates) float32."""
    drawn = np.random.default_rng(seed).integers(num_images, size=(replicates, num_images))
    drawn += np.arange(replicates)[:, None] * num_images
    counts = np.bincount(drawn.ravel(), minlength=replicates * num_images)
    return np.ascontiguousarray(counts.reshape(replicates, num_images).T, np.float32)


def has_enough_images(ground_truth, num_classes):
    """(1 + C,) whether at least MIN_IMAGES images hold a non-difficult box of any class, and of each class."""
    counted = ~ground_truth.difficult
    images, classes = ground_truth.image_ids[counted], ground_truth.classes[counted]
    of_class = np.bincount(np.unique(images * num_classes + classes) % max(num_classes, 1), minlength=num_classes)
    return np.append(len(np.unique(images)), of_class) >= MIN_IMAGES


def average_precisions(ground_truth, detections, num_classes, weights, iou=0.5, plus_one=False):
    """Every AP there is of each class and resampling: {name: (C, B)}, by voc_ and coco_average_precisions."""
    voc = voc_average_precisions(ground_truth, detections, num_classes, weights, iou, plus_one)
    return voc | coco_average_precisions(ground_truth, detections, num_classes, weights)


def interval(score, resampled_scores):
    """[low, high] that holds the true score in about LEVEL of the cases: (..., 2), NaN where the score is.

    score: (...); resampled_scores: (..., B). By the basic bootstrap (Davison and Hinkley, Bootstrap Methods, 1997,
    section 5.2): resampling pushes an AP up as much as sampling did, so what lies above the score is counted below it.
    The plain percentiles of a mean over many classes miss its true value several times as often.
    """
    score = np.asarray(score, np.float64)[..., None]
    ordered, defined = np.sort(resampled_scores, -1), np.isfinite(resampled_scores).sum(-1, keepdims=True)
    fractions = np.array([0.5 + LEVEL / 2, 0.5 - LEVEL / 2])
    places = (fractions * np.maximum(defined - 1, 0)).round().astype(int)  # NaN is sorted to the end
    ends = 2 * score - np.take_along_axis(ordered, places, -1)
    return np.concatenate([np.minimum(ends[..., :1], score), np.maximum(ends[..., 1:], score)], -1)


def with_intervals(scores, ground_truth, detections, replicates, seed=0):
    """The dict of score_detections, completed: "intervals" {name: [low, high]} of every mAP, and in each class too.

    replicates: how many resamplings, such as 1000. What is in fewer than MIN_IMAGES images has no intervals.
    """
    count = len(scores["classes"])
    weights = resampled(scores["images"], replicates, seed)
    by_name = average_precisions(ground_truth, detections, count, weights, scores["iou"], "map50_plus_one" in scores)
    classes = []
    is_enough, *class_has_enough = has_enough_images(ground_truth, count)
    for number, row in enumerate(scores["classes"]):
        names = ("map50", "AP") if class_has_enough[number] else ()
        classes.append(
            row | {"intervals": {name: _clipped(interval(row[name], by_name[name][number])) for name in names}}
        )
    means = {
        name: mean_over_classes(values)
        for name, values in by_name.items()
        if is_enough and (name not in AREAS or _images_with(ground_truth, name) >= MIN_IMAGES)
    }
    intervals = {name: _clipped(interval(scores[name], values)) for name, values in means.items()}
    return scores | {"classes": classes, "intervals": intervals, "resamplings": replicates}


def _images_with(ground_truth, name):
    """How many images hold a non-difficult box of a size that this name of AREAS looks at."""
    (smallest, largest), areas = AREAS[name], areas_of(ground_truth)
    counted = ~ground_truth.difficult & (areas >= smallest) & (areas <= largest)
    return len(np.unique(ground_truth.image_ids[counted]))


def _clipped(ends):
    return np.clip(ends, 0, 1).tolist()
