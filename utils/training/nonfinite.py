"""Steps whose loss or gradient is not finite: recognised on the device, so that the host need not wait for it, and
dumped with what led to them where step after step is such.
"""

import torch

from utils.io.errors import UserError
from utils.io.logger import logger
from utils.runtime.distributed import MixedPrecision
from utils.weights.save import save_content, snapshot

# So many in a row are no accident. A GradScaler first halves its scale, from 65,536 down to 1, with every bad step.
MAX_IN_A_ROW, SCALE_HALVINGS = 5, 16
# After so many good steps it tries twice the scale, which is often too much; gradients that grow ask for a step more.
STEPS_TO_DOUBLE, USUAL_HALVINGS = 2000, 2
CRASH_DUMP = "black_box.pth"


class NonFiniteLossError(UserError):
    """Training came to where no step is possible. batches: those of the last bad step, as the loader gave them."""

    exit_status = 3

    def __init__(self, message, batches=()):
        super().__init__(message)
        self.batches = list(batches)


def usual_skips(steps, is_first):
    """How many of an epoch's steps float16 leaves out, though nothing is wrong, while it looks for its scale.

    is_first: whether a phase begins with this epoch.
    """
    return (SCALE_HALVINGS if is_first else USUAL_HALVINGS) + steps // STEPS_TO_DOUBLE


def is_not_finite(gradients):
    """Whether inf, NaN or a square beyond all numbers is in these tensors: a bool tensor () on their device."""
    if not gradients:
        return torch.tensor(False)
    # The 2-norm also tells of gradients whose squares are no longer finite: Adam's state would keep those for good.
    return ~torch.stack(torch._foreach_norm(gradients, 2)).isfinite().all()


class DelayedFlag:
    """Booleans of a device as the host learns them: at once, or one step late where asking would make it wait."""

    def __init__(self, is_late):
        self.is_late, self._waiting = is_late, None

    def push(self, flag):
        """Hand in a bool tensor () and get what is known: of this call, or, late, of the one before; None: nothing."""
        if not self.is_late:
            return bool(flag)
        # Only into pinned memory does the copy run beside the host.
        copy = torch.empty((), dtype=torch.bool, pin_memory=flag.is_cuda)
        copy.copy_(flag, non_blocking=True)
        event = torch.cuda.Event() if flag.is_cuda else None
        if event:
            event.record()
        known = self.flush()
        self._waiting = copy, event
        return known

    def flush(self):
        """What the last call handed in, where that is not known yet, else None."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        copy, event = waiting
        if event:
            event.synchronize()
        return bool(copy)


class BatchNormBackup:
    """The statistics of a model's BatchNorm layers before a step, to bring them back where the step was bad.

    The forward pass moves them before anything is known of loss and gradient.
    """

    def __init__(self, model):
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.kept = None

    def save(self):
        """Keep what they are now."""
        if self.buffers:
            now = torch.cat([buffer.flatten() for buffer in self.buffers])
            self.kept = now if self.kept is None else self.kept.copy_(now)

    def restore_where(self, is_bad):
        """Keep what a step made of them, or, where the bool tensor () says so, bring back what was before."""
        if not self.buffers:
            return
        now = torch.cat([buffer.flatten() for buffer in self.buffers])
        # They may overflow by themselves: divided by inf, loss and gradient look fine. In place, as a CUDA graph reads
        # and writes the same memory in every step.
        self.kept.copy_(torch.where(is_bad | ~now.isfinite(), self.kept, now))
        parts = self.kept.split([buffer.numel() for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, [part.view_as(own) for part, own in zip(parts, self.buffers, strict=True)])


def write_crash_dump(path, optim, batches, paths, settings, epoch):
    """Run the batches of a bad step again, write them and what came first that is not finite. Returns words for that.

    optim: an OptimWrapper, with the weights that met the batches. batches: of the loader; paths: of their images. Every
    rank must call, as the forward pass may speak to the others. path: None to write nothing.
    """
    # The steps below move the statistics.
    state = snapshot(optim.model.state_dict())
    causes = [first_not_finite(optim, batch) for batch in batches]  # all: every rank does as much
    cause = next(filter(None, causes), "nothing any more")
    optim.optimizer.zero_grad(set_to_none=True)
    about = {"paths": list(paths), "settings": settings, "epoch": epoch + 1, "first_not_finite": cause}
    if path is None:
        return cause
    tensors = {"images": [batch.images.cpu() for batch in batches], "targets": [batch.targets for batch in batches]}
    try:
        save_content(path, {**about, **tensors, "model": state})
    except OSError as error:
        logger.warning(f"{path} could not be written: {error.strerror}")  # what it was about is worth more
    return cause


def first_not_finite(optim, batch):
    """What is not finite first in a training step on this batch, in words, '' for nothing."""
    found, device = [], optim.runtime.device

    def look(name):
        def hook(_module, _inputs, output):
            if not found and isinstance(output, torch.Tensor) and not output.isfinite().all():
                found.append(f"the output of layer {name}")

        return hook

    layers = [(name, part) for name, part in optim.model.named_modules() if not list(part.children())]
    hooks = [part.register_forward_hook(look(name)) for name, part in layers]
    try:
        network = MixedPrecision(optim.model, optim.runtime)
        losses = optim.compute_loss(network, batch.images.to(device), batch.targets.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    found += [f"the loss '{part}'" for part, value in losses.items() if not value.isfinite().all()]
    losses["loss"].backward()
    gradients = [(name, each.grad) for name, each in optim.model.named_parameters() if each.grad is not None]
    found += [f"the gradient of {name}" for name, gradient in gradients if not gradient.isfinite().all()]
    return found[0] if found else ""
