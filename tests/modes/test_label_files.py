import json
import shutil

import numpy as np
import pytest

from utils.data.formats.coco import read_coco_json
from utils.data.formats.voc import parse_voc_xml, read_voc
from utils.data.formats.yolo import read_yolo_folder
from utils.image.codec import write_image
from utils.inference.base import Detections
from utils.io.class_names import read_class_names
from utils.modes.label_files import LabelFiles

NAMES = ["红 cell", 'a<b & "c"']
TWO = Detections(
    np.float32([[10.4, 20, 110, 79.6], [0, 0, 200, 100]]),
    np.float32([0.9, 0.25]),
    np.array([1, 0]),
    np.array(NAMES)[[1, 0]],
)
NONE = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, str))
BOXES = [[10.4, 20, 110, 79.6], [0, 0, 200, 100]]


@pytest.fixture
def folder(tmp_path):
    """What is written of two pictures, 200 wide and 100 high, beside these pictures as the formats want them."""
    for place in ("images", "JPEGImages"):
        (tmp_path / place / "子 夹").mkdir(parents=True)
        for name in ("子 夹/a.v1.png", "b.png"):
            write_image(str(tmp_path / place / name), np.zeros((100, 200, 3), np.uint8))
    with LabelFiles(tmp_path, NAMES, voc_xml=True, yolo_txt=True) as files:
        for name, found in (("子 夹/a.v1.png", TWO), ("b.png", NONE)):
            files.check(name)
            files.add(name, (100, 200), found)
    return tmp_path


def test_coco_is_read_back(folder):
    """Prevents a file that labelling tools refuse: ids from 1, width and height not swapped, boxes as x, y, w, h."""
    content = json.loads((folder / "detections.json").read_text(encoding="utf-8"))
    assert content["images"][0] == {"id": 1, "file_name": "子 夹/a.v1.png", "height": 100, "width": 200}
    assert content["categories"] == [{"id": 1, "name": NAMES[0]}, {"id": 2, "name": NAMES[1]}]
    first = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10.4, 20.0, 99.6, 59.6], "area": 5936.16}
    assert content["annotations"][0] == first | {"score": 0.9, "iscrowd": 0, "segmentation": []}
    raw = read_coco_json(str(shutil.copy(folder / "detections.json", folder / "images/detections.json")))
    assert (len(raw.paths), raw.names, raw.findings) == (2, NAMES, [])
    assert raw.boxes_xyxy == pytest.approx(np.array(BOXES), abs=0.01)
    assert (raw.classes.tolist(), raw.image_index.tolist()) == ([1, 0], [0, 0])
    assert raw.stated_sizes_hw.tolist() == [[100, 200]] * 2


def test_voc_is_read_back(folder):
    """Prevents sizes or corners in another order, and XML that a name with < or & breaks."""
    raw = read_voc(folder, ["子 夹/a.v1", "b"], "all.txt")
    assert (len(raw.paths), sorted(raw.names), raw.findings) == (2, sorted(NAMES), [])
    assert raw.boxes_xyxy.tolist() == [[10, 20, 110, 80], [0, 0, 200, 100]]
    assert [raw.names[number] for number in raw.classes] == [NAMES[1], NAMES[0]]
    assert parse_voc_xml(str(folder / "Annotations/b.xml")) == ([], [], [], (100, 200))


def test_yolo_is_read_back(folder):
    """Prevents fractions of height and width that are swapped, and class numbers that start at 1."""
    raw = read_yolo_folder(str(folder), "train")
    assert (raw.names, raw.findings) == (NAMES, [])
    assert [path.split("images/")[1] for path in raw.paths] == ["b.png", "子 夹/a.v1.png"]
    assert raw.boxes_xyxy * np.array([200, 100, 200, 100]) == pytest.approx(np.array(BOXES), abs=1e-3)
    assert (raw.classes.tolist(), raw.image_index.tolist()) == ([1, 0], [1, 1])
    assert read_class_names(str(folder / "classes.txt")) == NAMES


def test_only_what_was_asked_for(tmp_path):
    """Prevents folders that nobody wanted, and a failure where there are no pictures."""
    with LabelFiles(tmp_path / "new", NAMES):
        pass
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["classes.txt", "detections.json"]
    assert json.loads((tmp_path / "new/detections.json").read_text(encoding="utf-8"))["annotations"] == []


def test_what_is_done_stays_when_the_rest_fails(tmp_path):
    """Prevents the loss of an hour's detections by Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), LabelFiles(tmp_path, NAMES) as files:
        files.add("a.png", (100, 200), TWO)
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / "detections.partial.json").read_text(encoding="utf-8"))["annotations"]) == 2


def test_pictures_of_one_stem_do_not_share_a_label_file(tmp_path):
    """Prevents the boxes of a.png from taking the place of those of a.jpg without a word."""
    with LabelFiles(tmp_path, NAMES, yolo_txt=True) as files:
        files.check("x/a.jpg")
        files.check("x/a.jpg")
        files.check("a.png")
        with pytest.raises(ValueError, match=r"x/a\.png and x/a\.jpg would share one label file, x/a\.\*: rename one"):
            files.check("x/a.png")
        with pytest.raises(ValueError, match=r"classes\.jpg and classes\.txt would share one label file"):
            files.check("classes.jpg")
    with LabelFiles(tmp_path, NAMES) as files:
        files.check("x/a.jpg")
        files.check("x/a.png")


def test_corrected_labels_are_not_overwritten(folder):
    """Prevents the loss of a day's corrections by a second run."""
    with pytest.raises(
        ValueError, match="labels is there already, and its boxes may have been corrected: move it away"
    ):
        LabelFiles(folder, NAMES, yolo_txt=True).__enter__()
    with LabelFiles(folder, NAMES):
        pass


def test_what_is_there_is_not_lost(folder):
    """Prevents a complete detections.json from being replaced by a broken-off one, and a user's own classes.txt."""
    before = (folder / "detections.json").read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), LabelFiles(folder, NAMES):
        raise KeyboardInterrupt
    assert (folder / "detections.json").read_text(encoding="utf-8") == before
    (folder / "classes.txt").write_text("own\n")
    with pytest.raises(ValueError, match=r"classes\.txt is there already, and has other names than the 2 classes"):
        LabelFiles(folder, NAMES).__enter__()
