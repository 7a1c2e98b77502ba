import copy

import pytest
import torch
from torch import nn

from nets import MODELS, build_criterion, build_model
from nets.base import Decoded, DetectorBase, cell_grid, prior_logits

BOX = torch.tensor([[[8.0, 8, 40, 40, 0]], [[0, 0, 0, 0, -1]]])
EXTRACTOR = {"yolox_nano": "backbone.backbone.", "yolov4": "backbone.", "yolov4_tiny": "backbone."}


def images_uint8():
    return torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)


def names_of(model, *prefixes):
    """Names of the parameters that begin so."""
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def norms_of(model, prefix=""):
    """Names of the BatchNorm layers that begin so."""
    return {
        name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d) and name.startswith(prefix)
    }


def learned(model):
    """Keys of the state dict that training moves: nothing needs the number of batches that a norm has seen."""
    return [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]


def train_step(model):
    """One step of plain SGD. Returns the keys of the state dict that it changed, and whether the extractor could
    record a graph."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recorded = []
    handle = model.feature_extractor.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    raw = model(images_uint8())
    handle.remove()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    build_criterion(model)(raw, BOX)["loss"].backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    return changed, recorded[0]


def statistics(norms):
    """Keys of the running statistics of these layers."""
    return {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        (
            "yolox_nano",
            {
                "backbone.backbone.stem.conv.conv.weight": "backbone",
                "backbone.backbone.dark5.2.m.0.conv2.pconv.bn.bias": "backbone",
                "backbone.lateral_conv0.conv.weight": "neck",
                "backbone.C3_n4.conv3.bn.weight": "neck",
                "head.stems.0.conv.weight": "head",
                "head.cls_preds.2.bias": "head",
            },
        ),
        (
            "yolov4",
            {
                "backbone.conv1.conv.weight": "backbone",
                "backbone.stages.4.concat_conv.bn.bias": "backbone",
                "conv1.0.conv.weight": "neck",
                "make_five_conv4.4.bn.weight": "neck",
                "yolo_head3.0.conv.weight": "head",
                "yolo_head1.1.bias": "head",
            },
        ),
        (
            "yolov4_tiny",
            {
                "backbone.conv3.bn.weight": "backbone",
                "conv_for_P5.conv.weight": "neck",
                "upsample.upsample.0.conv.weight": "neck",
                "yolo_headP5.0.conv.weight": "head",
                "yolo_headP4.1.bias": "head",
            },
        ),
    ],
)
def test_part_of(name, examples):
    """Prevents the PAFPN, whose official key is `backbone`, from being frozen with the backbone or counted as such, and
    a part that no parameter belongs to."""
    with torch.device("meta"):
        model = build_model(name, 3)
    assert set(examples) <= set(dict(model.named_parameters()))
    assert {key: model.part_of(key) for key in examples} == examples
    assert model.extractor_prefix() == EXTRACTOR[name]
    assert model.parts == ("backbone", "neck", "head")
    assert {model.part_of(key) for key, _ in model.named_parameters()} == set(model.parts)
    backbone = {key for key, _ in model.named_parameters() if model.part_of(key) == "backbone"}
    assert backbone == {EXTRACTOR[name] + key for key, _ in model.feature_extractor.named_parameters()}


@pytest.mark.parametrize("name", ["yolox_nano", "yolov4_tiny"])
def test_a_frozen_extractor_does_not_change(name):
    """Prevents a frozen backbone from drifting through gradients or BatchNorm statistics, even after model.train(), and
    from keeping activations for nothing; and the rest, the PAFPN included, from being frozen along with it."""
    model, prefix = build_model(name, 2), EXTRACTOR[name]
    assert model.freeze(names_of(model, prefix)) == []
    model.train()
    changed, recorded = train_step(model)
    assert model.backbone_frozen and not recorded
    assert all(p.grad is None and not p.requires_grad for p in model.feature_extractor.parameters())
    assert not {key for key in changed if key.startswith(prefix)}
    assert {key for key in learned(model) if model.part_of(key) == "neck"} <= changed


def test_a_part_of_the_extractor_is_frozen():
    """Prevents single layers from freezing the extractor all or nothing: the rest of it learns on, with a graph."""
    model = build_model("yolov4_tiny", 2)
    frozen = ("backbone.conv1.", "backbone.conv2.", "backbone.resblock_body1.")
    model.freeze(names_of(model, *frozen))
    model.train()
    changed, recorded = train_step(model)
    assert not model.backbone_frozen and recorded
    assert changed == {key for key in learned(model) if not key.startswith(frozen)}


def test_a_norm_is_frozen_when_all_its_parameters_are():
    """Prevents BatchNorm statistics from standing still while its bias learns, or from drifting because its convolution
    is free."""
    model = build_model("yolov4_tiny", 2)
    half = {"backbone.conv1.bn.weight", "conv_for_P5.bn.weight", "conv_for_P5.bn.bias", "backbone.conv2.conv.weight"}
    model.freeze(half)
    assert model.frozen_norms == ("conv_for_P5.bn",)
    model.train()
    changed, _ = train_step(model)
    assert changed == set(learned(model)) - half - statistics({"conv_for_P5.bn"})


def test_only_the_head_learns():
    """Prevents the neck from drifting where only the head shall be trained."""
    model = build_model("yolov4_tiny", 2)
    frozen = {name for name, _ in model.named_parameters() if model.part_of(name) != "head"}
    model.freeze(frozen)
    model.train()
    changed, recorded = train_step(model)
    assert not recorded
    assert changed == {key for key in learned(model) if key.startswith("yolo_head")}


def test_a_frozen_head_leaves_the_extractor_alone():
    """Prevents the extractor from losing its graph when something else is frozen."""
    model = build_model("yolov4_tiny", 2)
    model.freeze(names_of(model, "yolo_head"))
    assert not model.backbone_frozen
    changed, recorded = train_step(model)
    assert recorded
    assert changed == {key for key in learned(model) if not key.startswith("yolo_head")}


def test_norms_that_are_unfrozen_are_named():
    """Prevents frozen layers from starting to learn with statistics of other data, because nobody was told."""
    model = build_model("yolov4_tiny", 2)
    everything = names_of(model, "backbone.")
    first = names_of(model, "backbone.conv1.")
    assert model.freeze(everything) == []
    assert set(model.frozen_norms) == norms_of(model, "backbone.")
    assert set(model.freeze(first)) == norms_of(model, "backbone.") - {"backbone.conv1.bn"}
    assert model.freeze(everything) == []
    assert set(model.freeze([])) == norms_of(model, "backbone.")
    assert model.freeze([]) == []
    assert model.frozen_norms == ()


def test_unfreezing_restores_training():
    """Prevents a backbone that stays in eval mode or without gradient after the frozen phase."""
    model = build_model("yolox_nano", 2)
    model.freeze(names_of(model, "backbone.backbone."))
    model.freeze([])
    changed, recorded = train_step(model)
    assert recorded
    assert all(p.grad is not None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert {key for key in learned(model) if model.part_of(key) != "head"} <= changed


def test_freezing_keeps_the_mode_of_the_rest():
    """Prevents freeze() in evaluation from switching the head to training, and train() from training frozen norms."""
    model = build_model("yolox_nano", 2).eval()
    frozen = names_of(model, "backbone.backbone.")
    model.freeze(frozen)
    assert not any(module.training for module in model.modules())
    model.train()
    norms = norms_of(model)
    frozen_norms = norms_of(model, "backbone.backbone.")
    assert frozen_norms < norms
    assert {name for name in norms if not model.get_submodule(name).training} == frozen_norms
    assert model.head.training
    model.freeze([])
    assert all(model.get_submodule(name).training for name in norms)


def test_a_frozen_model_shows_the_same_map_in_both_modes():
    """Prevents the frozen part of the network from computing something else in training than in evaluation."""
    model = build_model("yolov4_tiny", 2)
    model.freeze(names_of(model, ""))
    images = images_uint8()
    trained, evaluated = model.train()(images), model.eval()(images)
    assert all(torch.equal(one, other) for one, other in zip(trained, evaluated, strict=True))
    assert not any(level.requires_grad for level in trained)


def test_a_copy_is_frozen_on_its_own():
    """Prevents the averaged copy of a model from losing what is frozen, or from being unfrozen with the original."""
    model = build_model("yolov4_tiny", 2)
    model.freeze(names_of(model, "backbone."))
    twin = copy.deepcopy(model)
    model.freeze([])
    twin.train()
    assert twin.backbone_frozen and not model.backbone_frozen
    assert set(twin.frozen_norms) == norms_of(twin, "backbone.")
    changed, _ = train_step(twin)
    assert changed == {key for key in learned(twin) if not key.startswith("backbone.")}


def test_a_norm_without_own_parameters_is_never_frozen():
    """Prevents BatchNorm without weights from counting as frozen because nothing in it learns."""
    model = build_model("yolov4_tiny", 2)
    model.backbone.conv1.bn = nn.BatchNorm2d(32, affine=False)
    model.freeze(names_of(model, "conv_for_P5"))
    assert model.frozen_norms == ("conv_for_P5.bn",)


class WithQueries(DetectorBase):
    """A network that needs more than the images in a training step."""

    def __init__(self):
        super().__init__(1, {"channels": "RGB", "mean": [0.0] * 3, "std": [1.0] * 3})
        self.conv = nn.Conv2d(3, 4, 32, 32)

    @property
    def feature_extractor(self):
        return self.conv

    def predict(self, features, queries=None):
        return features if queries is None else (features, queries)


def test_further_inputs_reach_the_head():
    """Prevents a detector that learns to denoise boxes from training without its queries, and from needing them in
    evaluation."""
    model, queries = WithQueries(), torch.ones(2, 5)
    features, given = model(images_uint8(), queries)
    assert given is queries and features.shape == model(images_uint8()).shape == (2, 4, 2, 2)
    model.freeze(names_of(model, "conv"))
    assert not model(images_uint8(), queries)[0].requires_grad


def test_boxes_without_objectness():
    """Prevents detectors that have no objectness from having to make one up."""
    decoded = Decoded(torch.zeros(2, 7, 4), torch.zeros(2, 7, 3))
    assert decoded.objectness is None
    assert [part.shape[:2] for part in decoded[:2]] == [(2, 7), (2, 7)]
    assert DetectorBase.has_nms
    assert [name for name, (network, *_) in MODELS.items() if not network.has_nms] == [
        f"dfine_{size}" for size in "nsmlx"
    ]


@pytest.mark.parametrize(("num_classes", "class_prior"), [(1, 0.5), (4, 0.125)])
def test_prior_logits_literal_values(num_classes, class_prior):
    """Prevents negatives that swamp the first steps: objects 1 %, each of C classes half of 1 / C."""
    probabilities = torch.tensor(prior_logits(num_classes)).sigmoid().tolist()
    assert probabilities == pytest.approx([0.01] + [class_prior] * num_classes)


def test_cell_grid_literal_values():
    """Prevents rows and columns from being swapped, and an empty map from failing."""
    assert cell_grid(torch.zeros(1, 7, 2, 3)).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert cell_grid(torch.zeros(1, 7, 0, 3)).shape == (0, 2)
