import math
from types import SimpleNamespace

import pytest

from utils.weights.metadata import (
    best_confidences,
    check_metadata,
    confidence_of,
    confidence_words,
    tiles_of,
    tiles_words,
    warn_weights_differ,
)

METADATA = {"confidence": {"cat": 0.25, "dog": 0.4}}


def test_what_an_evaluation_leaves_in_the_metadata():
    """Prevents NaN, which stands for a class that was never found, from becoming a threshold that nothing reaches."""
    rows = [{"name": "cat", "boxes": 10, "confidence": 0.25}, {"name": "dog", "boxes": 99, "confidence": math.nan}]
    rows += [{"name": "bird", "boxes": 9, "confidence": 0.97}]  # the best score of nine boxes is an accident
    assert best_confidences({"classes": rows}) == {"cat": 0.25}
    assert best_confidences({"classes": []}) == best_confidences(None) == {}


def test_the_lowest_score_of_each_class():
    """Prevents thresholds in another order than the classes, and a class without one from failing."""
    assert confidence_of(METADATA, ["dog", "bird", "cat"]) == [0.4, 0.5, 0.25]
    assert confidence_of({}, ["cat"]) == [0.5]
    # A detector that is no good yet finds most at scores at which nearly everything is background.
    assert confidence_of({"confidence": {"cat": 0.001}}, ["cat"]) == [0.05]
    assert confidence_of(METADATA, []) == []


def test_the_sentence_on_scores():
    """Prevents thresholds that nobody knows of."""
    best = "Lowest score shown, the best of each class in training: "
    assert confidence_words(METADATA, ["cat", "dog"]) == f"{best}cat 0.25, dog 0.40."
    assert confidence_words(METADATA, ["cat", "bird"]) == f"{best}cat 0.25; 0.5 for the other classes."
    assert confidence_words(METADATA, ["cat"], 0.3) == "Lowest score shown: 0.3."
    assert confidence_words({}, ["cat"]) == "Lowest score shown: 0.5; the file does not say which score is best."


def test_the_tiles_of_a_training():
    """Prevents a network from looking at whole images where it learned tiles, and constants that do not count."""
    trained = {"tiles": {"tile": 640, "overlap": 0.25}}
    assert tiles_of(trained) == (640, 0.25)
    assert tiles_of(trained, tile=0).tile == 0
    assert tiles_of({}) == (0, 0.2)
    assert tiles_of(trained, tile_overlap=0.5) == (640, 0.5)
    assert tiles_words(tiles_of(trained)) == "; pictures are looked at in tiles of 640 pixels too"
    assert tiles_words(tiles_of({})) == ""
    with pytest.raises(ValueError, match="tile is 10; expected 32 or more pixels of the image, 0 for whole"):
        tiles_of({}, tile=10)


@pytest.mark.parametrize("tiles", [{"tile": -1, "overlap": 0.2}, {"tile": 640}, {"tile": 640, "overlap": 1.0}, 640])
def test_tiles_that_make_no_sense(tiles):
    """Prevents a downloaded file from cutting an image into millions of tiles, or from ending in a trace."""
    rules = {"resize_rule": {"mode": "topleft", "pad": 114}}
    rules |= {"pixel_rule": {"channels": "RGB", "mean": [0.0] * 3, "std": [1.0] * 3}, "input_shape": [32, 32]}
    metadata = {"format": 1, "model_name": "yolox_nano", "class_names": ["cat"], **rules}
    check_metadata("a.pth", metadata | {"tiles": {"tile": 640, "overlap": 0.2}})
    with pytest.raises(ValueError, match=r"a\.pth: its metadata say tiles = .* makes no sense"):
        check_metadata("a.pth", metadata | {"tiles": tiles})


def warnings_of(capsys, metadata, init_epoch=0, rule=None, defaults=None):
    """The lines that appear on the screen for weights with these metadata."""
    model = SimpleNamespace(decode_rule=rule or {}, decode_defaults=defaults)
    warn_weights_differ(metadata, init_epoch, model)
    return capsys.readouterr().out.splitlines()


def test_weights_that_have_been_trained_already_say_so(capsys):
    """Prevents a new training by mistake, and an optimiser and an average that begin anew unnoticed."""
    assert warnings_of(capsys, {"class_names": ["cat", "dog"], "epoch": 40}) == [
        "note: these weights have seen 40 epochs; this is a new training from them. To go on with that one instead, "
        "exactly as if it had never stopped, set resume to the folder of its run."
    ]
    assert warnings_of(capsys, {"epoch": 40}, init_epoch=40) == [
        "note: this goes on from the weights alone, at epoch 40: the optimiser and the average of the weights begin "
        "anew. resume = True (or the folder of the run) would continue exactly."
    ]
    assert warnings_of(capsys, {}) == []


OWN = {"anchors": [[10, 14], [23, 27]], "anchors_mask": [[0, 1]]}
OTHER = OWN | {"anchors": [[10.0, 14.0], [23.0, 28.0]]}
# A foreign file knows its scale of centres at most; its anchors are taken for the usual ones.
FLAT = {"model_name": "yolov4_tiny", "decode_rule": {"scale_x_y": [1.0]}}


@pytest.mark.parametrize(
    ("metadata", "rule", "defaults", "differ"),
    [
        ({"model_name": "yolov4_tiny", "decode_rule": OWN}, OTHER, OWN, True),
        (
            {"model_name": "yolov4_tiny", "decode_rule": OWN},
            OWN | {"anchors": [[10.0, 14.0], [23.0, 27.0]]},
            OWN,
            False,
        ),
        (FLAT, OWN | {"scale_x_y": [1.0]}, OWN | {"scale_x_y": [1.05]}, False),
        (FLAT, OTHER | {"scale_x_y": [1.0]}, OWN, True),
        ({"pixel_rule": {}}, OTHER, OWN, False),  # a backbone alone has no anchors
        ({"model_name": "yolox_nano", "decode_rule": {}}, {}, None, False),
    ],
)
def test_other_anchors_than_those_of_the_weights_are_named(capsys, metadata, rule, defaults, differ):
    """Prevents a training that starts with boxes of a wrong size without a word; 10 and 10.0 are the same anchor."""
    sentence = (
        "note: the weights were trained with other anchors than anchors_path and anchors_mask say; box sizes have to "
        "be learned anew. Leave both empty to keep those of the weights."
    )
    assert warnings_of(capsys, metadata, 0, rule, defaults) == [sentence] * differ
