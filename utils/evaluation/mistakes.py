"""What is wrong with each detection and each labelled box, and which images have the most mistakes."""

from typing import NamedTuple

import numpy as np

from utils.evaluation.matching import match_any_class, overlapping_pairs, sure_detections, take_boxes_once

# The kinds of mistakes, by the name that every verdict has.
KINDS = ("missed", "class", "invented", "place")
# Below this IoU a detection has nothing to do with a box (Bolya et al., TIDE, 2020, section 2.2).
NEAR = 0.1


class Mistakes(NamedTuple):
    """A verdict on each box.

    labels: (M,) text: "right", "missed", "class" (found as another class), "place" (found with too small an IoU), or
    "ignored" (difficult). detections: (D,) text: "right", "class", "place", "invented" (nothing is labelled there, or
    it was found already), "ignored", or "" (below the confidence of its class).
    """

    labels: np.ndarray
    detections: np.ndarray

    def of_images(self, ground_truth, detections, num_images):
        """(num_images, 4) how many mistakes of each of KINDS an image has; a label and what took it are one."""
        counts = np.zeros((num_images, len(KINDS)), np.int64)
        for number, kind in enumerate(KINDS):
            of_labels = kind == "missed"
            ids = ground_truth.image_ids if of_labels else detections.image_ids
            verdicts = self.labels if of_labels else self.detections
            counts[:, number] = np.bincount(ids[verdicts == kind], minlength=num_images)
        return counts


def find_mistakes(ground_truth, detections, num_classes, confidences, iou=0.5):
    """The Mistakes of a set of images.

    ground_truth, detections: GroundTruth and DetectionTable. confidences: (C,), or one number, from which on a
    detection counts. Boxes are matched as for the confusion matrix; then a detection and a box that are left are one
    badly placed box where they have the same class and an IoU from NEAR on.
    """
    sure, rows = sure_detections(detections, confidences, num_classes)
    matched, matched_box, ignored = match_any_class(ground_truth, sure, iou)
    labels = np.full(len(ground_truth.classes), "missed", "<U8")
    found = np.full(len(rows), "invented", "<U8")
    labels[ground_truth.difficult] = found[ignored] = "ignored"
    is_right = sure.classes[matched] == ground_truth.classes[matched_box]
    labels[matched_box] = found[matched] = np.where(is_right, "right", "class")
    near, near_box, overlap = overlapping_pairs(ground_truth, sure, num_classes, NEAR, crowds=False)
    left = (found[near] == "invented") & (labels[near_box] == "missed")
    near, near_box = take_boxes_once(near[left], near_box[left], overlap[left], sure.scores)
    labels[near_box] = found[near] = "place"
    verdicts = np.full(len(detections.classes), "", "<U8")
    verdicts[rows] = found
    return Mistakes(labels, verdicts)


def worst_images(counts, most):
    """Indices of the images with the most mistakes, the worst first, most at most; images without any are none.

    counts: (N, K) of each kind. Equal sums keep the order of the images. Returns a list.
    """
    sums = counts.sum(1)
    order = np.argsort(-sums, kind="stable")
    return order[sums[order] > 0][:most].tolist()
