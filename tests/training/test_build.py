from types import SimpleNamespace

import pytest
import torch

from nets import build_criterion, build_model
from tests.training.tiny_settings import CAT, DOG, NAMES, RUNTIME, TOP_LEFT, settings_of
from utils.io.errors import UserError
from utils.training import build, caches
from utils.training.dataset import load_dataset
from utils.training.phases import Phase, build_phases
from utils.weights.metadata import make_metadata, warn_weights_differ
from utils.weights.save import save_weights


def save(path, model, **about):
    names = [f"class {number}" for number in range(model.num_classes)]
    save_weights(path, model, make_metadata(model, names, (64, 64), TOP_LEFT, **about))
    return str(path)


def test_a_detector_from_scratch(capsys):
    """Prevents a network of other classes, or one in another memory format than its batches."""
    model = build.build_detector(settings_of(), NAMES, RUNTIME)
    assert (model.name, model.num_classes) == ("yolox_nano", 2)
    assert model.get_submodule("head.stems.0.conv").weight.is_contiguous(memory_format=torch.channels_last)
    assert capsys.readouterr().out == "yolox_nano from scratch\n"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_name": "yolox_nona"}, "model_name is 'yolox_nona'; expected one of "),
        ({"anchors_mask": [[0, 1], [2]]}, "yolox_nano has no anchors: set anchors_path = '' and anchors_mask = []."),
        ({"backbone": "resnet19"}, "backbone is 'resnet19'; expected '' for the network's own, or one of resnet18, "),
        ({"model_name": "yolov4_tiny", "anchors_mask": [[3, 4, 9], [0, 1, 2]]}, "anchors_mask"),
    ],
)
def test_constants_that_no_network_takes(changes, sentence):
    """Prevents a trace of Python in the place of a sentence: the networks know nothing of users."""
    with pytest.raises(UserError) as error:
        build.build_detector(settings_of(**changes), NAMES, RUNTIME)
    assert str(error.value).startswith(sentence) and error.value.exit_status == 1


def test_an_unknown_backbone_is_found_before_anything_is_fetched(monkeypatch):
    """Prevents a download for a network that cannot be built, and the words of torchvision about it."""
    monkeypatch.setattr(build, "read_pretrained", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match=r"^backbone is 'resnet19'; expected '' for the network's own"):
        build.find_start_weights(settings_of(backbone="resnet19", pretrained=True), RUNTIME)


def test_a_loss_that_the_constants_do_not_fit():
    """Prevents a trace where a constant of anchors is set for a network without them."""
    with pytest.raises(UserError, match=r"^map_weights concerns networks with anchors, and yolox_nano has none"):
        build.build_loss(settings_of(map_weights=[1.0, 2.0, 3.0]), build_model("yolox_nano", 2))


def test_weights_of_another_network_are_named(tmp_path):
    """Prevents weights whose tensors hardly fit from being loaded in part; the sentence says which constant to set."""
    path = save(tmp_path / "best.pth", build_model("yolox_nano", 2))
    with pytest.raises(UserError) as error:
        build.build_detector(settings_of(model_name="yolox_tiny", model_path=path), NAMES, RUNTIME)
    assert str(error.value) == (
        f"model_name is 'yolox_tiny', but {path} holds weights of 'yolox_nano': set model_name = 'yolox_nano', or "
        "model_path to weights of 'yolox_tiny'."
    )
    with pytest.raises(UserError) as error:
        build.build_detector(settings_of(backbone="resnet18", model_path=path), NAMES, RUNTIME)
    assert str(error.value) == (
        f"backbone is 'resnet18', but {path} holds weights of '': set backbone = '', or model_path to weights of "
        "'resnet18'."
    )


def test_what_is_said_of_weights_to_start_from(tmp_path, capsys):
    """Prevents a part that stays untrained without a word, and a new training where a run was meant to go on; classes
    of other names are new, and the layers that predict them are not whole."""
    path = save(tmp_path / "best.pth", build_model("yolox_nano", 2), epoch=7)
    settings = settings_of(model_path=path, freeze_layers=["head.cls_preds"])
    build.build_detector(settings, NAMES, RUNTIME)
    out = capsys.readouterr().out
    assert out.startswith(f"yolox_nano from {path}\n  yolox_nano, 2 classes, written by this project\n    part  ")
    assert "note: these weights have seen 7 epochs; this is a new training from them." in out
    assert "note: 6 tensors that start from no weights are frozen to the end and stay random (the first: head." in out


