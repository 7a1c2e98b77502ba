import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from utils.data.annotations import read_annotations
from utils.image.codec import read_image, write_image
from utils.inference.base import BaseDetector, Boxes
from utils.modes import images
from utils.modes.images import predict_folder, predict_image, save_crops

FULL = Path("/dev/full")  # a disk without room, on Linux


class Fake(BaseDetector):
    """Finds in every picture a cat, its left half, and a dog in the lower right corner."""

    def __init__(self):
        self.class_names, self.confidences = ["cat", "a/dog"], [0.5, 0.5]
        self.input_shape, self.resize_rule = (32, 32), {"mode": "topleft", "pad": 114}
        self.batch_sizes = []

    def forward(self, batch):
        self.batch_sizes.append(len(batch))

    def postprocess(self, output, placements, sizes_hw, options):
        self.options = options
        return [
            Boxes(
                np.float32([[0, 0, width / 2, height], [width - 4, height - 4, width, height]]),
                np.float32([0.9, 0.6]),
                np.array([0, 1]),
            )
            for height, width in sizes_hw
        ]


def settings(tmp_path, **changes):
    values = {"image": str(tmp_path / "in/a.png"), "dir_origin_path": str(tmp_path / "in"), "show": False}
    values |= {"dir_save_path": str(tmp_path / "out"), "crop": False, "count": False, "batch_size": 2}
    values |= {"voc_xml": False, "yolo_txt": False, "confidence": 0.3, "nms_iou": 0.4}
    values |= {"max_boxes": 300, "max_megapixels": 200}
    return SimpleNamespace(**(values | changes))


