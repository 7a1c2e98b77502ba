import io
import traceback
from email.message import Message
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, ResNet18_Weights, ResNet50_Weights, resnet18

from nets import build_model
from nets.backbones.torchvision import BACKBONES
from utils.weights.load import load_matching
from utils.weights.pretrained import read_pretrained

ADDRESS = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
FILE_NAME = "resnet18-f37072fd.pth"


class Page(io.BytesIO):
    """What a server answers, without any headers."""

    def info(self):
        return Message()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's own, and no network."""

    def no_network(*_arguments, **_options):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "checkpoints"


@pytest.fixture
def asked(monkeypatch):
    """What torchvision was asked for, [(its entry, options)]; it answers with a tensor."""
    calls = []

    def answer(entry, **options):
        calls.append((entry, options))
        return {"conv1.weight": torch.ones(1)}

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", answer)
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", answer)
    return calls


@pytest.mark.parametrize(
    ("backbone", "pretrained", "name"),
    [
        ("resnet50", True, "IMAGENET1K_V2"),  # torchvision's default is the better one
        ("resnet50", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("resnet18", True, "IMAGENET1K_V1"),
    ],
)
def test_the_weights_that_were_asked_for(asked, backbone, pretrained, name):
    """Prevents other weights than those named, code in a file of theirs from running, and a broken download from being
    used."""
    weights = read_pretrained(backbone, pretrained)
    ((entry, options),) = asked
    assert entry.name == name
    assert (options["weights_only"], options["check_hash"], options["map_location"]) == (True, True, "cpu")
    assert weights.source == f"torchvision's {backbone}, {name}"
    assert list(weights.state) == ["conv1.weight"] and weights.is_backbone


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pixels_are_those_that_the_weights_saw(monkeypatch, backbone):
    """Prevents weights of any of the backbones from being fed other pixels than torchvision says, times 255, and an
    entry that says them under another name."""
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda *_, **__: {"a": torch.ones(1)})
    metadata = read_pretrained(backbone, True).metadata
    assert list(metadata) == ["pixel_rule"]
    rule = metadata["pixel_rule"]
    assert (rule["channels"], rule["mean"], rule["std"]) == (
        "RGB",
        pytest.approx([123.675, 116.28, 103.53]),
        pytest.approx([58.395, 57.12, 57.375]),
    )


def test_a_file_in_the_cache_is_enough(cache):
    """Prevents a request to the network for what is there, and tensors that miss their places."""
    cache.mkdir()
    source = resnet18()
    torch.save(source.state_dict(), cache / FILE_NAME)
    weights = read_pretrained("resnet18", True)
    assert weights.path == str(cache / FILE_NAME)
    model = build_model("yolov4_tiny", 3, weights.metadata["pixel_rule"], backbone="resnet18")
    result = load_matching(model, weights, ["a", "b", "c"])
    assert result.unexpected_keys == ["backbone.fc.weight", "backbone.fc.bias"]
    own = model.feature_extractor.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in source.state_dict().items() if not key.startswith("fc."))


def test_unknown_weights_are_named():
    """Prevents a KeyError for a typing mistake, and weights of another network."""
    with pytest.raises(ValueError) as caught:
        read_pretrained("resnet50", "IMAGENET1K_V3")
    assert str(caught.value) == (
        "pretrained is 'IMAGENET1K_V3'; for resnet50 expected True or one of IMAGENET1K_V1, IMAGENET1K_V2."
    )
    assert "IMAGENET1K_V2" in MobileNet_V3_Large_Weights.__members__
    with pytest.raises(ValueError, match="for resnet18 expected True or one of IMAGENET1K_V1"):
        read_pretrained("resnet18", "IMAGENET1K_V2")


def test_an_unknown_backbone_is_named():
    """Prevents a trace out of torchvision."""
    with pytest.raises(ValueError, match="backbone is 'resnet999'; torchvision has no network of that name"):
        read_pretrained("resnet999", True)


def refused():
    """The message where resnet18's weights cannot be had: one sentence, which advises nobody to run code."""
    with pytest.raises(ValueError) as caught:
        read_pretrained("resnet18", True)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))
    assert message.startswith(f"The weights IMAGENET1K_V1 of resnet18 cannot be fetched from {ADDRESS} (")
    return message


def test_without_a_network_the_message_says_what_to_fetch_and_where_to_put_it(cache):
    """Prevents a trace of twenty calls where a machine has no network; nothing is left behind."""
    message = refused()
    assert "Temporary failure in name resolution" in message
    assert message.endswith(f"put that file into {cache}, check the network, or set pretrained = False.")
    assert list(cache.iterdir()) == []


def test_another_file_than_the_published_one_is_refused(cache, monkeypatch):
    """Prevents a proxy's error page, or a forged file, from being taken for weights: its hash stands in its name."""
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Page(b"<html>Log in to this network</html>"))
    assert "invalid hash value" in refused()
    assert list(cache.iterdir()) == []


def test_code_in_the_cache_does_not_run(cache):
    """Prevents a file that somebody put into the cache from running its code, or torch's own advice to run it from
    being shown."""
    cache.mkdir()
    torch.save(nn.Linear(1, 1), cache / FILE_NAME)
    assert "(UnpicklingError); put that file into" in refused()
