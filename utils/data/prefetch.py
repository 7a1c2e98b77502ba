"""Batches on their way to a GPU: one ahead, copied beside the step that runs."""

import torch


def on_device(batches, device):
    """Yield (batch, its images, its targets), both on the device, for an iterable of Batches.

    On a GPU the next batch is fetched and copied before the present one is handed over, on a stream of its own, so
    that no step waits for a copy. That takes pinned memory, see LoaderOptions.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, batch.images.to(device), batch.targets.to(device)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = [values.to(device, non_blocking=True) for values in (batch.images, batch.targets)]
        coming = batch, copies, stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        waiting = coming
    if waiting:
        yield _arrived(*waiting)


def _arrived(batch, copies, is_copied):
    current = torch.cuda.current_stream()
    current.wait_event(is_copied)
    for values in copies:
        values.record_stream(current)  # else its memory could be given away while the step reads it
    return batch, *copies
