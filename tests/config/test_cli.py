import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from tests.config.script_source import namespace_of
from utils.config import cli
from utils.config.cli import find_paths, help_text, later_constants, override, overrides, run_script, settings_table
from utils.config.constants import read_constants, read_literals, to_plain
from utils.io.errors import MissingFileError, UserError
from utils.runtime.signals import Stopped

ROOT = Path(__file__).resolve().parents[2]


CONSTANTS = {
    "fp16": True,
    "seed": 11,
    "Init_lr": 1e-2,
    "input_shape": [320, 320],
    "model_path": "",
    "Min_lr": None,
}


def a_schedule(epoch):
    """A learning rate schedule, as users write it."""
    return 1.0 if epoch < 20 else 0.1


@pytest.mark.parametrize(
    ("argument", "name", "expected"),
    [
        ("--fp16=False", "fp16", False),
        ("--seed=3", "seed", 3),
        ("--seed=-3", "seed", -3),
        ("--Init_lr=1e-3", "Init_lr", 0.001),
        ("--Init_lr=1", "Init_lr", 1.0),
        ("--input_shape=[416, 640]", "input_shape", [416, 640]),
        ("--input_shape=(416, 640)", "input_shape", [416, 640]),
        ("--input_shape=416,640", "input_shape", [416, 640]),
        ("--model_path=logs/a.pth", "model_path", "logs/a.pth"),
        ("--model_path='logs/a.pth'", "model_path", "logs/a.pth"),
        ('--model_path="my weights/a=b.pth"', "model_path", "my weights/a=b.pth"),
        ("--model_path=my weights/图=1.pth", "model_path", "my weights/图=1.pth"),
        ("--model_path=it's", "model_path", "it's"),
        ("--model_path='", "model_path", "'"),
        ("--model_path=2007", "model_path", "2007"),
        ("--model_path=None", "model_path", "None"),
        ("--model_path=['a b.txt', '图/data.yaml']", "model_path", ["a b.txt", "图/data.yaml"]),
        ("--model_path=[1]", "model_path", "[1]"),
        ("--model_path=[]", "model_path", "[]"),
        ("--model_path=", "model_path", ""),
        ("--Min_lr=1e-5", "Min_lr", 1e-5),
        ("--Min_lr=None", "Min_lr", None),
    ],
)
def test_an_override_takes_the_type_of_its_default(argument, name, expected):
    """Prevents paths that lose quotes, spaces or equals signs, numbers that stay text, and lists that become tuples."""
    values = overrides(CONSTANTS, [argument])
    assert values == {name: expected}
    assert type(values[name]) is type(expected)


def test_several_overrides_and_none():
    """Prevents overrides that change the defaults of the script, and a later one that loses to an earlier."""
    before = dict(CONSTANTS)
    assert overrides(CONSTANTS, []) == {}
    assert overrides({}, []) == {}
    assert overrides(CONSTANTS, ["--seed=1", "--fp16=False", "--seed=2"]) == {"seed": 2, "fp16": False}
    assert before == CONSTANTS


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seed", "--seed has no value; write --seed=value, as in --seed=11."),
        ("seed=3", "Argument 'seed=3' is not understood; expected --name=value, as in --seed=3."),
        ("-seed=3", "Argument '-seed=3' is not understood; expected --name=value, as in --seed=3."),
        ("--Seed=3", "There is no parameter 'Seed'. The nearest is --seed=..."),
        ("--init-lr=3", "There is no parameter 'init-lr'. The nearest is --Init_lr=..."),
        (
            "--zzz=3",
            "There is no parameter 'zzz'. Known: fp16, seed, Init_lr, input_shape, model_path, Min_lr.",
        ),
    ],
)
def test_a_wrong_override_is_one_sentence(argument, message):
    """Prevents a mistyped name or value that is silently ignored, or fails hours later."""
    with pytest.raises(ValueError) as error:
        overrides(CONSTANTS, [argument])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "Freeze_Epoch = 10,",
            "Freeze_Epoch is (10,), of the type tuple; expected the epoch at which the backbone is unfrozen, 0 or "
            "more.",
        ),
        (
            "from pathlib import PurePosixPath as Path; save_dir = Path('logs')",
            "save_dir is PurePosixPath('logs'), of the type PurePosixPath; expected text in quotation "
            "marks, '' for none.",
        ),
        (
            "import numpy; input_shape = numpy.array([64, 96])",
            "input_shape is array([64, 96]), of the type ndarray; expected [height, width], both multiples of 32, "
            "such as [416, 416] or [640, 640].",
        ),
        ("seed = {3}", "seed is {3}, of the type set; expected a whole number, 0 or more."),
    ],
)
def test_a_constant_of_a_strange_type_is_named(tmp_path, monkeypatch, capsys, source, message):
    """Prevents a constant that is said to be missing, or a KeyError, where its value is of a type that none has."""
    constants = read_constants(namespace_of(tmp_path, source))
    with pytest.raises(UserError) as error:
        override(constants, {})
    assert str(error.value) == message
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit):
        run_with(monkeypatch, main_that([]), constants=constants)
    assert capsys.readouterr().err == f"Error: {message}\n"


