"""What train.py makes of its constants: each arrives where it acts. A single training, which writes down who gets what,
answers nearly all of it."""

import csv
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from voc_folder import box_xml, make_voc

import train
from nets import build_model
from nets.losses import LossOptions
from utils.checkpoint.resume import read_checkpoint
from utils.config.constants import read_constants
from utils.config.rules import check_training
from utils.data.annotations import Annotations
from utils.data.augment import AugmentOptions
from utils.data.image_cache import ImageCache, RamCache
from utils.data.loader import LoaderOptions
from utils.data.sampling import MultiScale
from utils.io.errors import UserError
from utils.reporting import run_logger
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training import build, caches, phases
from utils.training.dataset import TrainingData, load_dataset
from utils.weights.metadata import make_metadata
from utils.weights.save import save_weights

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TOP_LEFT = {"mode": "topleft", "pad": 114}
RUNTIME = RuntimeContext(CPU, DistInfo(), Precision(torch.float32, False, ""))
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
CONSTANTS |= {"cache": "ram", "copy_paste": 0.15}
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
    call.criterion, call.accumulate = call.optim.criterion, call.optim.accumulate
    call.loader = SeenBatches(call.loader)
    return {"loader": call.loader}


@pytest.fixture(scope="module")
def constants(tmp_path_factory):
    """CONSTANTS, with six images to learn from and one to judge by, and weights to start from."""
    folder = tmp_path_factory.mktemp("wiring")
    lines = [f"{PROJECT}/VOCdevkit/Sample/JPEGImages/000{number}.jpg 20,30,120,140,0\n" for number in range(150, 157)]
    (folder / "train.txt").write_text("".join(lines[:6]))
    (folder / "val.txt").write_text(lines[6])
    torch.manual_seed(0)
    model, rule = build_model("yolov4_tiny", 3), {"mode": "topleft", "pad": 114}
    save_weights(folder / "start.pth", model, make_metadata(model, CLASSES, (64, 96), rule))
    return (
        read_constants(vars(train))
        | CONSTANTS
        | {f"{split}_annotation_path": str(folder / f"{split}.txt") for split in ("train", "val")}
        | {"classes_path": str(PROJECT / CONSTANTS["classes_path"]), "model_path": str(folder / "start.pth")}
        | {"save_dir": str(folder / "logs")}
    )


@pytest.fixture(scope="module")
def training(constants):
    """A frozen and an unfrozen epoch: who got what, as {name: calls in their order}, and the folder of the run; has_l1:
    of each batch that the criterion judged, whether YOLOX would have added L1."""
    calls, asked_for = {}, set()

    def no_processes(call):
        return {"options": call.options._replace(num_workers=0)}

    class Settings(SimpleNamespace):
        def __getattribute__(self, name):
            asked_for.add(name)
            return super().__getattribute__(name)

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("build_criterion", "OptimWrapper", "parameter_groups", "build_optimizer", "convert_sync_bn"):
            written_down(calls, monkeypatch, build, name)
        written_down(calls, monkeypatch, phases, "parameter_groups")
        written_down(calls, monkeypatch, train, "Checkpointer")
        for name in ("build_train_loader", "build_val_loader"):
            written_down(calls, monkeypatch, build, name, no_processes)
        written_down(calls, monkeypatch, train, "train_one_epoch", watch_epoch)
        written_down(calls, monkeypatch, train, "evaluate")
        written_down(calls, monkeypatch, phases, "compile_network", stand_in=lambda network, *_: network)
        written_down(calls, monkeypatch, run_logger, "WeightSaver")
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


