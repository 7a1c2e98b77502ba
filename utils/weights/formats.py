"""What kind of weights a state dict holds: which network, how many classes, and how it expects its images.

A format is a set of rules that the numbers were trained with: order and scale of the pixels, how an image is fitted
into the input, and how raw maps are decoded. Nothing here depends on a file's name.
"""

from typing import NamedTuple

from utils.io.errors import UserError

_RGB_1 = {"channels": "RGB", "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
_RGB_IMAGENET = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
_CENTRED, _STRETCHED = {"mode": "center", "pad": 128}, {"mode": "stretch", "pad": 0}
# Kernel of the first map's projection, by which a D-FINE tells its size, and width of the stem of its backbone, which
# sizes may share.
_DFINE_SIZES = {(128, 512): "n", (256, 256): "s", (256, 384): "m", (256, 512): "l", (384, 512): "x"}
_HGNETV2_SIZES = {16: "", 32: "dfine_m", 48: "dfine_l", 64: "dfine_x"}
# Width of the first convolution, by which a YOLOX tells its size.
_YOLOX_SIZES = {16: "nano", 24: "tiny", 32: "s", 48: "m", 64: "l", 80: "x"}


class Format(NamedTuple):
    """Rules of a kind of weights. scale_x_y: for each map, None where the network's own holds. decode_rule: what else
    the network has to know."""

    words: str
    pixel_rule: dict
    resize_rule: dict
    scale_x_y: float | None = None
    decode_rule: dict | None = None


# What the constant weights_format may say; each entry speaks of YOLOX (keys with a decoupled head) or YOLOv4.
FORMATS = {
    "yolox": Format(
        "official YOLOX release: BGR pixels 0-255, image top-left, padding 114",
        {"channels": "BGR", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        {"mode": "topleft", "pad": 114},
    ),
    "yolox_rgb": Format(
        "YOLOX release before 0.1.1: RGB pixels with ImageNet's mean and deviation, image top-left, padding 114",
        _RGB_IMAGENET,
        {"mode": "topleft", "pad": 114},
    ),
    "flat_yolox": Format(
        "flat state dict of YOLOX: RGB pixels with ImageNet's mean and deviation, image centred, padding 128",
        _RGB_IMAGENET,
        _CENTRED,
    ),
    "flat_yolov4": Format(
        "flat state dict of YOLOv4: RGB pixels 0-1, image centred, padding 128, the usual anchors",
        _RGB_1,
        _CENTRED,
        scale_x_y=1.0,
    ),
    "darknet": Format(
        "Darknet's rules: RGB pixels 0-1, image stretched, the usual anchors",
        _RGB_1,
        {"mode": "stretch", "pad": 128},
    ),
    "dfine": Format(
        "official D-FINE release: RGB pixels 0-1, image stretched",
        _RGB_1,
        _STRETCHED,
        decode_rule={"transposed_positions": True, "activation": "relu"},
    ),
    "deim": Format(
        "DEIM, which is D-FINE with SiLU in its decoder: RGB pixels 0-1, image stretched",
        _RGB_1,
        _STRETCHED,
        decode_rule={"transposed_positions": True, "activation": "silu"},
    ),
    "torchvision": Format(
        "torchvision backbone: RGB pixels with ImageNet's mean and deviation",
        _RGB_IMAGENET,
        {"mode": "topleft", "pad": 114},
    ),
}
# Which of them a network's weights can follow.
FITTING = {
    "yolox": ("yolox", "yolox_rgb", "flat_yolox"),
    "yolov4": ("flat_yolov4", "darknet"),
    "dfine": ("dfine", "deim"),
    "torchvision": ("torchvision",),
}


class Recognised(NamedTuple):
    """family: a key of FITTING. model_name: '' for a backbone that several networks may have. num_classes: None where
    none are predicted.

    is_backbone: the keys lack the backbone's prefix, and nothing else is held.
    """

    family: str
    model_name: str
    is_backbone: bool
    num_classes: int | None


def recognise(state):
    """Which network a state dict {key: tensor} belongs to, by its keys and shapes. None for one that is not known."""
    stem = _kernel(state, "backbone.backbone.stem.conv.conv.weight", "stem.conv.conv.weight")
    if stem is not None and len(stem) in _YOLOX_SIZES:
        classes = _kernel(state, "head.cls_preds.0.weight")
        count = None if classes is None else len(classes)
        return Recognised("yolox", f"yolox_{_YOLOX_SIZES[len(stem)]}", "stem.conv.conv.weight" in state, count)
    projection, classes = _kernel(state, "encoder.input_proj.0.conv.weight"), state.get("decoder.enc_score_head.weight")
    if projection is not None and classes is not None and tuple(projection.shape[:2]) in _DFINE_SIZES:
        return Recognised("dfine", f"dfine_{_DFINE_SIZES[tuple(projection.shape[:2])]}", False, len(classes))
    stem = _kernel(state, "backbone.stem.stem4.conv.weight", "stem.stem4.conv.weight")
    if stem is not None and len(stem) in _HGNETV2_SIZES:
        return Recognised("dfine", _HGNETV2_SIZES[len(stem)], "stem.stem4.conv.weight" in state, None)
    for model_name, key, head in (
        ("yolov4", "stages.0.downsample_conv.conv.weight", "yolo_head3.1.weight"),
        ("yolov4_tiny", "resblock_body1.conv1.conv.weight", "yolo_headP5.1.weight"),
    ):
        if _kernel(state, key, f"backbone.{key}") is not None:
            rows = _kernel(state, head)
            classes = None if rows is None or len(rows) % 3 else len(rows) // 3 - 5
            return Recognised("yolov4", model_name, key in state, classes)
    if any(key in state for key in ("layer1.0.conv1.weight", "features.0.0.weight")):
        return Recognised("torchvision", "", True, None)
    return None


def _kernel(state, *keys):
    """The first of these entries that is a convolution's kernel."""
    return next((state[key] for key in keys if key in state and state[key].ndim == 4), None)


def choose_format(recognised, wrapper, weights_format, path, state=()):
    """The key of FORMATS that a file's weights follow.

    state: its tensors by key. wrapper: the key under which the file held its state dict, '' for none. weights_format:
    the constant, '' to recognise. Raises ValueError where the constant names no format of this network.
    """
    fitting = FITTING[recognised.family]
    if weights_format:
        if weights_format not in fitting:
            raise UserError(
                f"weights_format is {weights_format!r}, but {path} holds {recognised.model_name or 'a backbone'}, "
                f"which can follow {' or '.join(map(repr, fitting))}; set it so, or to '' to let the file decide."
            )
        return weights_format
    if recognised.family == "yolox" and wrapper != "model":
        return "flat_yolox"
    # The authors freeze BatchNorm in the backbone of l and x, which then counts no batches; DEIM does not.
    if recognised.model_name in ("dfine_l", "dfine_x") and "backbone.stem.stem1.bn.num_batches_tracked" in state:
        return "deim"
    return fitting[0]