def test_files_and_the_table_show_a_functions_name():
    """Prevents settings.json, the weight file or the table from failing on a function, or from showing its address."""
    values = {"lr_decay_type": a_schedule, "seed": 3, "lr_scale": {}}
    assert to_plain(values) == {"lr_decay_type": "a_schedule", "seed": 3, "lr_scale": {}}
    assert to_plain({}) == {}
    assert settings_table(values, values) == "  lr_decay_type  'a_schedule'\n  seed           3\n  lr_scale       {}"
    assert settings_table(values, values | {"lr_decay_type": "cos"}).startswith("* lr_decay_type  'a_schedule'\n")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--lr_decay_type=cos", {"lr_decay_type": "cos"}),  # the file's value is a function
        ("--clip_norm_type=inf", {"clip_norm_type": float("inf")}),
        ("--clip_norm_type=1", {"clip_norm_type": 1.0}),
        ("--lr_scale={'backbone': 0.1, 'neck': 0}", {"lr_scale": {"backbone": 0.1, "neck": 0}}),
        ("--lr_scale={}", {"lr_scale": {}}),
        ("--freeze_layers=['backbone','neck']", {"freeze_layers": ["backbone", "neck"]}),
        ("--freeze_layers='backbone','neck'", {"freeze_layers": ["backbone", "neck"]}),
        ("--anchors_mask=[[3,4,5],[0,1,2]]", {"anchors_mask": [[3, 4, 5], [0, 1, 2]]}),
        ("--lr_step_size=5", {"lr_step_size": 5}),
        ("--lr_gamma=0.5", {"lr_gamma": 0.5}),
        ("--aspect_jitter=inf", {"aspect_jitter": float("inf")}),  # which the rules refuse
    ],
)
def test_overrides_of_every_kind_of_constant(constants, argument, expected):
    """Prevents constants that can be written into the file and not on the command line."""
    constants = constants | {"lr_decay_type": a_schedule}
    assert overrides(constants, [argument]) == expected


FILES = {"source": "", "target": "", "seed": 11}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["a.pth"], {"source": "a.pth"}),
        (["my weights/图=1.pth", "b.pth"], {"source": "my weights/图=1.pth", "target": "b.pth"}),
        (["--seed=3", "a.pth", "--local-rank=0", "b.pth"], {"source": "a.pth", "target": "b.pth", "seed": 3}),
        (["--target=b.pth", "--source=a.pth"], {"source": "a.pth", "target": "b.pth"}),
    ],
)
def test_bare_words_are_the_files_of_a_command(arguments, expected):
    """Prevents `convert_weights.py IN OUT` from reading OUT, or taking a flag, or a part of a name, for a file."""
    order = ("source", "target")
    assert overrides(FILES, arguments, order) == expected
    assert order == ("source", "target")


