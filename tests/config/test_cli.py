import ast
import functools
import importlib
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from utils.config import cli as config
from utils.config.cli import (
    parse_overrides,
    plain,
    read_constants,
    run_script,
    script_constants,
    settings_table,
    with_changes,
)
from utils.config.rules import RULES, check_prediction, check_training, check_values
from utils.io import files
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


def a_course(epoch):
    """A learning rate's course, as users write it."""
    return 1.0 if epoch < 20 else 0.1


@pytest.fixture
def constants(monkeypatch):
    """train.py's own constants, with the paths in them valid."""
    monkeypatch.chdir(ROOT)
    return script_constants(vars(train))


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
        ("--model_path=", "model_path", ""),
        ("--Min_lr=1e-5", "Min_lr", 1e-5),
        ("--Min_lr=None", "Min_lr", None),
    ],
)
def test_an_override_takes_the_type_of_its_default(argument, name, expected):
    """Prevents paths that lose quotes, spaces or equals signs, numbers that stay text, and lists that become tuples."""
    values = parse_overrides(CONSTANTS, [argument])
    assert (values[name], type(values[name])) == (expected, type(expected))
    assert values == CONSTANTS | {name: expected}
    assert list(values) == list(CONSTANTS)


def test_several_overrides_and_none():
    """Prevents overrides that change the defaults of the script, and a later one that loses to an earlier."""
    before = dict(CONSTANTS)
    assert parse_overrides(CONSTANTS, []) == CONSTANTS
    assert parse_overrides({}, []) == {}
    values = parse_overrides(CONSTANTS, ["--seed=1", "--fp16=False", "--seed=2"])
    assert (values["seed"], values["fp16"]) == (2, False)
    assert before == CONSTANTS


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--fp16=maybe", "fp16 is 'maybe'; expected True or False, as in --fp16=True."),
        ("--fp16=1", "fp16 is 1; expected True or False, as in --fp16=True."),
        ("--seed=1.5", "seed is 1.5; expected a whole number, as in --seed=11."),
        ("--seed=True", "seed is True; expected a whole number, as in --seed=11."),
        ("--seed=", "seed is ''; expected a whole number, as in --seed=11."),
        ("--Init_lr=fast", "Init_lr is 'fast'; expected a number, as in --Init_lr=0.01."),
        ("--Init_lr=True", "Init_lr is True; expected a number, as in --Init_lr=0.01."),
        ("--input_shape=640", "input_shape is 640; expected a list, as in --input_shape=[320, 320]."),
        ("--input_shape=None", "input_shape is None; expected a list, as in --input_shape=[320, 320]."),
        ("--input_shape={[]: 1}", "input_shape is '{[]: 1}'; expected a list, as in --input_shape=[320, 320]."),
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
        parse_overrides(CONSTANTS, [argument])
    assert str(error.value) == message


def test_script_constants_are_the_literals_in_their_order():
    """Prevents modules, functions and private names from turning up as parameters."""
    module = {"__name__": "x", "_hidden": 1, "b": 2, "math": ast, "a": [1], "len": len, "none": None, "d": {"x": 1}}
    found = script_constants(module)
    assert list(found.items()) == [("b", 2), ("a", [1]), ("none", None), ("d", {"x": 1})]
    assert script_constants({}) == {}


def test_a_function_under_another_name_is_a_constant():
    """Prevents `lr_decay_type = my_course` from being no parameter, and functions of the script, or imported ones, from
    being some."""
    scope = {"a_course": a_course, "lr_decay_type": a_course, "lr_scale": {"backbone": 0.1}, "_helper": a_course}
    assert script_constants(scope) == {"lr_decay_type": a_course, "lr_scale": {"backbone": 0.1}}
    assert script_constants({"lr_decay_type": lambda epoch: 1.0}).keys() == {"lr_decay_type"}
    assert script_constants({"lr_decay_type": functools.partial(a_course), "Path": Path}).keys() == {"lr_decay_type"}
    assert all(not callable(value) for value in script_constants(vars(train)).values())


@pytest.mark.parametrize("script", ["train", "predict", "tools.get_map", "tools.voc_annotation", "tools.summary"])
def test_constants_read_from_the_source_are_those_of_the_script(script):
    """Prevents tools from seeing other constants, or another order, than the script that is run."""
    module = importlib.import_module(script)
    expected = script_constants(vars(module))
    assert list(read_constants(module.__file__).items()) == list(expected.items()) != []


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
    assert list(read_constants(path).items()) == list(found.items())
    path.write_text("")
    assert read_constants(path) == {}


