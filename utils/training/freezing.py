"""Which parameters learn, and how fast: freeze_layers, freeze_blocks, train_only and lr_scale, and the table of it all.

A parameter is meant by the name of its part (backbone, neck, head), by its own name, or by the beginning of it up to a
dot: 'head', 'head.cls_preds', 'backbone.stages.0'.
"""

from collections import Counter
from difflib import get_close_matches
from itertools import islice

import torch
from torch import nn

from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import format_table
from utils.runtime.distributed import all_reduce_sum
from utils.training.lr_schedule import lr_range

# Batches on which BatchNorm's statistics are measured when its layers begin to train.
BATCHES = 16


def select(model, wanted, constant):
    """Names of the parameters that a list of names means.

    model: a DetectorBase. wanted: list of parts, names or beginnings of names. constant: where the list stands,
    for messages. Returns a set. Raises ValueError, naming the nearest name, for one that means nothing.
    """
    selected, names = set(), [name for name, _ in model.named_parameters()]
    for text in wanted:
        if text in model.parts:
            found = {name for name in names if model.part_of(name) == text}
        else:
            found = {name for name in names if name == text or name.startswith(text.removesuffix(".") + ".")}
        if not found:
            modules = [name for name, part in model.named_modules() if name and list(part.parameters())]
            nearest = get_close_matches(text, [*model.parts, *modules], n=1, cutoff=0.0)
            raise UserError(
                f"{constant} names {text!r}, and no parameter of {model.name} begins so; expected 'backbone', 'neck', "
                f"'head' or the beginning of a parameter's name. The nearest is '{nearest[0]}'."
            )
        selected |= found
    return selected


def first_blocks(model, count):
    """Names of the parameters of the first `count` blocks of the backbone. Raises ValueError where it has fewer."""
    extractor = model.feature_extractor
    blocks = getattr(extractor, "blocks", None) or [(name,) for name in _block_names(extractor)]
    if count > len(blocks):
        raise UserError(
            f"freeze_blocks is {count}, but the backbone of {model.name} has {len(blocks)} blocks: "
            f"{', '.join(block[0] for block in blocks)}."
        )
    prefixes = tuple(f"{model.extractor_prefix()}{name}." for block in blocks[:count] for name in block)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)} if prefixes else set()


def _block_names(extractor):
    """Names of the layers of a backbone that have parameters; lists of layers count one by one."""
    for name, child in extractor.named_children():
        inner = {f"{name}.{number}": block for number, block in child.named_children()}
        candidates = inner if isinstance(child, nn.ModuleList) else {name: child}
        yield from (block for block, layers in candidates.items() if list(layers.parameters()))


def frozen_parameter_names(model, settings, backbone_frozen):
    """Names of the parameters that are frozen in a phase.

    settings: with freeze_layers, freeze_blocks, train_only, freeze_whole_run, lr_scale. backbone_frozen: whether the
    phase is Freeze_Train's. Returns a set. Raises ValueError for names that mean nothing, and where nothing is left to
    train.
    """
    everything = {name for name, _ in model.named_parameters()}
    chosen = select(model, settings.freeze_layers, "freeze_layers") | first_blocks(model, settings.freeze_blocks)
    if settings.train_only:
        chosen |= everything - select(model, settings.train_only, "train_only")
    lr_scale_of = lr_scales(model, settings.lr_scale)
    frozen = {name for name in everything if lr_scale_of(name) == 0}
    backbone = select(model, ["backbone"], "Freeze_Train")
    if settings.freeze_whole_run:
        frozen |= chosen | (backbone if backbone_frozen else set())
    elif backbone_frozen:
        frozen |= chosen or backbone
    if frozen == everything:
        which = "in the phase of Freeze_Train" if backbone_frozen else "in the unfrozen phase"
        raise UserError(
            f"Everything is frozen {which}: Freeze_Train, freeze_layers, freeze_blocks, train_only and lr_scale leave "
            "no parameter to train. Free one of backbone, neck and head."
        )
    return frozen


def lr_scales(model, lr_scale):
    """A function from a parameter's name to the factor of its learning rate.

    lr_scale: {name as in select: factor of 0 or more}. Where several entries mean a parameter the longest name counts,
    and any name more than that of a part. Raises ValueError for a name that means nothing.
    """
    factors = {}
    for text, factor in sorted(lr_scale.items(), key=lambda item: (item[0] not in model.parts, len(item[0]))):
        factors |= dict.fromkeys(select(model, [text], "lr_scale"), float(factor))
    return lambda name: factors.get(name, 1.0)


