import copy
from types import SimpleNamespace

import pytest
import torch

from nets import build_criterion, build_model
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training import freezing
from utils.training.engine import LossMeter, OptimWrapper, train_one_epoch
from utils.training.freezing import (
    first_blocks,
    frozen_parameter_names,
    lr_groups,
    lr_scales,
    recalibrate_batch_norm,
    select,
    trainable_table,
    warn_untrained_frozen,
)
from utils.training.lr_schedule import LRSchedule
from utils.training.optim import ModelEMA, add_param_groups, build_optimizer, parameter_groups
from utils.training.phases import Phase

CPU = torch.device("cpu")
RUNTIME = RuntimeContext(CPU, DistInfo(), Precision(torch.float32, False, ""))
# How the parameters of each part begin in both families.
BACKBONE, HEAD = "backbone.backbone.", "head."
NECK = tuple(
    f"backbone.{name}."
    for name in ("lateral_conv0", "C3_p4", "reduce_conv1", "C3_p3", "bu_conv2", "C3_n3", "bu_conv1", "C3_n4")
)
FIRST_TWO = ("backbone.backbone.stem.", "backbone.backbone.dark2.")
TINY_PARTS = {
    "backbone": ("backbone.",),
    "neck": ("conv_for_P5.", "upsample."),
    "head": ("yolo_headP4.", "yolo_headP5."),
}
BELOW_HEAD = (*TINY_PARTS["backbone"], *TINY_PARTS["neck"])
SCHEDULE = SimpleNamespace(lr_decay_type="constant", lr_gamma=None, UnFreeze_Epoch=100, Init_Epoch=0)
PHASES = [Phase(True, 0, 10, 16), Phase(False, 10, 100, 8)]


@pytest.fixture(scope="module")
def nano():
    return build_model("yolox_nano", 3)


@pytest.fixture(scope="module")
def tiny():
    return build_model("yolov4_tiny", 3)


def settings_of(**changes):
    values = {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True, "lr_scale": {}}
    values |= {"Init_lr": 8e-2, "Min_lr": None, "optimizer_type": "sgd", "accumulate": 1}
    values |= {"model_name": "yolox_nano", "backbone": ""}
    return SimpleNamespace(**values | changes)


def names_of(model, *prefixes):
    """Names of the parameters that begin so, by a plain loop."""
    return {name for name, _ in model.named_parameters() if prefixes and name.startswith(prefixes)}


def test_the_parts_are_those_of_the_networks(nano, tiny):
    """Prevents a part without a name, and PAFPN, whose official key is `backbone`, from counting as backbone."""
    assert nano.parts == tiny.parts == ("backbone", "neck", "head")
    for part, prefixes in {"backbone": (BACKBONE,), "neck": NECK, "head": (HEAD,)}.items():
        assert select(nano, [part], "freeze_layers") == names_of(nano, *prefixes) != set()
    for part, prefixes in TINY_PARTS.items():
        assert select(tiny, [part], "freeze_layers") == names_of(tiny, *prefixes) != set()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], set()),
        (["head.cls_preds.1.bias"], {"head.cls_preds.1.bias"}),
        (["head.cls_preds.1"], {"head.cls_preds.1.weight", "head.cls_preds.1.bias"}),
        (["head.cls_preds.1."], {"head.cls_preds.1.weight", "head.cls_preds.1.bias"}),
        (["head.obj_preds.0.bias", "head.reg_preds.2.bias"], {"head.obj_preds.0.bias", "head.reg_preds.2.bias"}),
    ],
)
def test_names_and_beginnings_of_names(nano, wanted, expected):
    """Prevents entries that are forgotten, and dots that matter."""
    assert select(nano, wanted, "freeze_layers") == expected


