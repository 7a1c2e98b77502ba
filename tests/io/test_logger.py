import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from utils.io.logger import MAX_KEPT, end_log_file, log_in_file_only, log_to_file, logger, setup_logging

PROJECT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")  # a disk without room, on Linux


def test_the_screen_shows_what_kind_of_message_it_is(capsys):
    """Prevents warnings that look like results, and errors that a program reading the output does not see."""
    logger.debug("for nobody")
    logger.info("%d epochs", 3)
    logger.warning("the disk fills")
    logger.error("no such file")
    logger.critical("out of memory")
    out, err = capsys.readouterr()
    assert out == "3 epochs\nnote: the disk fills\n"
    assert err == "Error: no such file\nout of memory\n"


def test_names_do_not_control_the_terminal(capsys):
    """Prevents a name in a downloaded data set from clearing the screen or writing over what stands there."""
    logger.info("a\x1b[2J\0.jpg\tb\r\nc")
    assert capsys.readouterr().out == "a\\x1b[2J\\x00.jpg\tb\\x0d\nc\n"


def test_names_do_not_turn_the_line(capsys):
    """Prevents a name that reverses the numbers behind it: 0.125 would read as 521.0."""
    logger.info("cat\u202e\u2066 0.125, 猫 שלום")
    assert capsys.readouterr().out == "cat\\u202e\\u2066 0.125, 猫 שלום\n"


def test_other_ranks_show_errors_alone(capsys):
    """Prevents each line of a distributed training from standing there once for every process."""
    setup_logging(is_main=False)
    logger.info("3 epochs")
    logger.warning("the disk fills")
    logging.getLogger("library").warning("old version")
    logger.error("no such file")
    assert capsys.readouterr() == ("", "Error: no such file\n")


def test_a_second_setup_changes_nothing(capsys):
    """Prevents lines that stand there twice where a script calls another one."""
    setup_logging()
    logger.info("once")
    assert capsys.readouterr().out == "once\n"


def test_a_progress_bar_stays_whole(capsys):
    """Prevents a message in the middle of the line that a progress bar draws."""
    with tqdm(range(2), file=sys.stdout, ascii=True, ncols=40) as bar:
        bar.update()
        logger.info("a message")
    assert "a message" in capsys.readouterr().out.replace("\r", "\n").split("\n")


def test_what_was_said_before_lands_in_the_file_too(tmp_path, capsys):
    """Prevents a train.log without the settings and findings, which are shown before the run has a folder."""
    logger.info("设置")
    logger.warning("the disk fills")
    log_to_file(tmp_path / "train.log")
    logger.error("no such file")
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "设置\nnote: the disk fills\nError: no such file\n"
    assert capsys.readouterr().out == "设置\nnote: the disk fills\n"


def test_a_run_that_goes_on_adds_to_its_file(tmp_path):
    """Prevents the log of a run from being lost when it is resumed."""
    for text in ("first", "second"):
        log_to_file(tmp_path / "train.log")
        logger.info(text)
        end_log_file()
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "first\nsecond\n"


def test_messages_go_to_one_file(tmp_path):
    """Prevents the lines of a second run in one process from going to the first one's file, or to a third one's too."""
    log_to_file(tmp_path / "a.log")
    logger.info("first")
    log_to_file(tmp_path / "b.log")
    logger.info("second")
    end_log_file()
    logger.info("between")
    log_to_file(tmp_path / "c.log")
    logger.info("third")
    contents = [(tmp_path / f"{name}.log").read_text(encoding="utf-8") for name in "abc"]
    assert contents == ["first\n", "second\n", "between\nthird\n"]


def test_the_file_appears_with_its_first_line(tmp_path):
    """Prevents an empty file where nothing was said."""
    log_to_file(tmp_path / "train.log")
    assert not (tmp_path / "train.log").exists()