def test_the_augmentation_gets_its_block(training):
    """Prevents probabilities and gains that change places; half of two epochs are augmented."""
    (call,) = training.build_train_loader
    assert call.augment == AugmentOptions(
        augment_epochs=1,
        mosaic=True,
        mosaic_prob=0.9,
        mixup=False,
        mixup_prob=0.3,
        copy_paste=0.15,
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
    assert call.multi_scale == MultiScale([(64, 96), (32, 64), (96, 128)], 3, 1)
    assert (len(call.annotations), call.seed, call.batch_size) == (6, 5, 3)
    assert call.options == LoaderOptions(num_workers=3, pin_memory=False, timeout=77, rank=0, world_size=1)
    # 224 x 224 and 288 x 224 pixels at most fit into 96 x 128.
    assert isinstance(call.load_image, RamCache) and call.load_image(0).shape[0] <= 96
    assert (len(val.annotations), val.input_shape, val.rule["mode"]) == (1, (64, 96), "topleft")
    assert val.batch_size == 4
    assert val.options == LoaderOptions(num_workers=2, pin_memory=False, timeout=77, rank=0, world_size=1)


def test_each_phase_has_its_batches(training):
    """Prevents a phase with the batch size of the other, and accumulate in one of them alone: six images make two
    batches of 3, of a size that multi_scale draws, then three of 2."""
    assert [epoch.accumulate for epoch in training.train_one_epoch] == [2, 2]
    frozen, unfrozen = (epoch.loader.shapes for epoch in training.train_one_epoch)
    drawn = MultiScale([(64, 96), (32, 64), (96, 128)], 3, 1).at(0, 0, 5)
    assert frozen == [(3, 3, *drawn)] * 2
    assert unfrozen == [(2, 3, 64, 96)] * 3


def test_each_phase_is_compiled_once(training):
    """Prevents a network that is compiled for the batches of the other phase, for (width, height), or not at all."""
    assert [call.shape for call in training.compile_network] == [(3, 3, 64, 96), (2, 3, 64, 96)]
    (optim,) = training.OptimWrapper
    assert all(call.network.network is call.optim.model is optim.model for call in training.compile_network)


def test_the_step_gets_its_constants(training):
    """Prevents clipping, average, momentum and decay without effect."""
    (optim,), (made,) = training.OptimWrapper, training.build_optimizer
    assert (optim.clip_grad_norm, optim.clip_norm_type) == (7.0, 3.0)
    assert (optim.runtime.precision.dtype, optim.runtime.device) == (torch.float32, CPU)
    assert (made.optimizer_type, made.momentum) == ("sgd", 0.8)
    groups = optim.optimizer.param_groups
    assert {(group["momentum"], group["lr_scale"], group["weight_decay"]) for group in groups} == {
        (0.8, lr_scale, decay) for lr_scale in (0.5, 1.0) for decay in (3e-4, 0.0)
    }
    found = [(call.weight_decay, call.start_epoch) for call in training.parameter_groups]
    assert found == [(3e-4, 0), (3e-4, 0), (3e-4, 1)]
    assert [call.model is optim.ema.model for call in training.evaluate] == [True, True]


def test_the_optimiser_has_all_but_the_frozen_block(training):
    """Prevents layers that stay behind at the unfreeze epoch, and freeze_blocks without effect; the backbone begins
    in epoch 1."""
    (optim,) = training.OptimWrapper
    begins = {id(p): group["start_epoch"] for group in optim.optimizer.param_groups for p in group["params"]}
    found = {name: begins.get(id(parameter)) for name, parameter in optim.model.named_parameters()}
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
    (saver,), (sync,) = training.WeightSaver, training.convert_sync_bn
    assert saver.save_period == 4 and str(saver.folder).startswith(constants["save_dir"])
    assert saver.keep_checkpoints == 6
    assert sync.sync_bn is True


def test_the_checkpoint_gets_its_settings(training, constants):
    """Prevents save_minutes without effect, and a checkpoint that cannot tell the command line from train.py."""
    (checkpointer,) = training.Checkpointer
    assert (checkpointer.settings.save_minutes, checkpointer.order) == (21.0, [5, 6, 0])
    of_file = read_constants(vars(train))
    assert {name: checkpointer.constants[name] for name in constants} == of_file and of_file["save_minutes"] != 21.0
    content = read_checkpoint(training.folder / "last_checkpoint.pth")
    assert content["run"]["settings"] == constants
    assert (content["run"]["epoch"], content["run"]["images"], content["run"]["is_over"]) == (2, 0, True)
    (optim,) = training.OptimWrapper
    assert all(torch.equal(value, content["model"][key]) for key, value in optim.model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "masks", "note"),
    [
        ("own", [], "note: no map has anchors [0] of {path}: see anchors_mask"),
        ("own", [[3, 4, 5], [0, 1, 2]], ""),
        ("", [], ""),  # the network's own anchors, of which it has always left out the first
    ],
)
def test_anchors_that_no_map_has_are_said(constants, tmp_path, capsys, file, masks, note):
    """Prevents one of the user's anchors from being left out without a word."""
    path = tmp_path / "own.txt"
    path.write_text("5,7 9,11 14,17 20,20 34,42 60,58\n")
    changes = {"anchors_path": str(path) if file else "", "anchors_mask": masks, "model_path": ""}
    build.build_detector(SimpleNamespace(**constants | changes), CLASSES, RUNTIME)
    lines = capsys.readouterr().out.splitlines()
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
def test_the_sizes_of_multi_scale_are_said(constants, capsys, changes, shapes, lines):
    """Prevents multi_scale that changes nothing, and says so nowhere."""
    assert build.build_multi_scale(SimpleNamespace(**constants | changes)).shapes == shapes
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(("keep_difficult", "learned"), [(True, [0, 1, 2]), (False, [0, 2])])
def test_difficult_boxes_follow_their_constant(constants, tmp_path, keep_difficult, learned):
    """Prevents boxes that nobody can make out, and crowds, from being learned against the user's will, or lost; scores
    look at all of them."""
    boxes = [box_xml(name, (1, 1, 30, 30 + number), number == 1) for number, name in enumerate(CLASSES)]
    path = make_voc(tmp_path, {"a": boxes})
    paths = dict.fromkeys(("train_annotation_path", "val_annotation_path"), path)
    settings = SimpleNamespace(**constants | paths | {"keep_difficult": keep_difficult, "cache": "", "num_workers": 0})
    data = load_dataset(settings)
    _, val_loader = build.build_loaders(settings, data, RUNTIME, TOP_LEFT)
    assert data.train.classes.tolist() == val_loader.dataset.annotations.classes.tolist() == learned
    assert (data.val.classes.tolist(), data.val.difficult.tolist()) == ([0, 1, 2], [False, True, False])