@pytest.mark.parametrize(("arguments", "positional"), [(["a", "b", "c"], ("source", "target")), (["c"], ())])
def test_one_bare_word_too_many(arguments, positional):
    """Prevents a word from being dropped where nothing takes it."""
    with pytest.raises(ValueError, match=r"^Argument 'c' is not understood; expected --name=value, as in --seed=3\.$"):
        overrides(FILES, arguments, positional)


@pytest.mark.parametrize(("text", "expected"), [("True", True), ("False", False), ("IMAGENET1K_V2", "IMAGENET1K_V2")])
def test_pretrained_is_a_flag_or_a_name(text, expected):
    """Prevents the names of weights from being refused because the constant as shipped is False."""
    assert overrides({"pretrained": False}, [f"--pretrained={text}"]) == {"pretrained": expected}


@pytest.mark.parametrize(
    "script", ["train", "predict", "tools.get_map", "tools.voc_annotation", "tools.convert_weights"]
)
def test_parameters_of_a_script_are_the_constants_written_in_it(script):
    """Prevents imported constants and look-up tables from being shown, and changed, as parameters."""
    module = importlib.import_module(script)
    written = []
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            try:
                ast.literal_eval(node.value)
            except ValueError:
                continue
            written += [target.id for target in node.targets if isinstance(target, ast.Name)]
    assert set(read_constants(vars(module))) <= set(written)


def test_the_table_shows_the_first_block_and_stars_changes():
    """Prevents a run whose settings cannot be seen among eighty lines, and a star for nothing resumed, which is ''."""
    defaults = {"seed": 11, "model_name": "yolox_nano", "resume": False}
    changed = defaults | {"seed": 3, "resume": ""}
    assert settings_table(changed, defaults).splitlines() == [
        "* seed        3",
        "  model_name  'yolox_nano'",
        "  resume      ''",
    ]
    assert settings_table(changed, defaults, {"model_name", "resume", "seed"}).splitlines() == [
        "* seed  3",
        "  2 more are as the script has them, see --help",
    ]
    assert settings_table({}, {}) == ""
    assert "Init_lr" in later_constants(train.__file__) and "model_path" not in later_constants(train.__file__)


def test_changes_from_python_are_taken_like_those_of_the_command_line():
    """Prevents train.config() from taking misspelt names and values of a wrong type, which start a wrong training."""
    assert override(CONSTANTS, {}) == CONSTANTS
    assert override(CONSTANTS, {"seed": 3, "Init_lr": 1}) == CONSTANTS | {"seed": 3, "Init_lr": 1.0}
    with pytest.raises(ValueError) as error:
        override(CONSTANTS, {"sed": 3})
    assert str(error.value) == "There is no parameter 'sed'. The nearest is --seed=..."
    with pytest.raises(ValueError, match="images is 'three'; expected a whole number, as in --images=11"):
        override({"images": 11}, {"images": "three"})
    with pytest.raises(ValueError, match="seed is 'three'; expected a whole number, 0 or more"):
        train.config(seed="three")


@pytest.mark.parametrize(("text", "expected"), [("True", True), ("False", False), ("logs/loss_1", "logs/loss_1")])
def test_resume_is_a_flag_or_a_folder(text, expected):
    """Prevents --resume=False that looks for a folder of this name, and a folder that is refused as no flag."""
    assert overrides({"resume": False}, [f"--resume={text}"]) == {"resume": expected}


def run_with(monkeypatch, main, arguments=(), constants=None, **choices):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    run_script(main, constants or {"seed": 11}, **choices)


def main_that(seen):
    """A main of a script, which keeps the settings it gets."""
    return lambda settings: seen.append(settings)


