from pathlib import Path

import pytest

import train
from utils.config.cli import overrides
from utils.config.constants import read_constants
from utils.config.optimizers import fill_in
from utils.config.rules import RULES, check_prediction, check_training, check_types, check_values


def a_schedule(epoch):
    """A learning rate schedule, as users write it."""
    return 1.0 if epoch < 20 else 0.1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr_scale=backbone", "lr_scale is 'backbone'; expected factors by name, such as {'backbone': 0.1}; {} for"),
        (
            "--lr_scale=['backbone']",
            "lr_scale is ['backbone']; expected factors by name, such as {'backbone': 0.1}; {}",
        ),
        ("--freeze_layers=backbone", "freeze_layers is 'backbone'; expected a list of names, such as ['backbone', 'n"),
        ("--compile=1", "compile is '1'; expected 'graphs', 'default', or '' for neither."),
        ("--fp16=maybe", "fp16 is 'maybe'; expected True or False."),
        ("--seed=1.5", "seed is 1.5; expected a whole number, 0 or more."),
        ("--seed=", "seed is ''; expected a whole number, 0 or more."),
        ("--Init_lr=fast", "Init_lr is 'fast'; expected a learning rate above 0, such as 1e-2 for sgd or"),
        (
            "--input_shape=640",
            "input_shape is 640; expected [height, width], both multiples of 32, such as [416, 416] or",
        ),
        ("--train_annotation_path=", "train_annotation_path is empty; set it to the annotations of your images."),
        ("--val_annotation_path=", "val_annotation_path is empty; set it to the annotations of your images."),
        ("--model_name=yolox-nano", "model_name is 'yolox-nano'; expected one of yolox_nano, yolox_tiny, yolox_s, "),
        ("--pretrained=1", "pretrained is 1; expected True, False, or the name of torchvision weights, such as"),
    ],
)
def test_a_wrong_kind_of_value(constants, argument, message):
    """Prevents a name without brackets from being read as a list of letters, and a mistake that is answered by the type
    where a rule has better words."""
    values = constants | overrides(constants, [argument])
    check_types(values, constants)
    with pytest.raises(ValueError) as error:
        check_training(values)
    assert str(error.value).startswith(message)


OWN = {"is_drawn": True, "images": 11, "spread": 1e-2, "sides": [320, 320], "title": "", "names": {}, "limit": None}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--is_drawn=maybe", "is_drawn is 'maybe'; expected True or False, as in --is_drawn=True."),
        ("--is_drawn=1", "is_drawn is 1; expected True or False, as in --is_drawn=True."),
        ("--images=1.5", "images is 1.5; expected a whole number, as in --images=11."),
        ("--images=True", "images is True; expected a whole number, as in --images=11."),
        ("--images=", "images is ''; expected a whole number, as in --images=11."),
        ("--spread=fast", "spread is 'fast'; expected a number, as in --spread=0.01."),
        ("--spread=True", "spread is True; expected a number, as in --spread=0.01."),
        ("--sides=640", "sides is 640; expected a list, as in --sides=[320, 320]."),
        ("--sides=None", "sides is None; expected a list, as in --sides=[320, 320]."),
        ("--sides={[]: 1}", "sides is '{[]: 1}'; expected a list, as in --sides=[320, 320]."),
        ("--names=cat", "names is 'cat'; expected a dict, as in --names={}."),
        ("--names=['cat']", "names is ['cat']; expected a dict, as in --names={}."),
    ],
)
def test_a_constant_without_a_rule_keeps_its_type(argument, message):
    """Prevents a mistyped value of a tool's constant that fails hours later, with a trace."""
    with pytest.raises(ValueError) as error:
        check_types(OWN | overrides(OWN, [argument]), OWN)
    assert str(error.value) == message


def test_types_that_are_open():
    """Prevents constants that are None, or a function, in the file from being refused any value but that."""
    check_types(OWN, OWN)
    check_types({"limit": 3, "course": "cos", "further": 1}, {"limit": None, "course": len})
    with pytest.raises(ValueError, match="title is 3; expected text, as in --title=''"):
        check_types(OWN | {"title": 3}, OWN)
    with pytest.raises(ValueError, match="is_drawn is None; expected True or False"):
        check_types({"is_drawn": None}, OWN)


def test_shipped_constants_pass_their_checks(constants):
    """Prevents shipping constants that train.py refuses, and a check that changes a value."""
    assert vars(check_training(constants)) == fill_in(constants)


