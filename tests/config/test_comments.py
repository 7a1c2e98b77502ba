import importlib
from pathlib import Path

import pytest

from utils.config.comments import Section, assignments, read_sections
from utils.config.constants import read_constants

BORDER = "# " + 118 * "-"
SCRIPT = f'''"""A script."""
import os
# size: how large; no block of comments
{BORDER}
#   HOW TO DRAW
#   All of it in pixels;
#   the rest follows.
#
#   size    Width of a picture. One of
#               64    (small), which
#                     is usual
#               f(x):
#                   x
#           or any other.
#   colour  A name,
#           such as red.
#   Colour names are English.
#   shade   is no constant here.
#
{BORDER}
size = 3
colour: str = "red"

{BORDER}
#   Words about the code below, and about nothing else.
{BORDER}
_hidden = 2
{BORDER}
#   limit   None for none.
{BORDER}
limit = None
{BORDER}
#   late    This block never ends.
late = 1
'''


@pytest.mark.parametrize("script", ["train", "predict"])
def test_every_constant_of_a_script_has_an_entry(script):
    """Prevents a new constant that --help and the reference leave out, an entry that outlives its constant, and a line
    of another entry that is taken for one."""
    module = importlib.import_module(script)
    described = [name for section in read_sections(module.__file__) for name in section.constants]
    assert sorted(described) == sorted(read_constants(vars(module)))
    for section in read_sections(module.__file__):
        assert section.title
        assert all(len(text.split()) > 2 for text in section.constants.values())


def test_sections_literal_values(tmp_path):
    """Prevents texts that end at their first line, or go on into the next entry, and comments elsewhere, or of code
    without constants, from being taken for one."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    assert read_sections(path) == [
        Section(
            "HOW TO DRAW",
            "All of it in pixels;\nthe rest follows.\n\nColour names are English.\nshade   is no constant here.",
            {
                "size": "Width of a picture. One of\n- `64` (small), which is usual\n- `f(x): x`\nor any other.",
                "colour": "A name,\nsuch as red.",
            },
        ),
        Section("", "", {"limit": "None for none."}),
    ]
    path.write_text("seed = 3\n", encoding="utf-8")
    assert read_sections(path) == []


def test_what_is_assigned(tmp_path):
    """Prevents look-up tables, names inside functions and declarations without a value from counting as constants."""
    source = (
        "a = b = 1\n_c = 2\nd: int = 3\ne: int\nf, g = 4, 5\nif a:\n    h = 6\ndef i():\n    j = 7\na += 1\nk.l = 8\n"
    )
    assert [(name, expression.value) for name, expression in assignments(source)] == [("a", 1), ("b", 1), ("d", 3)]
    with pytest.raises(SyntaxError) as error:
        list(assignments("a = 1\nb = = 2\n", Path("my_train.py")))
    assert (error.value.filename, error.value.lineno) == ("my_train.py", 2)