def test_anchors_that_no_map_has_are_said(tmp_path, capsys):
    """Prevents anchors of a file that nothing uses from looking used."""
    path = tmp_path / "anchors.txt"
    path.write_text("10,14, 23,27, 37,58, 81,82, 135,169, 344,319")
    changes = {"model_name": "yolov4_tiny", "anchors_path": str(path)}
    model = build.build_detector(settings_of(**changes), NAMES, RUNTIME)
    assert model.decode_rule["anchors"][0] == [10, 14]
    assert f"note: no map has anchors [0] of {path}: see anchors_mask" in capsys.readouterr().out


def test_what_a_step_moves_with():
    """Prevents an optimiser, an average or a clipping by other constants than those of train.py."""
    changes = {"optimizer_type": "adamw", "accumulate": 2, "clip_grad_norm": 10.0, "clip_norm_type": 1.0}
    settings, model = settings_of(**changes, lr_scale={"neck": 0.5}, momentum=0.9), build_model("yolox_nano", 2)
    criterion = build_criterion(model)
    optim = build.build_optim(settings, model, criterion, [Phase(True, 3, 5, 4)], RUNTIME, images=10)
    assert (optim.model, optim.criterion, optim.runtime, optim.accumulate) == (model, criterion, RUNTIME, 2)
    assert (optim.clip_grad_norm, optim.clip_norm_type) == (10.0, 1.0)
    assert isinstance(optim.optimizer, torch.optim.AdamW) and model.backbone_frozen
    assert [(group["lr_scale"], group["start_epoch"]) for group in optim.optimizer.param_groups] == [
        *((1.0, 3), (1.0, 3)),
        *((0.5, 3), (0.5, 3)),
    ]
    assert optim.ema.horizon == 1.0  # 5 % of two epochs of two steps are less
    settings.ema = False
    assert build.build_optim(settings, model, criterion, [Phase(False, 0, 5, 4)], RUNTIME, 10).ema is None


def test_the_sizes_of_batches(capsys):
    """Prevents multi_scale without effect, or one that nobody sees."""
    assert build.build_multi_scale(settings_of()).shapes == [(64, 64)]
    wide = settings_of(multi_scale=True, multi_scale_range=[0.5, 1.5], UnFreeze_Epoch=10, special_aug_ratio=0.5)
    multi_scale = build.build_multi_scale(wide)
    assert (sorted(multi_scale.shapes), multi_scale.last_epoch) == ([(32, 32), (64, 64), (96, 96)], 5)
    assert capsys.readouterr().out == "input sizes: 32x32, 64x64, 96x96\n"
    build.build_multi_scale(settings_of(multi_scale=True, multi_scale_range=[0.9, 1.1]))
    assert capsys.readouterr().out.startswith(
        "note: multi_scale is True, but multi_scale_range holds no other multiple"
    )


@pytest.mark.parametrize(("fits", "note"), [(True, ""), (False, "note: ")])
def test_images_in_main_memory(data_settings, monkeypatch, capsys, fits, note):
    """Prevents a cache that fills all memory, or that is left out without a word."""
    settings = data_settings({"a": [CAT, DOG], "b": [CAT]}, cache="ram", Freeze_batch_size=2, Unfreeze_batch_size=2)
    data = load_dataset(settings)
    capsys.readouterr()
    monkeypatch.setattr(caches, "cache_fits", lambda *_: (fits, "cache = 'ram' takes 1 MB"))
    train_loader, val_loader = build.build_loaders(settings, data, RUNTIME, TOP_LEFT)
    assert capsys.readouterr().out.startswith(f"{note}cache = 'ram' takes 1 MB\n")
    assert (type(train_loader.dataset.load_image.load_image).__name__ == "RamCache") is fits
    assert (train_loader.batch_sampler.batch_size, val_loader.batch_size) == (build_phases(settings)[0].batch_size, 4)
    assert len(next(iter(train_loader)).images) == 2


