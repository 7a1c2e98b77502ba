"""Write docs/constants.md, the reference of all constants, from the comment blocks of the scripts.

python tools/generate_constants.py                 writes the page
python tools/generate_constants.py --check=True    fails where the page is not what would be written
"""

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

from utils.config.cli import run_script
from utils.config.comments import assignments, read_sections
from utils.config.constants import read_constants
from utils.io.errors import UserError
from utils.io.files import PROJECT, replace_file
from utils.io.logger import logger

# ----------------------------------------------------------------------------------------------------------------------
#   check    True writes nothing, and fails where the page is out of date.
# ----------------------------------------------------------------------------------------------------------------------
check = False

_PAGE = PROJECT / "docs" / "constants.md"
_SCRIPTS = (
    *("train.py", "predict.py", "tools/voc_annotation.py", "tools/split_data.py", "tools/check_data.py"),
    *(
        "tools/kmeans_for_anchors.py",
        "tools/get_map.py",
        "tools/compare.py",
        "tools/label_suspects.py",
        "tools/pseudo_label.py",
        "tools/convert_weights.py",
    ),
    "tools/summary.py",
)
_HEAD = """# All constants

[中文](zh/constants.md)

Every constant of every script, its default, and what it means. The scripts say the same in their comment blocks, from
which this page is made (`python tools/generate_constants.py`). Any of them can be given for one run:
`python train.py --UnFreeze_Epoch=30`, lists in quotes: `"--input_shape=[416,416]"`. `python train.py --help` prints
them with their values now.
"""


def main(settings):
    """Write the page, or compare it. Raises UserError where it differs from what would be written."""
    text = _HEAD + "".join(script_tables(name) for name in _SCRIPTS)
    if not settings.check:
        replace_file(_PAGE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        logger.info(f"saved {_PAGE}")
    elif not _PAGE.is_file() or _PAGE.read_text(encoding="utf-8") != text:
        raise UserError(f"{_PAGE} is not what the scripts say; run python tools/generate_constants.py.")


def script_tables(name):
    """The part of the page on one script: a table for each of its comment blocks."""
    path = PROJECT / name
    defaults = {key: ast.unparse(value) for key, value in assignments(path.read_text(encoding="utf-8"))}
    lines = [f"\n## {name}\n"]
    for section in read_sections(path):
        title, _, remark = section.title.rstrip(".").partition(". ")
        lines += [f"\n### {name}: {title.capitalize()}\n"] if len(read_sections(path)) > 1 else []
        lines += [f"\n{remark}.\n"] if remark else []
        lines += ["\n| Constant | Default | Meaning |\n|---|---|---|\n"]
        for constant, text in section.constants.items():
            lines.append(f"| `{constant}` | `{defaults[constant]}` | {_cell(text)} |\n")
    return "".join(lines)


def _cell(text):
    """Text of a comment as one cell of a table; examples, and prose behind them, begin a line."""
    cell, was_example = "", False
    for line in text.splitlines():
        is_example = line.startswith("- `")
        cell += ("<br>" if is_example or was_example else " ") + _escaped(
            line.removeprefix("- ") if is_example else line
        )
        was_example = is_example
    return cell.strip()


def _escaped(line):
    """A line as Markdown wants it in a table; nothing but the bars is marked inside of code."""
    parts = re.sub(r"\s+", " ", line).replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


if __name__ == "__main__":
    run_script(main, read_constants(globals()))
