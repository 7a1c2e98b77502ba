import copy
from types import SimpleNamespace

import torch

from nets import build_model
from utils.unfreeze import adopt_statistics

CPU = torch.device("cpu")


def batches(count):
    """Batches of dim pictures, unlike the unit statistics of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, 3, 64, 64)
    pictures = [torch.randint(20, 90, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [SimpleNamespace(images=images) for images in pictures]


def layers_of(model):
    return [part for part in model.feature_extractor.modules() if isinstance(part, torch.nn.BatchNorm2d)]


def test_the_network_computes_the_same_before_and_after():
    """Prevents the loss from leaping at the unfreeze epoch: in eval mode nothing changes, in train mode little."""
    model, images = build_model("yolox_nano", 3).eval(), batches(1)[0].images
    extractor, pixels = model.feature_extractor, model.normalize(images)
    with torch.no_grad():
        before, frozen = model(images), extractor(pixels)[0]
        leap = (copy.deepcopy(extractor).train()(pixels)[0] - frozen).abs().mean()
        adopt_statistics(model, batches(8), CPU)
        after = model(images)
        noise = (extractor.train()(pixels)[0] - frozen).abs().mean()
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-3)
    assert noise < 0.3 * frozen.abs().mean()
    assert leap > 3 * noise


def test_the_statistics_are_those_of_the_data():
    """Prevents running statistics of one batch only, or of the pretraining data: the first layer's are known."""
    model, data = build_model("yolox_nano", 3), batches(4)
    first = layers_of(model)[0]
    seen = []
    first.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    adopt_statistics(model, data, CPU)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.running_mean, values.mean(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first.running_var, values.var(1, correction=0), rtol=1e-3, atol=1e-3)


def test_no_batches_change_nothing():
    """Prevents NaN statistics from an empty loader."""
    model = build_model("yolox_nano", 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adopt_statistics(model, [], CPU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
