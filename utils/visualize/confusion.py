"""The confusion matrix as a picture."""

import numpy as np

from utils.image.draw import BLACK, shortened, text_image, text_width, write_text

MOST_CLASSES = 80
_RIGHT, _WRONG, _FALSE, _LINE, _UNKNOWN = (0, 114, 206), (230, 57, 70), (255, 150, 40), 215, 240
_EDGE, _TOP = 24, 80


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