def test_run_script_hands_over_the_settings_and_shows_them(monkeypatch, capsys):
    """Prevents a main that sees the defaults, and ranks that print the table once each."""
    seen = []
    monkeypatch.delenv("RANK", raising=False)
    run_with(monkeypatch, main_that(seen), ["--seed=3"])
    assert seen == [SimpleNamespace(seed=3)]
    assert capsys.readouterr().out == "* seed  3\n"
    check = lambda values: SimpleNamespace(doubled=2 * values["seed"])  # noqa: E731
    run_with(monkeypatch, main_that(seen), ["--seed=4"], check=check)
    assert seen[1:] == [SimpleNamespace(doubled=8)]
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    run_with(monkeypatch, main_that(seen))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("argument", ["--seed=three", "--images=three"])
def test_a_script_without_checks_of_its_own_has_the_rules(monkeypatch, capsys, argument):
    """Prevents a constant of a tool that neither its rule nor the type of its default guards."""
    seen = []
    with pytest.raises(SystemExit):
        run_with(monkeypatch, main_that(seen), [argument], {"seed": 11, "images": 120})
    assert seen == []
    assert capsys.readouterr().err.startswith(f"Error: {argument[2:-6]} is 'three'; expected a whole number, ")


def test_a_users_mistake_is_one_line_and_exit_status_1():
    """Prevents a trace for a typing mistake, and a failed command that a shell script takes for a success."""
    code = "from utils.config.cli import run_script; run_script(print, {'seed': 11})"
    result = subprocess.run([sys.executable, "-c", code, "--sed=3"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "Error: There is no parameter 'sed'. The nearest is --seed=...\n"


@pytest.mark.parametrize("kind", [UserError, MissingFileError])
def test_errors_of_the_project_lose_their_trace(monkeypatch, capsys, kind):
    """Prevents a trace where the message alone tells the user what to do."""

    def main(_settings):
        raise kind("train.txt does not exist.")

    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "Error: train.txt does not exist.\n"


class HopelessError(UserError):
    exit_status = 3


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (HopelessError("The loss is no number."), 3, "Error: The loss is no number."),
        (Stopped("Stopped by SIGTERM in epoch 3.", "SIGTERM"), 143, "Stopped by SIGTERM in epoch 3."),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
    ],
)
def test_the_exit_status_tells_why_a_script_ended(monkeypatch, capsys, error, status, sentence):
    """Prevents a shell script from taking a training that was stopped, or that cannot go on, for a mistake."""

    def main(_settings):
        raise error

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, main)
    assert (stop.value.code, capsys.readouterr().err) == (status, f"{sentence}\n")


@pytest.mark.parametrize(
    ("rank", "error", "status", "waited", "said"),
    [
        ("0", UserError("No images."), 1, [], ("Error: No images.\n", "")),
        ("2", UserError("No images."), 1, [2.0], ("Error: rank 2: No images.\n", "")),
        ("2", Stopped("Stopped by SIGHUP.", "SIGHUP"), 129, [2.0], ("", "")),
        ("2", RuntimeError("Connection closed by peer"), 1, [2.0], ("rank 2:\nTraceback (most", "closed by peer\n\n")),
        ("2", KeyError("boxes"), 1, [], ("rank 2:\nTraceback (most", "KeyError: 'boxes'\n\n")),
    ],
)
def test_how_ranks_end(monkeypatch, capsys, rank, error, status, waited, said):
    """Prevents a mistake that one rank alone meets from being silent, one that all meet from coming once per GPU, and
    an end that waits for ranks which wait for this one."""
    slept, handled = [], []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    monkeypatch.setattr(cli.signal, "signal", lambda *choice: handled.append(choice))
    monkeypatch.setattr(cli.os, "_exit", sys.exit)

    def main(_settings):
        raise error

    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, main)
    assert (stop.value.code, slept) == (status, waited)
    assert ((signal.SIGTERM, signal.SIG_DFL) in handled) == bool(waited)
    errors = capsys.readouterr().err
    assert errors.startswith(said[0]) and errors.endswith(said[1])
    assert bool(errors) == any(said)