def test_reading_constants_of_what_is_no_python(tmp_path):
    """Prevents an error that names neither file nor line of the typing mistake."""
    path = tmp_path / "script.py"
    path.write_text("seed = 1\nfp16 = = True\n")
    with pytest.raises(SyntaxError) as error:
        read_constants(path)
    assert (error.value.filename, error.value.lineno) == (str(path), 2)


def test_files_and_the_table_show_a_functions_name():
    """Prevents settings.json, the weight file or the table from failing on a function, or from showing its address."""
    values = {"lr_decay_type": a_course, "seed": 3, "lr_scale": {}}
    assert plain(values) == {"lr_decay_type": "a_course", "seed": 3, "lr_scale": {}}
    assert plain({}) == {}
    assert settings_table(values, values) == "  lr_decay_type  'a_course'\n  seed           3\n  lr_scale       {}"
    assert settings_table(values, values | {"lr_decay_type": "cos"}).startswith("* lr_decay_type  'a_course'\n")


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
        ("--Init_lr=inf", {"Init_lr": float("inf")}),  # which the rules refuse
    ],
)
def test_overrides_of_every_kind_of_constant(constants, argument, expected):
    """Prevents constants that can be written into the file and not on the command line."""
    constants = constants | {"lr_decay_type": a_course}
    assert parse_overrides(constants, [argument]) == constants | expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr_scale=backbone", "lr_scale is 'backbone'; expected a dict, as in --lr_scale={}."),
        ("--lr_scale=['backbone']", "lr_scale is ['backbone']; expected a dict, as in --lr_scale={}."),
        ("--freeze_layers=backbone", "freeze_layers is 'backbone'; expected a list, as in --freeze_layers=[]."),
        ("--compile=1", "compile is 1; expected True or False, as in --compile=False."),
    ],
)
def test_a_wrong_kind_of_value(constants, argument, message):
    """Prevents a name without brackets from being read as a list of letters."""
    with pytest.raises(ValueError) as error:
        parse_overrides(constants, [argument])
    assert str(error.value) == message


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
    assert parse_overrides(FILES, arguments, order) == FILES | expected
    assert order == ("source", "target")


@pytest.mark.parametrize(("arguments", "positional"), [(["a", "b", "c"], ("source", "target")), (["c"], ())])
def test_one_bare_word_too_many(arguments, positional):
    """Prevents a word from being dropped where nothing takes it."""
    with pytest.raises(ValueError, match=r"^Argument 'c' is not understood; expected --name=value, as in --seed=3\.$"):
        parse_overrides(FILES, arguments, positional)


@pytest.mark.parametrize(("text", "expected"), [("True", True), ("False", False), ("IMAGENET1K_V2", "IMAGENET1K_V2")])
def test_pretrained_is_a_flag_or_a_name(text, expected):
    """Prevents the names of weights from being refused because the constant as shipped is False."""
    assert parse_overrides({"pretrained": False}, [f"--pretrained={text}"]) == {"pretrained": expected}
    with pytest.raises(ValueError, match="pretrained is 1; expected True or False"):
        parse_overrides({"pretrained": False}, ["--pretrained=1"])


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
    assert set(script_constants(vars(module))) <= set(written)


def test_the_table_shows_everything_and_stars_changes():
    """Prevents a run whose settings cannot be seen."""
    defaults = {"seed": 11, "model_name": "yolox_nano"}
    assert settings_table(defaults | {"seed": 3}, defaults) == "* seed        3\n  model_name  'yolox_nano'"
    assert settings_table({}, {}) == ""


def test_shipped_constants_pass_their_checks(constants):
    """Prevents shipping constants that train.py refuses, and a check that changes a value."""
    assert vars(check_training(constants)) == constants


