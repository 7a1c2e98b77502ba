"""What is left of a training that came to where no step is possible: enough to look for the cause."""

import torch

from utils.checkpoint import save_content, snapshot

BLACK_BOX = "black_box.pth"


def write_black_box(path, model, criterion, stepper, batches, paths, settings, epoch):
    """Run the batches of a bad step again, write them and what came first that is not finite. Returns words for that.

    model: in train mode, with the weights that met the batches. batches: of the loader; paths: of their images. Every
    rank must call, as the forward pass may speak to the others. path: None to write nothing.
    """
    # The steps below move the statistics.
    state = snapshot(model.state_dict())
    causes = [first_not_finite(model, criterion, stepper, batch) for batch in batches]  # all: every rank does as much
    cause = next(filter(None, causes), "nothing any more")
    stepper.optimizer.zero_grad(set_to_none=True)
    about = {"paths": list(paths), "settings": settings, "epoch": epoch + 1, "first_not_finite": cause}
    if path is None:
        return cause
    tensors = {"images": [batch.images for batch in batches], "targets": [batch.targets for batch in batches]}
    try:
        save_content(path, {**about, **tensors, "model": state})
    except OSError as error:
        print(f"note: {path} could not be written: {error.strerror}")  # what it was about is worth more
    return cause


def first_not_finite(model, criterion, stepper, batch):
    """What is not finite first in a training step on this batch, in words, '' for nothing."""
    found = []

    def look(name):
        def hook(_module, _inputs, output):
            if not found and isinstance(output, torch.Tensor) and not output.isfinite().all():
                found.append(f"the output of layer {name}")

        return hook

    layers = [(name, part) for name, part in model.named_modules() if not list(part.children())]
    hooks = [part.register_forward_hook(look(name)) for name, part in layers]
    try:
        losses = stepper.losses(model, criterion, batch.images.to(stepper.device), batch.targets.to(stepper.device))
    finally:
        for hook in hooks:
            hook.remove()
    found += [f"the loss '{part}'" for part, value in losses.items() if not value.isfinite().all()]
    losses["loss"].backward()
    gradients = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    found += [f"the gradient of {name}" for name, gradient in gradients if not gradient.isfinite().all()]
    return found[0] if found else ""
