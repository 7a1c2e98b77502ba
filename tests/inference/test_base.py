import numpy as np
import pytest
import torch
from PIL import Image

from utils.image.codec import write_image
from utils.image.tiles import TileOptions
from utils.inference.base import BaseDetector, Boxes, decode_picture, open_image, open_picture

RED = np.zeros((4, 6, 3), np.uint8) + np.uint8([250, 10, 20])


class Fake(BaseDetector):
    """Finds one box per image, as wide as the image, whose class is the first pixel's red; counts the batches."""

    def __init__(self):
        self.class_names, self.confidences = ["cat", "dog"], [0.5, 0.4]
        self.input_shape, self.resize_rule = (32, 64), {"mode": "topleft", "pad": 114}
        self.batches, self.options = [], None

    def forward(self, batch):
        self.batches.append(batch.shape)
        return batch[:, 0, 0, 0]

    def postprocess(self, output, placements, sizes_hw, options):
        self.options = options
        return [
            Boxes(np.float32([[0, 0, width, height]]), np.float32([0.5]), np.array([int(red)]))
            for red, (height, width) in zip(output, sizes_hw, strict=True)
        ]


def picture(size_hw, red):
    return np.full((*size_hw, 3), red, np.uint8)


def test_one_image_gives_one_result_and_a_list_gives_a_list():
    """Prevents results in another order than the images, and a list of one that becomes no list."""
    detector = Fake()
    found = detector(picture((10, 20), 1))
    assert (found.boxes_xyxy.tolist(), found.class_ids.tolist(), found.names.tolist()) == (
        [[0, 0, 20, 10]],
        [1],
        ["dog"],
    )
    assert (detector.batches, tuple(detector.options)) == ([(1, 32, 64, 3)], ([0.5, 0.4], 0.5, 300))
    several = detector([picture((8, width), width % 2) for width in (1, 2, 3, 4, 5)], 0.3, 0.6, 7, batch_size=2)
    assert [item.names.tolist() for item in several] == [["dog"], ["cat"], ["dog"], ["cat"], ["dog"]]
    assert [item.boxes_xyxy[0, 2] for item in several] == [1, 2, 3, 4, 5]
    assert [shape[0] for shape in detector.batches[1:]] == [2, 2, 1]
    assert tuple(detector.options) == ([0.3, 0.3], 0.6, 7)
    assert len(detector([picture((8, 8), 0)])) == 1
    assert detector([]) == [] and detector(()) == []


class FindsLight(Fake):
    """Finds the white rectangle of an image, if it has one."""

    def preprocess(self, images_rgb):
        return np.stack([image_rgb[:1, :1] for image_rgb in images_rgb]), images_rgb

    def postprocess(self, output, images_rgb, sizes_hw, options):
        found = [np.argwhere(image_rgb[..., 0] == 255) for image_rgb in images_rgb]
        ends = [(places.min(axis=0)[::-1], places.max(axis=0)[::-1] + 1) if len(places) else () for places in found]
        boxes = [np.float32(part).reshape(-1, 4) for part in ends]
        return [Boxes(part, np.full(len(part), 0.5), np.zeros(len(part), int)) for part in boxes]


def test_a_large_image_is_looked_at_in_tiles():
    """Prevents boxes in pixels of the tile, an object that counts once for each of its tiles, and batches that grow
    with the image."""
    detector, image_rgb = FindsLight(), picture((300, 500), 0)
    detector.tiles = TileOptions(100, 0.3)
    image_rgb[150:160, 290:310] = 255
    found = detector(image_rgb)
    assert found.boxes_xyxy.tolist() == [[290, 150, 310, 160]]
    assert [shape[0] for shape in detector.batches] == [8, 8, 8, 8, 8, 1]
    assert len(detector(picture((300, 500), 0)).scores) == 0
    image_rgb[10:20, 10:20] = 255
    assert len(detector(image_rgb, max_boxes=1).scores) == 1
    small = detector([picture((100, 60), 255), picture((20, 20), 0)])
    assert [item.boxes_xyxy.tolist() for item in small] == [[[0, 0, 60, 100]], []]


def test_nothing_found_has_names_too():
    """Prevents a lookup of names that fails on an empty array."""
    detector = Fake()
    detector.postprocess = lambda *_: [Boxes(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64))]
    assert detector(RED).names.tolist() == []


def test_a_number_of_confidences_that_is_neither_one_nor_all():
    """Prevents a trace out of the depths of torch."""
    with pytest.raises(ValueError, match="confidence has 3 numbers; expected one, or one for each of the 2 classes"):
        Fake()(RED, confidence=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"nms_iou": 2}, {"confidence": 1.5}, {"confidence": [0.5, -1]}, {"nms_iou": "high"}]
)
def test_arguments_out_of_range(changes):
    """Prevents an empty result, or a trace, where a number is none that the constants of predict.py may have."""
    with pytest.raises(ValueError, match=f"^{next(iter(changes))} is .+; expected a "):
        Fake()(picture((10, 20), 1), **changes)
    assert len(Fake()(picture((10, 20), 1), confidence=np.float32(0.5), nms_iou=np.float32(0.5)).scores) == 1


