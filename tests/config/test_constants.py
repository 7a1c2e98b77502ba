import importlib

import pytest

import train
from tests.config.script_source import namespace_of
from utils.config.cli import help_text
from utils.config.constants import read_constants, read_literals, train_constants


def test_constants_are_the_literals_in_their_order(tmp_path):
    """Prevents modules, functions and private names from turning up as parameters, and what a script has set meanwhile
    from being overlooked."""
    source = "import ast\n_hidden = 1\nb = 2\na = [1]\nnode = ast.parse('')\nnone = None\nd: dict = {'x': 1}\n"
    namespace = namespace_of(tmp_path, f"{source}from math import pi\ndef helper(): return None\n")
    found = read_constants(namespace)
    assert list(found.items()) == [("b", 2), ("a", [1]), ("none", None), ("d", {"x": 1})]
    assert read_constants(namespace | {"b": 5}) == found | {"b": 5}
    assert read_constants(namespace_of(tmp_path, "")) == {}


def test_tuples_are_taken_as_lists(tmp_path):
    """Prevents input_shape = (224, 224) from removing the constant; other tuples of a script are no constants."""
    source = (
        "input_shape = (224, 224)\nanchors_mask = ((3, 4), (0, 1))\nlr_milestones = ()\ntrain_only = ('head',)\n"
        "SIZES = (1, 2)\nFreeze_Epoch = 10,\n"
    )
    expected = {
        "input_shape": [224, 224],
        "anchors_mask": [[3, 4], [0, 1]],
        "lr_milestones": [],
        "train_only": ["head"],
    }
    namespace = namespace_of(tmp_path, source)
    assert read_constants(namespace) == expected | {"Freeze_Epoch": (10,)}
    assert read_literals(namespace["__file__"]) == expected


def test_a_function_under_another_name_is_a_constant(tmp_path):
    """Prevents `lr_decay_type = my_course` from being no parameter, and functions of the script, or imported ones, from
    being some."""
    source = (
        "from functools import partial\n"
        "def a_schedule(epoch): return 1.0\n"
        "lr_decay_type = a_schedule\n"
        "lr_scale = {'backbone': 0.1}\n"
        "_helper = a_schedule\n"
        "by_lambda = lambda epoch: 1.0\n"
        "by_partial = partial(a_schedule)\n"
    )
    namespace = namespace_of(tmp_path, source)
    found = read_constants(namespace)
    assert list(found) == ["lr_decay_type", "lr_scale", "by_lambda", "by_partial"]
    assert found["lr_decay_type"] is namespace["a_schedule"]
    assert all(not callable(value) for value in read_constants(vars(train)).values())


def test_a_script_that_windows_saved(tmp_path):
    """Prevents a mark at the start of the file, which Notepad writes and Python takes, from ending in a SyntaxError."""
    namespace = namespace_of(tmp_path, '\ufeff"""Purpose."""\nseed = 3\n')
    assert read_constants(namespace) == {"seed": 3}
    assert help_text(namespace["__file__"], {"seed": 3}).startswith("Purpose.\n")


@pytest.mark.parametrize("script", ["train", "predict", "tools.get_map", "tools.voc_annotation", "tools.summary"])
def test_constants_read_from_the_source_are_those_of_the_script(script):
    """Prevents tools from seeing other constants, or another order, than the script that is run."""
    module = importlib.import_module(script)
    expected = read_constants(vars(module))
    assert list(read_literals(module.__file__).items()) == list(expected.items()) != []


def test_reading_constants_runs_nothing(tmp_path):
    """Prevents a look at train.py from training, and what is computed from being guessed."""
    path = tmp_path / "script.py"
    path.write_text(
        '\ufeff"""Purpose."""\n'
        "import nowhere\n"
        "def my_course(epoch):\n"
        "    inner = 1\n"
        "    return 1.0\n"
        "lr_decay_type = my_course\n"
        "seed = -3\n"
        "first = second = [1, 2]\n"
        "annotated: dict = {'头': None}\n"
        "declared: int\n"
        'clip_norm_type = float("inf")\n'
        "half = 10 // 2\n"
        "seed = 4\n"
        "second = first + [3]\n"
        "_private, a, b = 1, 2, 3\n"
        "_other = 5\n"
        "pair = (1, 2)\n"
        "text.attribute = 1\n"
        "if True:\n"
        "    nested = 1\n"
        "raise SystemExit\n",
        encoding="utf-8",
    )
    found = {"seed": 4, "first": [1, 2], "annotated": {"头": None}, "clip_norm_type": float("inf")}
    assert list(read_literals(path).items()) == list(found.items())
    path.write_text("")
    assert read_literals(path) == {}


def test_reading_constants_of_what_is_no_python(tmp_path):
    """Prevents an error that names neither file nor line of the typing mistake."""
    path = tmp_path / "script.py"
    path.write_text("seed = 1\nfp16 = = True\n")
    with pytest.raises(SyntaxError) as error:
        read_literals(path)
    assert (error.value.filename, error.value.lineno) == (str(path), 2)


def test_tools_know_what_train_would_use():
    """Prevents tools that look at a training from looking at another one."""
    assert train_constants(["seed", "model_name", "no_such"]) == {
        "seed": train.seed,
        "model_name": train.model_name,
        "no_such": None,
    }
