from types import SimpleNamespace

import pytest

from utils.reporting.hints.settings import advice, unlike
from utils.runtime.distributed import Ranks
from utils.training.phases import Phase, check_batches, epochs_of, phases_of, steps_of

WEIGHTS = {"model_path": "a.pth"}


def settings_of(**changes):
    values = {"Freeze_Train": True, "Init_Epoch": 0, "Freeze_Epoch": 10, "UnFreeze_Epoch": 100}
    values |= {"model_path": "", "pretrained": False}
    values |= {"Freeze_batch_size": 16, "Unfreeze_batch_size": 8, "accumulate": 1}
    values |= {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True}
    values |= {"optimizer_type": "sgd", "weight_decay": 5e-4, "compile": False, "multi_scale": False}
    values |= {"lr_scale": {}, "Init_lr": 8e-2, "Min_lr": None, "special_aug_ratio": 0.7}
    values |= {"lr_decay_type": "cos", "lr_milestones": [], "lr_step_size": None}
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (WEIGHTS, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"model_path": ""}, [(False, 0, 100, 8)]),
        ({"pretrained": True}, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"pretrained": "IMAGENET1K_V2", "Init_Epoch": 10}, [(False, 10, 100, 8)]),
        (WEIGHTS | {"Freeze_Train": False}, [(False, 0, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 4}, [(True, 4, 10, 16), (False, 10, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 10}, [(False, 10, 100, 8)]),
        (WEIGHTS | {"Init_Epoch": 40}, [(False, 40, 100, 8)]),
        (WEIGHTS | {"Freeze_Epoch": 100}, [(True, 0, 100, 16)]),
    ],
)
def test_the_phases_are_those_that_the_constants_describe(changes, expected):
    """Prevents epochs trained twice, left out, or with the batch size of the other phase."""
    phases = phases_of(settings_of(**changes))
    assert [tuple(phase) for phase in phases] == expected
    assert [phase.name for phase in phases] == ["frozen" if frozen else "unfrozen" for frozen, *_ in expected]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [(True, 0), (True, 1), (False, 2), (False, 3)]),
        (1, [(True, 1), (False, 2), (False, 3)]),
        (2, [(False, 2), (False, 3)]),
        (4, []),
    ],
)
def test_the_epochs_that_are_left(start, expected):
    """Prevents epochs that train twice, or never, where a run goes on: within a phase, between two, and at the end."""
    phases = [Phase(True, 0, 2, 16), Phase(False, 2, 4, 8)]
    left = epochs_of(phases, SimpleNamespace(epoch=start))
    assert [(phase.frozen, epoch) for phase, epoch in left] == expected
    assert list(epochs_of([], SimpleNamespace(epoch=0))) == []


@pytest.mark.parametrize(
    ("images", "accumulate", "expected"),
    [
        (32, 1, 2 * 2 + 3 * 4),
        (33, 1, 2 * 3 + 3 * 5),
        (33, 2, 2 * 2 + 3 * 3),  # windows of 2 and 1 batches, and of 2, 2 and 1
        (33, 100, 2 + 3),
        (1, 4, 5),
    ],
)
def test_steps(images, accumulate, expected):
    """Prevents an average of weights that looks back over too many steps because batches were counted as steps."""
    assert steps_of([Phase(True, 0, 2, 16), Phase(False, 2, 5, 8)], images, accumulate) == expected
    assert steps_of([], images, accumulate) == 0


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_once():
    """Prevents a run that fails at the unfreeze epoch, after hours."""
    phases = phases_of(settings_of(**WEIGHTS, Unfreeze_batch_size=6))
    check_batches(phases, Ranks(world_size=2))
    with pytest.raises(ValueError) as error:
        check_batches(phases, Ranks(world_size=4))
    assert str(error.value) == (
        "Unfreeze_batch_size is 6, which 4 processes cannot share evenly; set it to 4, or another multiple of 4."
    )
    with pytest.raises(ValueError, match=r"^Freeze_batch_size is 2, .* share evenly; set it to 3, "):
        check_batches(phases_of(settings_of(**WEIGHTS, Freeze_batch_size=2)), Ranks(world_size=3))
    check_batches([], Ranks(world_size=3))


