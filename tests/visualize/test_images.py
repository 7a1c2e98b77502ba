import io

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.annotations import Annotations
from utils.data.loader import Batch
from utils.evaluation.types import DetectionTable
from utils.image.codec import write_image
from utils.image.draw import class_colour
from utils.visualize.images import batch_picture, choose_images, image_tile, prediction_picture, sheet, small_jpeg

RED, BLUE = class_colour(0), class_colour(1)


def batches(sizes, shape=(64, 64)):
    """Batches of so many grey images with one box each."""
    for size in sizes:
        targets = torch.zeros(size, 16, 5)
        targets[..., 4] = -1
        targets[:, 0] = torch.tensor([8, 16, 40, 48, 1])
        yield Batch(torch.full((size, 3, *shape), 90, dtype=torch.uint8), targets, [0] * size, [None] * size, [])


def annotations_of(count, boxes=()):
    """Annotations of grey images that do not exist; boxes: (image, box, class)."""
    counts = np.bincount([image for image, _, _ in boxes], minlength=count)
    return Annotations(
        [f"no/{number}.png" for number in range(count)],
        np.full((count, 2), 64),
        counts,
        [box for _, box, _ in boxes],
        [class_id for _, _, class_id in boxes],
    )


NOTHING = DetectionTable(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


@pytest.mark.parametrize(
    ("sizes", "columns", "side"),
    [([1], 1, 640), ([2, 2], 2, 640), ([4, 4, 1], 3, 533), ([64], 4, 400), ([8] * 3, 4, 400)],
)
def test_batches_of_any_size_fill_the_page(sizes, columns, side):
    """Prevents a page of 64 stamps, and one stamp on a page of its own."""
    image = batch_picture(batches(sizes), annotations_of(1), ["a", "b"])["train_batch"]
    assert image.shape == (columns * (side + 36) + 8, columns * (side + 8) + 8, 3)


def test_the_boxes_of_a_batch_are_where_the_targets_say():
    """Prevents boxes of the padding, class 0 in the corner, and boxes in the pixels of the input on a larger tile."""
    image = batch_picture(batches([1]), annotations_of(1), ["a", "b"])["train_batch"]
    assert image[8 + 320, 8 + 80].tolist() == image[8 + 320, 8 + 400].tolist() == list(BLUE)
    assert image[8 + 320, 8 + 240].tolist() == [90, 90, 90]
    assert not (image == RED).all(2).any()


def test_only_as_many_batches_as_needed_are_made():
    """Prevents a whole epoch from being prepared for sixteen images."""
    taken = []
    batch_picture((taken.append(batch) or batch for batch in batches([8, 8, 8, 8])), annotations_of(1), ["a", "b"])
    assert len(taken) == 2


def test_images_with_boxes_are_chosen_first_and_always_the_same():
    """Prevents pictures that cannot be compared between epochs, and a page of empty images."""
    annotations = annotations_of(10, [(3, [0, 0, 9, 9], 0), (7, [0, 0, 9, 9], 0)])
    chosen = choose_images(annotations, 4, seed=1)
    assert chosen[:2] == [3, 7] and len(set(chosen)) == 4 and chosen == choose_images(annotations, 4, seed=1)
    assert choose_images(annotations, 1, seed=1) in ([3], [7])
    assert choose_images(annotations_of(0), 4, seed=1) == []


def test_labels_stand_left_and_predictions_right(tmp_path):
    """Prevents the two sides from being swapped, other images' boxes, and boxes under their class's confidence."""
    path = tmp_path / "a.png"
    write_image(str(path), np.full((380, 380, 3), 90, np.uint8))
    annotations = Annotations([str(path)], [(380, 380)], [1], [[50, 100, 150, 200]], [0])
    boxes = np.array([[50, 100, 150, 200], [200, 100, 300, 200], [0, 0, 9, 9]], float)
    detections = DetectionTable(np.array([0, 0, 1]), boxes, np.array([0.6, 0.6, 0.9]), np.array([1, 0, 0]))
    image = prediction_picture(annotations, detections, ["a", "b"], np.array([0.7, 0.5]), 0)["val_pred"]
    assert image.shape == (380 + 44, 2 * 388 + 8, 3)
    left, right = image[:, :392], image[:, 392:]
    assert left[8 + 150, 8 + 50].tolist() == list(RED) and not (left == BLUE).all(2).any()
    assert right[8 + 150, 4 + 50].tolist() == list(BLUE) and not (right == RED).all(2).any()


def test_without_images_there_is_no_picture():
    """Prevents a crash of a run whose validation set is empty."""
    assert prediction_picture(annotations_of(0), NOTHING, ["a"], np.array([0.5]), 0) == {}
    assert batch_picture(iter(()), annotations_of(0), ["a"]) == {}


def test_an_image_that_is_gone_is_grey():
    """Prevents one damaged file from taking the whole picture away."""
    tile = image_tile(annotations_of(1), 0, (128, 128), (np.zeros((0, 4)), np.zeros(0, int), None), ["a"])
    assert tile.shape == (128, 128, 3) and (tile == 114).all()


def test_tiles_of_all_shapes_fit_their_places():
    """Prevents tall and wide images from covering each other: each lies in the middle of its place."""
    tall, wide = np.full((100, 40, 3), 10, np.uint8), np.full((30, 80, 3), 20, np.uint8)
    page = sheet([tall, wide, tall], ["高", "", "a caption far too long for its tile"], 2)
    assert page.shape == (2 * 136 + 8, 2 * 88 + 8, 3)
    assert page[8, 8].tolist() == [114] * 3 and page[8, 28].tolist() == page[107, 67].tolist() == [10] * 3
    assert page[8, 96].tolist() == [114] * 3 and page[43, 96].tolist() == page[72, 175].tolist() == [20] * 3
    assert (page[108:136] < 60).any() and (page[:, :8] == 255).all() and (page[:, 176:] == 255).all()


def test_a_small_picture_stays_small(tmp_path):
    """Prevents a page that no phone opens: noise is what JPEG needs most bytes for. A small image is not enlarged."""
    path = tmp_path / "a.png"
    write_image(str(path), np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8))
    annotations = Annotations([str(path), "no.png"], [(700, 900), (30, 40)], [0, 0], [], [])
    encoded = small_jpeg(annotations, 0, 640, 60_000)
    assert len(encoded) <= 60_000
    assert Image.open(io.BytesIO(small_jpeg(annotations, 0, 640, 10**6))).size == (640, 498)
    assert Image.open(io.BytesIO(small_jpeg(annotations, 1, 640, 60_000))).size == (40, 30)