def lr_groups(model, settings, phases):
    """What trains, as a picture of its rates wants it: {(lr_scale, start_epoch): parts}."""
    lr_scale_of, groups, seen = lr_scales(model, settings.lr_scale), {}, set()
    for phase in phases:
        frozen = frozen_parameter_names(model, settings, phase.frozen)
        for name, _ in model.named_parameters():
            if name not in frozen and name not in seen:
                seen.add(name)
                parts = groups.setdefault((lr_scale_of(name), phase.first), [])
                if model.part_of(name) not in parts:
                    parts.append(model.part_of(name))
    return groups


def warn_untrained_frozen(model, settings, phases, uninitialised):
    """Log a warning where layers that start from no weights never train. uninitialised: names of parameters."""
    frozen = frozen_parameter_names(model, settings, phases[-1].frozen)
    stuck = [name for name, _ in model.named_parameters() if name in frozen and name in uninitialised]
    if stuck:
        logger.warning(
            f"{len(stuck)} tensors that start from no weights are frozen to the end and stay random (the first: "
            f"{stuck[0]}). Let them train, or start from weights that hold them."
        )


def trainable_table(model, settings, phases):
    """What trains, part by part and phase by phase, and at which highest rate, as text.

    Errors as frozen_parameter_names.
    """
    lr_scale_of = lr_scales(model, settings.lr_scale)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    frozen = [frozen_parameter_names(model, settings, phase.frozen) for phase in phases]
    rows = [("part", "parameters", *(phase.epochs for phase in phases))]
    for part in model.parts:
        of_part = {name: size for name, size in sizes.items() if model.part_of(name) == part}
        cells = [
            _cell({name: size for name, size in of_part.items() if name not in names}, of_part, lr_scale_of, lr)
            for names, (lr, _) in zip(frozen, (lr_range(settings, phase) for phase in phases), strict=True)
        ]
        rows.append((part, f"{sum(of_part.values()):,}", *cells))
    return format_table(rows)


def _cell(training, sizes, lr_scale_of, lr):
    """'frozen', 'all at 1.0e-02', or how many parameters train at which rates; training, sizes: {name: size}."""
    if not training:
        return "frozen"
    counts = Counter()
    for name, size in training.items():
        counts[lr_scale_of(name)] += size
    is_all = len(training) == len(sizes)
    if len(counts) == 1 and is_all:
        return f"all at {lr * next(iter(counts)):.1e}"
    shown = ", ".join(f"{count:,} at {lr * lr_scale:.1e}" for lr_scale, count in sorted(counts.items(), reverse=True))
    return shown if is_all else f"{shown}, rest frozen"


@torch.no_grad()
def recalibrate_batch_norm(model, layers, loader, device):
    """Give BatchNorm layers that were frozen until now this data's statistics, without changing what they compute.

    Frozen, these layers normalise by the statistics of the pretraining data, and the head has learned on the result.
    Once they learn, they normalise by those of each batch: all features would shift at one blow. So the statistics are
    measured on the loader's first batches, and what their change does is taken back in scale and shift:
    scale' = scale * std' / std, shift' = shift + scale * (mean' - mean) / std. In eval mode the output stays the
    same; in train mode only the noise of single batches comes in.

    model: a DetectorBase, left in eval mode. layers: names of the layers. loader: of training batches. Ranks
    measure their shares and put them together: all must call, with the same layers.
    """
    model.eval()
    layers = [model.get_submodule(name) for name in layers]
    if not layers:
        return
    # Of each layer and channel: images, and the sums over them of mean and mean square.
    sums = {layer: torch.zeros(3, layer.num_features, dtype=torch.float64, device=device) for layer in layers}

    def measure(layer, inputs):
        pixels = inputs[0].float()
        variance, mean = (value.double() for value in torch.var_mean(pixels, dim=(0, 2, 3), correction=0))
        sums[layer] += torch.stack((torch.ones_like(mean), mean, variance + mean.square())) * len(pixels)

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    for batch in islice(loader, BATCHES):
        model(batch.images.to(device))
    for hook in hooks:
        hook.remove()
    # Side by side, so that ranks exchange them at once.
    total = all_reduce_sum(torch.cat(list(sums.values()), dim=1))
    for layer, (images, mean, square) in zip(
        layers, total.split([layer.num_features for layer in layers], 1), strict=True
    ):
        if images.all():
            mean, square = mean / images, square / images
            _replace_statistics(layer, mean.float(), (square - mean.square()).float())


def _replace_statistics(layer, mean, variance):
    old_std, new_std = (layer.running_var + layer.eps).sqrt(), (variance + layer.eps).sqrt()
    layer.bias += layer.weight * (mean - layer.running_mean) / old_std
    layer.weight *= new_std / old_std
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