def said(images=200, world_size=1, **changes):
    settings = settings_of(**WEIGHTS | changes)
    return list(advice(settings, phases_of(settings), images, Ranks(world_size=world_size)))


def test_usual_settings_need_no_advice():
    """Prevents notes that everybody learns to overlook."""
    assert said() == []
    assert said(lr_scale={"backbone": 0.1}, compile=True, freeze_blocks=2) == []
    assert said(optimizer_type="adamw", Init_lr=4e-3) == []
    assert said(optimizer_type="adam", Init_lr=4e-3, weight_decay=0) == []
    assert said(lr_decay_type="multistep", lr_milestones=[99]) == said(lr_milestones=[300], lr_step_size=300) == []
    assert said(lr_decay_type="step", lr_step_size=99) == said(lr_decay_type="plateau") == []
    assert said(freeze_layers=["neck"], freeze_whole_run=False) == []
    assert said(multi_scale=True) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_path": "", "images": 2000}, "Freeze_Train is True, but the backbone is untrained (model_path = '')"),
        ({"Unfreeze_batch_size": 1}, "A batch of 1 image gives BatchNorm no statistics"),
        ({"world_size": 8}, "A batch of 1 image gives BatchNorm no statistics"),
        (
            {"optimizer_type": "adam", "Init_lr": 4e-3},
            "optimizer_type is 'adam' and weight_decay 0.0005: the decay is added to the gradient, where the step size "
            "cancels most of it, and the rest falls on rarely used weights. Meant is nearly always optimizer_type = "
            "'adamw'; else set weight_decay = 0.",
        ),
        ({"optimizer_type": "rmsprop", "Init_lr": 1e-3}, "optimizer_type is 'rmsprop' and weight_decay 0.0005: the d"),
        ({"optimizer_type": "adagrad"}, "optimizer_type is 'adagrad' and weight_decay 0.0005: the decay is added to"),
        (
            {"Init_lr": 0.8, "Freeze_Train": False},  # 0.8 * 8 / 64
            "Init_lr 0.8 is 1.0e-01 for the batches of the unfrozen phase; it is kept within 0.0005 to 0.05 for sgd, "
            "so 5.0e-02 is used.",
        ),
        (
            {"optimizer_type": "adamw", "Init_lr": 1e-3, "Freeze_Epoch": 100, "images": 2000},  # 1e-3 * 16 / 64
            "Init_lr 0.001 is 2.5e-04 for the batches of the frozen phase; it is kept within 0.0003 to 0.001 for "
            "adamw, so 3.0e-04 is used.",
        ),
        (
            {"accumulate": 20, "images": 160, "Init_lr": 4e-3, "Init_Epoch": 1},
            "accumulate is 20, but an epoch of the frozen phase has 10 batches, after which every step ends; the "
            "learning rate counts on more. Lower accumulate.",
        ),
        (
            {"lr_decay_type": "plateau", "Init_Epoch": 5},
            "With 'plateau' the rate begins at its highest again; set Init_lr to that of the last epoch's line.",
        ),
        (
            {"lr_decay_type": "multistep", "lr_milestones": [100, 120]},
            "lr_decay_type is 'multistep', and its first step, in epoch 100, comes after UnFreeze_Epoch 100: the rate "
            "never falls.",
        ),
        (
            {"lr_decay_type": "step", "lr_step_size": 150},
            "lr_decay_type is 'step', and its first step, in epoch 150, comes after UnFreeze_Epoch 100: the rate never",
        ),
        (
            {"multi_scale": True, "special_aug_ratio": 0.0},
            "multi_scale ends with the other augmentation, and special_aug_ratio leaves no epoch for it.",
        ),
        (
            {"freeze_blocks": 2, "freeze_whole_run": False, "Freeze_Train": False},
            "freeze_whole_run is False, but no epoch belongs to the phase of Freeze_Train: nothing is frozen.",
        ),
        (
            {"train_only": ["head"], "freeze_whole_run": False, "Init_Epoch": 10},
            "freeze_whole_run is False, but no epoch belongs to the phase of Freeze_Train: nothing is frozen.",
        ),
        (
            {"compile": True, "multi_scale": True},
            "With compile and multi_scale only batches of input_shape itself run compiled; choose one of the two.",
        ),
        ({"images": 10}, "Only 190 optimiser steps in all; training from weights wants at least 300: raise UnFreeze_E"),
        (
            {"images": 10, "Freeze_Epoch": 100},
            "Only 100 optimiser steps in all; training from weights wants at least 300: raise Freeze_Epoch and Un",
        ),
        ({"images": 320, "accumulate": 16, "Init_lr": 4e-3}, "Only 290 optimiser steps in all"),
    ],
)
def test_advice_comes_before_the_time_is_spent(changes, sentence):
    """Prevents hours spent on settings that train badly; each of these calls for one sentence, and no other."""
    (found,) = said(**changes)
    assert found.startswith(sentence)


