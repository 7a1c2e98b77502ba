from types import SimpleNamespace

import pytest
import torch

from utils.data.prefetch import on_device


def batches(count):
    return [SimpleNamespace(images=torch.full((1, 2), n), targets=torch.full((1, 1), 10 * n)) for n in range(count)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_batch_comes_once_in_its_order(device, count):
    """Prevents a batch that stays behind, or pixels of one batch with the boxes of another."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    given = batches(count)
    found = [
        (batch, images.tolist(), targets.tolist()) for batch, images, targets in on_device(given, torch.device(device))
    ]
    assert found == [(batch, [[n, n]], [[10 * n]]) for n, batch in enumerate(given)]
