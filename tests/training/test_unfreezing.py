import copy
from types import SimpleNamespace

import torch

from nets import build_model
from utils.training import freezing as unfreeze
from utils.training.freezing import adopt_statistics

CPU = torch.device("cpu")


def batches(count):
    """Batches of dim pictures, unlike the unit statistics of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, 3, 64, 64)
    pictures = [torch.randint(20, 90, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [SimpleNamespace(images=images) for images in pictures]


def layers_of(model, prefix="backbone.backbone."):
    """Names of the BatchNorm layers, those of the backbone as usual."""
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.BatchNorm2d) and name.startswith(prefix)
    ]


def test_the_network_computes_the_same_before_and_after():
    """Prevents the loss from leaping at the unfreeze epoch: in eval mode nothing changes, in train mode little."""
    model, images = build_model("yolox_nano", 3).eval(), batches(1)[0].images
    extractor, pixels = model.feature_extractor, model.normalize(images)
    with torch.no_grad():
        before, frozen = model(images), extractor(pixels)[0]
        leap = (copy.deepcopy(extractor).train()(pixels)[0] - frozen).abs().mean()
        adopt_statistics(model, layers_of(model), batches(8), CPU)
        after = model(images)
        noise = (extractor.train()(pixels)[0] - frozen).abs().mean()
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-3)
    assert noise < 0.3 * frozen.abs().mean()
    assert leap > 3 * noise


def test_the_statistics_are_those_of_the_data():
    """Prevents running statistics of one batch only, or of the pretraining data: the first layer's are known."""
    model, data = build_model("yolox_nano", 3), batches(4)
    first = model.get_submodule(layers_of(model)[0])
    seen = []
    first.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    adopt_statistics(model, layers_of(model), data, CPU)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.running_mean, values.mean(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first.running_var, values.var(1, correction=0), rtol=1e-3, atol=1e-3)


def test_ranks_that_share_the_batches_find_what_one_finds(monkeypatch):
    """Prevents layers, and averages of them, that differ from rank to rank: each measures its own images alone. One has
    more of them than the other."""
    model, data = build_model("yolox_nano", 3), batches(2)
    names = layers_of(model)
    shares = [[SimpleNamespace(images=batch.images[part]) for batch in data] for part in (slice(3), slice(3, 4))]
    sums = []

    def measured_on(share, exchange):
        other = copy.deepcopy(model)
        monkeypatch.setattr(unfreeze, "sum_over_ranks", exchange)
        adopt_statistics(other, names, share, CPU)
        return other.state_dict()

    for share in shares:
        measured_on(share, lambda values: sums.append(values) or values)
    together = measured_on(shares[0], lambda values: sum(sums))
    alone = measured_on(data, lambda values: values)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-5, atol=1e-5)
    key = f"{names[0]}.running_mean"
    assert not torch.allclose(measured_on(shares[0], lambda values: values)[key], alone[key], rtol=1e-3)


def test_only_the_named_layers_change():
    """Prevents layers that go on resting, or learned all the time, from being given other scales; in a network with
    anchors, and between layers that rest, the output stays as well."""
    model, images = build_model("yolov4_tiny", 3).eval(), batches(1)[0].images
    woken = layers_of(model, "backbone.resblock_body2.") + layers_of(model, "conv_for_P5.")
    assert len(woken) == 5
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        old = model(images)
        adopt_statistics(model, woken, batches(4), CPU)
        new = model(images)
    changed = {
        key.rpartition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == set(woken)
    for first, second in zip(old, new, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_what_the_first_unfrozen_step_wakes():
    """Prevents layers that learn without new statistics, and hooks that stay on the network and cost time for ever."""
    model = build_model("yolox_nano", 3)
    parameters = {name for name, _ in model.named_parameters()}
    assert model.freeze({name for name in parameters if name.startswith("backbone.")}) == []
    woken = model.freeze({name for name in parameters if name.startswith("backbone.backbone.stem.")})
    assert woken == [name for name in layers_of(model, "backbone.") if not name.startswith("backbone.backbone.stem.")]
    adopt_statistics(model, woken, batches(1), CPU)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert model.freeze(set()) == ["backbone.backbone.stem.conv.bn"]
    adopt_statistics(model, [], batches(1), CPU)


def test_no_batches_change_nothing():
    """Prevents NaN statistics from an empty loader."""
    model = build_model("yolox_nano", 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adopt_statistics(model, layers_of(model), [], CPU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
