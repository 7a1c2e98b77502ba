"""Lists and tables as text."""

import codecs
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from difflib import get_close_matches

MAX_SHOWN = 10
# They turn the direction of the text behind them, so that a name could reverse the number beside it. As in a class of a
# regular expression.
BIDI_CONTROLS = r"\u202a-\u202e\u2066-\u2069"
SAVE_AS_UTF8 = "; save it with the encoding UTF-8"
# What a file begins with that says its encoding.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(content: bytes, encoding: str = "utf-8") -> str | None:
    """The text of a file in UTF-8, in UTF-16 with its mark, or in the encoding that it states; None in any other."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding)
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def is_text(name: str) -> bool:
    """Whether a file name can be written into a text file: one that is no UTF-8 on the disk cannot."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_text(content, indent: int | None = None) -> str:
    """JSON that people can read, in UTF-8; file names that are no UTF-8 keep their bytes as escapes."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return text if is_text(text) else json.dumps(content, indent=indent)


def printable(name: str) -> str:
    """A name as it can be drawn and written: bytes that are no UTF-8 become question marks, and BIDI_CONTROLS go."""
    return re.sub(f"[{BIDI_CONTROLS}]", "", name.encode("utf-8", "replace").decode("utf-8"))


def shorten_list(items: Sequence[str], shown: int = MAX_SHOWN) -> str:
    """The first few items, separated by commas, and how many more there are."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, noun: str, spec: str = "") -> str:
    """A number and what it counts: "1 box", "2 boxes". noun: regular, its last word in the singular."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{count:{spec}} {noun}{ending}"


def amount(count: float) -> str:
    """A number of bytes, for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def either(choices: Sequence[str]) -> str:
    """One to many phrases as a choice: "a", "a, or b", "a, b, or c"."""
    return ", or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A question, after a blank, on the nearest of the known words; '' where none is near."""
    nearest = get_close_matches(word, known, n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


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
