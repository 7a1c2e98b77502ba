"""What a script says: on the screen, and, of a training, in the train.log of its run."""

import contextlib
import logging
import re
import sys
from collections import deque

from tqdm import tqdm

from utils.io.text import BIDI_CONTROLS

PREFIXES = {logging.WARNING: "note: ", logging.ERROR: "Error: "}
# A terminal obeys these, and names in a downloaded data set may hold them; all but the tab and the line break.
CONTROL_CHARACTERS = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDI_CONTROLS}]")
# So many messages are kept until a file for them is known.
MAX_KEPT = 10_000

# All of this project log here; of other packages only warnings are shown.
logger = logging.getLogger("yolo")


class _Formatter(logging.Formatter):
    """The message itself; warnings begin with `note:`, errors with `Error:`. Control characters are shown as \\x1b or
    \\u202e."""

    def format(self, record):
        text = PREFIXES.get(record.levelno, "") + super().format(record)
        return CONTROL_CHARACTERS.sub(_escape, text)


def _escape(match):
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


class _ScreenHandler(logging.Handler):
    """Writes as print does, errors to the error stream, and leaves progress bars whole."""

    def emit(self, record):
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _KeepHandler(logging.Handler):
    """Keeps messages for a file that is not known yet."""

    def __init__(self):
        super().__init__()
        self.records = deque(maxlen=MAX_KEPT)

    def emit(self, record):
        self.records.append(record)


class _FileHandler(logging.FileHandler):
    """A log file whose disk may be full: it then ends and says so once, while the training goes on."""

    def handleError(self, record):
        error = sys.exc_info()[1]
        logging.getLogger().removeHandler(self)
        self.addFilter(lambda _: False)  # what is on its way here would open the file again
        with contextlib.suppress(OSError):
            self.close()
        logger.warning("%s ends here, it could not be written: %s", self.baseFilename, error)


def setup_logging(is_main=True):
    """Show messages on the screen, and keep them for log_to_file. May be called again.

    is_main: False shows errors alone, as for the other processes of a distributed training.
    """
    for stream in (sys.stdout, sys.stderr):
        # What a console cannot show, as Chinese on a Western Windows, or a name that is no text, is shown as \u4e2d.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    root, level = logging.getLogger(), logging.INFO if is_main else logging.ERROR
    if not _handlers(_ScreenHandler):
        for handler in (_ScreenHandler(), _KeepHandler()):
            handler.setFormatter(_Formatter())
            root.addHandler(handler)
        logging.captureWarnings(True)
    for handler in _handlers(_ScreenHandler):
        handler.setLevel(level)
    logger.setLevel(level)


def log_to_file(path):
    """From now on messages also go to the end of this file, and to none before; those that were kept go there first."""
    _close_files()
    file_handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    file_handler.setFormatter(_Formatter())
    logging.getLogger().addHandler(file_handler)
    for handler in _handlers(_KeepHandler):
        handler.setLevel(logging.CRITICAL + 1)
        while handler.records:
            file_handler.handle(handler.records.popleft())


def end_log_file():
    """Close the file of log_to_file, if there is one; messages are kept for the next one again."""
    _close_files()
    for handler in _handlers(_KeepHandler):
        handler.records.clear()
        handler.setLevel(logging.NOTSET)


def log_in_file_only(text):
    """Write a text that the screen shows anyway, such as the trace of an error, into the file of log_to_file."""
    for handler in _handlers(_FileHandler):
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


def _close_files():
    for handler in _handlers(_FileHandler):
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _handlers(kind):
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, kind)]
