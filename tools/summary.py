"""Show a network before time is spent on it: layers, output shapes, parameters, GFLOPs, and what is frozen when.

python tools/summary.py [--model_name=yolox_s --input_shape=[640,640] --num_classes=80 --Freeze_Epoch=50 ...]

Network and phases are those of train.py's constants as they stand, which can be changed here for one look in the same
way as there. Nothing is trained, no weights are read, and the network takes no memory. Programs that also count what
BatchNorm, biases or maxima cost publish a few per cent more GFLOPs.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nets import build_model
from utils.checkpoint.resume import BATCH_SIZES
from utils.config.cli import run_script
from utils.config.constants import TRAIN, read_constants, read_literals, require_literals, train_constants
from utils.config.rules import check_training
from utils.data.anchors import choose_decode_rule
from utils.io.class_names import read_class_names
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import counted
from utils.training.batch_size import ON_CPU
from utils.training.freezing import frozen_parameter_names, trainable_table
from utils.training.phases import build_phases, is_pretrained

# ----------------------------------------------------------------------------------------------------------------------
#   num_classes       How many classes the network tells apart; 0 counts the names in train.py's classes_path. Published
#                     figures are for the 80 classes of COCO.
#   layers            True: a row for every layer that has parameters. False: a row for every block of layers.
# ----------------------------------------------------------------------------------------------------------------------
num_classes = 0
layers = False

# The constants of train.py that decide what is shown here. Of model_path it counts whether there is one: anchors that
# stand in a weight file are not looked at.
_OF_TRAIN = (
    *("classes_path", "model_name", "backbone", "pretrained", "model_path", "input_shape"),
    *("anchors_path", "anchors_mask"),
    *("Freeze_Train", "Init_Epoch", "Freeze_Epoch", "Freeze_batch_size", "UnFreeze_Epoch", "Unfreeze_batch_size"),
    *("accumulate", "freeze_layers", "freeze_blocks", "train_only", "freeze_whole_run"),
    *("optimizer_type", "Init_lr", "Min_lr", "lr_scale"),
)


# YOLO has three maps at most; of the ten that D-FINE's decoder returns two are shown.
_MOST_MAPS, _SHOWN_MAPS = 3, 2


class Trace(NamedTuple):
    """What one image did in a network. outputs: {name of a layer: what it returned}, in the order of return.

    operations: {name of a layer: additions and multiplications in it and in the layers inside}; the network itself is
    "". Only layers that ran, and that count, have an entry.
    """

    outputs: dict
    operations: dict


def constants():
    """All that the command line takes: the constants above, and train.py's; None for one that cannot be read there."""
    return read_constants(globals()) | train_constants(_OF_TRAIN)


def check(values):
    """The settings, checked as train.py checks them. Raises ValueError: parameter, got, expected."""
    read = read_literals(TRAIN)
    require_literals(values, [name for name in _OF_TRAIN if name not in read])
    if values["num_classes"] < 0:
        raise UserError(f"num_classes is {values['num_classes']}; expected 1 or more, or 0 to count classes_path.")
    # A course of the user's own is a function, which is not read, and which nothing here depends on.
    settings = check_training({"lr_decay_type": "constant"} | read | values)
    for name in BATCH_SIZES:
        if not getattr(settings, name):
            logger.info(f"{name} is 0, which a training measures; here it counts as {ON_CPU}.")
            setattr(settings, name, ON_CPU)
    return settings


def main(settings):
    """Print the table of layers, the totals, and what trains in which phase."""
    model = make_model(settings)
    trace = trace_image(model, settings.input_shape)
    phases = build_phases(settings)
    height, width = settings.input_shape
    network = f"{model.name} with {settings.backbone}" if settings.backbone else model.name
    logger.info(f"\n{network}, {counted(model.num_classes, 'class')}, one image of {height}x{width} (height x width)\n")
    logger.info(layer_table(model, trace, settings, phases))
    logger.info(f"\n{totals(model, trace)}\n")
    logger.info(trainable_table(model, settings, phases))
    if settings.Freeze_Train and not is_pretrained(settings):
        logger.warning(
            "Freeze_Train freezes nothing here: without weights (model_path = '') the backbone has to learn."
        )


def make_model(settings):
    """The network of the settings: shapes alone, no memory for numbers (torch's meta device)."""
    count = settings.num_classes or len(read_class_names(settings.classes_path))
    decode_rule = choose_decode_rule(settings, {})
    with torch.device("meta"):
        return build_model(settings.model_name, count, None, decode_rule, settings.backbone).eval()