FROZEN = {"Freeze_Train": True}
BAD_VALUES = [
    *[(name, "yes") for name in ("Cuda", "distributed", "sync_bn", "fp16", "mosaic", "mixup", "Freeze_Train")],
    *[(name, 1) for name in ("ema", "eval_flag", "cudnn_benchmark", "deterministic", "focal_loss")],
    *[(name, None) for name in ("multi_scale", "freeze_whole_run", "allow_partial_backbone", "keep_difficult")],
    ("patience", -1),
    ("patience", 2.5),
    ("report_language", "de"),
    ("resume", 1),
    ("resume", None),
    ("save_minutes", -1),
    ("save_minutes", None),
    ("keep_checkpoints", -1),
    ("keep_checkpoints", 2.5),
    ("worker_timeout", -1),
    ("worker_timeout", 1.5),
    ("compile", 1),
    ("compile", "fast"),
    *[("tile", value) for value in (31, 640.0, True, None)],
    ("tile_overlap", 0.95),
    ("cache", "file"),
    ("cache", True),
    *[(name, 0) for name in ("gpu_ids", "classes_path", "train_annotation_path", "val_annotation_path")],
    *[(name, value) for name in ("train_annotation_path", "val_annotation_path") for value in ([], ["a.txt", 1], [""])],
    ("classes_path", ["a.txt", "b.txt"]),
    ("source_weights", [1.0, 0.0]),
    ("source_weights", 2.0),
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
    ("copy_paste", 1.5),
    ("tile_empty", -0.1),
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
    ("Freeze_batch_size", -1),
    ("Unfreeze_batch_size", -8),
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


def test_a_weight_for_each_source(constants):
    """Prevents weights that belong to other sources than those they were written for."""
    two = {"train_annotation_path": ["a.txt", "b/data.yaml"]}
    assert check_training(constants | two | {"source_weights": [1, 0.5]}).source_weights == [1, 0.5]
    assert check_training(constants | {"source_weights": [2.0]}).source_weights == [2.0]
    with pytest.raises(
        ValueError, match=r"source_weights is \[1\], and train_annotation_path names 2 sources; expected"
    ):
        check_training(constants | two | {"source_weights": [1]})
    with pytest.raises(
        ValueError, match=r"source_weights is \[1, 2\], and train_annotation_path names 1 source; expect"
    ):
        check_training(constants | {"source_weights": [1, 2]})


def test_every_rule_has_a_bad_value_above():
    """Prevents rules that hold for everything."""
    assert {name for name, _ in BAD_VALUES} == set(RULES)


def test_every_constant_has_a_rule(constants):
    """Prevents a new constant whose mistakes nobody notices."""
    assert set(RULES) == set(constants)


def test_a_constant_that_is_missing_is_named(constants, tmp_path):
    """Prevents a trace where a function of the user bears the name of the constant, which thereby is none any more."""
    script = tmp_path / "train.py"
    text = Path(train.__file__).read_text(encoding="utf-8")
    assert text.count("\nlr_decay_type = None\n") == 1
    script.write_text(text.replace("\nlr_decay_type = None\n", "\n"), encoding="utf-8")
    left = read_constants(vars(train) | {"__file__": str(script), "lr_decay_type": a_schedule})
    assert set(constants) - set(left) == {"lr_decay_type"}
    with pytest.raises(ValueError) as error:
        check_training(left)
    assert str(error.value) == (
        "train.py has no constant lr_decay_type; expected one of cos, flat_cos, step, multistep, exp, plateau, "
        "constant, None for what suits, or a function epoch -> factor that stands in the script. A function of your "
        "own needs another name, which is then given to the constant: lr_decay_type = that name."
    )
    with pytest.raises(ValueError, match=r"^train\.py has no constant "):
        check_training({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Init_Epoch": 80, "UnFreeze_Epoch": 80}, "UnFreeze_Epoch is 80 and Init_Epoch is 80, so no epoch is left"),
        ({"UnFreeze_Epoch": 5, "Init_Epoch": 6}, "UnFreeze_Epoch is 5 and Init_Epoch is 6, so no epoch is left"),
        (
            {"Freeze_Train": True, "Freeze_Epoch": 50, "UnFreeze_Epoch": 30, "model_path": "LICENSE"},
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
            FROZEN | {"Freeze_Epoch": 50, "UnFreeze_Epoch": 30, "backbone": "resnet18", "pretrained": True},
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
        FROZEN | {"Freeze_Epoch": 50, "UnFreeze_Epoch": 30},  # from scratch there is no frozen phase to be too long
        FROZEN | {"Freeze_Epoch": 30, "UnFreeze_Epoch": 30, "model_path": "LICENSE"},  # never unfreezes
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
        {"lr_decay_type": a_schedule},
        {"lr_scale": {"backbone": 0, "head": 10}, "clip_norm_type": float("inf")},
        {"clip_norm_type": 1.0},
        {"optimizer_type": "rmsprop"},
        {"optimizer_type": "adagrad", "momentum": 0},
    ],
)
def test_allowed_corner_cases(constants, changes):
    """Prevents rules that refuse what the comments in train.py promise."""
    assert vars(check_training(constants | changes)) == fill_in(constants | changes)


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
    ("tile", 31),
    ("tile_overlap", -0.1),
    ("tta_scales", []),
    ("tta_scales", 1.5),
    ("tta_scales", [0.1]),
    ("tta_scales", [1.0, "1.5"]),
    ("tta_scales", [8.0]),
    ("test_interval", 0),
    ("test_interval", 2.5),
    ("web_host", ""),
    ("web_host", 127),
    ("web_port", 65536),
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