def picture(path, size_hw=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(str(path), np.full((*size_hw, 3), 128, np.uint8))


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def tree(tmp_path):
    """Five pictures in three folders, one broken, one hidden, and a text."""
    for name in ("a.png", "b.jpg", "子 夹/a.png", "子 夹/x/c.v1.png", "子 夹/a.bmp", ".hidden/d.png", ".e.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/子 夹/bad.png").write_text("no picture")
    (tmp_path / "in/notes.txt").write_text("no picture")
    return tmp_path


PICTURES = ["a.png", "b.jpg", "子 夹/a.bmp", "子 夹/a.png", "子 夹/x/c.v1.png"]


def test_one_picture(tmp_path, capsys):
    """Prevents boxes that are drawn on the user's own file, constants that do not arrive, and a count of nothing."""
    picture(tmp_path / "in/a.png")
    detector = Fake()
    predict_image(detector, settings(tmp_path, crop=True, count=True))
    assert tuple(detector.options) == ([0.3, 0.3], 0.4, 300)
    assert (read_image(str(tmp_path / "in/a.png")) == 128).all()
    assert (read_image(str(tmp_path / "out/a.png")) != 128).any()
    assert files_in(tmp_path / "out") == ["a.png", "crops/a.png_a_dog_2.png", "crops/a.png_cat_1.png"]
    out = capsys.readouterr().out
    assert "cat              0.900  x 0-20  y 0-20\n" in out
    assert f"2 objects; saved {tmp_path / 'out/a.png'}, 2 crops\n  cat    1\n  a/dog  1\n" in out


def test_typed_paths(tmp_path, capsys, monkeypatch):
    """Prevents a mistyped path from ending the program, and a trace where the input ends without an empty line."""
    for name in ("in/a.png", "in/b c.png", "out/own.png"):
        picture(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = f'~/in/a.png\ngone.png\n{tmp_path / "out/own.png"}\n{"x" * 5000}\n{tmp_path}\n"{tmp_path / "in/b c.png"}"\n'
    for text in (typed, typed + "\nnever.png\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        predict_image(Fake(), settings(tmp_path, image=""))
        out = capsys.readouterr().out
        assert "There is no picture 'gone.png'" in out and "would be overwritten" in out and "never" not in out
        assert f"{tmp_path} is a folder; expected a picture" in out and "too long" in out
        assert files_in(tmp_path / "out") == ["a.png", "b c.png", "own.png"]


def test_typed_pictures_of_one_name_and_of_rare_endings(tmp_path, monkeypatch):
    """Prevents the second picture from replacing the first's result, and an end where OpenCV writes no such files."""
    for name in ("in/a.png", "in/x/a.png", "in/b.png"):
        picture(tmp_path / name)
    (tmp_path / "in/b.png").rename(tmp_path / "in/b.jfif")
    (tmp_path / "in/x/b").write_bytes((tmp_path / "in/b.jfif").read_bytes())
    typed = "".join(f"{tmp_path / name}\n" for name in ("in/a.png", "in/x/a.png", "in/b.jfif", "in/x/b", "in/a.png"))
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        predict_image(Fake(), settings(tmp_path, image=""))
        assert files_in(tmp_path / "out") == ["a.png", "a_2.png", "a_3.png", "b.jfif.png", "b.png"]


@pytest.mark.parametrize("target", ["out", "in/results"])
def test_training_takes_the_originals_or_nothing(tmp_path, capsys, target):
    """Prevents a training on pictures with painted boxes, which detections.json of a folder would lead to."""
    picture(tmp_path / "in/a.png")
    predict_folder(Fake(), settings(tmp_path, dir_save_path=str(tmp_path / target)))
    annotation_path = str(tmp_path / target / "detections.json")
    if target == "in/results":
        annotations, _ = read_annotations(annotation_path, Fake().class_names)
        assert [annotations.path(index) for index in range(len(annotations))] == [str(tmp_path / "in/a.png")]
    else:
        with pytest.raises(FileNotFoundError, match=r"detections\.json: image does not exist"):
            read_annotations(annotation_path, Fake().class_names)
        picture(tmp_path / "out/a.png")
        predict_folder(Fake(), settings(tmp_path))
        note = f"out holds a picture a.png already: before you train on {annotation_path}, move it to a folder without"
        assert capsys.readouterr().out.count(note) == 1
        picture(tmp_path / "in/b.png")
        predict_folder(Fake(), settings(tmp_path))
        assert "already" not in capsys.readouterr().out
        with pytest.raises(FileNotFoundError, match=r"detections\.json: image does not exist"):
            read_annotations(annotation_path, Fake().class_names)


def test_crops_keep_what_a_box_touches(tmp_path):
    """Prevents empty crops of boxes thinner than a pixel, and crops that end a pixel too early."""
    image = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
    boxes_xyxy = np.float32([[3.2, 4.7, 10.1, 12.0], [39.5, 19.9, 39.6, 19.95], [40, 20, 40, 20], [0, 0, 0, 0]])
    found = SimpleNamespace(boxes_xyxy=boxes_xyxy, names=np.array(["x"] * 4), scores=np.ones(4))
    assert save_crops(image, found, tmp_path / "p.jpg") == 4
    first, *rest = (read_image(str(tmp_path / f"crops/p.jpg_x_{number}.png")) for number in (1, 2, 3, 4))
    assert (first == image[4:12, 3:11]).all()
    assert [crop.shape for crop in rest] == [(1, 1, 3)] * 3


def test_a_folder_keeps_its_structure_and_goes_on_after_a_failure(tree, capsys):
    """Prevents one broken file from ending an hour's work, its being passed over in silence, and pictures of one name
    in different folders from overwriting each other."""
    detector = Fake()
    with pytest.raises(ValueError, match=r"^1 of 6 pictures failed:\n  .*bad\.png cannot be decoded"):
        predict_folder(detector, settings(tree, count=True))
    assert files_in(tree / "out") == sorted(
        [*(f"pictures/{name}" for name in PICTURES), "classes.txt", "detections.json"]
    )
    assert detector.batch_sizes == [2, 2, 1]
    content = json.loads((tree / "out/detections.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == PICTURES
    assert len(content["annotations"]) == 10
    out = capsys.readouterr().out
    assert f"note: {tree / 'in'} also holds files that are no pictures known here: 1 .txt\n" in out
    assert f"5 pictures, 10 objects; saved in {tree / 'out'}\n  cat    5\n  a/dog  5\n" in out


def test_endings_that_opencv_reads_and_does_not_write(tmp_path):
    """Prevents one .jfif from ending a folder, and its result from taking the place of another picture's."""
    for name in ("a.png", "b.png", "b.mpo.png", "c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/a.png").rename(tmp_path / "in/a.jfif")
    (tmp_path / "in/b.png").rename(tmp_path / "in/b.mpo")
    predict_folder(Fake(), settings(tmp_path, batch_size=1))
    drawn = ["a.jfif.png", "b.mpo.png", "b.mpo_2.png", "c.png"]
    assert files_in(tmp_path / "out") == ["classes.txt", "detections.json", *(f"pictures/{name}" for name in drawn)]
    content = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["a.jfif", "b.mpo", "b.mpo.png", "c.png"]


def test_a_name_that_is_no_utf8():
    """Prevents a segmentation fault: OpenCV cannot take such text."""
    assert images._target_of(Path("caf\udce9.jpg"), set()).name == "caf\udce9.jpg"
    assert images._target_of(Path("a.caf\udce9"), set()).name == "a.caf\udce9.png"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits whole paths")
def test_results_that_cannot_be_written_are_listed(tmp_path):
    """Prevents the loss of a folder's boxes for one picture, whose objects get names that are too long."""
    for name in ("a.png", "x" * 250 + ".png", "z.png"):
        picture(tmp_path / "in" / name)
    with pytest.raises(ValueError, match=r"^1 of 3 pictures failed:\n  x+\.png: .*_cat_1\.png cannot be written: "):
        predict_folder(Fake(), settings(tmp_path, crop=True))
    content = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["a.png", "z.png"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_ends_a_folder(tmp_path):
    """Prevents a sentence for each of thousands of pictures, hours after the disk was full, and a trace."""
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "out/pictures").mkdir(parents=True)
    (tmp_path / "out/pictures/b.png").symlink_to(FULL)
    with pytest.raises(ValueError, match=r"^dir_save_path is .*, where a result cannot be written: No space left on"):
        predict_folder(Fake(), settings(tmp_path, batch_size=1))
    assert not (tmp_path / "out/pictures/c.png").exists()
    content = json.loads((tmp_path / "out/detections.partial.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["a.png"]


def test_a_place_that_is_no_folder_is_told_at_once(tmp_path):
    """Prevents hours of detections that are lost at the end."""
    picture(tmp_path / "in/a.png")
    (tmp_path / "out").write_text("a file")
    detector = Fake()
    with pytest.raises(ValueError, match=r"^dir_save_path is .*out', where .*out cannot be written: "):
        predict_folder(detector, settings(tmp_path))
    assert detector.batch_sizes == []


def test_labels_and_crops_of_a_folder(tree):
    """Prevents label files that overwrite each other where two pictures differ by their ending alone."""
    with pytest.raises(
        ValueError, match=r"^2 of 6 .*\n  子 夹/a\.png and 子 夹/a\.bmp would share one label file, 子 夹/a"
    ):
        predict_folder(Fake(), settings(tree, crop=True, voc_xml=True, yolo_txt=True))
    files = files_in(tree / "out")
    assert [name for name in files if name.startswith("labels/")] == [
        *("labels/a.txt", "labels/b.txt", "labels/classes.txt", "labels/子 夹/a.txt", "labels/子 夹/x/c.v1.txt"),
    ]
    assert len([name for name in files if name.startswith("Annotations/")]) == 4
    assert "crops/子 夹/x/c.v1.png_cat_1.png" in files


def test_results_inside_the_folder_are_no_pictures_of_it(tree):
    """Prevents a second run from detecting on the drawn boxes of the first."""
    (tree / "in/子 夹/bad.png").unlink()
    for _ in range(2):
        detector = Fake()
        predict_folder(detector, settings(tree, dir_save_path=str(tree / "in/results")))
        assert sum(detector.batch_sizes) == 5


@pytest.mark.parametrize("target", ["in", "in/.", "in/子 夹/.."])
def test_pictures_are_never_overwritten(tree, target):
    """Prevents the loss of the user's pictures where both folders are the same."""
    with pytest.raises(
        ValueError, match=r"dir_save_path is where the pictures themselves are: .*a\.png would be overw"
    ):
        predict_folder(Fake(), settings(tree, dir_save_path=str(tree / target)))
    assert (read_image(str(tree / "in/a.png")) == 128).all()


def test_pictures_are_never_overwritten_by_one_of_a_deeper_folder(tmp_path):
    """Prevents in/in/a.png, which goes to in/a.png where the results go one folder up, from replacing that."""
    for name in ("in/a.png", "in/in/a.png"):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match="would be overwritten"):
        predict_folder(Fake(), settings(tmp_path, dir_save_path=str(tmp_path)))


def test_no_pictures(tmp_path):
    """Prevents an empty result for a mistyped or empty folder."""
    with pytest.raises(ValueError, match=r"dir_origin_path is .*, and there is no such folder; correct the path"):
        predict_folder(Fake(), settings(tmp_path))
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError) as caught:
        predict_folder(Fake(), settings(tmp_path, dir_origin_path=str(tmp_path / "a.png")))
    assert str(caught.value).endswith(
        f'expected a folder. For one picture take --mode=predict --image="{tmp_path}/a.png".'
    )
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"dir_origin_path is .*, which holds no pictures \(\.jpg, \.jpeg"):
        predict_folder(Fake(), settings(tmp_path))


def test_all_pictures_broken(tmp_path):
    """Prevents a batch of no pictures from reaching the network."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "in" / name).write_text("")
    with pytest.raises(ValueError, match=r"^3 of 3 pictures failed"):
        predict_folder(Fake(), settings(tmp_path))


def test_a_window_shows_what_is_saved(tmp_path, monkeypatch):
    """Prevents a constant show that does nothing."""
    shown = []
    picture(tmp_path / "in/a.png")
    monkeypatch.setattr(images.Window, "show_until_key", lambda _, image: shown.append(image))
    predict_image(Fake(), settings(tmp_path))
    assert (shown[0] == read_image(str(tmp_path / "out/a.png"))).all()