def test_other_errors_keep_their_trace(monkeypatch):
    """Prevents bugs in libraries, and our own, from being shown as a mistake of the user without a trace."""

    def wrong_call(_settings):
        torch.optim.SGD([torch.zeros(1)], lr=-1.0)

    with pytest.raises(ValueError, match="Invalid learning rate"):
        run_with(monkeypatch, wrong_call)

    for error in (KeyError("boxes"), ValueError("shapes differ"), FileNotFoundError("libcuda.so")):

        def bug(_settings, error=error):
            raise error

        with pytest.raises(type(error), match=error.args[0]):
            run_with(monkeypatch, bug)


def test_arguments_of_the_launcher_are_no_parameters():
    """Prevents torch.distributed.launch, which adds --local-rank=N, from ending in an unknown parameter."""
    assert overrides(CONSTANTS, ["--local-rank=1", "--local_rank=0", "--seed=3"]) == {"seed": 3}


@pytest.fixture
def two_folders(monkeypatch, tmp_path):
    """(the folder of a script, another one, which is the current one), with files in both."""
    home, here = tmp_path / "home", tmp_path / "here"
    for path in (home / "model_data/a.txt", home / "both.txt", here / "both.txt", here / "mine.txt", home / "logs/x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.chdir(here)
    return home, here


def test_paths_are_found_beside_the_script(two_folders, capsys):
    """Prevents a script that an editor starts in another folder from finding none of its files, or taking others than
    it was given; and a change that nobody sees."""
    home, here = two_folders
    values = {
        "classes_path": "model_data/a.txt",
        "save_dir": "logs",
        "model_path": "both.txt",
        "onnx_path": "mine.txt",
        "video_path": "nowhere.mp4",
        "anchors_path": str(home / "both.txt"),
        "image": "",
        "resume": True,
        "title": "logs",
    }
    moved = {"classes_path": str(home / "model_data/a.txt"), "save_dir": str(home / "logs")}
    assert find_paths(values, home) == values | moved
    assert list(find_paths(values, home)) == list(values)
    line = f"not found from {here}, so taken from {home}: classes_path, save_dir\n"
    assert capsys.readouterr().out == line * 2


def test_each_path_of_a_list_is_found(two_folders):
    """Prevents a list of sources that only works from the project's folder."""
    home, _ = two_folders
    values = {"train_annotation_path": ["both.txt", "model_data/a.txt", "nowhere.txt"], "val_annotation_path": []}
    found = ["both.txt", str(home / "model_data/a.txt"), "nowhere.txt"]
    assert find_paths(values, home) == {"train_annotation_path": found, "val_annotation_path": []}


def test_each_path_between_commas_is_found(two_folders):
    """Prevents tools that take several paths from finding none of them from another folder, and a text of paths that
    are nowhere from being changed."""
    home, _ = two_folders
    (home / "a,b.txt").write_text("")
    values = {
        "annotation_path": "model_data/a.txt, both.txt",
        "gt": "none.txt, no.txt",
        "det": "a,b.txt",
        "source": ",",
    }
    moved = {"annotation_path": f"{home / 'model_data/a.txt'},both.txt", "det": str(home / "a,b.txt")}
    assert find_paths(values, home) == values | moved


def test_paths_that_exist_stay_without_a_word(two_folders, capsys):
    """Prevents a line on every start, and paths on the screen that nobody wrote."""
    home, _ = two_folders
    values = {"model_path": "both.txt", "anchors_path": str(home / "both.txt"), "resume": False, "seed": 3}
    assert find_paths(values, home) == values
    assert capsys.readouterr().out == ""


def test_what_completes_the_settings_knows_which_were_given(monkeypatch, two_folders):
    """Prevents a run that goes on from losing what its command line says, and from being looked for elsewhere than
    where it was written: beside the script."""
    home, _ = two_folders
    heard, seen = [], []

    def complete(constants, values, given):
        heard.append((constants, values, set(given)))
        return values | {"seed": 5, "classes_path": "model_data/a.txt"}

    constants = {"seed": 11, "save_dir": "logs", "classes_path": "both.txt", "images": 2}
    (home / "script.py").write_text("")
    monkeypatch.setattr(cli.inspect, "getsourcefile", lambda main: str(home / "script.py"))
    run_with(monkeypatch, main_that(seen), ["--images=3"], constants, complete=complete)
    assert heard == [(constants, constants | {"images": 3, "save_dir": str(home / "logs")}, {"images"})]
    found = {"save_dir": str(home / "logs"), "classes_path": str(home / "model_data/a.txt")}
    assert seen == [SimpleNamespace(seed=5, images=3, **found)]


def test_paths_of_tools_are_found_from_the_project(monkeypatch, tmp_path):
    """Prevents a tool that is started from another folder from looking for the project's files in tools/."""
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.inspect, "getsourcefile", lambda main: str(ROOT / "tools/get_map.py"))
    run_with(monkeypatch, main_that(seen), constants={"classes_path": "model_data/voc_classes.txt"})
    assert seen == [SimpleNamespace(classes_path=str(ROOT / "model_data/voc_classes.txt"))]


