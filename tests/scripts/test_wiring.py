"""What train.py makes of its constants: each arrives where it acts. A single training, which writes down who gets what,
answers nearly all of it."""

import csv
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from nets import build_model
from nets.losses import LossOptions
from utils.checkpoint.resume import read_checkpoint
from utils.config.cli import script_constants
from utils.config.rules import check_training
from utils.data.annotations import Records
from utils.data.augment import AugmentSettings
from utils.data.image_cache import RamCache
from utils.data.sampling import TrainShapes
from utils.reporting import run_logger
from utils.runtime import distributed as processes
from utils.runtime.device import Place, Precision
from utils.runtime.distributed import Ranks
from utils.weights.metadata import make_contract
from utils.weights.save import save_weights

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CLASSES = ["fish", "leaf", "mushroom"]
# No two of a kind are equal, so that none can stand in another's place.
CONSTANTS = dict.fromkeys(("Cuda", "fp16", "mixup"), False)
CONSTANTS |= dict.fromkeys(("Freeze_Train", "ema", "eval_flag", "mosaic", "multi_scale", "sync_bn", "compile"), True)
CONSTANTS |= {"seed": 5, "num_workers": 3, "cpu_threads": 1, "save_period": 4, "eval_period": 2}
CONSTANTS |= {"model_name": "yolov4_tiny", "input_shape": [64, 96], "classes_path": "model_data/sample_classes.txt"}
CONSTANTS |= {"Freeze_Epoch": 1, "UnFreeze_Epoch": 2, "Freeze_batch_size": 3, "Unfreeze_batch_size": 2, "accumulate": 2}
CONSTANTS |= {"mosaic_prob": 0.9, "mixup_prob": 0.3, "special_aug_ratio": 0.5, "flip_prob": 0.4, "aspect_jitter": 0.2}
CONSTANTS |= {"scale_range": [0.7, 1.2], "colour_jitter": [0.01, 0.6, 0.5]}
CONSTANTS |= {"multi_scale_range": [0.6, 1.4], "multi_scale_period": 3}
CONSTANTS |= {"iou_type": "siou", "label_smoothing": 0.02, "focal_loss": True, "focal_alpha": 0.3, "focal_gamma": 1.5}
CONSTANTS |= {"cache": "ram"}
CONSTANTS |= {"ignore_iou": 0.6, "map_weights": [2.0, 0.5]}
CONSTANTS |= {"optimizer_type": "sgd", "Init_lr": 3.2e-2, "momentum": 0.8, "weight_decay": 3e-4}
CONSTANTS |= {"lr_decay_type": "plateau", "lr_scale": {"neck": 0.5}}
CONSTANTS |= {"freeze_blocks": 1, "clip_grad_norm": 7.0, "clip_norm_type": 3.0}
CONSTANTS |= {"save_minutes": 21.0, "keep_checkpoints": 6, "worker_timeout": 77}


class SeenBatches:
    """A loader that remembers the shapes of its images."""

    def __init__(self, loader):
        self.loader, self.shapes = loader, []

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            self.shapes.append(tuple(batch.images.shape))
            yield batch


def written_down(calls, monkeypatch, owner, name, change=None, stand_in=None):
    """Let a function, or a class, write its arguments into calls[name]. change: arguments -> those it really gets."""
    real = getattr(owner, name)

    def recording(*args, **kwargs):
        bound = inspect.signature(real).bind(*args, **kwargs)
        bound.apply_defaults()
        calls.setdefault(name, []).append(SimpleNamespace(**bound.arguments))
        bound.arguments.update(change(calls[name][-1]) if change else {})
        return (stand_in or real)(*bound.args, **bound.kwargs)

    monkeypatch.setattr(owner, name, recording)


def watch_epoch(call):
    call.use_l1, call.loader = call.criterion.use_l1, SeenBatches(call.loader)
    return {"loader": call.loader}


def watch_evaluation(call):
    call.use_l1 = call.criterion.use_l1
    return {}


