from types import SimpleNamespace

import pytest

from utils.device import Ranks
from utils.phases import Phase, advice, check_batches, phases_of, steps_of, unlike

WEIGHTS = {"model_path": "a.pth"}


def settings_of(**changes):
    values = {"Freeze_Train": True, "Init_Epoch": 0, "Freeze_Epoch": 10, "UnFreeze_Epoch": 100, "model_path": ""}
    values |= {"Freeze_batch_size": 16, "Unfreeze_batch_size": 8, "accumulate": 1}
    values |= {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True}
    values |= {"optimizer_type": "sgd", "weight_decay": 5e-4, "compile": False, "multi_scale": False}
    values["lr_scale"] = {}
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (WEIGHTS, [(True, 0, 10, 16), (False, 10, 100, 8)]),
        ({"model_path": ""}, [(False, 0, 100, 8)]),
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
    assert said(lr_scale={"backbone": 0.1}, compile=True, freeze_blocks=2, optimizer_type="adamw") == []
    assert said(optimizer_type="adam", weight_decay=0) == []
    assert said(freeze_layers=["neck"], freeze_whole_run=False) == []
    assert said(multi_scale=True) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_path": "", "images": 2000}, "Freeze_Train is True, but the backbone is untrained (model_path = '')"),
        ({"Unfreeze_batch_size": 1}, "A batch of 1 image gives BatchNorm no statistics"),
        ({"world_size": 8}, "A batch of 1 image gives BatchNorm no statistics"),
        (
            {"optimizer_type": "adam"},
            "optimizer_type is 'adam' and weight_decay 0.0005: adam adds the decay to the gradient, where its step "
            "size cancels most of it, and the rest falls on rarely used weights. Meant is nearly always optimizer_type "
            "= 'adamw'; else set weight_decay = 0.",
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
        ({"images": 200, "accumulate": 16}, "Only 190 optimiser steps in all"),
    ],
)
def test_advice_comes_before_the_time_is_spent(changes, sentence):
    """Prevents hours spent on settings that train badly; each of these calls for one sentence, and no other."""
    (found,) = said(**changes)
    assert found.startswith(sentence)


@pytest.mark.parametrize("changes", [{"freeze_layers": ["neck"]}, {"freeze_blocks": 1}, {"lr_scale": {"backbone": 0}}])
def test_layers_frozen_from_scratch(changes):
    """Prevents a network whose first layers stay at random numbers."""
    (found,) = said(2000, **changes, model_path="", Freeze_Train=False)
    assert found == ("Layers are frozen that were never trained (model_path = ''): they stay at their random start.")


def test_a_continued_run_may_be_short():
    """Prevents advice against the user's plan: the steps of the epochs before are not counted."""
    assert said(10, Init_Epoch=50) == []


def test_weights_that_say_other_things_than_the_constants_are_named():
    """Prevents classes that change places silently, and a forgotten Init_Epoch."""
    contract = {"class_names": ["cat", "dog"], "epoch": 40}
    swapped, seen = unlike(contract, ["dog", "cat"], settings_of(), {})
    assert "trained for the classes cat, dog, yours are dog, cat" in swapped
    assert "set Init_Epoch = 40" in seen
    assert list(unlike(contract, ["cat", "dog"], settings_of(Init_Epoch=40), {})) == []
    assert list(unlike({}, ["cat"], settings_of(), {})) == []


def test_other_anchors_than_those_of_the_weights_are_named():
    """Prevents a training that starts with boxes of a wrong size without a word; 10 and 10.0 are the same anchor."""
    own = {"anchors": [[10, 14], [23, 27]], "anchors_mask": [[0, 1]]}
    other = own | {"anchors": [[10.0, 14.0], [23.0, 28.0]]}
    (sentence,) = unlike({"decode_rule": own}, ["cat"], settings_of(), other)
    assert sentence == (
        "the weights were trained with other anchors than anchors_path and anchors_mask say; box sizes have to be "
        "learned anew. Leave both empty to keep those of the weights."
    )
    same = own | {"anchors": [[10.0, 14.0], [23.0, 27.0]]}
    assert list(unlike({"decode_rule": own}, ["cat"], settings_of(), same)) == []
    assert list(unlike({}, ["cat"], settings_of(), own)) == []  # an official release says nothing of its anchors