def test_a_beginning_ends_at_a_dot(tiny):
    """Prevents `backbone.conv3` from meaning other layers whose names begin with the same letters."""
    assert select(tiny, ["backbone.conv3"], "freeze_layers") == {
        "backbone.conv3.conv.weight",
        "backbone.conv3.bn.weight",
        "backbone.conv3.bn.bias",
    }
    with pytest.raises(ValueError):
        select(tiny, ["backbone.conv"], "freeze_layers")


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("haed", "head"),
        ("Backbone", "backbone"),
        ("head.cls_pred", "head.cls_preds"),
        ("backbone.backbone.dark", "backbone.backbone.dark5"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_with_the_nearest(nano, wanted, nearest):
    """Prevents a mistyped name from freezing nothing, silently."""
    with pytest.raises(ValueError) as error:
        select(nano, ["neck", wanted], "train_only")
    assert str(error.value) == (
        f"train_only names {wanted!r}, and no parameter of yolox_nano begins so; expected 'backbone', 'neck', 'head' "
        f"or the beginning of a parameter's name. The nearest is '{nearest}'."
    )


@pytest.mark.parametrize(
    ("changes", "constant"),
    [
        ({"freeze_layers": ["backbon"]}, "freeze_layers"),
        ({"train_only": ["backbon"]}, "train_only"),
        ({"lr_scale": {"backbon": 0.1}}, "lr_scale"),
    ],
)
def test_the_error_names_the_constant(nano, changes, constant):
    """Prevents a search through all the constants for a mistyped name, which is found whatever the phase."""
    for backbone_frozen in (True, False):
        with pytest.raises(ValueError, match=f"^{constant} names 'backbon'"):
            frozen_parameter_names(nano, settings_of(**changes), backbone_frozen)


def test_the_first_blocks(nano, tiny):
    """Prevents blocks counted from the wrong end, and stages of a list counted as one block."""
    assert first_blocks(nano, 0) == first_blocks(tiny, 0) == set()
    assert first_blocks(nano, 2) == names_of(nano, *FIRST_TWO)
    assert first_blocks(nano, 5) == names_of(nano, BACKBONE)
    assert first_blocks(tiny, 3) == names_of(tiny, "backbone.conv1.", "backbone.conv2.", "backbone.resblock_body1.")
    assert first_blocks(tiny, 6) == names_of(tiny, "backbone.")
    with torch.device("meta"):
        large = build_model("yolov4", 3)
    assert first_blocks(large, 2) == names_of(large, "backbone.conv1.", "backbone.stages.0.")
    assert first_blocks(large, 6) == names_of(large, "backbone.")


def test_too_many_blocks_are_an_error(nano, tiny):
    """Prevents a count that silently means less than it says."""
    with pytest.raises(ValueError) as error:
        first_blocks(nano, 6)
    assert str(error.value) == (
        "freeze_blocks is 6, but the backbone of yolox_nano has 5 blocks: stem, dark2, dark3, dark4, dark5."
    )
    with pytest.raises(ValueError, match="has 6 blocks: conv1, conv2, resblock_body1, resblock_body2, "):
        first_blocks(tiny, 7)


@pytest.mark.parametrize(
    ("changes", "in_first_phase", "in_second_phase"),
    [
        ({}, (BACKBONE,), ()),
        ({"freeze_whole_run": False}, (BACKBONE,), ()),
        ({"freeze_layers": ["neck"]}, (BACKBONE, *NECK), NECK),
        ({"freeze_layers": ["neck"], "freeze_whole_run": False}, NECK, ()),
        ({"freeze_blocks": 2}, (BACKBONE,), FIRST_TWO),
        ({"freeze_blocks": 2, "freeze_whole_run": False}, FIRST_TWO, ()),
        ({"freeze_layers": ["head.stems"], "freeze_blocks": 2}, (BACKBONE, "head.stems."), (*FIRST_TWO, "head.stems.")),
        ({"train_only": ["head"]}, (BACKBONE, *NECK), (BACKBONE, *NECK)),
        ({"train_only": ["head"], "freeze_whole_run": False}, (BACKBONE, *NECK), ()),
        ({"train_only": ["backbone", "head"], "freeze_whole_run": False}, NECK, ()),
        ({"lr_scale": {"neck": 0}}, (BACKBONE, *NECK), NECK),
        ({"lr_scale": {"neck": 0}, "freeze_whole_run": False}, (BACKBONE, *NECK), NECK),
        ({"lr_scale": {"neck": 0.1}}, (BACKBONE,), ()),
    ],
)
def test_what_is_frozen_in_which_phase(nano, changes, in_first_phase, in_second_phase):
    """Prevents layers that are frozen in the wrong phase: named ones add to the backbone, or stand in its place."""
    settings = settings_of(**changes)
    assert frozen_parameter_names(nano, settings, True) == names_of(nano, *in_first_phase)
    assert frozen_parameter_names(nano, settings, False) == names_of(nano, *in_second_phase)


@pytest.mark.parametrize(
    ("changes", "backbone_frozen", "phase"),
    [
        ({"freeze_layers": ["neck", "head"]}, True, "in the phase of Freeze_Train"),
        ({"freeze_layers": ["backbone", "neck", "head"]}, False, "in the unfrozen phase"),
        ({"train_only": ["backbone"]}, True, "in the phase of Freeze_Train"),
        ({"train_only": ["head"], "lr_scale": {"head": 0.0}}, False, "in the unfrozen phase"),
        ({"lr_scale": {"backbone": 0, "neck": 0, "head": 0}}, False, "in the unfrozen phase"),
    ],
)
def test_everything_frozen_is_an_error(nano, changes, backbone_frozen, phase):
    """Prevents hours of training that change nothing, and an optimiser without parameters."""
    with pytest.raises(ValueError) as error:
        frozen_parameter_names(nano, settings_of(**changes), backbone_frozen)
    assert str(error.value) == (
        f"Everything is frozen {phase}: Freeze_Train, freeze_layers, freeze_blocks, train_only and lr_scale leave no "
        "parameter to train. Free one of backbone, neck and head."
    )


@pytest.mark.parametrize(
    ("lr_scale", "stem", "dark5", "head"),
    [
        ({}, 1.0, 1.0, 1.0),
        ({"backbone": 0.1}, 0.1, 0.1, 1.0),
        ({"backbone": 0.1, "backbone.backbone.stem": 0.5}, 0.5, 0.1, 1.0),
        ({"backbone.backbone.stem": 0.5, "backbone": 0.1}, 0.5, 0.1, 1.0),
        ({"backbone.backbone.stem.conv": 0.3, "backbone.backbone": 0.2, "backbone": 0.1}, 0.3, 0.2, 1.0),
        ({"backbone": 0, "head": 3}, 0.0, 0.0, 3.0),
    ],
)
def test_the_longest_name_that_means_a_parameter_counts(nano, lr_scale, stem, dark5, head):
    """Prevents entries that multiply, and a general entry that overrules a special one because it stands later."""
    lr_scale_of = lr_scales(nano, lr_scale)
    names = (
        "backbone.backbone.stem.conv.conv.weight",
        "backbone.backbone.dark5.1.conv1.bn.bias",
        "head.stems.0.bn.bias",
    )
    assert [lr_scale_of(name) for name in names] == [stem, dark5, head]


def test_the_name_of_a_part_counts_least():
    """Prevents a part from overruling one of its layers whose name is shorter, in whatever order they are given."""
    model = SimpleNamespace(name="toy", parts=("backbone", "neck", "head"), part_of=lambda name: "backbone")
    model.named_parameters = lambda: [("stem.weight", None), ("body.weight", None)]
    for lr_scale in ({"stem": 0.5, "backbone": 0.1}, {"backbone": 0.1, "stem": 0.5}):
        lr_scale_of = lr_scales(model, lr_scale)
        assert (lr_scale_of("stem.weight"), lr_scale_of("body.weight")) == (0.5, 0.1)


@pytest.mark.parametrize(("name", "prefix"), [("yolox_nano", BACKBONE), ("yolov4_tiny", "backbone.")])
def test_rates_of_every_parameter(name, prefix):
    """Prevents lr_scale from reaching the wrong parameters: past the warm-up of a rate of 0.02, 0.002 for those of the
    backbone, and decay on convolutions and head predictions alone."""
    model = build_model(name, 3)
    groups = parameter_groups(model, 5e-4, 0, lr_scales(model, {"backbone": 0.1}))
    optimizer = build_optimizer("sgd", groups, 0.9)
    assert LRSchedule(SCHEDULE).set_lr(optimizer, 50, 0.02, 0.0) == 0.02
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.02, 5e-4),
        (0.02, 0.0),
        (pytest.approx(0.002), 5e-4),
        (pytest.approx(0.002), 0.0),
    ]
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["lr"] == pytest.approx(0.002 if parameter_name.startswith(prefix) else 0.02), parameter_name
        assert group["weight_decay"] == (5e-4 if parameter.ndim == 4 else 0.0), parameter_name