def a_schedule(epoch):
    return 1 / (epoch + 1)


def test_what_weight_files_of_a_run_say():
    """Prevents weights that are used with other classes, sizes or settings than they were trained with."""
    settings = settings_of(input_shape=[64, 96], seed=5, lr_decay_type=a_schedule)
    metadata = build.run_metadata(settings, build_model("yolox_nano", 2), NAMES)
    assert (metadata["class_names"], metadata["input_shape"]) == (NAMES, [64, 96])
    assert metadata["resize_rule"] == {"mode": "topleft", "pad": 114}
    assert (metadata["settings"]["seed"], metadata["settings"]["lr_decay_type"]) == (5, "a_schedule")


@pytest.mark.parametrize("mode", ["center", "stretch"])
def test_images_are_resized_as_the_weights_expect(data_settings, tmp_path, mode):
    """Prevents weights that were trained on centred or stretched images from being trained on, and validated on, others
    without a word."""
    model, rule = build_model("yolox_nano", 2), {"mode": mode, "pad": 7}
    save_weights(tmp_path / "start.pth", model, make_metadata(model, NAMES, (64, 96), rule))
    settings = data_settings({"a": [CAT, DOG]}, model_path=str(tmp_path / "start.pth"), special_aug_ratio=0)
    model = build.build_detector(settings, NAMES, RUNTIME)
    data = load_dataset(settings)
    train_loader, val_loader = build.build_loaders(settings, data, RUNTIME, model.resize_rule)
    assert (train_loader.dataset.options.rule, val_loader.dataset.rule) == (rule, rule)
    assert build.run_metadata(settings, model, NAMES)["resize_rule"] == rule


def network_with(decode_rule, decode_defaults=None):
    return SimpleNamespace(decode_rule=decode_rule, decode_defaults=decode_defaults)


def test_weights_that_have_been_trained_already_say_so(capsys):
    """Prevents a new training by mistake, and an optimiser and an average that begin anew unnoticed."""
    warn_weights_differ({"class_names": ["cat", "dog"], "epoch": 40}, 0, network_with({}))
    assert capsys.readouterr().out == (
        "note: these weights have seen 40 epochs; this is a new training from them. To go on with that one instead, "
        "exactly as if it had never stopped, set resume to the folder of its run.\n"
    )
    warn_weights_differ({"epoch": 40}, 40, network_with({}))
    assert capsys.readouterr().out == (
        "note: this goes on from the weights alone, at epoch 40: the optimiser and the average of the weights begin "
        "anew. resume = True (or the folder of the run) would continue exactly.\n"
    )
    warn_weights_differ({}, 0, network_with({}))
    assert capsys.readouterr().out == ""


def test_other_anchors_than_those_of_the_weights_are_named(capsys):
    """Prevents a training that starts with boxes of a wrong size without a word; 10 and 10.0 are the same anchor."""

    def said(metadata, decode_rule, decode_defaults):
        warn_weights_differ(metadata, 0, network_with(decode_rule, decode_defaults))
        return capsys.readouterr().out

    own = {"anchors": [[10, 14], [23, 27]], "anchors_mask": [[0, 1]]}
    other = own | {"anchors": [[10.0, 14.0], [23.0, 28.0]]}
    ours = {"model_name": "yolov4_tiny", "decode_rule": own}
    sentence = (
        "note: the weights were trained with other anchors than anchors_path and anchors_mask say; box sizes have to "
        "be learned anew. Leave both empty to keep those of the weights.\n"
    )
    assert said(ours, other, own) == sentence
    same = own | {"anchors": [[10.0, 14.0], [23.0, 27.0]]}
    assert said(ours, same, own) == ""
    # A foreign file knows its scale of centres at most; its anchors are taken for the usual ones.
    flat = {"model_name": "yolov4_tiny", "decode_rule": {"scale_x_y": [1.0]}}
    assert said(flat, own | {"scale_x_y": [1.0]}, own | {"scale_x_y": [1.05]}) == ""
    assert said(flat, other | {"scale_x_y": [1.0]}, own) == sentence
    assert said({"pixel_rule": {}}, other, own) == ""  # a backbone alone has no anchors