def test_a_continued_run_may_be_short():
    """Prevents advice against the user's plan: the steps of the epochs before are not counted."""
    assert said(10, Init_Epoch=50) == []


def test_a_pretrained_backbone_counts_as_trained():
    """Prevents the advice of a training from scratch where the backbone comes with ImageNet weights."""
    assert said(model_path="", pretrained=True) == []
    assert said(model_path="", pretrained="IMAGENET1K_V1", freeze_blocks=1) == []
    (short,) = said(10, model_path="", pretrained=True)
    assert "training from weights wants at least 300" in short


def test_weights_that_have_been_trained_already_say_so():
    """Prevents a new training by mistake, and an optimiser and an average that begin anew unnoticed."""
    (seen,) = unlike({"class_names": ["cat", "dog"], "epoch": 40}, settings_of(), {}, None)
    assert seen == (
        "these weights have seen 40 epochs; this is a new training from them. To go on with that one instead, exactly "
        "as if it had never stopped, set resume to the folder of its run."
    )
    (continued,) = unlike({"epoch": 40}, settings_of(Init_Epoch=40), {}, None)
    assert continued == (
        "this goes on from the weights alone, at epoch 40: the optimiser and the average of the weights begin anew. "
        "resume = True (or the folder of the run) would continue exactly."
    )
    assert list(unlike({}, settings_of(), {}, None)) == []


def test_other_anchors_than_those_of_the_weights_are_named():
    """Prevents a training that starts with boxes of a wrong size without a word; 10 and 10.0 are the same anchor."""
    own = {"anchors": [[10, 14], [23, 27]], "anchors_mask": [[0, 1]]}
    other = own | {"anchors": [[10.0, 14.0], [23.0, 28.0]]}
    ours = {"model_name": "yolov4_tiny", "decode_rule": own}
    (sentence,) = unlike(ours, settings_of(), other, own)
    assert sentence == (
        "the weights were trained with other anchors than anchors_path and anchors_mask say; box sizes have to be "
        "learned anew. Leave both empty to keep those of the weights."
    )
    same = own | {"anchors": [[10.0, 14.0], [23.0, 27.0]]}
    assert list(unlike(ours, settings_of(), same, own)) == []
    # A foreign file knows its scale of centres at most; its anchors are taken for the usual ones.
    flat = {"model_name": "yolov4_tiny", "decode_rule": {"scale_x_y": [1.0]}}
    assert list(unlike(flat, settings_of(), own | {"scale_x_y": [1.0]}, own | {"scale_x_y": [1.05]})) == []
    assert list(unlike(flat, settings_of(), other | {"scale_x_y": [1.0]}, own)) == [sentence]
    assert list(unlike({"pixel_rule": {}}, settings_of(), other, own)) == []  # a backbone alone has no anchors
