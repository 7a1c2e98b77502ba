import json
from types import SimpleNamespace

import pytest

from tests.scripts.programs import run_here
from tools import get_map
from utils.config.constants import read_constants


@pytest.fixture
def folders(tmp_path):
    """Two images, three labels of two classes, one of which is two words; a detection of each label and one more."""
    files = {
        "gt/a.txt": "traffic light 0 0 100 100\ncat 50 50 80 80 difficult\n",
        "gt/b.txt": "cat 10 10 40 40\n\n",
        "det/a.txt": "traffic light 0.9 0 0 100 100\ncat 0.8 50 50 80 80\n",
        "det/b.txt": "cat .7 10 10 40 40\nzebra 0.6 0 0 5 5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def settings(folder, **changes):
    values = read_constants(vars(get_map)) | {"map_out_path": str(folder / "out"), "resamplings": 50}
    values |= {"gt": str(folder / "gt"), "det": str(folder / "det")}
    return SimpleNamespace(**(values | changes))


def coco(folder, **changes):
    """A pair of COCO files, with ids that neither start at 0 nor are in order; returns the settings for it."""
    truth = {
        "images": [{"id": 42, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 5, "image_id": 42, "category_id": 18, "bbox": [0, 0, 100, 100], "area": 900, "iscrowd": 0},
            {"id": 9, "image_id": 7, "category_id": 3, "bbox": [10, 10, 30, 30], "iscrowd": 0},
        ],
    }
    found = [
        {"image_id": 42, "category_id": 18, "bbox": [0, 0, 100, 100], "score": 0.9},
        {"image_id": 7, "category_id": 3, "bbox": [10, 10, 30, 30], "score": 0.8},
    ]
    content = {"truth": truth, "found": found}
    for place, value in changes.items():
        name, *keys, last = place.split("__")
        part = content[name]
        for key in keys:
            part = part[int(key) if key.isdigit() else key]
        part[int(last) if last.isdigit() else last] = value
    for name in content:
        (folder / f"{name}.json").write_text(json.dumps(content[name]), encoding="utf-8")
    return settings(folder, gt=str(folder / "truth.json"), det=str(folder / "found.json"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("cartucho_gt", "cartucho_det", "xyxy", 0.5),
            {"map50": 0.310297, "map50_plus_one": 0.310477, "map50_11_point_plus_one": 0.316965}
            | {"AP": 0.149298, "AP50": 0.311953, "AP75": 0.122181},
        ),
        (("odm_gt", "odm_det", "xywh", 0.3), {"map50_plus_one": 0.245687, "map50_11_point_plus_one": 0.268398}),
    ],
)
def test_public_samples_have_their_known_scores(real_data, tmp_path, arguments, expected):
    """Prevents a wrong reader, matching, interpolation or set of classes: two public tools and pycocotools say this."""
    truth, found, box_format, iou = arguments
    folder = real_data / "oracles/map"
    changes = {"box_format": box_format, "MINOVERLAP": iou, "map_out_path": str(tmp_path / "out"), "resamplings": 0}
    changes["plus_one"] = True
    scores = get_map.main(settings(tmp_path, gt=str(folder / truth), det=str(folder / found), **changes))
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_text_folders(folders, capsys):
    """Prevents names cut to their first word, difficult boxes that count, and classes that only the detector knows."""
    scores = get_map.main(settings(folders))
    assert [(row["name"], row["boxes"], row["map50"]) for row in scores["classes"]] == [
        ("cat", 1, 1.0),
        ("traffic light", 1, 1.0),
    ]
    assert (scores["map50"], scores["AP"], scores["images"]) == (1.0, 1.0, 2)
    assert "note: 1 detections are of classes without labels and do not count: zebra (1)" in capsys.readouterr().out


def test_files_of_a_run(folders):
    """Prevents numbers that are rounded in the file, NaN that no JSON reader takes, and detections nobody can read."""
    scores = get_map.main(settings(folders))
    out = folders / "out"
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "results.txt", "detections.json", "ground_truth.json", "detections"),
        *("pr_curve.png", "f1_curve.png", "precision_curve.png", "recall_curve.png", "class_ap.png"),
    }
    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert written["map50"] == scores["map50"] and written["AP_medium"] is None and written["gt"].endswith("gt")
    table = (out / "results.txt").read_text(encoding="utf-8")
    assert table.startswith("class          boxes  AP@0.5     AP  precision") and "too few images" in table
    assert (out / "detections/a.txt").read_text(encoding="utf-8").splitlines() == [
        "traffic light 0.9 0 0 100 100",
        "cat 0.8 50 50 80 80",
    ]
    box = {"image_id": 2, "category_id": 1, "bbox": [10.0, 10.0, 30.0, 30.0], "area": 900.0}
    assert json.loads((out / "detections.json").read_text(encoding="utf-8"))[2] == box | {"score": 0.7}
    for files in (("ground_truth.json", "detections.json"), ("../gt", "detections")):
        pair = dict(zip(("gt", "det"), (str(out / name) for name in files), strict=True))
        if files[0] == "../gt":
            pair["gt"] = str(folders / "gt")
        again = get_map.main(settings(folders, **pair, map_out_path=str(folders / "again")))
        assert again["map50"] == scores["map50"] and again["AP"] == scores["AP"] and again["f1"] == scores["f1"]


