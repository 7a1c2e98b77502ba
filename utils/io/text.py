"""Lists and tables as text."""

import unicodedata
from collections.abc import Collection, Sequence

MAX_SHOWN = 10


def shorten_list(items: Sequence[str], shown: int = MAX_SHOWN) -> str:
    """The first few items, separated by commas, and how many more there are."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def display_width(text: str) -> int:
    """Columns that a terminal needs; Chinese characters take two each."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = (), gap: str = "  ") -> str:
    """Rows of cells as aligned lines; '' for no rows. right: the columns that are aligned to the right."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]

    def line(row):
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - display_width(cell))
            cells.append(padding + cell if number in right else cell + padding)
        return gap.join(cells).rstrip()

    return "\n".join(map(line, rows))
