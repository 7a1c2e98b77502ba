"""What each constant may be, and the checks of several constants together."""

import math
from pathlib import Path
from types import SimpleNamespace

from utils.config.optimizers import SUITABLE, fill_in
from utils.config.predicates import (
    is_gpu_list,
    is_input_side,
    is_lr_scale,
    is_masks,
    is_milestones,
    is_names,
    is_paths,
    is_range,
    is_scales,
    is_weights,
    list_of,
    number,
    whole,
)
from utils.io.errors import UserError
from utils.io.text import did_you_mean

LR_DECAY_TYPES = ("cos", "flat_cos", "step", "multistep", "exp", "plateau", "constant")
# Names that stand in nets/ and utils/weights/ too, which are no lower layers; a test compares them.
WEIGHTS_FORMATS = ("", "yolox", "yolox_rgb", "flat_yolox", "flat_yolov4", "darknet", "dfine", "deim", "torchvision")
RELEASE_NAMES = (
    *(f"yolox_{size}" for size in ("nano", "tiny", "s", "m", "l", "x")),
    *(f"dfine_{size}{data}" for data in ("", "_coco") for size in ("n", "s", "m", "l", "x")),
    *(f"dfine_{size}_{data}" for size in ("s", "m", "l", "x") for data in ("obj2coco", "obj365")),
    *("yolov4", "yolov4.conv.137", "yolov4_tiny", "yolov4-tiny.conv.29"),
)
MODEL_NAMES = (
    *(f"yolox_{size}" for size in ("nano", "tiny", "s", "m", "l", "x")),
    *("yolov4_tiny", "yolov4", *(f"dfine_{size}" for size in "nsmlx")),
)
IOU_TYPES = ("", "iou", "ciou", "siou")
CACHES = ("", "ram", "disk", "gpu")
COMPILES = ("", "default", "graphs", True, False)  # the last two as in older scripts
TYPE_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def check_types(values, defaults):
    """Check constants that have no rule by the type of their default: {name: value} each. None takes anything.

    Raises UserError: parameter, got, expected.
    """
    for name, value in values.items():
        default = defaults.get(name)
        is_open = default is None or callable(default) or name in RULES or name in TOOL_RULES
        if not is_open and type(value) is not type(default):
            kind = TYPE_NAMES.get(type(default), f"a {type(default).__name__}")
            raise UserError(f"{name} is {value!r}; expected {kind}, as in --{name}={default!r}.")


def check_values(values, rules=None):
    """Check each constant by itself.

    values: {name: value}. rules: as RULES; None for those of predict.py and the tools. Returns the values as a
    namespace. Raises UserError: parameter, got, expected.
    """
    rules = RULES | TOOL_RULES if rules is None else rules
    for name, value in values.items():
        holds, expected = rules.get(name, (None, ""))
        if holds and not holds(value):
            raise UserError(f"{name} is {value!r}; expected {expected}")
    return SimpleNamespace(**values)


def check_prediction(values):
    """Check predict.py's constants, as check_values; confidence may be None."""
    is_open = values["confidence"] is None
    check_values({name: value for name, value in values.items() if not (is_open and name == "confidence")})
    return SimpleNamespace(**values)