@pytest.fixture(scope="module")
def constants(tmp_path_factory):
    """CONSTANTS, with six images to learn from and one to judge by, and weights to start from."""
    folder = tmp_path_factory.mktemp("wiring")
    lines = [f"{PROJECT}/VOCdevkit/Sample/JPEGImages/000{number}.jpg 20,30,120,140,0\n" for number in range(150, 157)]
    (folder / "train.txt").write_text("".join(lines[:6]))
    (folder / "val.txt").write_text(lines[6])
    torch.manual_seed(0)
    model, rule = build_model("yolov4_tiny", 3), {"mode": "topleft", "pad": 114}
    save_weights(folder / "start.pth", model, make_contract(model, CLASSES, (64, 96), rule))
    return (
        script_constants(vars(train))
        | CONSTANTS
        | {f"{split}_annotation_path": str(folder / f"{split}.txt") for split in ("train", "val")}
        | {"classes_path": str(PROJECT / CONSTANTS["classes_path"]), "model_path": str(folder / "start.pth")}
        | {"save_dir": str(folder / "logs")}
    )


@pytest.fixture(scope="module")
def training(constants):
    """A frozen and an unfrozen epoch: who got what, as {name: calls in their order}, and the folder of the run."""
    calls, no_processes, asked_for = {}, {"num_workers": 0}, set()

    class Settings(SimpleNamespace):
        def __getattribute__(self, name):
            asked_for.add(name)
            return super().__getattribute__(name)

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("build_criterion", "Stepper", "parameter_groups", "build_optimizer", "Keeper"):
            written_down(calls, monkeypatch, train, name)
        for name in ("build_train_loader", "build_val_loader"):
            written_down(calls, monkeypatch, train, name, lambda call: no_processes)
        written_down(calls, monkeypatch, train, "train_one_epoch", watch_epoch)
        written_down(calls, monkeypatch, train, "evaluate", watch_evaluation)
        written_down(calls, monkeypatch, train, "compile_if_faster", stand_in=lambda model, *_: model)
        written_down(calls, monkeypatch, processes, "with_sync_bn")
        written_down(calls, monkeypatch, run_logger, "WeightFiles")
        folder, _ = train.main(Settings(**vars(check_training(constants))))
    return SimpleNamespace(**calls, folder=folder, asked_for=asked_for)


def test_every_constant_is_read(training, constants):
    """Prevents a constant that nothing looks at; `pretrained` is out of the question where model_path names weights."""
    assert set(constants) - training.asked_for == {"pretrained"}


def test_the_loss_gets_its_block(training):
    """Prevents two constants of the loss that change places, or one that is forgotten."""
    expected = LossOptions(
        iou_type="siou",
        label_smoothing=0.02,
        focal_loss=True,
        focal_alpha=0.3,
        focal_gamma=1.5,
        ignore_iou=0.6,
        map_weights=(2.0, 0.5),
    )
    (call,) = training.build_criterion
    assert call.options == expected
    judges = [epoch.criterion for epoch in (*training.train_one_epoch, *training.evaluate)]
    assert len(judges) == 4 and all(criterion.options == expected for criterion in judges)


def test_l1_comes_when_mosaic_ends_and_not_in_validation(training):
    """Prevents the term for the last epochs from joining too early, and validation losses that do not compare."""
    assert [epoch.use_l1 for epoch in training.train_one_epoch] == [False, True]
    assert [evaluation.use_l1 for evaluation in training.evaluate] == [False, False]


def test_the_augmentation_gets_its_block(training):
    """Prevents probabilities and gains that change places; half of two epochs are augmented."""
    (call,) = training.build_train_loader
    assert call.settings == AugmentSettings(
        augment_epochs=1,
        mosaic=True,
        mosaic_prob=0.9,
        mixup=False,
        mixup_prob=0.3,
        scale_range=(0.7, 1.2),
        aspect_jitter=0.2,
        flip_prob=0.4,
        hue_gain=0.01,
        saturation_gain=0.6,
        value_gain=0.5,
    )


def test_the_loaders_get_theirs(training):
    """Prevents other images, sizes, seeds or workers than the constants say; 0.6 to 1.4 times 96 hold 64, 96, 128."""
    (call,), (val,) = training.build_train_loader, training.build_val_loader
    assert call.shapes == TrainShapes([(64, 96), (32, 64), (96, 128)], 3, 1)
    assert (len(call.records), call.seed, call.batch_size, call.num_workers) == (6, 5, 3, 3)
    assert (call.rank, call.world_size, call.pin_memory) == (0, 1, False)
    # 224 x 224 and 288 x 224 pixels at most fit into 96 x 128.
    assert isinstance(call.load_image, RamCache) and call.load_image(0).shape[0] <= 96
    assert (len(val.records), val.input_shape, val.rule["mode"]) == (1, (64, 96), "topleft")
    assert (val.batch_size, val.num_workers, val.pin_memory) == (4, 2, False)
    assert (call.worker_timeout, val.worker_timeout) == (77, 77)


