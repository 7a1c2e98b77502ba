"""What can fail late is tried first: the largest steps of all phases, and a validation batch."""

import time

import torch

from utils.inference.postprocess import suppress
from utils.runtime.device import random_states, set_random_states
from utils.runtime.distributed import parallel
from utils.training.engine import Stepper
from utils.training.freezing import frozen_parameters
from utils.training.optim import build_optimizer, parameter_groups

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def rehearse_steps(model, judged, criterion, settings, phases, input_shapes, records, place):
    """Run what will come and leave no trace: weights, statistics and random states stay as they were.

    model: trained; judged: the one that is evaluated. phases: those to come. input_shapes: of the training batches.
    records: training records. Returns words for a person: what was tried, how long it took, and on a GPU its peak of
    memory. Raises ValueError where memory does not suffice.
    """
    random_before = random_states(place.device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    largest = max(input_shapes, key=lambda shape: shape[0] * shape[1])
    boxes, words = most_boxes(records, settings), []
    try:
        for phase in phases:
            count = max(min(phase.batch_size, len(records)) // place.ranks.world_size, 1)
            name = f"{phase.name} step of {count} x {largest[0]} x {largest[1]}"
            step = _step_of(model, criterion, settings, phase, (count, 3, *largest), boxes, place)
            words.append(f"{name} {_measured(step, place, settings, phase)}")
        count = 2 * settings.Unfreeze_batch_size
        validation = _validation_of(judged, (count, 3, *settings.input_shape), place)
        unfrozen = phases[-1]._replace(frozen=False, batch_size=settings.Unfreeze_batch_size)
        words.append(f"validation batch of {count} {_measured(validation, place, settings, unfrozen)}")
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)
        model.freeze(frozen)
        set_random_states(random_before, place.device)
        if place.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return ", ".join(words)


def most_boxes(records, settings):
    """How many boxes a sample may hold at most: mosaic joins four images, and mixup two of these."""
    counts = sorted((len(records.boxes(index)) for index in range(len(records))), reverse=True)
    return sum(counts[: (4 if settings.mosaic else 1) * (2 if settings.mixup else 1)])


def _step_of(model, criterion, settings, phase, shape, boxes, place):
    def step():
        model.freeze(frozen_parameters(model, settings, phase.frozen))
        # With a rate of 0 the optimiser takes its memory and moves nothing.
        optimizer = build_optimizer(settings.optimizer_type, parameter_groups(model, 0.0, 0), settings.momentum)
        stepper = Stepper(model, optimizer, None, place.precision, place.device, settings.clip_grad_norm)
        stepper.statistics.remember()
        network = parallel(model, place).train()
        stepper.gather(stepper.losses(network, criterion, *_batch(shape, boxes, model.num_classes, place.device)))
        stepper.step()

    return step


def _validation_of(model, shape, place):
    def validate():
        model.eval()
        images, _ = _batch(shape, 0, 1, place.device)
        dtype = place.precision.dtype
        with torch.no_grad(), torch.autocast(place.device.type, dtype, enabled=dtype != torch.float32):
            raw = model(images)
        suppress(model.decode(raw), 0.001, 0.65)

    return validate


def _batch(shape, boxes, classes, device):
    """Grey images, and as many boxes as asked for, all over them."""
    images = torch.full(shape, 114, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(shape[0], max(16, 1 << max(boxes - 1, 0).bit_length()), 5)
    targets[..., 4] = -1
    number = torch.arange(boxes, dtype=torch.float32)
    height, width = shape[2:]
    x, y = (number * 37) % (width - 24), (number * 53) % (height - 24)
    targets[:, :boxes] = torch.stack((x, y, x + 24, y + 24, number % classes), dim=1)
    return images.to(device), targets.to(device)


def _measured(function, place, settings, phase):
    if place.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        function()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(memory_words(settings, phase)) from error
    if place.on_gpu:
        torch.cuda.synchronize()
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"{time.perf_counter() - start:.1f} s"


def is_out_of_memory(error):
    """Whether an error of torch says that memory does not suffice, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def memory_words(settings, phase):
    """What to do where memory does not suffice for a phase."""
    name = "Freeze_batch_size" if phase.frozen else "Unfreeze_batch_size"
    size = settings.multi_scale_range[1] if settings.multi_scale else 1
    scaled = f" times {size} by multi_scale_range" if settings.multi_scale else ""
    return (
        f"Memory does not suffice for the {phase.name} phase with {name} = {phase.batch_size} and input_shape = "
        f"{list(settings.input_shape)}{scaled}: lower {name} (and raise accumulate as much, for the same steps), or "
        "input_shape, or take a smaller model_name. Nothing was changed."
    )
