from pathlib import Path
from types import SimpleNamespace

import pytest

from nets import MODELS, build_model
from utils.data.anchors import best_anchor_iou, choose_decode_rule, read_anchors, shape_iou, unused_anchors

ROOT = Path(__file__).resolve().parents[2]
OWN = {"anchors": [[1, 2], [3, 4]], "anchors_mask": [[1], [0]], "scale_x_y": [1.05, 1.05]}


def written(tmp_path, text):
    path = tmp_path / "锚 anchors.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "text", ["10,13, 16,30.5", "10,13  16,30.5\n", "10,13\n16,30.5\n", "10 13 16 30.5", "\ufeff10, 13,\n16, 30.5,"]
)
def test_anchors_as_people_write_them(tmp_path, text):
    """Prevents a file that is refused for its line breaks, blanks, or the mark that Windows writes at its beginning."""
    assert read_anchors(written(tmp_path, text)) == [[10, 13], [16, 30.5]]


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("\n", 0), ("10,13,16", 3), ("10,0", 2), ("10,-13", 2), ("10,nan", 2)]
)
def test_half_an_anchor_is_an_error(tmp_path, text, count):
    """Prevents pairs that shift by one number, and boxes without area."""
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_anchors(path)
    assert str(error.value) == (
        f"{path} holds {count} numbers; expected pairs of width and height, all above 0, such as 12,16, 19,36, 40,28."
    )


def test_a_file_of_words_is_named(tmp_path):
    """Prevents a trace where anchors_path points to the class list."""
    path = written(tmp_path, "fish\nleaf\n")
    with pytest.raises(
        ValueError, match="could not convert string to float: 'fish'; expected numbers such as"
    ) as error:
        read_anchors(path)
    assert str(error.value).startswith(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_another_encoding_is_named(tmp_path, encoding):
    """Prevents a trace where an editor of Windows has saved the file as `Unicode`."""
    path = tmp_path / "anchors.txt"
    path.write_bytes("10,13, 16,30\n".encode(encoding))
    with pytest.raises(ValueError) as error:
        read_anchors(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("; expected numbers such as 12,16, 19,36, 40,28.")


def test_how_well_anchors_fit_boxes():
    """Prevents width taken for height, a union that counts the overlap twice, and NaN for a box without area."""
    sizes_wh, anchors_wh = [[10, 20], [30, 20], [0, 5]], [[10, 10], [40, 20]]
    assert shape_iou(sizes_wh, anchors_wh).tolist() == [[0.5, 0.25], [100 / 600, 0.75], [0, 0]]
    assert best_anchor_iou(sizes_wh, anchors_wh).tolist() == [0.5, 0.75, 0]


def test_no_boxes_to_fit():
    """Prevents an error for data without boxes."""
    assert best_anchor_iou([], [[10, 10]]).tolist() == []
    assert shape_iou([[10, 10]], []).shape == (1, 0)


@pytest.mark.parametrize(
    ("anchors", "masks", "unused"),
    [
        (6, [[3, 4, 5], [1, 2, 3]], [0]),
        (6, [[3, 4, 5], [0, 1, 2]], []),
        (9, [[6, 7, 8], [3, 4, 5], [0, 1, 2]], []),
        (4, [[3], [1]], [0, 2]),
    ],
)
def test_anchors_that_no_map_has(anchors, masks, unused):
    """Prevents an anchor of the user's file from being left out silently, as the usual masks of tiny do."""
    assert unused_anchors({"anchors": [[8, 8]] * anchors, "anchors_mask": masks}) == unused
    assert unused_anchors({}) == []  # a network without anchors


@pytest.mark.parametrize(("name", "file"), [("yolov4", "yolo_anchors.txt"), ("yolov4_tiny", "yolo_tiny_anchors.txt")])
def test_the_files_hold_the_networks_own_anchors(name, file):
    """Prevents files, from which people start, that differ from what an empty anchors_path means."""
    network, _, _ = MODELS[name]
    assert read_anchors(ROOT / "model_data" / file) == network.decode_defaults["anchors"]


def rule_of(metadata, **changes):
    settings = {"model_name": "yolov4_tiny", "anchors_path": "", "anchors_mask": []}
    return choose_decode_rule(SimpleNamespace(**settings | changes), metadata)


def test_the_constants_come_before_the_weights_before_the_network(tmp_path):
    """Prevents anchors of the user that lose, and weights that are read with other anchors than they learned."""
    metadata = {"model_name": "yolov4_tiny", "decode_rule": OWN}
    path = written(tmp_path, "5,6 7,8 9,10")
    assert rule_of({}) == {}
    assert rule_of(metadata) == OWN
    assert rule_of(metadata, anchors_path=path) == OWN | {"anchors": [[5, 6], [7, 8], [9, 10]]}
    assert rule_of(metadata, anchors_mask=[(0,), (1,)]) == OWN | {"anchors_mask": [[0], [1]]}
    assert rule_of({}, anchors_path=path, anchors_mask=[[2], [0]]) == {
        "anchors": [[5, 6], [7, 8], [9, 10]],
        "anchors_mask": [[2], [0]],
    }
    assert OWN == {"anchors": [[1, 2], [3, 4]], "anchors_mask": [[1], [0]], "scale_x_y": [1.05, 1.05]}


def test_anchors_of_another_network_are_not_taken_over():
    """Prevents nine anchors in a network that has six, before the weights themselves are refused."""
    assert rule_of({"model_name": "yolov4", "decode_rule": OWN}) == {}
    assert rule_of({"model_name": "yolov4_tiny"}) == {}


def test_a_network_with_the_users_anchors(tmp_path):
    """Prevents a rule that no network takes, and anchors given to the wrong map: the coarse one is named first."""
    rule = rule_of({}, anchors_path=written(tmp_path, "5,6 7,8 90,100"), anchors_mask=[[2], [0]])
    model = build_model("yolov4_tiny", 1, decode_rule=rule)
    assert model.anchors.tolist() == [[[5, 6]], [[90, 100]]]
    assert model.decode_rule["scale_x_y"] == [1.05, 1.05]
    with pytest.raises(ValueError, match="yolox_nano has no anchors: set anchors_path = '' and anchors_mask = "):
        build_model("yolox_nano", 1, decode_rule=rule)