def test_each_phase_has_its_batches(training):
    """Prevents a phase with the batch size of the other, and accumulate in one of them alone: six images make two
    batches of 3, of a size that multi_scale draws, then three of 2."""
    assert [epoch.accumulate for epoch in training.train_one_epoch] == [2, 2]
    frozen, unfrozen = (epoch.loader.shapes for epoch in training.train_one_epoch)
    drawn = TrainShapes([(64, 96), (32, 64), (96, 128)], 3, 1).at(0, 0, 5)
    assert frozen == [(3, 3, *drawn)] * 2
    assert unfrozen == [(2, 3, 64, 96)] * 3


def test_each_phase_is_compiled_once(training):
    """Prevents a network that is compiled for the batches of the other phase, for (width, height), or not at all."""
    assert [call.shape for call in training.compile_if_faster] == [(3, 3, 64, 96), (2, 3, 64, 96)]
    (stepper,) = training.Stepper
    assert all(call.model is call.stepper.model is stepper.model for call in training.compile_if_faster)


def test_the_step_gets_its_constants(training):
    """Prevents clipping, average, momentum and decay without effect."""
    (stepper,), (made,) = training.Stepper, training.build_optimizer
    assert (stepper.clip_grad_norm, stepper.clip_norm_type) == (7.0, 3.0)
    assert (stepper.precision.dtype, stepper.device) == (torch.float32, CPU)
    assert (made.optimizer_type, made.momentum) == ("sgd", 0.8)
    groups = stepper.optimizer.param_groups
    assert {(group["momentum"], group["factor"], group["weight_decay"]) for group in groups} == {
        (0.8, factor, decay) for factor in (0.5, 1.0) for decay in (3e-4, 0.0)
    }
    assert [(call.weight_decay, call.joined) for call in training.parameter_groups] == [(3e-4, 0), (3e-4, 0), (3e-4, 1)]
    assert [call.model is stepper.ema.model for call in training.evaluate] == [True, True]


def test_the_optimiser_has_all_but_the_frozen_block(training):
    """Prevents layers that stay behind at the unfreeze epoch, and freeze_blocks without effect; the backbone joins in
    epoch 1."""
    (stepper,) = training.Stepper
    joined = {id(p): group["joined"] for group in stepper.optimizer.param_groups for p in group["params"]}
    found = {name: joined.get(id(parameter)) for name, parameter in stepper.model.named_parameters()}
    frozen = {"backbone.conv1.conv.weight", "backbone.conv1.bn.weight", "backbone.conv1.bn.bias"}
    assert {name for name, epoch in found.items() if epoch is None} == frozen
    assert {name for name, epoch in found.items() if epoch == 1} == {
        name for name in found if name.startswith("backbone.") and name not in frozen
    }


def test_rates_follow_the_batches_of_the_phases(training):
    """Prevents a rate that forgets accumulate or the phase: 3.2e-2 * 6 / 64, then 3.2e-2 * 4 / 64."""
    with open(training.folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], float(row["lr"])) for row in rows] == [
        ("frozen", pytest.approx(3e-3)),
        ("unfrozen", pytest.approx(2e-3)),
    ]


def test_evaluation_and_files_get_theirs(training, constants):
    """Prevents eval_period and save_period that change places, and sync_bn that nobody asks."""
    assert [call.scored for call in training.evaluate] == [False, True]
    (files,), (sync,) = training.WeightFiles, training.with_sync_bn
    assert files.save_period == 4 and str(files.folder).startswith(constants["save_dir"])
    assert files.keep_checkpoints == 6
    assert sync.sync_bn is True