SCRIPT = '''"""Draw cats.

Edit the constants, then run it."""
# ----------------------------------------------------------------------------------------------------------------------
#   WHAT TO DRAW
#
#   images    How many images. Each takes
#             a second.
#   course    A function of the image, or one of the names that are listed further below, where all of them stand.
# ----------------------------------------------------------------------------------------------------------------------
images = 3


def my_course(image):
    return 1.0


course = my_course
# ----------------------------------------------------------------------------------------------------------------------
#   WHERE
#   save_dir  Folder of the images. It is made.
# ----------------------------------------------------------------------------------------------------------------------
save_dir = "logs"
'''
HELP = """Draw cats.

Edit the constants, then run it.

Constants of script.py, their values now, and what they mean (more in the file):

WHAT TO DRAW
  images = 5                          How many images.
  course = 'my_course'                A function of the image, or one of the ...

WHERE
  save_dir = 'logs'                   Folder of the images."""


def test_help_lists_the_constants_with_their_values(tmp_path, monkeypatch):
    """Prevents --help that shows other values than would be used, and lines that a terminal breaks."""
    monkeypatch.setenv("COLUMNS", "80")
    namespace = namespace_of(tmp_path, SCRIPT)
    constants = read_constants(namespace) | {"images": 5}
    assert help_text(namespace["__file__"], constants) == HELP
    monkeypatch.setenv("COLUMNS", "200")
    assert "further below, where all of them stand.\n" in help_text(namespace["__file__"], constants)
    del constants["course"]
    assert "course" not in help_text(namespace["__file__"], constants)


CHOICES = """
# ----------------------------------------------------------------------------------------------------------------------
#   HOW IT FALLS
#
#   course  How the rate falls. Every one begins low.
#               'cosine'    a half cosine, then
#                           'flat'
#               'constant'  stays
#           or a function:
#               course = my_course
# ----------------------------------------------------------------------------------------------------------------------
course = "cosine"
"""


def test_help_lists_the_values_that_a_comment_does(tmp_path, monkeypatch):
    """Prevents a mode that nobody finds, an example that is no value among the modes, and a value that is cut off."""
    namespace = namespace_of(tmp_path, CHOICES)
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_text(namespace["__file__"], read_constants(namespace)).splitlines()
    assert lines[-1] == "  course = 'cosine'                   How the rate falls: 'cosine', 'constant'"
    lines = help_text(namespace["__file__"], {"course": "a course with a longer name"}).splitlines()
    assert lines[-2:] == [
        "  course = 'a course with a longer name'  How the rate falls: 'cosine',",
        "                                      'constant'",
    ]


@pytest.mark.parametrize(
    ("script", "argument"), [("train.py", "--help"), ("predict.py", "-h"), ("tools/voc_annotation.py", "--help")]
)
def test_a_script_asked_for_help_does_nothing_else(script, argument):
    """Prevents --help from starting a training, and constants that it leaves out."""
    path = ROOT / script
    command = [sys.executable, str(path), "--no_such=1", argument]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
    for name, value in read_literals(path).items():
        assert any(line.startswith(f"  {name} = {value!r}  ") for line in lines), name
