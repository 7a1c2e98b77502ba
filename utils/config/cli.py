"""Constants of a script, overridden from the command line, checked, and shown as a table.

The scripts (train.py, predict.py, tools/) hold their constants at module level. Names and values live there alone, and
the type of a constant is the type of its value; a constant that is None takes any literal.
"""

import ast
import inspect
import logging
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import traceback
from difflib import get_close_matches
from pathlib import Path

from utils.config.comments import read_sections
from utils.config.constants import TRAIN, check_kinds, to_plain
from utils.config.rules import check_types, check_values
from utils.io.errors import UserError
from utils.io.files import PROJECT
from utils.io.logger import log_in_file_only, logger, setup_logging
from utils.io.text import format_table

# torch.distributed.launch adds its own argument to ours; the same number stands in the environment.
LAUNCHER_ARGUMENTS = ("--local-rank=", "--local_rank=")
HELP_ARGUMENTS = ("--help", "-h")
MAIN_RANK = ("", "0")
HELP_COLUMN = 36
# The value with which an example of a comment begins.
_QUOTED = re.compile(r"'[^']*'")
# A launcher looks every 0.1 s whether a process has ended, and then ends the others.
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer")
SECONDS_OF_MAIN_RANK = 2.0
# Constants that name files and folders, beside all that end in _path.
PATHS = ("image", "resume", "save_dir", "gt", "det", "export_pictures", "first", "second", "source")


