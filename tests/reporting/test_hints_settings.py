from types import SimpleNamespace

import pytest

from utils.reporting.hints.settings import few_steps_hint, setting_hints
from utils.training.phases import build_phases

WEIGHTS = {"model_path": "a.pth"}


def settings_of(**changes):
    values = {"Freeze_Train": True, "Init_Epoch": 0, "Freeze_Epoch": 10, "UnFreeze_Epoch": 100}
    values |= {"model_path": "", "pretrained": False, "model_name": "yolox_nano", "backbone": ""}
    values |= {"Freeze_batch_size": 16, "Unfreeze_batch_size": 8, "accumulate": 1}
    values |= {"freeze_layers": [], "freeze_blocks": 0, "train_only": [], "freeze_whole_run": True}
    values |= {"optimizer_type": "sgd", "weight_decay": 5e-4, "compile": False, "multi_scale": False}
    values |= {"copy_paste": 0.0}
    values |= {"lr_scale": {}, "Init_lr": 8e-2, "Min_lr": None, "special_aug_ratio": 0.7}
    values |= {"lr_decay_type": "cos", "lr_milestones": [], "lr_step_size": None}
    return SimpleNamespace(**values | changes)


def hints(images=200, world_size=1, **changes):
    """What is said of these settings, weights to start from included, on so many images."""
    settings = settings_of(**WEIGHTS | changes)
    return list(setting_hints(settings, build_phases(settings), images, world_size))


def test_usual_settings_need_no_hints():
    """Prevents notes that everybody learns to overlook."""
    assert hints() == []
    assert hints(lr_scale={"backbone": 0.1}, compile=True, freeze_blocks=2) == []
    assert hints(optimizer_type="adamw", Init_lr=4e-3) == []
    assert hints(optimizer_type="adam", Init_lr=4e-3, weight_decay=0) == []
    assert hints(lr_decay_type="multistep", lr_milestones=[99]) == hints(lr_milestones=[300], lr_step_size=300) == []
    assert hints(lr_decay_type="step", lr_step_size=99) == hints(lr_decay_type="plateau") == []
    assert hints(freeze_layers=["neck"], freeze_whole_run=False) == []
    assert hints(multi_scale=True) == []


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
            "Init_lr 0.8 is 1.0e-01 for the batches of the unfrozen phase; it is kept within 0.0005 to 0.05 for sgd "
            "here, so 5.0e-02 is used.",
        ),
        (
            {"optimizer_type": "adamw", "Init_lr": 2e-4, "Freeze_Epoch": 100, "images": 2000},  # 2e-4 * 16 / 64
            "Init_lr 0.0002 is 5.0e-05 for the batches of the frozen phase; it is kept within 0.0001 to 0.002 for "
            "adamw here, so 1.0e-04 is used.",
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
            {"copy_paste": 0.5, "special_aug_ratio": 0.0},
            "copy_paste ends with the other augmentation, and special_aug_ratio leaves no epoch for it.",
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
def test_hints_come_before_the_time_is_spent(changes, sentence):
    """Prevents hours spent on settings that train badly; each of these calls for one sentence, and no other."""
    (found,) = hints(**changes)
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    ("images", "last_epoch", "changes", "sentence"),
    [
        (10, 100, {}, "Only 190 of about 300 steps were made: raise UnFreeze_Epoch to about 158."),
        (10, 100, {"model_path": ""}, "Only 200 of about 1000 steps were made: raise UnFreeze_Epoch to about 500."),
        (10, 40, {"patience": 30}, "Only 70 of about 300 steps were made: raise patience from 30, which ended the tra"),
        (200, 100, {}, ""),
        (10, 100, {"Init_Epoch": 50}, ""),
        (0, 100, {}, ""),
    ],
)
def test_too_few_steps_at_the_end(images, last_epoch, changes, sentence):
    """Prevents a list of what would help without what was too little from the start."""
    settings = settings_of(**WEIGHTS | changes)
    found = few_steps_hint(settings, build_phases(settings), images, last_epoch)
    assert found.startswith(sentence) and bool(found) == bool(sentence)


def test_a_continued_run_may_be_short():
    """Prevents hints against the user's plan: the steps of the epochs before are not counted."""
    assert hints(10, Init_Epoch=50) == []


def test_a_pretrained_backbone_counts_as_trained():
    """Prevents the hints for a training from scratch where the backbone comes with ImageNet weights."""
    assert hints(model_path="", pretrained=True) == []
    assert hints(model_path="", pretrained="IMAGENET1K_V1", freeze_blocks=1) == []
    (short,) = hints(10, model_path="", pretrained=True)
    assert "training from weights wants at least 300" in short