def test_the_table_says_what_trains(nano):
    """Prevents layers that are frozen, or crawl, without the user knowing. The stem has 1,728 weights and 32 numbers of
    BatchNorm, dark2 752 in its first convolution and 2,928 in the rest: 5,440 of 459,968 are frozen."""
    assert trainable_table(nano, settings_of(freeze_blocks=2), PHASES) == (
        "part      parameters  epochs 1-10     epochs 11-100\n"
        "backbone  459,968     frozen          454,528 at 1.0e-02, rest frozen\n"
        "neck      347,424     all at 2.0e-02  all at 1.0e-02\n"
        "head      89,752      all at 2.0e-02  all at 1.0e-02"
    )
    settings = settings_of(lr_scale={"backbone": 0.1, "head.cls_preds": 0.5, "neck": 0}, accumulate=2)
    # Three class predictions of 64 weights for 3 classes and 3 biases: 585 numbers.
    assert trainable_table(nano, settings, PHASES[1:]) == (
        "part      parameters  epochs 11-100\n"
        "backbone  459,968     all at 2.0e-03\n"
        "neck      347,424     frozen\n"
        "head      89,752      89,167 at 2.0e-02, 585 at 1.0e-02"
    )


def test_the_table_of_an_impossible_plan_is_an_error(nano):
    """Prevents a run that fails at the unfreeze epoch, after hours."""
    with pytest.raises(ValueError, match="Everything is frozen in the unfrozen phase"):
        trainable_table(nano, settings_of(freeze_layers=["backbone", "neck", "head"]), PHASES[1:])