def check_training(values):
    """Check train.py's constants before anything is built.

    values: {name: value}. Returns them as a namespace, with what suits where None leaves that open. Raises UserError:
    parameter, got, expected, what to do.
    """
    for name in RULES.keys() - values.keys():
        raise UserError(
            f"train.py has no constant {name}; expected {RULES[name][1]} A function of your own needs another name, "
            f"which is then given to the constant: {name} = that name."
        )
    check_values(values, RULES)
    _check_model_name(values["model_name"])
    values = fill_in(values)
    config = SimpleNamespace(**values)
    if config.Min_lr is not None and config.Min_lr > config.Init_lr:
        raise UserError(
            f"Min_lr is {config.Min_lr} and Init_lr is {config.Init_lr}; Min_lr is the rate at the end: set it below "
            "Init_lr, or to None for a hundredth of it."
        )
    if config.UnFreeze_Epoch <= config.Init_Epoch:
        raise UserError(
            f"UnFreeze_Epoch is {config.UnFreeze_Epoch} and Init_Epoch is {config.Init_Epoch}, so no epoch is left "
            "to train. UnFreeze_Epoch is the last epoch: raise it, or lower Init_Epoch."
        )
    is_pretrained = config.model_path or config.pretrained
    if config.Freeze_Train and is_pretrained and config.Freeze_Epoch > config.UnFreeze_Epoch:
        raise UserError(
            f"Freeze_Epoch is {config.Freeze_Epoch}, beyond UnFreeze_Epoch {config.UnFreeze_Epoch}. UnFreeze_Epoch "
            "counts all epochs, frozen ones included: set Freeze_Epoch to it at most."
        )
    if config.pretrained and (config.model_path or not config.backbone):
        raise UserError(
            f"pretrained is {config.pretrained!r}, which concerns torchvision backbones: it takes backbone, such as "
            "'resnet50', and model_path = ''. For weights of a whole network set pretrained = False and model_path."
        )
    if config.train_only and (config.freeze_layers or config.freeze_blocks):
        raise UserError(
            "train_only says what trains, freeze_layers and freeze_blocks what does not; use one of the two ways and "
            "set the other to [] and 0."
        )
    _check_source_weights(config)
    _check_files(values | ({"model_path": ""} if config.resume else {}))
    return config


def _check_model_name(name):
    if name not in MODEL_NAMES:
        question = did_you_mean(name, MODEL_NAMES)
        raise UserError(f"model_name is {name!r}; expected one of {', '.join(MODEL_NAMES)}.{question}")


def _check_source_weights(config):
    path, weights = config.train_annotation_path, config.source_weights
    sources = 1 if isinstance(path, str) else len(path)
    if len(weights) not in (0, sources):
        raise UserError(
            f"source_weights is {weights!r}, and train_annotation_path names {sources} source{'s' * (sources > 1)}; "
            "expected a number for each source, or [] for 1 each."
        )


def _check_files(values):
    """Raise ValueError for a constant that names no annotations, or a file which does not exist."""
    for name in ("train_annotation_path", "val_annotation_path"):
        if not values[name]:
            raise UserError(f"{name} is empty; set it to the annotations of your images.")
    fetched = ", name a release such as yolox_nano, which is fetched, or set model_path = '' to train from scratch"
    for name, text, otherwise in (
        ("classes_path", "a text file with one class name per line", ""),
        ("model_path", "a weight file", fetched),
        ("anchors_path", "a text file of anchors", ", or set it to '' for the network's own"),
    ):
        is_known = name == "model_path" and values[name] in RELEASE_NAMES
        if values[name] and not is_known and not Path(values[name]).is_file():
            raise UserError(
                f"{name} is {values[name]!r}, and there is no such file; expected {text}. Correct the path (relative "
                f"to {Path.cwd()}){otherwise}."
            )


