"""What the comment blocks of a script say about its constants: for --help, and for the reference in docs/."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

BORDER = re.compile(r"# -{20,}")
# A comment line of a block: `#   name   text`, or with more blanks the text of the line before goes on. Text further
# right than that is an example, which becomes a line "- `code` remark".
ENTRY = re.compile(r"#   (?P<name>\w+) +(?P<text>\S.*)")
CONTINUED = re.compile(r"#    +(?P<text>\S.*)")


class Section(NamedTuple):
    """A block of comments. constants: {name: what the comment says about it}, in the order of the comment."""

    title: str
    intro: str
    constants: dict


def read_sections(path):
    """The Sections of a script, from its source. path: a Python file. Blocks that describe no constant are left out."""
    text = Path(path).read_text(encoding="utf-8-sig")
    names = {name for name, _ in assignments(text)}
    blocks, block, is_inside = [], [], False
    for line in text.splitlines():
        if BORDER.fullmatch(line):
            blocks += [block] if is_inside else []
            block, is_inside = [], not is_inside
        elif is_inside:
            block.append(line)
    sections = [_section(block, names) for block in blocks]
    return [section for section in sections if section.constants]


def _section(lines, names):
    title, intro, constants, current, columns = "", [], {}, None, []
    for line in lines:
        entry, continued = ENTRY.match(line), CONTINUED.match(line)
        if entry and entry["name"] in names:
            current, columns = entry["name"], [entry.start("text")]
            constants[current] = entry["text"]
        elif continued and current:
            constants[current] = _add_line(constants[current], continued, columns)
        else:
            current, words = None, line.removeprefix("#").strip()
            title, intro = (title, [*intro, words]) if title or constants else (words, intro)
    return Section(title, "\n".join(intro).strip(), constants)


def _add_line(text, line, columns):
    """The text of an entry with one more line of its comment: prose, or an example that stands further right.

    columns: where the prose begins, and behind it, in an example, where that begins; is brought up to date.
    """
    column, words = line.start("text"), line["text"]
    if column <= columns[0]:
        del columns[1:]
        return f"{text}\n{words}"
    if len(columns) > 1 and column > columns[1]:
        # The example goes on: its remark, or its code.
        return f"{text[:-1]} {words}`" if text.endswith("`") else f"{text} {words}"
    columns[1:] = [column]
    code, gap, remark = re.fullmatch(r"(.*?)(\s{2,}(.*))?", words).groups()
    return f"{text}\n- `{code}` {remark}" if gap else f"{text}\n- `{code}`"


def assignments(source, path="<unknown>"):
    """Yield (name, expression) of what a Python source assigns at module level, but for names that begin with _.

    path: for the SyntaxError of a source that is no Python.
    """
    for node in ast.parse(source, str(path)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                (target.id, node.value)
                for target in targets
                if isinstance(target, ast.Name) and not target.id.startswith("_")
            )
