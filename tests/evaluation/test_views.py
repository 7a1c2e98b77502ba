from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from nets.base import Decoded
from tests.evaluation.tables import found
from utils.data.annotations import Annotations
from utils.evaluation.views import Views, detect_views, doubts_of, seen_by, seen_by_all
from utils.image.codec import write_image
from utils.image.tiles import TileOptions
from utils.inference import postprocess
from utils.inference.base import NMSOptions

NOTHING = found()


class BrightColumn(nn.Module):
    """Finds one box: the brightest column of an image, 8 pixels wide, and only in the left half of what it sees."""

    has_nms = True

    def forward(self, images):
        return images.float().mean((1, 2))

    def decode(self, columns):
        x = columns.argmax(1).float()
        boxes_xyxy = torch.stack((x - 4, x * 0 + 8, x + 4, x * 0 + 24), -1)[:, None]
        logits = torch.where(x < 16, 3.0, -9.0)[:, None, None]
        return Decoded(boxes_xyxy, logits, None)


def detector(tta_flip, tile=0):
    model = BrightColumn()
    return SimpleNamespace(
        model=postprocess.TestTimeAugmentation(model, True, (1.0,)) if tta_flip else model,
        device=torch.device("cpu"),
        input_shape=(32, 32),
        resize_rule={"mode": "topleft", "pad": 0},
        tiles=TileOptions(tile, 0.0),
    )


def images(folder, columns):
    for number, column in enumerate(columns):
        image_rgb = np.zeros((32, 32, 3), np.uint8)
        image_rgb[:, column] = 255
        write_image(str(folder / f"{number}.png"), image_rgb)
    count = len(columns)
    paths = [str(folder / f"{number}.png") for number in range(count)]
    return Annotations(paths, [(32, 32)] * count, [0] * count, [], [])


def test_each_view_finds_its_own(tmp_path):
    """Prevents views that are mixed up, and boxes of the mirrored view that stay mirrored: the column at 8 is in the
    left half as it is, that at 24 in a mirror, where it is at 7."""
    views = detect_views(detector(True), images(tmp_path, [8, 24]), 2, 0, NMSOptions(0.5))
    assert views.found.image_ids.tolist() == [0, 1]
    assert views.found.boxes_xyxy.tolist() == [[4, 8, 12, 24], [21, 8, 29, 24]]
    plain, mirrored = views.single
    assert (plain.image_ids.tolist(), mirrored.image_ids.tolist(), views.unreadable) == ([0], [1], [])


def test_one_view_alone(tmp_path):
    """Prevents a failure without tta_flip, where nothing can disagree, and boxes of the grey that stands for an
    unreadable image."""
    annotations = images(tmp_path, [8, 24])
    (tmp_path / "1.png").write_bytes(b"no image")
    views = detect_views(detector(False), annotations, 2, 0, NMSOptions(0.5))
    assert views.single == () and views.unreadable == [str(tmp_path / "1.png")]
    assert seen_by_all(views, 1).tolist() == [True]


def test_boxes_of_tiles_become_those_of_the_image(tmp_path):
    """Prevents boxes in pixels of a tile from being written as those of the picture."""
    views = detect_views(detector(True, tile=16), images(tmp_path, [8]), 2, 0, NMSOptions(0.5))
    assert views.found.boxes_xyxy[:, [0, 2]].min() >= 0 and set(views.found.image_ids.tolist()) == {0}
    assert len(views.single) == 2


def test_which_boxes_another_view_has():
    """Prevents a box of another class or image from confirming one."""
    table = found((0, 0, 0, 10, 10, 0.9, 0), (0, 20, 0, 30, 10, 0.9, 0), (1, 0, 0, 10, 10, 0.9, 1))
    other = found((0, 1, 0, 10, 10, 0.5, 0), (0, 20, 0, 30, 10, 0.5, 1), (0, 0, 0, 10, 10, 0.5, 1))
    assert seen_by(table, other, 2).tolist() == [True, False, False]
    assert seen_by(table, NOTHING, 2).tolist() == [False] * 3 and seen_by(NOTHING, table, 2).tolist() == []


def test_doubts_are_counted_and_named():
    """Prevents doubtful boxes from being left out: one below its threshold of 0.8, one that only one view shows, and
    one of a class without threshold."""
    sure, single = (0, 0, 0, 10, 10, 0.9, 0), (0, 20, 0, 30, 10, 0.9, 0)
    all_views = found(sure, single, (0, 40, 0, 50, 10, 0.6, 0), (0, 60, 0, 70, 10, 0.3, 1))
    views = Views(all_views, (all_views, found(sure)), [])
    confidences, names = np.array([0.8, np.nan]), ["猫", "dog"]
    is_seen = seen_by_all(views, 2)
    assert is_seen.tolist() == [True, False, False, False]
    doubts = doubts_of(all_views, is_seen, confidences, names)
    assert round(doubts.pop("doubt"), 6) == 0.75 + 1 + 0.3
    assert doubts == {
        "below_threshold": 1,
        "one_view_only": 1,
        "class_left_out": 1,
        "what": "below the threshold: 猫 0.60; in one view only: 猫 0.90; class left out: dog 0.30",
    }
    assert doubts_of(found(sure), np.array([True]), confidences, names) == {}
    assert doubts_of(NOTHING, np.zeros(0, bool), confidences, names) == {}