_FLAG = (lambda value: isinstance(value, bool), "True or False.")
_TEXT = (lambda value: isinstance(value, str), "text in quotation marks, '' for none.")
_FRACTION = (number(0, 1), "a share from 0 to 1.")
_BATCH = (whole(1), "a whole number of images, at least 1; 8 or 16 suit most machines.")
_TILE = (lambda value: whole(0)(value) and not 0 < value < 32, "32 or more pixels of the image, 0 for whole images.")
_OVERLAP = (number(0, 0.9), "a share of a tile's side from 0 to 0.9, such as 0.2.")
INPUT_SHAPE = (
    list_of(2, is_input_side),
    "[height, width], both multiples of 32, such as [416, 416] or [640, 640].",
)
# What each constant of train.py may be: (test, the words for what was expected).
RULES = {
    **dict.fromkeys(("Cuda", "distributed", "sync_bn", "fp16", "mosaic", "mixup", "Freeze_Train"), _FLAG),
    **dict.fromkeys(("ema", "eval_flag", "cudnn_benchmark", "deterministic", "focal_loss"), _FLAG),
    **dict.fromkeys(("multi_scale", "freeze_whole_run", "allow_partial_backbone", "keep_difficult"), _FLAG),
    "patience": (whole(0), "a number of epochs, 0 for off."),
    "report_language": (("en", "zh").__contains__, "'en' or 'zh'."),
    "resume": (
        lambda value: isinstance(value, (bool, str)),
        "True, False, or the folder of a run, such as 'logs/loss_2026_01_31_18_00_00'.",
    ),
    "save_minutes": (number(0), "a number of minutes, 0 to save at the end of epochs only."),
    "keep_checkpoints": (whole(0), "how many files ep*.pth to keep, 0 for all."),
    "worker_timeout": (whole(0), "a number of seconds, 0 to wait for ever."),
    "compile": (lambda value: str(value) in map(str, COMPILES), "'graphs', 'default', or '' for neither."),
    "cache": (CACHES.__contains__, "'ram', 'disk', 'gpu', or '' for none."),
    "tile": _TILE,
    "tile_overlap": _OVERLAP,
    "classes_path": _TEXT,
    **dict.fromkeys(
        ("train_annotation_path", "val_annotation_path"),
        (is_paths, "a path in quotation marks, or a list of paths, such as ['a/data.yaml', 'b/data.yaml']."),
    ),
    "source_weights": (is_weights, "a list of numbers above 0, one for each source of train_annotation_path, or []."),
    **dict.fromkeys(("model_name", "backbone", "model_path", "anchors_path", "save_dir"), _TEXT),
    "gpu_ids": (is_gpu_list, "numbers with commas, such as '0' or '0,2', or '' for all GPUs."),
    **dict.fromkeys(
        ("mosaic_prob", "mixup_prob", "copy_paste", "tile_empty", "special_aug_ratio", "flip_prob"), _FRACTION
    ),
    **dict.fromkeys(
        ("Freeze_batch_size", "Unfreeze_batch_size"),
        (whole(0), "a whole number of images, such as 8 or 16, or 0 for the largest that fits."),
    ),
    **dict.fromkeys(("save_period", "eval_period"), (whole(1), "1 or more epochs.")),
    **dict.fromkeys(("freeze_layers", "train_only"), (is_names, "a list of names, such as ['backbone', 'neck'].")),
    "pretrained": (
        lambda value: isinstance(value, (bool, str)) and value != "",
        "True, False, or the name of torchvision weights, such as 'IMAGENET1K_V2'.",
    ),
    "weights_format": (WEIGHTS_FORMATS.__contains__, f"one of {', '.join(map(repr, WEIGHTS_FORMATS))}."),
    "cpu_threads": (whole(0), "a number of threads, 0 to let torch decide."),
    "anchors_mask": (is_masks, "a list of anchor numbers for each map, such as [[3, 4, 5], [0, 1, 2]], or []."),
    "iou_type": (IOU_TYPES.__contains__, "'iou', 'ciou', 'siou', or '' for the network's own."),
    "label_smoothing": (number(0, 0.5), "a share from 0 (off) to 0.5, such as 0.01."),
    "focal_alpha": (number(0, 1), "the weight of cells with objects, from 0 to 1, such as 0.25."),
    "focal_gamma": (number(0), "0 or more, such as 2."),
    "ignore_iou": (number(0, 1), "an IoU from 0 to 1, such as 0.7; 1 ignores nothing."),
    "map_weights": (is_weights, "a list of numbers above 0, one for each map, fine map first, or []."),
    "multi_scale_range": (is_range, "[smallest, largest] factor of input_shape, such as [0.75, 1.25]."),
    "multi_scale_period": (whole(1), "1 or more batches."),
    "freeze_blocks": (whole(0), "a number of blocks of the backbone, 0 for none."),
    "lr_step_size": (
        lambda value: value is None or whole(1)(value),
        "a number of epochs, or None for a third of all.",
    ),
    "lr_milestones": (is_milestones, "a list of rising epochs, such as [70, 90], or [] for 70 % and 90 % of all."),
    "lr_gamma": (
        lambda value: value is None or number(0, 1, above=True)(value),
        "a factor above 0, up to 1, or None.",
    ),
    "lr_factor": (
        lambda value: number(0, 1, above=True)(value) and value < 1,
        "a factor between 0 and 1, such as 0.5.",
    ),
    **dict.fromkeys(("lr_patience", "lr_cooldown"), (whole(0), "a number of epochs, 0 or more.")),
    "lr_scale": (
        lambda value: value is None or is_lr_scale(value),
        "factors by name, such as {'backbone': 0.1}; {} for none, None for what suits.",
    ),
    "clip_norm_type": (
        lambda value: value == math.inf or number(1)(value),
        "2.0, 1.0, or inf for the largest gradient.",
    ),
    "num_workers": (whole(-1), "-1 to let the machine decide, 0 for none, or their number."),
    "seed": (whole(0), "a whole number, 0 or more."),
    "input_shape": INPUT_SHAPE,
    "scale_range": (is_range, "[smallest, largest] zoom, such as [0.5, 1.5]."),
    "aspect_jitter": (number(0, 0.9), "a number from 0 (no change of the aspect ratio) to 0.9."),
    "colour_jitter": (list_of(3, number(0, 1)), "[hue, saturation, brightness], each from 0 to 1."),
    "Init_Epoch": (whole(0), "the number of epochs already done, 0 for a new training."),
    "Freeze_Epoch": (whole(0), "the epoch at which the backbone is unfrozen, 0 or more."),
    "UnFreeze_Epoch": (whole(1), "the last epoch, a whole number from 1 on."),
    "accumulate": (whole(1), "1 or more batches per optimiser step."),
    "Init_lr": (
        lambda value: value is None or number(0, above=True)(value),
        "a learning rate above 0, such as 1e-2 for sgd or 8e-3 for adamw, or None for what suits.",
    ),
    "Min_lr": (lambda value: value is None or number(0)(value), "a learning rate, or None for Init_lr / 100."),
    "optimizer_type": (SUITABLE.__contains__, f"one of {', '.join(SUITABLE)}."),
    "lr_decay_type": (
        lambda value: value is None or callable(value) or value in LR_DECAY_TYPES,
        f"one of {', '.join(LR_DECAY_TYPES)}, None for what suits, or a function epoch -> factor that stands in the "
        "script.",
    ),
    "momentum": (
        lambda value: value is None or number(0, 0.9999)(value),
        "a number from 0 to below 1, such as 0.937 for sgd or 0.9 for adamw, or None for what suits.",
    ),
    "weight_decay": (
        lambda value: value is None or number(0)(value),
        "0 or more, such as 5e-4 for sgd, or None for what suits.",
    ),
    "clip_grad_norm": (
        lambda value: value is None or number(0)(value),
        "the largest norm of the gradient, 0 for no clipping, or None for what suits.",
    ),
}
# Constants of predict.py and the tools that train.py lacks, or that may be left open there.
TOOL_RULES = {
    "max_boxes": (whole(1), "1 or more objects of a picture."),
    "tile": (lambda value: value is None or _TILE[0](value), _TILE[1]),
    "tile_overlap": (lambda value: value is None or _OVERLAP[0](value), _OVERLAP[1]),
    "max_megapixels": (whole(1), "1 or more million pixels, such as 200."),
    **dict.fromkeys(("confidence", "nms_iou", "MINOVERLAP"), _FRACTION),
    "batch_size": _BATCH,
    "input_shape": (lambda value: value == [] or INPUT_SHAPE[0](value), INPUT_SHAPE[1]),
    **dict.fromkeys(("show", "crop", "count", "voc_xml", "yolo_txt", "fuse", "tta_flip"), _FLAG),
    **dict.fromkeys(("image", "dir_origin_path", "dir_save_path", "video_path", "video_save_path"), _TEXT),
    "tta_scales": (is_scales, "a list of sizes from 0.25 to 4 times that of the input, such as [1.0, 1.5]."),
    "test_interval": (whole(1), "1 or more repetitions."),
    "web_host": (
        lambda value: isinstance(value, str) and value != "",
        "an address to listen on, such as '127.0.0.1' for this machine alone.",
    ),
    "web_port": (lambda value: whole(0)(value) and value < 2**16, "a number from 1 to 65535, or 0 for a free one."),
    **dict.fromkeys(("onnx_path", "export_pictures"), _TEXT),
    **dict.fromkeys(("export_nms", "export_dynamic_size"), _FLAG),
    "opset": (whole(1), "a version of ONNX's operators, such as 18."),
}
