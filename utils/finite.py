"""Steps whose loss or gradient is not finite: recognised on the device, so that the host need not wait for it."""

import torch

# So many in a row are no accident. A GradScaler first halves its scale, from 65,536 down to 1, with every bad step.
MOST_IN_A_ROW, HALVINGS = 5, 16


class NotFiniteError(ValueError):
    """Training came to where no step is possible. batches: those of the last bad step, as the loader gave them."""

    exit_status = 3

    def __init__(self, message, batches=()):
        super().__init__(message)
        self.batches = list(batches)


def is_not_finite(gradients):
    """Whether inf, NaN or a square beyond all numbers is in these tensors: a bool tensor () on their device."""
    if not gradients:
        return torch.tensor(False)
    # The 2-norm also tells of gradients whose squares are no longer finite: Adam's state would keep those for good.
    return ~torch.stack(torch._foreach_norm(gradients, 2)).isfinite().all()


class Verdicts:
    """Booleans of a device as the host learns them: at once, or one step late where asking would make it wait."""

    def __init__(self, is_late):
        self.is_late, self._waiting = is_late, None

    def learn(self, flag):
        """Hand in a bool tensor () and get what is known: of this call, or, late, of the one before; None: nothing."""
        if not self.is_late:
            return bool(flag)
        # Only into pinned memory does the copy run beside the host.
        copy = torch.empty((), dtype=torch.bool, pin_memory=flag.is_cuda)
        copy.copy_(flag, non_blocking=True)
        event = torch.cuda.Event() if flag.is_cuda else None
        if event:
            event.record()
        known = self.finish()
        self._waiting = copy, event
        return known

    def finish(self):
        """What the last call handed in, where that is not known yet, else None."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        copy, event = waiting
        if event:
            event.synchronize()
        return bool(copy)


class KeptStatistics:
    """The statistics of a model's BatchNorm layers before a step, to bring them back where the step was bad.

    The forward pass moves them before anything is known of loss and gradient.
    """

    def __init__(self, model):
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.kept = None

    def remember(self):
        """Keep what they are now."""
        if self.buffers:
            self.kept = torch.cat([buffer.flatten() for buffer in self.buffers])

    def settle(self, is_bad):
        """Keep what a step made of them, or, where the bool tensor () says so, bring back what was before."""
        if not self.buffers:
            return
        before = self.kept
        self.remember()
        # They may overflow by themselves: divided by inf, loss and gradient look fine.
        self.kept = torch.where(is_bad | ~self.kept.isfinite(), before, self.kept)
        parts = self.kept.split([buffer.numel() for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, [part.view_as(own) for part, own in zip(parts, self.buffers, strict=True)])
