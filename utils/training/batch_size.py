"""What a batch size of 0 means: the largest batch that fits, found before anything depends on it."""

import copy
import math

import torch

from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime.distributed import alone, broadcast_object, gather_objects
from utils.training.build import multi_scale_of_settings
from utils.training.engine import OptimWrapper
from utils.training.graphs import why_no_graphs
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups
from utils.training.phases import build_phases
from utils.training.preflight import (
    is_out_of_memory,
    largest_shape,
    max_boxes,
    scaled_input,
    step_trial,
    untouched,
    validation_trial,
)

ON_CPU = 8
# Images of a process. The learning rates of most optimisers rise no further, and steps become few.
MOST = 64
# The share of the memory that is used: what is allocated does not fill every gap, and boxes differ from batch to batch.
USED = 0.9
# So many sizes are measured before a line through them says which to go to.
PROBES = 3


def choose_batch_sizes(settings, model, criterion, runtime, annotations):
    """The settings, with the largest that fits in the place of each batch size of 0 whose phase is to come.

    model, criterion: on the device. annotations: of the training images. All ranks call, and get the same number, that
    of the rank with the least memory. Says what was chosen. Raises UserError where not even the smallest batch fits.
    """
    phases = build_phases(settings)
    open_phases = [phase for phase in phases if not phase.batch_size]
    if not open_phases:
        return settings
    ranks, chosen = runtime.dist.world_size, copy.copy(settings)
    sizes = allowed_sizes(len(annotations), ranks)
    for phase in open_phases:
        if runtime.on_gpu:
            size, words = _on_gpu(phase, phase is phases[-1], sizes, settings, model, criterion, runtime, annotations)
        else:
            size, words = (
                max((size for size in sizes if size * ranks <= ON_CPU), default=sizes[0]),
                "which on a CPU is not measured",
            )
        setattr(chosen, phase.size_constant, size * ranks)
        logger.info(f"{phase.size_constant} is 0 and becomes {size * ranks}, {words}")
    return chosen


def allowed_sizes(images, ranks):
    """Images of one of so many ranks that a batch may have, ascending: 2, 4, and multiples of 8 up to MOST.

    All ranks together take no more than the training images; where these are too few for 2 each, 1 is left.
    """
    return [size for size in (2, 4, *range(8, MOST + 1, 8)) if size * ranks <= images] or [1]


def largest_batch(measure, budget, sizes):
    """The largest of the sizes whose step needs no more than budget bytes; 0 where none does.

    measure: images of a batch -> bytes that its step needs; raises what torch raises where memory does not suffice.
    sizes: ascending. The smallest are measured; memory grows with the images as a line, which says where to go on.
    That size is measured, too, and where it does not fit, those between it and the last that did.
    """
    needed = {}

    def fits(number):
        needed[number] = _bytes_or_infinite(measure, sizes[number])
        return needed[number] <= budget

    low, high = -1, len(sizes)
    while low + 1 < min(high, PROBES):
        if fits(low + 1):
            low += 1
        else:
            high = low + 1
    if high - low > 1:
        slopes = [(needed[low] - needed[n]) / (sizes[low] - sizes[n]) for n in range(low)]
        room = (budget - needed[low]) / max(slopes) if max(slopes) > 0 else math.inf
        guess = max(number for number in range(low, high) if sizes[number] - sizes[low] <= room)
        if guess == low or fits(guess):
            return sizes[guess]
        high = guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sizes[low] if low >= 0 else 0


def _bytes_or_infinite(measure, size):
    try:
        return measure(size)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf


def needed_bytes(at_rest, step, validation, is_graphed):
    """What a phase needs of a GPU's memory, from what lies there at rest, and the peaks of a step and of a validation
    batch, each with that: in bytes.

    is_graphed: a CUDA graph keeps the memory of a step, beside which batches of other shapes run as usual.
    """
    return max(step, validation) + (max(step - at_rest, 0) if is_graphed else 0)


def _on_gpu(phase, is_last, sizes, settings, model, criterion, runtime, annotations):
    """(images of a rank, words for a person): the least of what the ranks find, each by itself."""
    if settings.sync_bn and runtime.dist.world_size > 1:
        raise UserError(
            f"{phase.size_constant} is 0, which several processes with sync_bn = True cannot measure, as each would "
            f"wait for the others; set it to a number of images, a multiple of {runtime.dist.world_size}."
        )
    optimizer = build_optimizer(settings.optimizer_type, parameter_groups(model, 0.0, 0), settings.momentum)
    # Its length does not matter, but its weights take memory.
    ema = ModelEMA(model, 1) if settings.ema else None
    optim = OptimWrapper(model, criterion, optimizer, ema, runtime)
    budget = _budget(settings, runtime.device)
    with alone():
        size = largest_batch(_measure(optim, settings, phase, is_last, annotations), budget, sizes)
    found = gather_objects(size)
    size = broadcast_object(min(found) if found else None)
    if not size:
        raise UserError(
            f"Memory does not suffice for the {phase.name} phase with a batch of {sizes[0]} images, the smallest that "
            f"{phase.size_constant} = 0 takes, and {scaled_input(settings)}: lower input_shape, or take a smaller "
            "model_name. Nothing was changed."
        )
    if size == sizes[-1]:
        return size, "the most that 0 takes of these images"
    return size, f"the largest that fits into {budget / 2**30:.1f} GiB of the GPU's memory"


def _budget(settings, device):
    """How many bytes of a GPU's memory a training may take."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    # Images that live there are read later, and take half of what is free at most.
    images = free / 2 if settings.cache == "gpu" else 0
    return USED * (free + torch.cuda.memory_reserved(device) - images)


def _measure(optim, settings, phase, is_last, annotations):
    """What largest_batch takes: a real step, and, as the last phase decides on it, a validation batch of twice as many
    images; they leave no trace."""
    shape, boxes = largest_shape(multi_scale_of_settings(settings).shapes), max_boxes(annotations, settings)
    reason = why_no_graphs(optim.runtime, optim.optimizer, settings.accumulate, optim.criterion)

    def measure(count):
        with untouched(optim):
            torch.cuda.empty_cache()
            at_rest = torch.cuda.memory_allocated()
            step = _peak(step_trial(optim, settings, phase, (count, 3, *shape), boxes))
            validates = validation_trial(optim.eval_model, (2 * count, 3, *settings.input_shape), optim.runtime)
            validation = _peak(validates) if is_last else 0
        return needed_bytes(at_rest, step, validation, settings.compile == "graphs" and not reason)

    return measure


def _peak(trial):
    torch.cuda.reset_peak_memory_stats()
    trial()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