BAD_VALUES = [
    *[(name, "yes") for name in ("Cuda", "distributed", "sync_bn", "fp16", "mosaic", "mixup", "Freeze_Train")],
    *[(name, 1) for name in ("ema", "eval_flag", "compile", "cudnn_benchmark", "deterministic", "focal_loss")],
    *[(name, None) for name in ("multi_scale", "freeze_whole_run", "allow_partial_backbone", "keep_difficult")],
    ("patience", -1),
    ("patience", 2.5),
    ("resume", 1),
    ("resume", None),
    ("save_minutes", -1),
    ("save_minutes", None),
    ("keep_checkpoints", -1),
    ("keep_checkpoints", 2.5),
    ("worker_timeout", -1),
    ("worker_timeout", 1.5),
    ("cache", "disk"),
    ("cache", True),
    *[(name, 0) for name in ("gpu_ids", "classes_path", "train_annotation_path", "val_annotation_path")],
    *[(name, None) for name in ("model_name", "backbone", "model_path", "anchors_path", "save_dir")],
    ("pretrained", ""),
    ("pretrained", 1),
    ("pretrained", None),
    ("weights_format", "coco"),
    ("weights_format", None),
    ("gpu_ids", "0;1"),
    ("gpu_ids", "0,"),
    ("cpu_threads", -1),
    ("cpu_threads", 2.0),
    ("anchors_mask", [3, 4, 5]),
    ("anchors_mask", [[3, 4], [-1, 0]]),
    ("anchors_mask", "[[0]]"),
    ("iou_type", "giou"),
    ("iou_type", None),
    ("label_smoothing", 0.6),
    ("label_smoothing", -0.01),
    ("focal_alpha", 1.1),
    ("focal_gamma", -1.0),
    ("ignore_iou", 1.5),
    ("map_weights", [2.0, 0.0]),
    ("map_weights", 2.0),
    ("multi_scale_range", [1.25, 0.75]),
    ("multi_scale_range", 1.25),
    ("multi_scale_period", 0),
    ("freeze_layers", "backbone"),
    ("freeze_layers", [""]),
    ("freeze_layers", [0]),
    ("train_only", "head"),
    ("freeze_blocks", -1),
    ("freeze_blocks", 1.5),
    ("lr_step_size", 0),
    ("lr_step_size", 2.5),
    ("lr_milestones", [20, 10]),
    ("lr_milestones", [10, 10]),
    ("lr_milestones", [0, 10]),
    ("lr_milestones", 10),
    ("lr_gamma", 0.0),
    ("lr_gamma", 1.5),
    ("lr_factor", 1.0),
    ("lr_factor", 0.0),
    ("lr_factor", None),
    ("lr_patience", -1),
    ("lr_cooldown", 0.5),
    ("lr_scale", {"backbone": -0.1}),
    ("lr_scale", {"backbone": "slow"}),
    ("lr_scale", {3: 0.1}),
    ("lr_scale", ["backbone"]),
    ("clip_norm_type", 0.5),
    ("clip_norm_type", float("nan")),
    ("clip_norm_type", "2"),
    ("clip_grad_norm", float("inf")),
    ("UnFreeze_Epoch", 80.5),
    ("UnFreeze_Epoch", "80"),
    ("input_shape", 640),
    ("scale_range", 0.5),
    ("colour_jitter", None),
    ("seed", 1.5),
    ("Unfreeze_batch_size", 8.5),
    ("Init_lr", float("inf")),
    ("seed", -1),
    ("input_shape", [100, 64]),
    ("input_shape", [64, 100]),
    ("input_shape", [640]),
    ("input_shape", []),
    ("input_shape", [0, 64]),
    ("input_shape", [-32, 64]),
    ("input_shape", [64.0, 64.0]),
    ("mosaic_prob", 1.5),
    ("mixup_prob", -0.1),
    ("special_aug_ratio", 2.0),
    ("flip_prob", 1.01),
    ("scale_range", [1.5, 0.5]),
    ("scale_range", [0.0, 1.5]),
    ("scale_range", [0.5]),
    ("scale_range", ["0.5", "1.5"]),
    ("aspect_jitter", 1.0),
    ("colour_jitter", [0.015, 0.5]),
    ("colour_jitter", [0.015, 0.5, 1.4]),
    ("Init_Epoch", -1),
    ("Freeze_Epoch", -1),
    ("Freeze_batch_size", 0),
    ("Unfreeze_batch_size", 0),
    ("accumulate", 0),
    ("accumulate", True),
    ("Init_lr", 0.0),
    ("Init_lr", float("nan")),
    ("Min_lr", -1e-5),
    ("Min_lr", "low"),
    ("optimizer_type", "SGD"),
    ("optimizer_type", ""),
    ("optimizer_type", "lion"),
    ("lr_decay_type", "linear"),
    ("lr_decay_type", None),
    ("momentum", 1.0),
    ("weight_decay", -5e-4),
    ("clip_grad_norm", -1.0),
    ("save_period", 0),
    ("eval_period", 0),
    ("num_workers", -2),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_an_impossible_value_is_refused(constants, name, value):
    """Prevents values that fail deep inside, or train nonsense: each names parameter, got and expected."""
    with pytest.raises(ValueError) as error:
        check_training(constants | {name: value})
    assert str(error.value).startswith(f"{name} is {value!r}; expected ")
    assert str(error.value).endswith(RULES[name][1]) and len(RULES[name][1]) > 5


def test_every_rule_has_a_bad_value_above():
    """Prevents rules that hold for everything."""
    assert {name for name, _ in BAD_VALUES} == set(RULES)


def test_every_constant_has_a_rule(constants):
    """Prevents a new constant whose mistakes nobody notices."""
    assert set(RULES) == set(constants)


def test_a_constant_that_is_missing_is_named(constants):
    """Prevents a trace where a function of the user bears the name of the constant, which thereby is none any more."""

    def lr_decay_type(epoch):
        return 1.0

    left = script_constants(constants | {"lr_decay_type": lr_decay_type})
    assert set(constants) - set(left) == {"lr_decay_type"}
    with pytest.raises(ValueError) as error:
        check_training(left)
    assert str(error.value) == (
        "train.py has no constant lr_decay_type; expected one of cos, step, multistep, exp, plateau, constant, or a "
        "function epoch -> factor that stands in the script. A function of your own needs another name, which is then "
        "given to the constant: lr_decay_type = that name."
    )
    with pytest.raises(ValueError, match=r"^train\.py has no constant "):
        check_training({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Init_Epoch": 80, "UnFreeze_Epoch": 80}, "UnFreeze_Epoch is 80 and Init_Epoch is 80, so no epoch is left"),
        ({"UnFreeze_Epoch": 5, "Init_Epoch": 6}, "UnFreeze_Epoch is 5 and Init_Epoch is 6, so no epoch is left"),
        (
            {"Freeze_Epoch": 50, "UnFreeze_Epoch": 30, "model_path": "LICENSE"},
            "Freeze_Epoch is 50, beyond UnFreeze_Epoch 30",
        ),
        ({"classes_path": "none.txt"}, "classes_path is 'none.txt', and there is no such file"),
        ({"classes_path": "model_data"}, "classes_path is 'model_data', and there is no such file"),
        ({"model_path": "none.pth"}, "model_path is 'none.pth', and there is no such file"),
        (
            {"anchors_path": "none.txt"},
            "anchors_path is 'none.txt', and there is no such file; expected a text file of",
        ),
        ({"pretrained": True}, "pretrained is True, which concerns torchvision backbones: it takes backbone, such as"),
        ({"pretrained": "IMAGENET1K_V2"}, "pretrained is 'IMAGENET1K_V2', which concerns torchvision backbones"),
        ({"pretrained": True, "backbone": "resnet18", "model_path": "LICENSE"}, "pretrained is True, which concerns"),
        (
            {"Freeze_Epoch": 50, "UnFreeze_Epoch": 30, "backbone": "resnet18", "pretrained": True},
            "Freeze_Epoch is 50, beyond UnFreeze_Epoch 30",
        ),
        ({"train_only": ["head"], "freeze_layers": ["neck"]}, "train_only says what trains, freeze_layers and freeze_"),
        ({"train_only": ["head"], "freeze_blocks": 1}, "train_only says what trains, freeze_layers and freeze_blocks"),
        ({"Min_lr": 1e-1, "Init_lr": 1e-2}, "Min_lr is 0.1 and Init_lr is 0.01; Min_lr is the rate at the end: set it"),
    ],
)
def test_constants_that_contradict_each_other(constants, changes, message):
    """Prevents a training of no epochs, epochs that the user miscounted, and a late failure on a mistyped path."""
    with pytest.raises(ValueError) as error:
        check_training(constants | changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"Freeze_Epoch": 50, "UnFreeze_Epoch": 30},  # from scratch there is no frozen phase to be too long
        {"Freeze_Epoch": 30, "UnFreeze_Epoch": 30, "model_path": "LICENSE"},  # never unfreezes
        {"Init_Epoch": 40},
        {"model_path": "yolox_nano"},  # a release, which is fetched later
        {"model_path": "yolov4.conv.137", "weights_format": "darknet", "allow_partial_backbone": True},
        {"backbone": "resnet50", "pretrained": True},
        {"backbone": "resnet50", "pretrained": "IMAGENET1K_V2"},
        {"backbone": "resnet50", "model_path": "LICENSE"},
        {"Min_lr": 0.0},
        {"num_workers": -1},
        {"save_minutes": 0, "keep_checkpoints": 0, "worker_timeout": 0},
        {"resume": "logs/last_checkpoint.pth", "model_path": "gone.pth"},  # the weights are in the checkpoint
        {"scale_range": [1.0, 1.0]},
        {"input_shape": [32, 2048]},
        {"anchors_path": "model_data/yolo_anchors.txt", "anchors_mask": [(6, 7, 8), (3, 4, 5), (0, 1, 2)]},
        {"iou_type": "siou", "label_smoothing": 0.5, "focal_alpha": 1, "focal_gamma": 0, "ignore_iou": 1},
        {"map_weights": [2, 1.0, 0.5], "multi_scale_range": [1.0, 1.0], "multi_scale_period": 1},
        {"freeze_layers": ("backbone", "neck"), "freeze_blocks": 2, "cpu_threads": 64},
        {"train_only": ["head"], "freeze_whole_run": False},
        {"lr_decay_type": "step", "lr_step_size": 1, "lr_gamma": 1},
        {"lr_decay_type": "multistep", "lr_milestones": [1, 200]},
        {"lr_decay_type": "plateau", "lr_factor": 0.1, "lr_patience": 0, "lr_cooldown": 0},
        {"lr_decay_type": a_course},
        {"lr_scale": {"backbone": 0, "head": 10}, "clip_norm_type": float("inf")},
        {"clip_norm_type": 1.0},
        {"optimizer_type": "rmsprop"},
        {"optimizer_type": "adagrad", "momentum": 0},
    ],
)
def test_allowed_corner_cases(constants, changes):
    """Prevents rules that refuse what the comments in train.py promise."""
    assert vars(check_training(constants | changes)) == constants | changes


