"""Constants of a script, overridden from the command line, checked, and shown as a table.

The scripts (train.py, predict.py, tools/) hold their constants at module level. Names and values live there alone, and
the type of a constant is the type of its value; a constant that is None takes any literal.
"""

import ast
import math
import os
import signal
import sys
import time
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace

from utils.io.files import PROJECT
from utils.runtime.signals import Stopped

LITERAL_TYPES = (bool, int, float, str, list, dict, type(None))

# torch.distributed.launch adds its own argument to ours; the same number stands in the environment.
LAUNCHER_ARGUMENTS = ("--local-rank=", "--local_rank=")

MAIN_RANK = ("", "0")

# A launcher looks every 0.1 s whether a process has ended, and then ends the others.
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer")

SECONDS_OF_MAIN_RANK = 2.0

TRAIN = PROJECT / "train.py"


def run_script(main, constants, check=None, positional=(), complete=None):
    """Run a script: constants, overridden by the command line, checked and shown, handed to main(settings).

    check: {name: value} -> namespace, raising ValueError; None for no checks. positional: constants whose values may
    also stand bare, in this order, such as files to read and to write. complete: (constants, values, names that the
    command line gives) -> values, where some come from elsewhere. A user's mistake ends in one sentence on the
    error stream, without a trace, and in exit status 1 or the exit_status of the error; anything else keeps its trace.
    """
    rank = os.environ.get("RANK", "")
    try:
        given = overrides(constants, sys.argv[1:], positional)
        values = complete(constants, constants | given, given) if complete else constants | given
        settings = check(values) if check else SimpleNamespace(**values)
        if rank in MAIN_RANK:
            print(settings_table(values, constants))
        main(settings)
    except Stopped as stop:
        _end(str(stop), stop.exit_status, rank)
    except KeyboardInterrupt:
        _end("Stopped by Ctrl-C.", 128 + signal.SIGINT, rank)
    except Exception as error:
        is_ours = isinstance(error, (ValueError, FileNotFoundError)) and _is_ours(error)
        if is_ours:
            _end(f"Error: {error}", getattr(error, "exit_status", 1), rank, is_said_by_all=True)
        if not rank:
            raise
        if any(words in str(error) for words in PEER_IS_GONE):
            # The rank that failed first says why; the launcher ends this one meanwhile.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(SECONDS_OF_MAIN_RANK)
        print(f"rank {rank}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)


def _end(sentence, status, rank, is_said_by_all=False):
    """End the process with a sentence and an exit status.

    rank: as text, '' without a launcher. Other ranks than the main one give it the time to say the sentence first: the
    launcher ends them when it is gone. is_said_by_all: they say it if they are still there, as it is theirs alone then.
    """
    if rank not in MAIN_RANK:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(SECONDS_OF_MAIN_RANK)
        sentence = f"rank {rank}: {sentence}" if is_said_by_all else ""
    if sentence:
        print(f"\n{sentence}", file=sys.stderr)
    if rank:
        # An ordinary end would wait for what is under way between the ranks, and so for ranks that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _is_ours(error):
    """Whether an error comes from a raise statement of this project, whose messages are written for people."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename)
    return PROJECT in path.parents and "site-packages" not in path.parts and frame.line.startswith("raise")


def script_constants(module_globals):
    """The parameter block of a script: {name: value} of its public module-level literals, in the order written.

    A constant may also be a function that the user wrote, as in `lr_decay_type = my_course`: one under another name
    than its own.
    """

    def is_constant(name, value):
        is_given_function = callable(value) and not isinstance(value, type) and _name_of(value) != name
        return not name.startswith("_") and (isinstance(value, LITERAL_TYPES) or is_given_function)

    return {name: value for name, value in module_globals.items() if is_constant(name, value)}


def read_constants(path):
    """The parameter block of a script, read from its source without running it: {name: value} as script_constants.

    path: a Python file. Assignments of literals, and of float("inf"), at module level are read; a constant whose value
    is computed, or a function, is left out. Raises SyntaxError where the file is no Python.
    """
    constants = {}
    for node in ast.parse(Path(path).read_bytes(), str(path)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            try:
                constants |= dict.fromkeys(names, _literal(node.value))
            except ValueError:
                constants = {name: value for name, value in constants.items() if name not in names}
    return script_constants(constants)


def train_constants(names):
    """{name: value} of train.py's constants, for tools that look at what it would do; None for one that it computes."""
    read = read_constants(TRAIN)
    return {name: read.get(name) for name in names}


def refuse_computed(values, names):
    """Raise ValueError where train_constants could not read one of these and the command line did not give it."""
    for name in names:
        if values[name] is None:
            raise ValueError(f"{TRAIN} computes {name}, and it is not run here; give its value, as in --{name}=...")


def _literal(node):
    """The value of an expression. Raises ValueError where it would have to be run."""
    return math.inf if ast.unparse(node) == "float('inf')" else ast.literal_eval(node)


def _name_of(function):
    return getattr(function, "__name__", repr(function))


def plain(values):
    """{name: value} with the names of functions in their place, so that files can hold it."""
    return {name: _name_of(value) if callable(value) else value for name, value in values.items()}


def parse_overrides(constants, arguments, positional=()):
    """Apply `--name=value` arguments to constants: a new dict of all final values. See overrides."""
    return constants | overrides(constants, arguments, positional)


def overrides(constants, arguments, positional=()):
    """{name: value} of the `--name=value` arguments of a command line.

    constants: {name: default}. arguments: what stood behind the script's name. positional: names whose values may stand
    bare. Values are Python literals or plain strings. Raises ValueError, naming the parameter, for an unknown name, a
    missing value and a wrong type.
    """
    values, positional = {}, list(positional)
    for argument in arguments:
        if argument.startswith(LAUNCHER_ARGUMENTS):
            continue
        if positional and not argument.startswith("--"):
            argument = f"--{positional.pop(0)}={argument}"
        name, equals, text = argument.partition("=")
        if not name.startswith("--"):
            raise ValueError(f"Argument {argument!r} is not understood; expected --name=value, as in --seed=3.")
        name = name[2:]
        if name not in constants:
            raise ValueError(f"There is no parameter {name!r}.{_nearest(name, constants)}")
        if not equals:
            raise ValueError(f"--{name} has no value; write --{name}=value, as in --{name}={constants[name]!r}.")
        values[name] = convert(name, text, constants[name])
    return values


def with_changes(constants, changes):
    """Constants with values given from Python, {name: value} each. Raises ValueError as parse_overrides does."""
    for name in changes.keys() - constants.keys():
        raise ValueError(f"There is no parameter {name!r}.{_nearest(name, constants)}")
    return constants | {name: _as_type_of(name, value, constants[name]) for name, value in changes.items()}


def convert(name, text, default):
    """Read the text of one override as the type of its default. Raises ValueError with what was got and expected."""
    if isinstance(default, str):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    return _as_type_of(name, value, default)


def _as_type_of(name, value, default):
    if default is None or callable(default):
        return value
    if name in ("pretrained", "resume") and isinstance(value, str):
        return value
    if isinstance(default, float) and value in ("inf", "Infinity"):
        return math.inf
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        return list(value)
    if type(value) is type(default):
        return value
    kind = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "text"}.get(
        type(default).__name__, f"a {type(default).__name__}"
    )
    raise ValueError(f"{name} is {value!r}; expected {kind}, as in --{name}={default!r}.")


def _nearest(name, known):
    lower = {key.lower(): key for key in known}
    match = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" The nearest is --{lower[match[0]]}=..." if match else f" Known: {', '.join(known)}."


def settings_table(values, defaults):
    """All settings as aligned lines; a star marks values that differ from the file's. Returns text."""
    width = max(map(len, values), default=0)
    lines = [
        f"{'*' if values[name] != defaults.get(name) else ' '} {name:<{width}}  {value!r}"
        for name, value in plain(values).items()
    ]
    return "\n".join(lines)