def test_width_and_height(folders):
    """Prevents box_format that changes nothing."""
    (folders / "det/b.txt").write_text("cat 0.7 10 10 30 30\n", encoding="utf-8")
    (folders / "gt/b.txt").write_text("cat 10 10 30 30\n", encoding="utf-8")
    data = get_map.read_files(settings(folders, box_format="xywh"))
    assert data.ground_truth.boxes_xyxy[-1].tolist() == data.detections.boxes_xyxy[-1].tolist() == [10, 10, 40, 40]


def test_coco_files(tmp_path):
    """Prevents ids taken for places, and the area of a box where the file says the area of the outline."""
    data = get_map.read_files(coco(tmp_path))
    assert (data.image_names, data.image_ids) == (["a.jpg", "b.jpg"], [42, 7])
    assert (data.class_names, data.category_ids) == (["dog", "car"], [18, 3])
    assert data.ground_truth.areas.tolist() == [900, 900]
    assert data.detections.boxes_xyxy.tolist() == [[0, 0, 100, 100], [10, 10, 40, 40]]
    assert (data.detections.image_ids.tolist(), data.detections.classes.tolist()) == ([0, 1], [0, 1])
    scores = get_map.main(coco(tmp_path))
    assert (scores["map50"], scores["AP_small"]) == (1.0, 1.0)
    assert json.loads((tmp_path / "out/detections.json").read_text())[0]["image_id"] == 42


def test_images_without_detections(folders, capsys):
    """Prevents an error where a detector writes no file because it found nothing, and a score over the others alone."""
    (folders / "det/b.txt").unlink()
    assert get_map.main(settings(folders))["map50"] == 0.5
    assert "note: 1 of 2 images have no detections" in capsys.readouterr().out


def test_empty_ground_truth_has_no_score(folders, capsys):
    """Prevents 0 or 1 for a set in which nothing can be found."""
    for path in (folders / "gt").iterdir():
        path.write_text("")
    scores = get_map.main(settings(folders))
    assert scores["map50"] != scores["map50"] and scores["classes"] == []
    assert "there is no box to find" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("det/c.txt", "cat 0.9 0 0 1 1", r"1 files of detections belong to no image of .*gt: .*c\.txt"),
        ("det/a.txt", "cat nan 0 0 1 1", r"det/a\.txt, line 1: a number is NaN or infinite"),
        ("det/a.txt", "\ncat 0.9 0 0 inf 1", r"det/a\.txt, line 2: a number is NaN or infinite"),
        ("det/a.txt", "cat 0.9 5 0 1 1", r"line 1: the box \(5\.0, 0\.0, 1\.0, 1\.0\) .* Is box_format right"),
        ("det/a.txt", "cat 0 0 1 1", "'cat 0 0 1 1' is not `class score ` and four numbers"),
        ("gt/a.txt", "0 0 1 1", "'0 0 1 1' is not `class ` and four numbers"),
        ("gt/a.txt", "cat 0 0 one 1", "is not `class ` and four numbers"),
        ("gt/a.txt", b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_impossible_text_is_refused(folders, file, text, message):
    """Each of these would give a number, and a wrong one, or a trace that does not name the file."""
    (folders / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        get_map.main(settings(folders))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth__images__1__id": 42}, r"images\[1\] has the id 42, as another has"),
        ({"truth__annotations__1__id": 5}, r"annotations\[1\] has the id 5, as another has"),
        ({"truth__categories__1__id": 18}, r"categories\[1\] has the id 18, as another has"),
        ({"truth__categories__1__name": "dog"}, "names two of its categories alike"),
        ({"truth__images__1__id": None}, r"images\[1\] has the id None"),
        (
            {"truth__annotations__0__category_id": 4},
            r"annotations\[0\] has the category_id 4, which categories does not",
        ),
        ({"truth__annotations__0__bbox": [0, 0, 1]}, r"annotations\[0\] is .*expected numbers for bbox"),
        ({"truth__annotations": {}}, "expected the lists images, categories, annotations"),
        ({"found__0__image_id": 43}, r"entry 0 has the image_id 43, which is no image of the labels"),
        ({"found__0__score": float("nan")}, "entry 0: a number is NaN or infinite"),
        ({"found__0__score": None}, "entry 0 is .*expected numbers for bbox .*, score"),
        ({"found__0__bbox": [5, 5, -1, 2]}, r"ends before it begins. A bbox is \[x, y, width, height\]"),
        ({"found__0": "x"}, "entry 0 is {}"),
        ({"found__0__category_id": [18]}, r"entry 0 has the category_id \[18\]"),
    ],
)
def test_impossible_coco_files_are_refused(tmp_path, changes, message):
    """Each of these would give a number, and a wrong one, or a trace that does not name the place."""
    with pytest.raises(ValueError, match=message):
        get_map.main(coco(tmp_path, **changes))