def test_the_checkpoint_gets_its_settings(training, constants):
    """Prevents save_minutes without effect, and a checkpoint that cannot tell the command line from train.py."""
    (keeper,) = training.Keeper
    assert (keeper.settings.save_minutes, keeper.order) == (21.0, [5, 6])
    of_file = script_constants(vars(train))
    assert {name: keeper.constants[name] for name in constants} == of_file and of_file["save_minutes"] != 21.0
    content = read_checkpoint(training.folder / "last_checkpoint.pth")
    assert content["run"]["settings"] == constants
    assert (content["run"]["epoch"], content["run"]["images"], content["run"]["is_over"]) == (2, 0, True)
    (stepper,) = training.Stepper
    assert all(torch.equal(value, content["model"][key]) for key, value in stepper.model.state_dict().items())


def place_that_says(lines):
    return Place(CPU, Ranks(), Precision(torch.float32, False, ""), lines.append)


@pytest.mark.parametrize(
    ("file", "masks", "note"),
    [
        ("own", [], "note: no map has anchors [0] of {path}: see anchors_mask"),
        ("own", [[3, 4, 5], [0, 1, 2]], ""),
        ("", [], ""),  # the network's own anchors, of which it has always left out the first
    ],
)
def test_anchors_that_no_map_has_are_said(constants, tmp_path, file, masks, note):
    """Prevents one of the user's anchors from being left out without a word."""
    path, lines = tmp_path / "own.txt", []
    path.write_text("5,7 9,11 14,17 20,20 34,42 60,58\n")
    changes = {"anchors_path": str(path) if file else "", "anchors_mask": masks, "model_path": ""}
    train.make_model(SimpleNamespace(**constants | changes), CLASSES, place_that_says(lines), None)
    assert [line for line in lines if "no map" in line] == ([note.format(path=path)] if note else [])


@pytest.mark.parametrize(
    ("changes", "shapes", "lines"),
    [
        ({"multi_scale": False}, [(64, 96)], []),
        ({}, [(64, 96), (32, 64), (96, 128)], ["input sizes: 32x64, 64x96, 96x128"]),
        (
            {"multi_scale_range": [0.9, 1.1]},
            [(64, 96)],
            [
                "note: multi_scale is True, but multi_scale_range holds no other multiple of 32: widen it.",
                "input sizes: 64x96",
            ],
        ),
    ],
)
def test_the_sizes_of_multi_scale_are_said(constants, changes, shapes, lines):
    """Prevents multi_scale that changes nothing, and says so nowhere."""
    settings, said = SimpleNamespace(**constants | changes), []
    assert train.train_shapes(settings, train.augmentation(settings), said.append).shapes == shapes
    assert said == lines


@pytest.mark.parametrize(("keep_difficult", "expected"), [(True, [0, 1, 2]), (False, [0, 2])])
def test_difficult_boxes_follow_their_constant(constants, keep_difficult, expected):
    """Prevents boxes that nobody can make out, and crowds, from being learned against the user's will, or lost."""
    records = Records(["a.jpg"], [(9, 9)], [3], [[0, 0, 5, 5]] * 3, [0, 1, 2], [False, True, False])
    settings = SimpleNamespace(**constants | {"keep_difficult": keep_difficult})
    assert train.chosen_boxes(records, settings).classes.tolist() == expected


def test_a_cache_that_does_not_fit_is_done_without(constants, monkeypatch):
    """Prevents a training that ends where it could go on without the cache, or that drops it without a word."""
    said = []
    monkeypatch.setattr(train, "cache_fits", lambda records, scales, shared, copies: (False, f"{shared} {copies}"))
    settings, place = SimpleNamespace(**constants), SimpleNamespace(say=said.append, device=CPU, ranks=Ranks())
    records = Records(["a.jpg"], [(9, 9)], [0], [], [])
    shapes = TrainShapes([(64, 96)])
    assert train.images_in_memory(settings, records, train.augmentation(settings), shapes, 3, place) is None
    settings.cache = ""
    assert train.images_in_memory(settings, records, train.augmentation(settings), shapes, 3, place) is None
    assert said == ["True 1"]


def test_constants_of_other_networks_are_refused_before_an_image_is_read(constants, monkeypatch):
    """Prevents map_weights with YOLOX from being ignored, or from being found after the first epochs."""
    monkeypatch.setattr(train, "build_train_loader", None)
    changes = {"model_name": "yolox_nano", "model_path": "", "multi_scale": False}
    with pytest.raises(ValueError, match=r"^map_weights concerns networks with anchors, and yolox_nano has none"):
        train.main(check_training(constants | changes))
