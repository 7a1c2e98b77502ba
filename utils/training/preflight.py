"""What can fail late is tried first: the largest step of each phase, and a validation batch."""

import time
from contextlib import contextmanager

import torch

from utils.data.copy_paste import MAX_PASTED
from utils.inference.base import NMSOptions
from utils.inference.postprocess import detect
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime.device import random_states, set_random_states
from utils.runtime.distributed import wrap_model
from utils.training.engine import OptimWrapper
from utils.training.freezing import frozen_parameter_names
from utils.training.optim import build_optimizer, parameter_groups
from utils.training.phases import val_batch_size

OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"),
    "unable to find an engine",  # what cuDNN says where no algorithm finds its workspace
)
MOST_ABOVE_FORECAST = 1.1


class MemoryForecast:
    """What preflight measured of a GPU's memory, to compare with what a phase really takes. peaks: {phase: bytes}."""

    def __init__(self, peaks):
        self.peaks = peaks

    def check(self, phase):
        """Log the real peak where it is above the forecast by more than a tenth; for each phase once."""
        forecast = self.peaks.pop(phase.name, None)
        if not forecast:
            return
        # To torch, what a CUDA graph keeps between its steps is free: with graphs, too, a step is held against a step.
        peak = torch.cuda.max_memory_allocated()
        if peak > MOST_ABOVE_FORECAST * forecast:
            logger.warning(
                f"the {phase.name} phase took {peak / 2**30:.1f} GiB of the GPU's memory, where preflight measured "
                f"{forecast / 2**30:.1f}: leave room for it."
            )
        torch.cuda.reset_peak_memory_stats()


def preflight(optim, settings, phases, train_loader):
    """Try what will come, as try_steps, and log what it took. train_loader: of build_train_loader.

    Returns a MemoryForecast.
    """
    shapes, annotations = train_loader.batch_sampler.multi_scale.shapes, train_loader.dataset.annotations
    words, peaks = try_steps(optim, settings, phases, shapes, annotations)
    logger.info(f"preflight: {words}")
    return MemoryForecast(peaks)


def try_steps(optim, settings, phases, input_shapes, annotations):
    """Run what will come and leave no trace: weights, statistics and random states stay as they were.

    optim: an OptimWrapper. phases: those to come. input_shapes: of the training batches. annotations: of the training
    images. Returns (words for a person: what was tried, how long it took, and on a GPU its peak of memory; these peaks
    in bytes, {phase's name: peak}). Raises UserError where memory does not suffice.
    """
    runtime, largest = optim.runtime, largest_shape(input_shapes)
    boxes, words, peaks = max_boxes(annotations, settings), [], {}
    with untouched(optim):
        for phase in phases:
            count = max(min(phase.batch_size, len(annotations)) // runtime.dist.world_size, 1)
            name = f"{phase.name} step of {count} x {largest[0]} x {largest[1]}"
            step = step_trial(optim, settings, phase, (count, 3, *largest), boxes)
            words.append(f"{name} {_measured(step, runtime, settings, phase)}")
            if runtime.on_gpu:
                peaks[phase.name] = torch.cuda.max_memory_allocated()
        count = val_batch_size(settings, runtime.dist.world_size)
        validation = validation_trial(optim.eval_model, (count, 3, *settings.input_shape), runtime)
        # That whose batch size decides on it.
        size = settings.Unfreeze_batch_size
        phase = phases[-1]._replace(frozen=not size, batch_size=size or settings.Freeze_batch_size)
        words.append(f"validation batch of {count} {_measured(validation, runtime, settings, phase)}")
    return ", ".join(words), peaks


@contextmanager
def untouched(optim):
    """What is tried inside leaves an OptimWrapper's model, what is frozen of it, and random states as they were."""
    model, runtime = optim.model, optim.runtime
    random_before = random_states(runtime.device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)
        model.freeze(frozen)
        set_random_states(random_before, runtime.device)
        if runtime.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def largest_shape(input_shapes):
    """That of the most pixels."""
    return max(input_shapes, key=lambda shape: shape[0] * shape[1])


def max_boxes(annotations, settings):
    """How many boxes a sample may hold at most: mosaic joins four images, mixup two of these, copy_paste adds some."""
    counts = sorted((len(annotations.boxes(index)) for index in range(len(annotations))), reverse=True)
    shown = sum(counts[: (4 if settings.mosaic else 1) * (2 if settings.mixup else 1)])
    return shown + (MAX_PASTED if settings.copy_paste else 0)


def step_trial(optim, settings, phase, shape, boxes):
    """A function that runs a step of a phase. shape: (B, 3, H, W) of its images. boxes: of each image."""
    model, runtime = optim.model, optim.runtime

    def step():
        model.freeze(frozen_parameter_names(model, settings, phase.frozen))
        # With a rate of 0 the optimiser takes its memory and moves nothing.
        optimizer = build_optimizer(settings.optimizer_type, parameter_groups(model, 0.0, 0), settings.momentum)
        accumulate = settings.accumulate
        trial = OptimWrapper(model, optim.criterion, optimizer, None, runtime, accumulate, settings.clip_grad_norm)
        trial.norm_backup.save()
        network = wrap_model(model.train(), runtime)
        # The second batch of a window finds the gradients of the first in memory.
        for number in range(min(accumulate, 2)):
            batch = _batch(shape, boxes, model.num_classes, runtime.device)
            trial.train_step(network, *batch, ends_window=number == min(accumulate, 2) - 1)

    return step


def validation_trial(model, shape, runtime):
    """A function that runs a validation batch of images of a shape, (B, 3, H, W)."""

    def validate():
        model.eval()
        images, _ = _batch(shape, 0, 1, runtime.device)
        with torch.no_grad():
            detect(model, model(images), NMSOptions(0.001, 0.65))

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


def _measured(function, runtime, settings, phase):
    if runtime.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        function()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory_message(settings, phase)) from error
    if runtime.on_gpu:
        torch.cuda.synchronize()
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"{time.perf_counter() - start:.1f} s"


def is_out_of_memory(error):
    """Whether an error of torch says that memory does not suffice, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def out_of_memory_message(settings, phase):
    """What to do where memory does not suffice for a phase."""
    name = phase.size_constant
    return (
        f"Memory does not suffice for the {phase.name} phase with {name} = {phase.batch_size} and "
        f"{scaled_input(settings)}: lower {name} (and raise accumulate as much, for the same steps), or "
        "input_shape, or take a smaller model_name. Nothing was changed."
    )


def scaled_input(settings):
    """The largest input of a training, in words."""
    scaled = f" times {settings.multi_scale_range[1]} by multi_scale_range" if settings.multi_scale else ""
    return f"input_shape = {list(settings.input_shape)}{scaled}"
