"""Reading YAML files of other programs."""

import yaml

from utils.io.errors import UserError
from utils.io.files import read_bytes
from utils.io.text import SAVE_AS_UTF8

MAX_YAML_MEGABYTES = 1
_BACKSLASHES = (
    "in double quotes a backslash begins an escape: write paths with / instead, or in single quotes, as in 'C:/data'"
)


def load_yaml(path: str) -> dict:
    """The content of a YAML file as texts, lists and dicts: nothing runs, and a class `no` or `1e3` keeps its name.

    Raises ValueError where it is not valid, not UTF-8, or no dict.
    """
    try:
        content = yaml.load(read_bytes(path, MAX_YAML_MEGABYTES).decode("utf-8-sig"), yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text{SAVE_AS_UTF8}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        advice = _BACKSLASHES if "escape" in reason else "copy or export it again"
        raise UserError(f"{path} is not valid YAML ({reason}); {advice}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no data set description; expected the keys train, val and names.")
    return content