def test_changes_from_python_are_taken_like_those_of_the_command_line():
    """Prevents train.config() from taking misspelt names and values of a wrong type, which start a wrong training."""
    assert with_changes(CONSTANTS, {}) == CONSTANTS
    assert with_changes(CONSTANTS, {"seed": 3, "Init_lr": 1}) == CONSTANTS | {"seed": 3, "Init_lr": 1.0}
    with pytest.raises(ValueError) as error:
        with_changes(CONSTANTS, {"sed": 3})
    assert str(error.value) == "There is no parameter 'sed'. The nearest is --seed=..."
    with pytest.raises(ValueError, match="seed"):
        with_changes(CONSTANTS, {"seed": "three"})


@pytest.mark.parametrize(("text", "expected"), [("True", True), ("False", False), ("logs/loss_1", "logs/loss_1")])
def test_resume_is_a_flag_or_a_folder(text, expected):
    """Prevents --resume=False that looks for a folder of this name, and a folder that is refused as no flag."""
    assert parse_overrides({"resume": False}, [f"--resume={text}"]) == {"resume": expected}


def run_with(monkeypatch, main, arguments=(), check=None):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    run_script(main, {"seed": 11}, check)


def test_run_script_hands_over_the_settings_and_shows_them(monkeypatch, capsys):
    """Prevents a main that sees the defaults, and ranks that print the table once each."""
    seen = []
    monkeypatch.delenv("RANK", raising=False)
    run_with(monkeypatch, seen.append, ["--seed=3"])
    assert seen == [SimpleNamespace(seed=3)]
    assert capsys.readouterr().out == "* seed  3\n"
    run_with(monkeypatch, seen.append, ["--seed=4"], check=lambda values: SimpleNamespace(doubled=2 * values["seed"]))
    assert seen[1:] == [SimpleNamespace(doubled=8)]
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    run_with(monkeypatch, seen.append)
    assert capsys.readouterr().out == ""


