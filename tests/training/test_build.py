from types import SimpleNamespace

import pytest
import torch
from voc_folder import box_xml, make_voc

import train
from nets import build_criterion, build_model
from utils.config.cli import read_constants
from utils.config.optimizers import fill_in
from utils.data.annotations import Annotations
from utils.io.errors import MissingFileError, UserError
from utils.runtime.device import Precision, RuntimeContext
from utils.runtime.distributed import DistInfo
from utils.training import build, caches
from utils.training.phases import Phase, build_phases
from utils.weights.metadata import make_metadata, warn_weights_differ
from utils.weights.save import save_weights

RUNTIME = RuntimeContext(torch.device("cpu"), DistInfo(), Precision(torch.float32, False, ""))
NAMES = ["cat", "dog"]
TOP_LEFT = {"mode": "topleft", "pad": 114}
CAT, DOG = box_xml("cat", (10, 10, 60, 40)), box_xml("dog", (30, 5, 90, 45))
CROWD = box_xml("dog", (20, 20, 70, 45), difficult=1)


def settings_of(**changes):
    small = {"input_shape": [64, 64], "num_workers": 0, "classes_path": ""}
    return SimpleNamespace(**fill_in(read_constants(vars(train)) | small | changes))


@pytest.fixture
def data_settings(tmp_path):
    """A function: settings of a tiny VOC folder with these images, {id: objects}, to train and to validate on."""

    def made(train_images, val_images=None, names=NAMES, **changes):
        (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        paths = {
            "train_annotation_path": make_voc(tmp_path / "train", train_images),
            "val_annotation_path": make_voc(tmp_path / "val", val_images or {"v": [CAT, DOG]}),
        }
        return settings_of(**paths, **{"classes_path": str(tmp_path / "classes.txt")} | changes)

    return made


def save(path, model, **about):
    names = [f"class {number}" for number in range(model.num_classes)]
    save_weights(path, model, make_metadata(model, names, (64, 64), TOP_LEFT, **about))
    return str(path)


def test_the_data_are_counted_and_what_is_wrong_with_them_is_said(data_settings, capsys):
    """Prevents a training on half of the data, or on data that harm it, without a word before the time is spent."""
    settings = data_settings({"a": [CAT, DOG], "b": [], "c": [CROWD, CAT]})
    data = build.load_dataset(settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{settings.train_annotation_path}: 3 images, 4 boxes, 2 classes"
    assert lines[1] == f"{settings.val_annotation_path}: 1 images, 2 boxes, 2 classes"
    assert lines[3] == "In the data, the worst first (python tools/check_data.py looks deeper):"
    assert any(line.startswith("info         1  image without boxes") for line in lines)
    assert {finding.kind for finding in data.findings} == {"rare_class", "background", "difficult_box"}
    assert (data.class_names, len(data.train), len(data.val)) == (NAMES, 3, 1)


@pytest.mark.parametrize(("keep_difficult", "learned"), [(False, 3), (True, 4)])
def test_difficult_boxes_are_learned_where_that_is_wanted(data_settings, keep_difficult, learned):
    """Prevents keep_difficult without effect on what is trained; scores look at all boxes, and ignore these."""
    images = {"a": [CAT, DOG], "c": [CROWD, CAT]}
    data = build.load_dataset(data_settings(images, images, keep_difficult=keep_difficult))
    assert (len(data.train.boxes_xyxy), len(data.val.boxes_xyxy)) == (learned, 4)
    _, val_loader = build.build_loaders(settings_of(keep_difficult=keep_difficult), data, RUNTIME, TOP_LEFT)
    assert len(val_loader.dataset.annotations.boxes_xyxy) == learned  # whose loss is that of the training


def test_sources_are_weighed(data_settings, tmp_path, capsys):
    """Prevents source_weights without effect on what is drawn, also where images are cut into tiles, and a training
    that does not say how much of each source it will see."""
    second = make_voc(tmp_path / "more", {"c": [CAT]})
    settings = data_settings({"a": [CAT, DOG], "b": [DOG]})
    settings.train_annotation_path, settings.source_weights = [settings.train_annotation_path, second], [1, 4]
    for tile, repeats in ((0, [1, 1, 4]), (48, [1] * 14 + [4] * 7)):
        settings.tile = tile
        data = build.load_dataset(settings)
        assert data.source_counts == (2, 1)
        train_loader, _ = build.build_loaders(settings, data, RUNTIME, TOP_LEFT)
        assert train_loader.batch_sampler.repeats.tolist() == repeats
    said = capsys.readouterr().out
    assert f"{second}: 1 images, 1 boxes, 2 classes\n" in said
    assert f"       2.0 from {second}, which has 1\n" in said
    settings.source_weights = []
    assert build.weighted_repeats(settings, data) is None


def test_without_classes_path_the_annotations_name_the_classes(data_settings):
    """Prevents a run that asks for a file of names which its annotations hold."""
    assert build.load_dataset(data_settings({"a": [DOG, CAT]}, classes_path="")).class_names == NAMES


@pytest.mark.parametrize(
    ("images", "names", "sentence"),
    [
        (
            {"a": [CAT]},
            ["cow"],
            "box of a class that classes_path lacks (once): 'cat' (once). classes_path names cow. ",
        ),
        ({"a": [], "b": []}, NAMES, "no boxes to learn from (once): 2 training images, no box. Check that the annot"),
        ({"a": ["<object>"]}, NAMES, "annotation cannot be read (once): "),
    ],
)
def test_data_that_cannot_be_trained_on(data_settings, images, names, sentence):
    """Prevents hours of training on nothing, or a trace, where the data are unusable."""
    settings = data_settings(images, names=names)
    with pytest.raises(UserError) as error:
        build.load_dataset(settings)
    assert str(error.value).startswith(f"{settings.train_annotation_path}: {sentence}")


def test_images_that_are_missing(data_settings, tmp_path):
    """Prevents a trace from the middle of the first epoch, and a missing image of the validation set from being found
    after it."""
    settings = data_settings({"a": [CAT, DOG]})
    image = tmp_path / "val/JPEGImages/v"
    image.with_suffix(".jpg").unlink()
    with pytest.raises(MissingFileError) as error:
        build.load_dataset(settings)
    assert str(error.value).startswith(f"{settings.val_annotation_path}: image does not exist (once): {image}")


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
        f"model_name is 'yolox_tiny', but {path} (yolox_nano, 2 classes, written by this project) holds weights of "
        "'yolox_nano': set model_name so, or model_path (or resume) to what fits."
    )
    with pytest.raises(UserError) as error:
        build.build_detector(settings_of(backbone="resnet18", model_path=path), NAMES, RUNTIME)
    assert str(error.value) == (
        f"backbone is 'resnet18', but {path} (yolox_nano, 2 classes, written by this project) holds weights of '': "
        "set backbone so, or model_path (or resume) to what fits."
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


@pytest.mark.parametrize(
    ("classes", "rows", "words"),
    [
        ([0, 0, 0, 1, 1, 2], [3, 4, 5], "copy_paste: boxes that may be pasted: fox 1, dog 2\n"),
        ([0, 1], None, "note: copy_paste is 0.5, but no class has fewer boxes than another: nothing is pasted.\n"),
    ],
)
def test_what_may_be_pasted_is_said(capsys, classes, rows, words):
    """Prevents copy_paste that pastes something else than people believe, or nothing, without a word."""
    paths, boxes = [f"{number}.jpg" for number in classes], [(0, 0, 9, 9)] * len(classes)
    annotations = Annotations(paths, [(50, 50)] * len(classes), [1] * len(classes), boxes, classes)
    data = SimpleNamespace(entries=annotations, class_names=["cat", "dog", "fox"])
    donors = build.pasted_boxes(settings_of(copy_paste=0.5), data)
    assert (donors and donors.rows.tolist()) == rows
    assert capsys.readouterr().out == words
    assert build.pasted_boxes(settings_of(copy_paste=0.0), data) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("fits", "note"), [(True, ""), (False, "note: ")])
def test_images_in_main_memory(data_settings, monkeypatch, capsys, fits, note):
    """Prevents a cache that fills all memory, or that is left out without a word."""
    settings = data_settings({"a": [CAT, DOG], "b": [CAT]}, cache="ram", Freeze_batch_size=2, Unfreeze_batch_size=2)
    data = build.load_dataset(settings)
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
    data = build.load_dataset(settings)
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