def run_script(main, constants, check=check_values, positional=(), complete=None):
    """Run a script: constants, overridden by the command line, checked and shown, handed to main(settings).

    check: {name: value} -> namespace, raising UserError. positional: constants whose values may also stand bare, in
    this order, such as files to read and to write. complete: (constants, values, names that the command line gives) ->
    values, where some come from elsewhere. A UserError ends in one sentence on the error stream, without a trace, and
    in its exit status; anything else keeps its trace.
    """
    rank = os.environ.get("RANK", "")
    setup_logging(rank in MAIN_RANK)
    if any(argument in HELP_ARGUMENTS for argument in sys.argv[1:]):
        print(help_text(inspect.getsourcefile(main), constants))
        return
    try:
        check_kinds(constants)
        given = overrides(constants, sys.argv[1:], positional)
        folder = Path(inspect.getsourcefile(main)).parent
        home = PROJECT if folder.is_relative_to(PROJECT) else folder
        values = find_paths(constants | given, home)
        if complete:
            values = find_paths(complete(constants, values, given), home)
        check_types(values, constants)
        settings = check(values)
        logger.info(settings_table(values, constants, later_constants(inspect.getsourcefile(main))))
        main(settings)
    except KeyboardInterrupt:
        _exit("Stopped by Ctrl-C.", 128 + signal.SIGINT, rank)
    except UserError as error:
        _exit(error, error.exit_status, rank)
    except Exception as error:
        if hasattr(error, "exit_status"):  # a training that was asked to stop, and has saved all
            _exit(str(error), error.exit_status, rank)
        log_in_file_only(traceback.format_exc())
        if not rank:
            raise
        if any(words in str(error) for words in PEER_IS_GONE):
            # The rank that failed first says why; the launcher ends this one meanwhile.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(SECONDS_OF_MAIN_RANK)
        print(f"rank {rank}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)


def _exit(reason, status, rank):
    """End the process with a sentence and an exit status.

    reason: a UserError, or a text that is no error. rank: as text, '' without a launcher. Other ranks than the main
    one give it the time to say the sentence first, because the launcher ends them when it is gone; an error that they
    still have to say then is theirs alone.
    """
    is_error = isinstance(reason, UserError)
    if rank not in MAIN_RANK:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(SECONDS_OF_MAIN_RANK)
        reason = f"rank {rank}: {reason}"
    if is_error or rank in MAIN_RANK:
        logger.log(logging.ERROR if is_error else logging.CRITICAL, "%s", reason)
    if rank:
        # An ordinary end would wait for what is under way between the ranks, and so for ranks that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def overrides(constants, arguments, positional=()):
    """{name: value} of the `--name=value` arguments of a command line.

    constants: {name: default}. arguments: what stood behind the script's name. positional: names whose values may stand
    bare. Values are Python literals or plain strings. Raises UserError, naming the parameter, for an unknown name and a
    missing value.
    """
    values, positional = {}, list(positional)
    for argument in arguments:
        if argument.startswith(LAUNCHER_ARGUMENTS):
            continue
        if positional and not argument.startswith("--"):
            argument = f"--{positional.pop(0)}={argument}"
        name, equals, text = argument.partition("=")
        if not name.startswith("--"):
            raise UserError(f"Argument {argument!r} is not understood; expected --name=value, as in --seed=3.")
        name = name[2:]
        if name not in constants:
            raise UserError(f"There is no parameter {name!r}.{_nearest(name, constants)}")
        if not equals:
            raise UserError(f"--{name} has no value; write --{name}=value, as in --{name}={constants[name]!r}.")
        values[name] = convert(text, constants[name])
    return values


def override(constants, changes):
    """Constants with values given from Python, {name: value} each. Raises UserError for an unknown name."""
    for name in changes.keys() - constants.keys():
        raise UserError(f"There is no parameter {name!r}.{_nearest(name, constants)}")
    check_kinds(constants)
    values = constants | {name: _like(value, constants[name]) for name, value in changes.items()}
    check_types(values, constants)
    return values


def convert(text, default):
    """The text of one override as a value: text, or a list of texts, where the default is text, else what it says as a
    Python literal."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if not isinstance(default, str):
        return _like(value, default)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _like(value, default):
    """A value in the type of a default where no information is lost: 1 as 1.0, (1, 2) as [1, 2], 'inf' as infinity."""
    if isinstance(default, float) and value in ("inf", "Infinity"):
        return math.inf
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return list(value) if isinstance(default, list) and isinstance(value, tuple) else value


def _nearest(name, known):
    lower = {key.lower(): key for key in known}
    match = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f" The nearest is --{lower[match[0]]}=..." if match else f" Known: {', '.join(known)}."


def find_paths(values, home):
    """The values, with relative paths that do not exist here and do in `home`, the project, as absolute ones.

    Of a list, and of a text with commas between paths, each is looked for. Editors and schedulers start scripts in
    other folders than people do.
    """

    def found(value):
        if isinstance(value, list):
            return list(map(found, value))
        if not isinstance(value, str) or not value or os.path.exists(value):
            return value
        if (home / value).exists():
            return str(home / value)
        parts = list(map(str.strip, value.split(",")))
        moved = list(map(found, parts)) if len(parts) > 1 else parts
        return value if moved == parts else ",".join(moved)

    names = [name for name in values if name.endswith("_path") or name in PATHS]
    moved = {name: found(values[name]) for name in names if found(values[name]) != values[name]}
    if moved:
        logger.info(f"not found from {Path.cwd()}, so taken from {home}: {', '.join(moved)}")
    return values | moved


def later_constants(path):
    """The constants of a script that do not stand in its first block."""
    return {name for section in read_sections(path)[1:] for name in section.constants}


def settings_table(values, defaults, later=()):
    """Settings as aligned lines; a star marks values that differ from the file's. Returns text.

    later: names that are left out where they do not differ; a line says how many these are.
    """
    # Where nothing is resumed the constant False has become ''.
    changed = [name for name in values if values[name] != defaults.get(name) and (values[name] or defaults.get(name))]
    shown = {name: value for name, value in values.items() if name in changed or name not in later}
    rows = [("*" if name in changed else " ", f"{name} ", repr(value)) for name, value in to_plain(shown).items()]
    left_out = len(values) - len(shown)
    more = [f"  {left_out} more are as the script has them, see --help"] if left_out else []
    return "\n".join([format_table(rows, gap=" "), *more])


def help_text(path, constants):
    """What --help prints: the constants of a script, their values now, and the first sentence of what each means."""
    doc = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8-sig"))) or ""
    lines = [
        doc,
        "",
        f"Constants of {os.path.basename(path)}, their values now, and what they mean (more in the file):",
    ]
    own = [line for section in read_sections(path) for line in _section_help(section, constants)]
    known = {name for section in read_sections(path) for name in section.constants}
    borrowed = {name: value for name, value in constants.items() if name not in known}
    other = [line for section in read_sections(TRAIN) for line in _section_help(section, borrowed)] if borrowed else []
    return "\n".join(
        lines + own + (["", "Constants of train.py, with the values that stand there:", *other] if other else [])
    )


def _section_help(section, constants):
    """The lines of a section: its title, and each of the constants with value and meaning; [] where it has none."""
    width, lines = max(shutil.get_terminal_size((120, 24)).columns, 80), []
    for constant, text in section.constants.items():
        if constant in constants:
            value = to_plain({constant: constants[constant]})[constant]
            head = f"  {constant} = {value!r}".ljust(HELP_COLUMN) + "  "
            lines += _meaning(head, text, width)
    return ["", section.title, *lines] if lines else []


def _meaning(head, text, width):
    """The lines of a constant: its head, and of what a comment says the first sentence and the values that it lists."""
    prose, *examples = text.split("\n- `")
    sentence = re.split(r"(?<=\.) ", " ".join(prose.split()))[0]
    values = [match[0] for match in map(_QUOTED.match, examples) if match]
    if not values:
        return [head + textwrap.shorten(sentence, max(width - len(head), 20), placeholder=" ...")]
    listed = f"{head}{sentence.rstrip('.:')}: {', '.join(values)}"
    return textwrap.wrap(listed, width, subsequent_indent=" " * (HELP_COLUMN + 2))