def test_channels(tmp_path):
    """Prevents images from OpenCV from being seen with red and blue swapped, and files from being swapped with them."""
    assert open_image(RED, "RGB")[0, 0].tolist() == [250, 10, 20]
    swapped = open_image(np.ascontiguousarray(RED[..., ::-1]), "BGR")
    assert swapped[0, 0].tolist() == [250, 10, 20] and swapped.flags["C_CONTIGUOUS"]
    path = tmp_path / "a.png"
    write_image(str(path), RED)
    assert open_image(path, "BGR")[0, 0].tolist() == open_image(str(path))[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RED[..., 0], [250, 250, 250]),
        (RED[..., :1], [250, 250, 250]),
        (np.dstack([RED, RED[..., :1]]), [250, 10, 20]),
        (Image.fromarray(RED), [250, 10, 20]),
        (Image.fromarray(RED).convert("RGBA"), [250, 10, 20]),
        (Image.fromarray(RED[..., 0]), [250, 250, 250]),
        (Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE), [250, 10, 20]),
    ],
)
def test_kinds_of_images_that_are_taken(image, expected):
    """Prevents images of other programs from being refused, or seen in other colours: each is RGB of the same shape."""
    opened = open_image(image)
    assert (opened.shape, opened.dtype) == (RED.shape, np.uint8)
    assert np.abs(opened.astype(int) - expected).max() <= 1


def test_a_pil_image_is_turned_as_its_exif_data_say():
    """Prevents photographs of phones from being looked at lying on their side."""
    image = Image.fromarray(RED)
    image.getexif()[274] = 6
    assert open_image(image).shape == (6, 4, 3)


def test_16_bits_are_stretched_alike_in_files_and_arrays(tmp_path):
    """Prevents a picture of 12 bits from giving other boxes as an array than as a file."""
    values = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.png")
    from_file = open_image(tmp_path / "a.png")
    assert (from_file.min(), from_file.max()) == (0, 255)
    assert (open_image(values) == from_file).all() and (open_image(Image.fromarray(values)) == from_file).all()


def test_pil_images_of_16_bits_in_wider_numbers():
    """Prevents a thermal picture that PIL opened as 32 bits from losing its upper bits, and so from being noise."""
    values = np.linspace(0, 4095, 600).astype(np.int32).reshape(20, 30)
    assert (open_image(Image.fromarray(values)) == open_image(values.astype(np.uint16))).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 6), 70_000, np.int32)), r"image is of int32; expected uint8"),
        (Image.fromarray(np.full((4, 6), 0.5, np.float32)), r"image is of float32; expected uint8"),
        (
            RED[..., :2],
            r"image has the shape \(4, 6, 2\); expected \(height, width, 3\), or \(height, width\) of a grey one",
        ),
        (RED[None], r"shape \(1, 4, 6, 3\); expected .*make a list of a batch"),
        (RED[:0], r"shape \(0, 6, 3\); expected"),
        (RED / 255, r"image is of float64; expected uint8, 0 to 255.*\(image \* 255\)"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8), "image is of type Tensor; expected a path, a PIL image, an"),
        (None, "image is of type NoneType"),
    ],
)
def test_what_is_no_image_is_an_error(image, message):
    """Each of these would give boxes, and wrong ones, or a trace that does not say what was expected."""
    with pytest.raises(ValueError, match=message):
        open_image(image)
    with pytest.raises(ValueError, match=r"images\[1\]"):
        Fake()([RED, image])
    with pytest.raises(ValueError, match="channels is 'rgb'; expected 'RGB', or 'BGR'"):
        open_image(RED, "rgb")


def test_pictures_that_cannot_be_used_are_one_sentence(tmp_path):
    """Prevents a trace for a text file, and a picture whose pixels fill the memory from being decoded."""
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"notes\.jpg cannot be decoded as an image: its header cannot be read"):
        open_picture(str(path))
    path.rename(tmp_path / "clip.MP4")
    with pytest.raises(ValueError, match=r"Expected a JPEG, a PNG or the like; mode 'video' takes videos\.$"):
        open_picture(str(tmp_path / "clip.MP4"))
    with pytest.raises(FileNotFoundError, match=r"There is no picture '.*gone\.png'"):
        open_picture(str(tmp_path / "gone.png"))
    write_image(str(tmp_path / "a.png"), RED)
    write_image(str(tmp_path / "large.png"), np.zeros((1001, 1000, 3), np.uint8))
    words = r"large\.png cannot be decoded as an image: 1 megapixels, more than the 1 of max_megapixels; .*= 2\.$"
    with pytest.raises(ValueError, match=words):
        open_picture(str(tmp_path / "large.png"), max_megapixels=1)
    with pytest.raises(ValueError, match=words):
        decode_picture((tmp_path / "large.png").read_bytes(), "large.png", max_megapixels=1)


def test_the_content_of_a_file_is_decoded_as_the_file(tmp_path, capsys):
    """Prevents uploads that are turned otherwise, or refused where a file of the same bytes is not."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[274] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path, exif=exif)
    content = path.read_bytes()
    assert decode_picture(content, "a.jpg").shape == (30, 20, 3)
    assert np.array_equal(decode_picture(content, "a.jpg"), open_picture(str(path)))
    decode_picture(content[:-2], "street.jpg")
    assert "note: street.jpg lacks its last bytes; what is there is looked at." in capsys.readouterr().out