def test_unknown_categories_do_not_count(tmp_path, capsys):
    """Prevents a wrong score in silence where a detector knows more classes."""
    assert get_map.main(coco(tmp_path, found__1__category_id=99))["map50"] == 0.5
    assert "1 detections are of classes without labels and do not count: category 99 (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"det": ""}, ValueError, "gt and det belong together"),
        ({"gt": "missing"}, FileNotFoundError, "gt is 'missing', and there is no such folder or file"),
        ({"gt": __file__}, ValueError, "expected two folders or two .json files"),
        ({"box_format": "cxcywh"}, ValueError, "box_format is 'cxcywh'; expected 'xyxy' or 'xywh'"),
        ({"map_out_path": "."}, ValueError, "lies in map_out_path"),
    ],
)
def test_wrong_arguments(folders, monkeypatch, changes, error, message):
    """Prevents a trace, or a run that overwrites what it reads."""
    monkeypatch.chdir(folders)
    with pytest.raises(error, match=message):
        get_map.main(settings(folders, **changes))


def test_files_of_the_user_stay(folders):
    """Prevents the loss of text files in a folder that happens to be named as ours."""
    own = folders / "out/detections/a.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(ValueError, match="holds text files that no earlier run wrote"):
        get_map.main(settings(folders))
    assert own.read_text() == "mine"


def test_ids_of_a_coco_file(tmp_path):
    """Prevents the loss of a finished evaluation where a file is named in another spelling, and new ids for known
    classes."""
    images = [{"id": 42, "file_name": "train/IMG_1.JPG"}, {"id": "b", "file_name": "C:\\data\\b%20c.jpg"}]
    categories = [{"id": 18, "name": "big  cat "}, {"id": 3, "name": "car"}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": images, "categories": categories}))
    found = get_map.ids_of_coco(path, ["img_1.jpg", "b c.jpg"], ["car", "big cat", "dog"])
    assert found == ([42, "b"], [3, 18, 21])
    path.write_text(json.dumps({"images": [*images, {"id": 1, "file_name": "val/img_1.jpg"}], "categories": []}))
    assert get_map.ids_of_coco(path, ["img_1.jpg"], []) == (None, [])


def test_pictures_that_are_named_alike(tmp_path):
    """Prevents one file for two pictures, and files outside of the folder by an id that is a path."""
    changes = {"truth__images__0": {"id": "../../evil", "file_name": "x/a.jpg"}, "found__0__image_id": "../../evil"}
    changes |= {"truth__images__1": {"id": 7, "file_name": "y/a.jpg"}, "truth__annotations__0__image_id": "../../evil"}
    get_map.main(coco(tmp_path, **changes))
    assert sorted(path.name for path in (tmp_path / "out/detections").iterdir()) == ["1_a.txt", "2_a.txt"]
    assert not list(tmp_path.glob("**/evil*"))


def test_other_class_names_are_an_error(folders):
    """Prevents a score of 0 where one side writes numbers and the other names."""
    for path in (folders / "det").iterdir():
        path.write_text("0 0.9 0 0 1 1\n")
    with pytest.raises(
        ValueError, match="No detection has one of the classes that are labelled: labelled are cat, tra"
    ):
        get_map.main(settings(folders))


def test_no_text_files(folders):
    """Prevents an empty table for the wrong folder."""
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt files"):
        get_map.main(settings(folders, gt=str(folders)))


def test_the_command(folders):
    """Prevents constants that the command line cannot reach."""
    arguments = f"--gt={folders / 'gt'}", f"--det={folders / 'det'}", f"--map_out_path={folders / 'out'}"
    finished = run_here("tools/get_map.py", *arguments)
    assert finished.status == 0, finished.error
    assert "VOC mAP@0.5, area under the curve  1.000\n" in finished.said
    assert "+1 pixel" not in finished.said
    finished = run_here("tools/get_map.py", *arguments, "--plus_one=True")
    assert "VOC mAP@0.5, 11-point, +1 pixel    1.000\n" in finished.said