def trace_image(model, input_shape):
    """Send one image of (height, width) through a network on the meta device. Returns a Trace."""
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *input_shape, dtype=torch.uint8, device="meta"))
    for hook in hooks:
        hook.remove()
    counts = {name.partition(".")[2]: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    return Trace(outputs, counts | {"": counter.get_total_flops()})


def blocks(model, trace, prefix=""):
    """Names of the outermost layers that return one map and have parameters; what returns a list of maps is opened."""
    for name, child in model.named_children():
        name = prefix + name
        is_opened = name not in trace.outputs or isinstance(trace.outputs[name], list)
        if is_opened and list(child.children()):
            yield from blocks(child, trace, name + ".")
        elif list(child.parameters()):
            yield name


def own_layers(model):
    """Names of the layers that hold parameters themselves, and not only in layers inside."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def operations_in(model, trace, name, only_own=False):
    """Operations of a layer with all inside it, or without the layers inside it."""
    inside = [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()]
    in_children = sum(operations_in(model, trace, child) for child in inside)
    if name not in trace.outputs:  # a mere list of layers
        return 0 if only_own else in_children
    return trace.operations.get(name, 0) - (in_children if only_own else 0)


def layer_table(model, trace, settings, phases):
    """Text: a row for each block, or with settings.layers for each layer, part by part in the order they run in."""
    names = own_layers(model) if settings.layers else list(blocks(model, trace))
    resting = [frozen_parameter_names(model, settings, phase.frozen) for phase in phases]
    rows = [["layer", "kind", "output", "parameters", "GFLOPs"]]
    rows[0] += [phase.epochs for phase in phases]
    order = list(trace.outputs)
    for part in model.parts:
        members = [name for name in names if model.part_of(f"{name}.") == part]
        members.sort(key=lambda name: order.index(_that_ran(name, trace)))
        sizes = [size_of(model, name, settings.layers) for name in members]
        operations = [operations_in(model, trace, name, settings.layers) for name in members]
        rows.append([part, "", "", f"{sum(sizes):,}", _giga(sum(operations)), *[""] * len(phases)])
        for name, size, count in zip(members, sizes, operations, strict=True):
            module = model.get_submodule(name)
            own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=not settings.layers)}
            states = [_state(own, frozen) for frozen in resting]
            shape = _shape(trace.outputs.get(name))
            rows.append([f"  {name}", _kind(module), shape, f"{size:,}", _giga(count), *states])
    return _aligned(rows)


def size_of(model, name, only_own=False):
    """Parameters of a layer with all inside it, or without the layers inside it."""
    return sum(parameter.numel() for parameter in model.get_submodule(name).parameters(recurse=not only_own))


def totals(model, trace):
    """Parameters, memory and GFLOPs of the whole network, as text."""
    # Running statistics are numbers of a weight file too, but nothing learns them.
    numbers = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    return (
        f"parameters  {size_of(model, ''):,}\n"
        f"weights     {numbers * 4 / 1e6:.2f} MB as float32, {numbers * 2 / 1e6:.2f} MB as float16, with the running "
        "statistics of BatchNorm\n"
        f"GFLOPs      {_giga(trace.operations[''])} for one image: two operations per multiply-add; convolutions and "
        "matrix products alone"
    )


def _that_ran(name, trace):
    """The layer itself, or the innermost one around it that ran: some compute with the weights of layers inside."""
    while name not in trace.outputs:
        name = name.rpartition(".")[0]
    return name


def _kind(module):
    """The class of a layer; of a convolution also kernel (height x width) and stride."""
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d):
        return kind
    stride = f"/{module.stride[0]}" if module.stride[0] > 1 else ""
    return f"{kind} {'x'.join(map(str, module.kernel_size))}{stride}"


def _shape(output):
    """Shape of one image's map, without the batch; of many maps the first ones, and how many more there are."""
    maps = [output] if isinstance(output, torch.Tensor) else output or ()
    shapes = ["x".join(map(str, level.shape[1:])) for level in maps]
    if len(shapes) > _MOST_MAPS:
        shapes[_SHOWN_MAPS:] = [f"+{len(shapes) - _SHOWN_MAPS}"]
    return ", ".join(shapes)


def _giga(operations):
    if not operations:
        return ""
    return f"{operations / 1e9:.3f}" if operations >= 5e5 else "<0.001"


def _state(names, frozen):
    if names <= frozen:
        return "frozen"
    return "partly" if names & frozen else "trains"


def _aligned(rows):
    """Columns of equal width; those of numbers, parameters and GFLOPs, to the right."""
    columns = list(zip(*rows, strict=True))
    for number, column in enumerate(columns):
        width = max(map(len, column))
        columns[number] = [text.rjust(width) if number in (3, 4) else text.ljust(width) for text in column]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


if __name__ == "__main__":
    run_script(main, constants(), check)