def batches():
    """Two batches of two images of 64 x 64, each with two boxes."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.full((2, 16, 5), -1.0)
    targets[:, :, :4] = 0
    targets[0, :2] = torch.tensor([[4.0, 6, 40, 50, 0], [30, 20, 62, 60, 1]])
    targets[1, :2] = torch.tensor([[10.0, 12, 30, 28, 2], [5, 30, 50, 62, 0]])
    for _ in range(2):
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
        yield SimpleNamespace(images=images, targets=targets, unreadable=[], truncated=[])


def untouched(model, before):
    """The names in the state dict of which no bit changed."""
    return {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}


def train_phase(model, optimizer, ema):
    """Steps of a real training; returns which tensors it left untouched, in the model and in its average."""
    models = (model, ema.model)
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in models]
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    optim = OptimWrapper(model, build_criterion(model), optimizer, ema, RUNTIME, clip_grad_norm=10.0)
    train_one_epoch(model.train(), list(batches()), optim, lambda fraction: 0.05, LossMeter())
    return [untouched(part, state) for part, state in zip(models, before, strict=True)]


@pytest.mark.parametrize(
    ("name", "changes", "in_first_phase", "in_second_phase"),
    [
        ("yolox_nano", {"freeze_blocks": 2}, (BACKBONE,), FIRST_TWO),
        (
            "yolox_nano",
            {"freeze_layers": ["neck", "head.stems"], "freeze_whole_run": False},
            (*NECK, "head.stems."),
            (),
        ),
        ("yolov4_tiny", {"train_only": ["head"]}, BELOW_HEAD, BELOW_HEAD),
        ("yolov4_tiny", {"lr_scale": {"neck": 0}}, BELOW_HEAD, TINY_PARTS["neck"]),
    ],
)
def test_frozen_tensors_stay_to_the_last_bit(name, changes, in_first_phase, in_second_phase):
    """Prevents frozen weights and statistics from drifting by gradients, weight decay, momentum, BatchNorm or the
    average, and free ones from staying behind, over both phases of a training."""
    model, settings = build_model(name, 3), settings_of(**changes)
    model.freeze(frozen_parameter_names(model, settings, True))
    lr_scale_of = lr_scales(model, settings.lr_scale)
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.1, 0, lr_scale_of), 0.9)
    ema = ModelEMA(model, 100)
    for is_first, prefixes in ((True, in_first_phase), (False, in_second_phase)):
        model.freeze(frozen_parameter_names(model, settings, is_first))
        add_param_groups(optimizer, parameter_groups(model, 0.1, 0, lr_scale_of))
        same, same_average = train_phase(model, optimizer, ema)
        frozen = {key for key in model.state_dict() if prefixes and key.startswith(prefixes)}
        assert frozen <= same and frozen <= same_average
        # Scales and biases that have nothing to learn from these boxes may stay; weights decay at any rate.
        moves = {key for key, value in model.state_dict().items() if value.ndim == 4 or "running" in key}
        assert moves & same == moves & same_average == moves & frozen


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {(1.0, 0): ["neck", "head"], (1.0, 10): ["backbone"]}),
        (
            {"lr_scale": {"backbone": 0.1, "neck": 0.5}},
            {(0.5, 0): ["neck"], (1.0, 0): ["head"], (0.1, 10): ["backbone"]},
        ),
        ({"train_only": ["head"]}, {(1.0, 0): ["head"]}),
        ({"freeze_blocks": 2}, {(1.0, 0): ["neck", "head"], (1.0, 10): ["backbone"]}),
    ],
)
def test_the_rates_to_draw_are_those_of_what_trains(nano, changes, expected):
    """Prevents a picture that shows a rate for frozen layers, or shows one that trains later from the start."""
    assert lr_groups(nano, settings_of(**changes), PHASES) == expected
    assert lr_groups(nano, settings_of(**changes), []) == {}


@pytest.mark.parametrize(
    ("changes", "uninitialised", "count", "first"),
    [
        ({"freeze_layers": ["neck"]}, ("",), 90, "backbone.lateral_conv0.conv.weight"),
        ({"freeze_blocks": 1}, ("",), 3, "backbone.backbone.stem.conv.conv.weight"),
        ({"lr_scale": {"backbone": 0}}, ("",), 141, "backbone.backbone.stem.conv.conv.weight"),
        ({"lr_scale": {"head": 0}}, ("head.stems.1.",), 3, "head.stems.1.conv.weight"),
        ({}, ("",), 0, ""),  # the frozen phase comes to an end
        ({"freeze_blocks": 1}, ("head.", "backbone.lateral_conv0."), 0, ""),
        ({"freeze_layers": ["neck"]}, (), 0, ""),
        ({"freeze_layers": ["neck"], "freeze_whole_run": False}, ("",), 0, ""),
    ],
)
def test_layers_that_stay_random_are_named(nano, capsys, changes, uninitialised, count, first):
    """Prevents layers that no weights filled from staying at random numbers to the end: 30 convolutions with scale and
    shift in the neck, 47 in the backbone; and a warning where what is frozen came from the weights."""
    warn_untrained_frozen(nano, settings_of(**changes), PHASES, names_of(nano, *uninitialised))
    expected = (
        f"note: {count} tensors that start from no weights are frozen to the end and stay random (the first: {first}). "
        "Let them train, or start from weights that hold them.\n"
    )
    assert capsys.readouterr().out == (expected if count else "")


def test_a_run_that_ends_frozen_leaves_an_untrained_backbone_random(nano, capsys):
    """Prevents a warning that looks at the first phase alone, or at a phase that never comes."""
    warn_untrained_frozen(nano, settings_of(), PHASES[:1], names_of(nano, BACKBONE))
    assert capsys.readouterr().out.startswith("note: 141 tensors")
    warn_untrained_frozen(nano, settings_of(), PHASES[:1], names_of(nano, *NECK))
    assert capsys.readouterr().out == ""


def dim_batches(count):
    """Batches of dim images, unlike the unit statistics of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    shape = (4, 3, 64, 64)
    images = [torch.randint(20, 90, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]
    return [SimpleNamespace(images=part) for part in images]


def norms_of(model, prefix="backbone.backbone."):
    """Names of the BatchNorm layers, those of the backbone as usual."""
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.BatchNorm2d) and name.startswith(prefix)
    ]