def test_a_text_for_the_file_alone(tmp_path, capsys):
    """Prevents a trace from standing on the screen twice, and a failure where there is no file."""
    log_in_file_only("nowhere")
    log_to_file(tmp_path / "train.log")
    log_in_file_only("Traceback\n  100 % of it")
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "Traceback\n  100 % of it\n"
    assert capsys.readouterr() == ("", "")


def test_names_that_are_no_text(tmp_path):
    """Prevents the end of a training by a file name of broken bytes, which UTF-8 cannot write."""
    log_to_file(tmp_path / "train.log")
    log_in_file_only(os.fsdecode(b"\xff.jpg"))
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "\\udcff.jpg\n"


def test_not_all_messages_are_kept(tmp_path):
    """Prevents a script without a log file from filling its memory."""
    quiet = logging.getLogger("yolo.quiet")
    quiet.propagate = False
    keep = next(handler for handler in logging.getLogger().handlers if hasattr(handler, "records"))
    quiet.addHandler(keep)
    for number in range(MAX_KEPT + 5):
        quiet.warning("%d", number)
    quiet.removeHandler(keep)
    log_to_file(tmp_path / "train.log")
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert (len(lines), lines[0], lines[-1]) == (MAX_KEPT, "note: 5", f"note: {MAX_KEPT + 4}")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("kept", [0, 3])
def test_a_full_disk_ends_the_file_and_not_the_program(capsys, kept):
    """Prevents a training from ending, or saying the same thing for ever, because its log could not be written."""
    for number in range(kept):
        logger.info("before %d", number)
    log_to_file(FULL)
    for number in range(3):
        logger.info("epoch %d", number)
    log_in_file_only("a trace")
    out, err = capsys.readouterr()
    note = f"note: {FULL} ends here, it could not be written: [Errno 28] No space left on device"
    epochs = [f"epoch {number}" for number in range(3)]
    before = [f"before {number}" for number in range(kept)]
    # The message itself is shown first, then that the file did not take it.
    assert out.splitlines() == ([*before, note, *epochs] if kept else [epochs[0], note, *epochs[1:]])
    assert err == ""


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_after_a_full_disk_another_file_is_written(tmp_path):
    """Prevents one failure from costing all later runs of a process their logs."""
    log_to_file(FULL)
    logger.info("lost")
    log_to_file(tmp_path / "train.log")
    logger.info("written")
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "written\n"


def run(code, *arguments):
    """What a program writes: (output, error stream)."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return process.stdout, process.stderr


def test_warnings_of_libraries_land_in_the_file(tmp_path):
    """Prevents what torch or OpenCV warn of from being on the screen alone, and their remarks from being shown."""
    code = (
        "import logging, sys, warnings; from utils.io.logger import *; setup_logging(); "
        "warnings.warn('lr_scheduler before optimizer'); log_to_file(sys.argv[1]); "
        "logging.getLogger('library').warning('old version'); logging.getLogger('library').info('hello'); "
        "warnings.warn('slow', RuntimeWarning)"
    )
    out, err = run(code, tmp_path / "train.log")
    content = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert (content, err) == (out, "")
    for words in ("UserWarning: lr_scheduler before optimizer", "note: old version\n", "RuntimeWarning: slow"):
        assert words in out
    assert out.startswith("note: ") and "hello" not in out


def test_a_program_without_setup_is_left_alone():
    """Prevents an import of this project, for its Detector, from taking over the logging of the user's program."""
    code = (
        "import logging, warnings; import utils.io.logger, utils.inference.base; "
        "logging.basicConfig(format='mine: %(message)s'); logging.getLogger('yolo').warning('no end of a picture'); "
        "print(len(logging.getLogger().handlers), warnings.showwarning.__module__)"
    )
    out, err = run(code)
    assert (out, err) == ("1 warnings\n", "mine: no end of a picture\n")


def test_a_console_that_cannot_print_a_name():
    """Prevents a trace in the middle of a run because a class is Chinese and the console Western."""
    code = "from utils.io.logger import logger, setup_logging; setup_logging(); logger.info('螺 \\udcc2'); print('栓')"
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "\\u87ba \\udcc2\n\\u6813\n"
