"""A training's whole step as CUDA graphs: one launch instead of some thousands, for what is bound by launches."""

from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import torch

from utils.io.logger import logger
from utils.training.engine import OptimWrapper
from utils.training.optim import rates_on_device, skips_on_device

# Steps of a shape that run as usual before it is captured: libraries then have their memory and their algorithms.
WARM_UP_STEPS = 3
# Each graph keeps its inputs and some memory of its own; shapes beyond these run as usual.
MAX_GRAPHS = 16


def why_no_graphs(runtime, optimizer, accumulate, criterion=None):
    """Why the step of a training cannot be a CUDA graph, in words; '' where it can."""
    if not runtime.on_gpu:
        return "they need an NVIDIA GPU"
    if runtime.uses_data_parallel or runtime.dist.world_size > 1:
        return "they work for one process with one GPU"
    if runtime.precision.scales:
        return "float16 with its loss scaling leaves steps out on the host"
    if criterion is not None and criterion.needs_host:
        return "the loss of this network chooses on the host which query learns which box"
    if accumulate > 1:
        return "accumulate is above 1"
    return "" if skips_on_device(optimizer) else "this optimizer_type has no fused form; sgd, adam and adamw have"


class StepGraph(NamedTuple):
    """A captured step. replay: runs it on what lies in images and targets; is_bad, losses: where its results lie."""

    replay: object
    images: torch.Tensor
    targets: torch.Tensor
    is_bad: torch.Tensor
    losses: dict


class GraphedOptimWrapper(OptimWrapper):
    """An OptimWrapper whose train_step replays CUDA graphs, one for each shape of batches.

    A graph holds forward pass, loss, backward pass, optimiser and average of the weights. The first steps of a shape
    run as usual, and all do where capturing fails; a line says so. See why_no_graphs for what it takes.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.stream = torch.cuda.Stream(self.runtime.device) if self.runtime.on_gpu else None
        self.failure = ""

    def begin_phase(self):
        super().begin_phase()
        rates_on_device(self.optimizer)
        self._graphs, self._seen, self._pool = {}, Counter(), None

    def train_step(self, network, images, targets, ends_window=True, host_targets=None):
        shape = tuple(images.shape), tuple(targets.shape)
        self._seen[shape] += 1
        with self._own_stream():
            if self._seen[shape] == WARM_UP_STEPS + 1 and not self.failure and len(self._graphs) < MAX_GRAPHS:
                self._capture(shape, network, images, targets)
            graph = self._graphs.get(shape)
            if graph is None:
                return super().train_step(network, images, targets, ends_window, host_targets)
            graph.images.copy_(images)
            graph.targets.copy_(targets)
            if self.ema:
                self.ema.advance()
            graph.replay()
            return self._count(self.found_inf.push(graph.is_bad)), graph.losses

    @contextmanager
    def _own_stream(self):
        """Steps run on the stream that graphs are captured on: what autograd keeps of a stream then fits."""
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream()
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            yield
        outer.wait_stream(self.stream)

    def _capture(self, shape, network, images, targets):
        static = images.clone(), targets.clone()
        try:
            replay, (is_bad, losses) = self.capture(lambda: self._device_step(network, *static))
            self._graphs[shape] = StepGraph(replay, *static, is_bad, losses)
        except RuntimeError as error:  # also that memory does not suffice
            self.failure = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.total, self.gathered = None, []
            logger.warning(f"This step cannot be a CUDA graph ({self.failure}); training goes on without graphs.")
        self.optimizer.zero_grad(set_to_none=True)

    def _device_step(self, network, images, targets):
        """A step without what the host does: it only counts, and ends what it knows late."""
        self.backward(self.compute_loss(network, images, targets))
        is_bad, losses = self._finish_gradients()
        self._apply(is_bad)
        return is_bad, losses

    def capture(self, function):
        """(what runs the work of function again, its result, which lies where each run leaves it)."""
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory and copy checkpoints meanwhile.
        with torch.cuda.graph(graph, self._pool, self.stream, capture_error_mode="thread_local"):
            result = function()
        self._pool = self._pool or graph.pool()
        return graph.replay, result