def test_the_network_computes_the_same_before_and_after():
    """Prevents the loss from leaping at the unfreeze epoch: in eval mode nothing changes, in train mode little."""
    model, images = build_model("yolox_nano", 3).eval(), dim_batches(1)[0].images
    extractor, pixels = model.feature_extractor, model.normalize(images)
    with torch.no_grad():
        before, frozen = model(images), extractor(pixels)[0]
        leap = (copy.deepcopy(extractor).train()(pixels)[0] - frozen).abs().mean()
        recalibrate_batch_norm(model, norms_of(model), dim_batches(8), CPU)
        after = model(images)
        noise = (extractor.train()(pixels)[0] - frozen).abs().mean()
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-3)
    assert noise < 0.3 * frozen.abs().mean()
    assert leap > 3 * noise


def test_the_statistics_are_those_of_the_data():
    """Prevents running statistics of one batch only, or of the pretraining data: the first layer's are known."""
    model, data = build_model("yolox_nano", 3), dim_batches(4)
    first = model.get_submodule(norms_of(model)[0])
    seen = []
    first.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    recalibrate_batch_norm(model, norms_of(model), data, CPU)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.running_mean, values.mean(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first.running_var, values.var(1, correction=0), rtol=1e-3, atol=1e-3)


def test_ranks_that_share_the_batches_find_what_one_finds(monkeypatch):
    """Prevents layers, and averages of them, that differ from rank to rank: each measures its own images alone. One has
    more of them than the other."""
    model, data = build_model("yolox_nano", 3), dim_batches(2)
    names = norms_of(model)
    shares = [[SimpleNamespace(images=batch.images[part]) for batch in data] for part in (slice(3), slice(3, 4))]
    sums = []

    def measured_on(share, exchange):
        other = copy.deepcopy(model)
        monkeypatch.setattr(freezing, "all_reduce_sum", exchange)
        recalibrate_batch_norm(other, names, share, CPU)
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
    """Prevents layers that stay frozen, or learned all the time, from being given other scales; in a network with
    anchors, and between frozen layers, the output stays as well."""
    model, images = build_model("yolov4_tiny", 3).eval(), dim_batches(1)[0].images
    unfrozen_norms = norms_of(model, "backbone.resblock_body2.") + norms_of(model, "conv_for_P5.")
    assert len(unfrozen_norms) == 5
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        old = model(images)
        recalibrate_batch_norm(model, unfrozen_norms, dim_batches(4), CPU)
        new = model(images)
    changed = {
        key.rpartition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == set(unfrozen_norms)
    for first, second in zip(old, new, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_the_layers_that_the_first_unfrozen_step_trains():
    """Prevents layers that learn without new statistics, and hooks that stay on the network and cost time for ever."""
    model = build_model("yolox_nano", 3)
    parameters = {name for name, _ in model.named_parameters()}
    assert model.freeze({name for name in parameters if name.startswith("backbone.")}) == []
    unfrozen_norms = model.freeze({name for name in parameters if name.startswith("backbone.backbone.stem.")})
    assert unfrozen_norms == [
        name for name in norms_of(model, "backbone.") if not name.startswith("backbone.backbone.stem.")
    ]
    recalibrate_batch_norm(model, unfrozen_norms, dim_batches(1), CPU)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert model.freeze(set()) == ["backbone.backbone.stem.conv.bn"]
    recalibrate_batch_norm(model, [], dim_batches(1), CPU)


def test_no_batches_change_no_statistics():
    """Prevents NaN statistics from an empty loader."""
    model = build_model("yolox_nano", 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recalibrate_batch_norm(model, norms_of(model), [], CPU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
