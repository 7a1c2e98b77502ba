from types import SimpleNamespace

import pytest
from voc_folder import box_xml, make_voc

from tests.training.tiny_settings import CAT, CROWD, DOG, NAMES, RUNTIME, TOP_LEFT, settings_of
from utils.data.annotations import Annotations
from utils.data.sources import SAMPLE
from utils.io.errors import MissingFileError, UserError
from utils.training import build
from utils.training.dataset import load_dataset, pasted_boxes


def test_the_data_are_counted_and_what_is_wrong_with_them_is_said(data_settings, capsys):
    """Prevents a training on half of the data, or on data that harm it, without a word before the time is spent."""
    settings = data_settings({"a": [CAT, DOG], "b": [], "c": [CROWD, CAT]})
    data = load_dataset(settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{settings.train_annotation_path}: 3 images, 4 boxes, 2 classes"
    assert lines[1] == f"{settings.val_annotation_path}: 1 image, 2 boxes, 2 classes"
    assert lines[3].startswith("In the data, the worst first (python tools/check_data.py --train_annotation_path=")
    assert f" --val_annotation_path={settings.val_annotation_path} " in lines[3] and " looks deeper):" in lines[3]
    assert any(line.startswith("info         1  image without boxes") for line in lines)
    assert {finding.kind for finding in data.findings} == {"rare_class", "background", "difficult_box"}
    assert (data.class_names, len(data.train), len(data.val)) == (NAMES, 3, 1)


@pytest.mark.parametrize(("keep_difficult", "learned"), [(False, 3), (True, 4)])
def test_difficult_boxes_are_learned_where_that_is_wanted(data_settings, keep_difficult, learned):
    """Prevents keep_difficult without effect on what is trained; scores look at all boxes, and ignore these."""
    images = {"a": [CAT, DOG], "c": [CROWD, CAT]}
    data = load_dataset(data_settings(images, images, keep_difficult=keep_difficult))
    assert (len(data.train.boxes_xyxy), len(data.val.boxes_xyxy)) == (learned, 4)
    _, val_loader = build.build_loaders(settings_of(keep_difficult=keep_difficult), data, RUNTIME, TOP_LEFT)
    assert len(val_loader.dataset.annotations.boxes_xyxy) == learned  # whose loss is that of the training


def test_sources_are_weighed(data_settings, tmp_path, capsys):
    """Prevents source_weights without effect on what is drawn, also where images are cut into tiles, and a training
    that does not say how much of each source it will see."""
    second = make_voc(tmp_path / "more", {"c": [CAT]})
    settings = data_settings({"a": [CAT, DOG], "b": [DOG]})
    settings.train_annotation_path, settings.source_weights = [settings.train_annotation_path, second], [1, 4]
    for tile, repeats in ((0, [0.5, 0.5, 2]), (48, [0.5] * 14 + [2] * 7)):
        settings.tile, settings.tile_empty = tile, 1
        data = load_dataset(settings)
        train_loader, _ = build.build_loaders(settings, data, RUNTIME, TOP_LEFT)
        assert train_loader.batch_sampler.repeats.tolist() == data.repeats.tolist() == repeats
    said = capsys.readouterr().out
    assert f"{second}: 1 image, 1 box, 2 classes\n" in said
    assert f"       2.0 from {second}, which has 1\n" in said
    settings.source_weights = []
    assert load_dataset(settings).repeats is None


@pytest.mark.parametrize(
    ("share", "drawn", "words"),
    [
        (0.5, 2, ", of which each epoch draws 2"),
        (0.25, 1, ", of which each epoch draws 1"),
        (0, 0, ", of which each epoch draws 0"),
        (1, 12, ""),
    ],
)
def test_tiles_without_objects_are_a_share_of_the_epoch(data_settings, capsys, share, drawn, words):
    """Prevents epochs of which nearly all tiles show nothing; the object lies in the whole image and in one tile."""
    settings = data_settings({"a": [box_xml("cat", (1, 1, 9, 9))], "b": []}, tile=48, tile_overlap=0, tile_empty=share)
    data = load_dataset(settings)
    said = f"In tiles of 48 pixels, 2 images are 14 to train on, 12 of them without objects{words}.\n"
    assert said in capsys.readouterr().out
    assert data.epoch_length == 2 + drawn


def test_without_classes_path_the_annotations_name_the_classes(data_settings):
    """Prevents a run that asks for a file of names which its annotations hold."""
    assert load_dataset(data_settings({"a": [DOG, CAT]}, classes_path="")).class_names == NAMES


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
        load_dataset(settings)
    assert str(error.value).startswith(f"{settings.train_annotation_path}: {sentence}")


def test_images_that_are_missing(data_settings, tmp_path):
    """Prevents a trace from the middle of the first epoch, and a missing image of the validation set from being found
    after it."""
    settings = data_settings({"a": [CAT, DOG]})
    image = tmp_path / "val/JPEGImages/v"
    image.with_suffix(".jpg").unlink()
    with pytest.raises(MissingFileError) as error:
        load_dataset(settings)
    assert str(error.value).startswith(f"{settings.val_annotation_path}: image does not exist (once): {image}")


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
    donors = pasted_boxes(settings_of(copy_paste=0.5), data)
    assert (donors and donors.rows.tolist()) == rows
    assert capsys.readouterr().out == words
    assert pasted_boxes(settings_of(copy_paste=0.0), data) is None
    assert capsys.readouterr().out == ""


def test_a_part_that_is_still_the_sample(data_settings):
    """Prevents the class names from being blamed where one of the two paths was forgotten."""
    settings = data_settings({"a": [CAT]})
    settings.val_annotation_path = str(SAMPLE / "ImageSets" / "Main" / "val.txt")
    with pytest.raises(UserError) as error:
        load_dataset(settings)
    assert str(error.value).endswith(
        "classes_path names cat, dog. val_annotation_path is still the sample's; set it to your data."
    )