@pytest.mark.parametrize("cache", ["ram", ""])
def test_a_cache_that_does_not_fit_is_done_without(constants, monkeypatch, capsys, cache):
    """Prevents a training that ends where it could go on without the cache, or that drops it without a word."""
    asked_for = []

    def fits(annotations, scales, shared, copies):
        asked_for.append((shared, copies))
        return False, "it does not fit"

    monkeypatch.setattr(caches, "cache_fits", fits)
    settings = SimpleNamespace(**constants | {"cache": cache, "num_workers": 2})
    annotations = Annotations(["a.jpg"], [(9, 9)], [0], [], [])
    train_loader, _ = build.build_loaders(
        settings, TrainingData(CLASSES, annotations, annotations, []), RUNTIME, TOP_LEFT
    )
    assert isinstance(train_loader.dataset.load_image.load_image, ImageCache)
    assert asked_for == ([(True, 1)] if cache else [])
    assert ("note: it does not fit\n" in capsys.readouterr().out) == bool(cache)


def test_a_batch_that_ranks_cannot_share_is_refused_by_its_constant(constants):
    """Prevents a sentence that names no constant, from the loader, which meets such a batch first."""
    annotations = Annotations(["a.jpg"], [(9, 9)], [0], [], [])
    data, two = TrainingData(CLASSES, annotations, annotations, []), RUNTIME._replace(dist=DistInfo(0, 0, 2))
    with pytest.raises(UserError, match=r"^Freeze_batch_size is 3, which 2 processes cannot share evenly; set it to 2"):
        build.build_loaders(SimpleNamespace(**constants | {"cache": ""}), data, two, TOP_LEFT)


def test_constants_of_other_networks_are_refused_before_an_image_is_read(constants, monkeypatch):
    """Prevents map_weights with YOLOX from being ignored, or from being found after the first epochs."""
    monkeypatch.setattr(build, "build_train_loader", None)
    changes = {"model_name": "yolox_nano", "model_path": "", "multi_scale": False}
    with pytest.raises(ValueError, match=r"^map_weights concerns networks with anchors, and yolox_nano has none"):
        train.main(check_training(constants | changes))
