"""ImageNet weights of torchvision's backbones."""

from pathlib import Path

import torch
from torchvision.models import get_model_weights

from utils.io.errors import UserError
from utils.weights.read import WeightFile


def read_pretrained(backbone, pretrained):
    """The weights that torchvision publishes for a backbone, fetched once into torch's cache.

    backbone: torchvision's name. pretrained: True for its default weights, or their name, such as 'IMAGENET1K_V2'.
    Returns a WeightFile. Raises ValueError for an unknown name, and where the file cannot be fetched or is damaged.
    """
    try:
        choices = get_model_weights(backbone)
    except ValueError as error:
        raise UserError(f"backbone is {backbone!r}; torchvision has no network of that name.") from error
    names = [entry.name for entry in choices]
    if pretrained is not True and pretrained not in names:
        raise UserError(f"pretrained is {pretrained!r}; for {backbone} expected True or one of {', '.join(names)}.")
    entry = choices.DEFAULT if pretrained is True else choices[pretrained]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = entry.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, a broken answer, a wrong hash, a damaged file in the cache
        # What torch says of a file that it cannot unpickle is advice to run the code in it.
        reason = str(error).rstrip(".") if isinstance(error, OSError | RuntimeError) else type(error).__name__
        raise UserError(
            f"The weights {entry.name} of {backbone} cannot be fetched from {entry.url} ({reason}); put that file into "
            f"{folder}, check the network, or set pretrained = False."
        ) from None
    rule = entry.transforms()
    pixel_rule = {
        "channels": "RGB",
        "mean": [255 * value for value in rule.mean],
        "std": [255 * value for value in rule.std],
    }
    source = f"torchvision's {backbone}, {entry.name}"
    return WeightFile(str(folder / Path(entry.url).name), state, {"pixel_rule": pixel_rule}, source, is_backbone=True)
