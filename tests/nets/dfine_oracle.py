"""Networks with the weights of the D-FINE oracles, and the oracles' files."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nets import build_model

RELEASED = {"transposed_positions": True, "activation": "relu"}
ORACLES = Path(os.environ.get("YOLO_REAL_DATA", "none")) / "oracles" / "dfine"
needs_oracles = pytest.mark.skipif(not ORACLES.is_dir(), reason="needs the oracles of D-FINE below YOLO_REAL_DATA")


def oracle(name):
    return np.load(ORACLES / name)


def seeded(model_name, seed, num_classes=80):
    """The network with the oracles' weights of a seed, in eval mode."""
    if str(ORACLES) not in sys.path:
        sys.path.append(str(ORACLES))
    from recipe import recipe_tensor

    model, scale = build_model(model_name, num_classes, None, RELEASED), 8 if model_name == "dfine_x" else 4
    state = model.state_dict()
    for key, value in state.items():
        array = recipe_tensor(key, tuple(value.shape), seed, scale)
        if array is not None:
            state[key] = torch.from_numpy(array).to(value.dtype)
    model.load_state_dict(state)
    return model.eval()


def recipe_images(shape, seed):
    """uint8 pictures of a seed."""
    if str(ORACLES) not in sys.path:
        sys.path.append(str(ORACLES))
    from recipe import recipe_input

    return torch.from_numpy(recipe_input(shape, seed))
