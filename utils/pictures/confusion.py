"""The confusion matrix: what each labelled box was taken for, counted and drawn."""

import numpy as np

from utils.eval.voc import paired_iou, same_class_pairs
from utils.pictures.text import BLACK, shortened, text_image, text_width, write_text

MOST_CLASSES = 80
_RIGHT, _WRONG, _FALSE, _LINE, _UNKNOWN = (0, 114, 206), (230, 57, 70), (255, 150, 40), 215, 240
_EDGE, _TOP = 24, 80


def confusion_matrix(ground_truth, detections, num_classes, confidences, iou=0.5):
    """(C + 1, C + 1) int64: how many boxes of a true class (row) were detected as a class (column).

    The last row counts detections of background, the last column boxes that were not found.
    ground_truth, detections: see utils/eval/inputs.py. confidences: (C,) or one number, from which on a detection
    counts. iou: from it on, iou included, a detection may take a box of its image, of whatever class. The surest
    detection chooses first, the free box that it overlaps most. A difficult box is in no row, and a detection that
    takes no box but overlaps one of them is left out.
    """
    confidences = np.broadcast_to(confidences, num_classes)
    kept = detections.scores >= confidences[detections.classes]
    detections = type(detections)(*(column[kept] for column in detections))
    found, box, overlap = _pairs(ground_truth, detections, iou)
    is_difficult = ground_truth.difficult[box]
    wanted = found[~is_difficult], box[~is_difficult], overlap[~is_difficult]
    matched, matched_box = _match(*wanted, detections.scores)
    true = np.full(len(detections.scores), num_classes)
    true[matched] = ground_truth.classes[matched_box]
    counted = np.ones(len(true), bool)
    counted[found[is_difficult]] = False
    counted[matched] = True
    missed = ~ground_truth.difficult
    missed[matched_box] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (true[counted], detections.classes[counted]), 1)
    np.add.at(matrix, (ground_truth.classes[missed], num_classes), 1)
    return matrix


def _pairs(ground_truth, detections, iou):
    """(detection, box, IoU) of all pairs of an image that overlap enough, as three arrays."""
    sets = (part._replace(classes=np.zeros_like(part.classes)) for part in (ground_truth, detections))
    nothing = np.zeros(0, np.int64)
    pairs = [(nothing, nothing), *same_class_pairs(*sets, 1)]
    found, box = (np.concatenate(part) for part in zip(*pairs, strict=True))
    overlap = paired_iou(ground_truth.boxes_xyxy[box], detections.boxes_xyxy[found])
    near = overlap >= iou
    return found[near], box[near], overlap[near]


def _match(found, box, overlap, scores):
    """One box per detection at most, and the reverse: (detections, boxes), chosen by score and then by overlap."""
    order = np.lexsort((-overlap, found, -scores[found]))
    found, box, matches = found[order], box[order], [(found[:0], box[:0])]
    while len(found):
        # A pair is certain if it is the first left of its detection and no surer detection wants the box.
        sure = np.intersect1d(np.unique(found, return_index=True)[1], np.unique(box, return_index=True)[1])
        matches.append((found[sure], box[sure]))
        left = ~(np.isin(found, found[sure]) | np.isin(box, box[sure]))
        found, box = found[left], box[left]
    return [np.concatenate(part) for part in zip(*matches, strict=True)]


def confusion_picture(matrix, class_names, note=""):
    """{"confusion": (H, W, 3) uint8 RGB}: the matrix, in % of the boxes of each true class.

    matrix: of confusion_matrix. note: on its thresholds, for the second line. Of more than MOST_CLASSES classes those
    with the most boxes are shown.
    """
    count = len(class_names)
    boxes = matrix[:count].sum(1)
    shown = np.sort(np.argsort(-boxes, kind="stable")[:MOST_CLASSES])
    matrix = matrix[np.ix_([*shown, count], [*shown, count])]
    cell = int(np.clip(900 // len(matrix), 24, 110))
    size = 13 if cell < 30 else 16
    names = [shortened(class_names[number], 240, size) for number in shown]
    rows = [f"{name} ({boxes[number]:,})" for name, number in zip(names, shown, strict=True)]
    rows, columns = [*rows, f"background ({matrix[-1].sum():,} false)"], [*names, "missed"]
    title = "labelled as (row), detected as (column): % of the row"
    title += f"; the {len(shown)} largest of {count} classes" if len(shown) < count else ""
    left = _EDGE + max(text_width(name, size) for name in rows) + 10
    labels = [text_image(column, size) for column in columns]
    if max(label.shape[1] for label in labels) > cell:
        labels = [np.rot90(label) for label in labels]
    below = max(label.shape[0] for label in labels) + 6 + _EDGE
    width = max(left + cell * len(matrix), *(_EDGE + text_width(text, 18) for text in (title, note))) + _EDGE
    page = np.full((_TOP + cell * len(matrix) + below, width, 3), 255, np.uint8)
    write_text(page, title, (_EDGE, 34), 18, weight=600)
    write_text(page, note, (_EDGE, 60), 15)
    page[_TOP - 1 : _TOP + cell * len(matrix), left - 1 : left + cell * len(matrix)] = _LINE
    _fill(page[_TOP:, left:], matrix, cell)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        middle = place * cell + cell // 2
        write_text(page, row, (left - 8 - text_width(row, size), _TOP + middle + round(0.36 * size)), size)
        height, width = label.shape[:2]
        top, start = _TOP + cell * len(matrix) + 6, left + middle - width // 2
        page[top : top + height, start : start + width] = 255 - label[..., 3:]
    return {"confusion": page}


def _fill(ground, matrix, cell):
    """Draw the cells from the top left on: blue what is right, red what is not, grey where there are no boxes.

    The last row has a colour of its own: it says of what class false alarms are, not how many there are.
    """
    totals = matrix.sum(1)
    for (row, column), number in np.ndenumerate(matrix):
        top, left = row * cell, column * cell
        share = number / max(totals[row], 1)
        is_background = row == len(matrix) - 1
        colour = np.array(_FALSE if is_background else _RIGHT if row == column else _WRONG)
        ground[top : top + cell - 1, left : left + cell - 1] = 255 - share * (255 - colour) if totals[row] else _UNKNOWN
        lines = [(f"{100 * share:.0f}", min(18, cell // 2))] if share >= 0.005 else []
        if lines and cell >= 60:
            lines = [(f"{lines[0][0]} %", 18), (f"{number:,}", 13)]
        ink = (255, 255, 255) if share > 0.6 and not is_background else BLACK
        for line, (text, size) in enumerate(lines):
            base = top + cell // 2 + round(0.36 * size) + (line * 22 - 10 if len(lines) > 1 else 0)
            write_text(ground, text, (left + (cell - text_width(text, size)) // 2, base), size, ink)
