"""The constants of a script as {name: value}: read from its namespace or its text, and as plain values."""

import ast
import math
from pathlib import Path

from utils.config.comments import assignments
from utils.config.rules import RULES, TOOL_RULES
from utils.io.errors import UserError
from utils.io.files import PROJECT

TRAIN = PROJECT / "train.py"
LITERAL_TYPES = (bool, int, float, str, list, dict, type(None))
KNOWN_RULES = RULES | TOOL_RULES


def read_constants(namespace):
    """The parameter block of a script: {name: value} of what its source assigns at module level, in that order.

    namespace: the script's globals(). Values are literals, or functions of the user, as in `lr_decay_type = my_course`;
    of names that have a rule any value, for run_script and override to refuse, and tuples as the lists that these take.
    """
    source = Path(namespace["__file__"]).read_text(encoding="utf-8-sig")
    found = {name: _as_list(name, namespace[name]) for name, _ in assignments(source) if name in namespace}
    return {name: value for name, value in found.items() if name in KNOWN_RULES or _is_plain(value)}


def _is_plain(value):
    return isinstance(value, LITERAL_TYPES) or (callable(value) and not isinstance(value, type))


def _as_list(name, value):
    """A tuple as a list, also within it, where the rule of its constant takes that; anything else as it is."""

    def listed(item):
        return list(map(listed, item)) if isinstance(item, (list, tuple)) else item

    is_taken = isinstance(value, tuple) and name in KNOWN_RULES and KNOWN_RULES[name][0](listed(value))
    return listed(value) if is_taken else value


def check_kinds(constants):
    """Raise UserError for a constant, {name: value}, of a type that none has: a Path, an array, a number with a comma
    behind it."""
    for name, value in constants.items():
        if not _is_plain(value):
            expected = KNOWN_RULES[name][1]
            raise UserError(f"{name} is {value!r}, of the type {type(value).__name__}; expected {expected}")


def read_literals(path):
    """The parameter block of a script without running it: {name: value} of the literals that its source assigns.

    path: a Python file. A constant whose value is computed, or a function, is left out. Raises SyntaxError where the
    file is no Python.
    """
    constants = {}
    for name, expression in assignments(Path(path).read_text(encoding="utf-8-sig"), path):
        try:
            is_inf = ast.unparse(expression) == "float('inf')"
            constants[name] = math.inf if is_inf else _as_list(name, ast.literal_eval(expression))
        except ValueError:
            constants.pop(name, None)
    return {name: value for name, value in constants.items() if isinstance(value, LITERAL_TYPES)}


def train_constants(names):
    """{name: value} of train.py's constants, for tools that look at what it would do; None for one that it computes."""
    literals = read_literals(TRAIN)
    return {name: literals.get(name) for name in names}


def require_literals(values, names):
    """Raise UserError where train_constants could not read one of these and the command line did not give it."""
    for name in names:
        if values[name] is None:
            raise UserError(f"{TRAIN} computes {name}, and it is not run here; give its value, as in --{name}=...")


def to_plain(values):
    """{name: value} with the names of functions in their place, so that files can hold it."""
    return {
        name: getattr(value, "__name__", repr(value)) if callable(value) else value for name, value in values.items()
    }
