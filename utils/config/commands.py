"""Command lines that messages suggest, with what a training was given and a script would not take by itself."""

import re
import shlex

from utils.config.constants import read_literals, to_plain, train_constants
from utils.io.files import PROJECT

_NEEDS_QUOTES = re.compile(r"[^\w./\\:,=+@%~-]")
# What a shell reads within double quotes too: a name must not become a command where a suggestion is pasted.
_NEEDS_SINGLE_QUOTES = re.compile(r"[\"$`!]")
# What the tools that look at data take from train.py, and what changes their results.
_NETWORK = ("model_name", "input_shape", "tile")
_OF_TRAIN = {
    "tools/check_data.py": ("train_annotation_path", "val_annotation_path", "classes_path", *_NETWORK),
    "tools/kmeans_for_anchors.py": ("train_annotation_path", "classes_path", *_NETWORK),
}


def quote_path(path):
    """A path, or another value, as a command line takes it."""
    if _NEEDS_SINGLE_QUOTES.search(str(path)):
        return shlex.quote(str(path))
    return f'"{path}"' if _NEEDS_QUOTES.search(str(path)) else str(path)


def command(script, values):
    """`python script --name=value ...` with those of the values that the script would not take by itself.

    script: relative to the project. values: {name: value}; what stands in the script, or else in train.py, is left out.
    """
    own = train_constants(values) | read_literals(PROJECT / script)
    changed = {name: value for name, value in to_plain(values).items() if value != own[name]}
    words = (f"--{name}={quote_path(value)}" for name, value in changed.items())
    return " ".join([f"python {script}", *words])


def data_command(script, settings):
    """The command of a tool that looks at a training's data: tools/check_data.py or tools/kmeans_for_anchors.py."""
    return command(script, {name: getattr(settings, name) for name in _OF_TRAIN[script]})