def test_a_users_mistake_is_one_line_and_exit_status_1():
    """Prevents a trace for a typing mistake, and a failed command that a shell script takes for a success."""
    code = "from utils.config.cli import run_script; run_script(print, {'seed': 11})"
    result = subprocess.run([sys.executable, "-c", code, "--sed=3"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "\nError: There is no parameter 'sed'. The nearest is --seed=...\n"


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_errors_of_the_project_lose_their_trace(monkeypatch, capsys, kind):
    """Prevents a trace where the message alone tells the user what to do."""

    def main(_settings):
        raise kind("train.txt does not exist.")

    with pytest.raises(SystemExit) as stop:
        run_with(monkeypatch, main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "\nError: train.txt does not exist.\n"


class HopelessError(ValueError):
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
    assert (stop.value.code, capsys.readouterr().err) == (status, f"\n{sentence}\n")


@pytest.mark.parametrize(
    ("rank", "error", "status", "waited", "said"),
    [
        ("0", ValueError("No images."), 1, [], ("\nError: No images.\n", "")),
        ("2", ValueError("No images."), 1, [2.0], ("\nrank 2: Error: No images.\n", "")),
        ("2", Stopped("Stopped by SIGHUP.", "SIGHUP"), 129, [2.0], ("", "")),
        ("2", KeyError("boxes"), 1, [], ("rank 2:\nTraceback (most", "KeyError: 'boxes'\n\n")),
    ],
)
def test_how_ranks_end(monkeypatch, capsys, rank, error, status, waited, said):
    """Prevents a mistake that one rank alone meets from being silent, one that all meet from coming once per GPU, and
    an end that waits for ranks which wait for this one."""
    slept, handled = [], []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(config.time, "sleep", slept.append)
    monkeypatch.setattr(config.signal, "signal", lambda *choice: handled.append(choice))
    monkeypatch.setattr(config.os, "_exit", sys.exit)

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

    def bug(_settings):
        raise KeyError("boxes")

    with pytest.raises(KeyError, match="boxes"):
        run_with(monkeypatch, bug)


def test_a_library_inside_the_project_folder_is_still_a_library(monkeypatch):
    """Prevents a virtual environment at .venv/ from turning every ValueError of torch into a bare sentence."""
    library = files.PROJECT / ".venv/lib/python3.11/site-packages/library.py"
    scope = {}
    exec(compile("def main(settings):\n    raise ValueError('from the depths')", str(library), "exec"), scope)
    with pytest.raises(ValueError, match="from the depths"):
        run_with(monkeypatch, scope["main"])


def test_arguments_of_the_launcher_are_no_parameters():
    """Prevents torch.distributed.launch, which adds --local-rank=N, from ending in an unknown parameter."""
    assert parse_overrides(CONSTANTS, ["--local-rank=1", "--local_rank=0", "--seed=3"])["seed"] == 3


def test_predict_may_leave_the_confidence_open():
    """Prevents None, which takes the confidences of the weight file, from being refused, and other nonsense from
    passing with it; tools have no such choice."""
    values = {"confidence": None, "nms_iou": 0.5}
    assert check_prediction(values).confidence is None
    assert check_prediction(values | {"confidence": 0.3}).confidence == 0.3
    for wrong in ({"confidence": 1.5}, {"confidence": "high"}, {"nms_iou": None}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected a share from 0 to 1"):
            check_prediction(values | wrong)
    with pytest.raises(ValueError, match="confidence is None; expected a share"):
        check_values(values)


BAD_TOOL_VALUES = [
    *[(name, 1) for name in ("show", "crop", "count", "voc_xml", "yolo_txt", "fuse", "tta_flip")],
    *[(name, 0) for name in ("image", "dir_origin_path", "dir_save_path", "video_path", "video_save_path")],
    ("tta_scales", []),
    ("tta_scales", 1.5),
    ("tta_scales", [0.1]),
    ("tta_scales", [1.0, "1.5"]),
    ("tta_scales", [8.0]),
    ("test_interval", 0),
    ("test_interval", 2.5),
]


@pytest.mark.parametrize(("name", "value"), BAD_TOOL_VALUES)
def test_an_impossible_value_of_a_tool_is_refused(name, value):
    """Prevents values of predict.py's constants that fail deep inside, or are taken for others."""
    with pytest.raises(ValueError) as error:
        check_prediction({"confidence": None, name: value})
    assert str(error.value).startswith(f"{name} is {value!r}; expected ")
    assert check_prediction({"confidence": None, "tta_scales": [0.25, 1, 4.0]}).tta_scales == [0.25, 1, 4.0]


def test_rules_of_the_export():
    """Prevents constants of predict.py that nobody checks."""
    for name, value in (("opset", 0), ("onnx_path", 1), ("export_pictures", []), ("export_nms", 1)):
        with pytest.raises(ValueError, match=f"^{name} is .+; expected "):
            check_values({name: value})
