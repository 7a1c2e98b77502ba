import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.reporting import page_run
from tests.reporting.page_run import EVIL, FOUND_IMAGES, NAMES, annotations_of, page_of, row, run_of
from utils.evaluation.evaluate import Evaluation
from utils.reporting.page import report_page
from utils.reporting.page.pictures import MOST_BYTES, MOST_PICTURES
from utils.reporting.page.tables import confusion_table, epoch_charts, settings_rows

NOTHING = ([], [], [])


class Page(HTMLParser):
    """tags: {name: [attributes]}; texts: what a person reads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = {}, [], []
        self.feed(text)
        self.shown = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        self.tags.setdefault(tag, []).append(dict(attributes))
        self._open.append(tag)

    def handle_data(self, text):
        if self._open[-1:] not in (["script"], ["style"]):
            self.texts.append(text)

    def handle_endtag(self, tag):
        if self._open[-1:] == [tag]:
            self._open.pop()


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return annotations_of(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def text(annotations):
    return page_of(annotations)


def test_the_page_holds_the_numbers(text):
    """Prevents a page that shows nothing of the run: 9 of 12 labelled boxes are right, three are each another mistake,
    and one detection is invented."""
    shown = Page(text).shown
    for words in (
        *("loss_1", "epoch 2 of 100", "training images : 12", "Validation images : 12 , after epoch 2"),
        *("labelled boxes : 12 ; found : 9 ; missed : 1 ; wrong class : 1 ; invented : 1 ; badly placed : 1", "a CPU"),
        *("warning 3 small & thin box learns it", f"Few training boxes: {EVIL}", "training 3", "validation 3.5"),
    ):
        assert words.replace(" ", "") in shown.replace(" ", "")
    assert re.search(r"mAP@0\.5 ?\[0\.\d{3}, [01]\.\d{3}\]", shown)


def test_every_picture_says_its_reasons(text):
    """Prevents filters that hide what they should show: the pictures with mistakes, each under its own kind."""
    figures = [tag for tag in Page(text).tags["figure"] if "data-kinds" in tag]
    assert [tag["data-kinds"] for tag in figures] == ["missed", "class", "place", "invented"]
    buttons = [tag["data-kind"] for tag in Page(text).tags["button"] if "data-kind" in tag]
    assert buttons == ["all", "missed", "class", "invented", "place"]


def test_boxes_lie_where_they_are(text):
    """Prevents boxes beside their objects: 8 to 40 of 64 pixels begin at 12.5 % and take 50 %."""
    boxes = [tag for tag in Page(text).tags["div"] if tag.get("class", "").startswith("box found right")]
    assert boxes[0]["style"] == "left:12.5%;top:12.5%;width:50.0%;height:50.0%"


def test_names_from_the_data_run_nothing(tmp_path):
    """Prevents a data set from a stranger whose names are scripts: as text, and within attributes."""
    text = page_of(annotations_of(tmp_path, name="{}'\"><img src=x onerror=alert(1)>.png"))
    page = Page(text)
    assert text.count("<script>") == 1 and EVIL not in text
    assert len(page.tags["script"]) == 1 and EVIL in page.shown
    assert not any(name.startswith("on") for tags in page.tags.values() for tag in tags for name in tag)
    assert all(tag["src"].startswith("data:image/jpeg;base64,") for tag in page.tags["img"])


def test_names_do_not_turn_the_numbers_beside_them(annotations, monkeypatch):
    """Prevents 0.75 that reads as 57.0 behind a class name with control characters, or on the other side of a Hebrew
    one."""
    monkeypatch.setattr(page_run, "NAMES", ["cat\u202e", "דג\u2067"])
    text = page_of(annotations)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert "<span><bdi>cat</bdi> 0.75</span>" in text and "<span><bdi>דג</bdi> 0.75</span>" in text
    assert re.search(r"</i><bdi>דג</bdi> \d\.\d{3}</span>", text)


def test_nothing_is_loaded_and_the_page_is_small(text):
    """Prevents a page that is empty without network, and one that no phone opens."""
    assert "http://" not in text and "https://" not in text and "@import" not in text
    places = [tag[name] for tags in Page(text).tags.values() for tag in tags for name in ("src", "href") if name in tag]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert len(text.encode()) < 8e6 and MOST_PICTURES * MOST_BYTES * 4 / 3 < 5e6


def test_chinese(annotations):
    """Prevents a page in half of another language."""
    shown = Page(page_of(annotations, report_language="zh")).shown
    assert all(words in shown for words in ("得分", "漏检", "最差的图片", "第 2 轮，共 100 轮"))
    assert not any(words in shown for words in ("Scores", "missed", "badly placed", "epoch"))


def test_the_page_says_from_which_score_on_it_counts(text, annotations):
    """Prevents a recall in the table that the matrix and the pictures contradict without a word."""
    said = "Lowest score that counts: 0.50. It is the confidence in the table, but never less than 0.05, and 0.5 for a "
    assert text.count(f"{said}class with fewer than 10 boxes.") == 2
    chinese = page_of(annotations, report_language="zh")
    assert "计数的最低得分：0.50。它就是表里的置信度，但不低于 0.05；取 0.5 的是标注框少于 10 个的类别。" in chinese


def test_charts_have_the_epochs_of_the_whole_run():
    """Prevents a chart of scores that counts epochs 2, 3, 4 in a run of two, and a crash before the first epoch."""
    charts = epoch_charts([row(1, None), row(2, 0.5)])
    assert [text for _, text in charts["scores"].x_ticks] == [text for _, text in charts["loss"].x_ticks] == ["1", "2"]
    assert set(epoch_charts([]).values()) == {None}


def test_before_an_evaluation(annotations):
    """Prevents a crash of runs without scores (eval_flag = False), and before the first epoch."""
    run = run_of(annotations)._replace(findings=[])
    nothing = Evaluation(None, None, [], None)
    text = report_page("loss_1", run, [], nothing, {}, None)["report"]
    assert "Nothing was evaluated yet." in text and "data:image" not in text


def test_without_boxes(tmp_path, annotations):
    """Prevents a crash in the first epochs, when nothing is found, and on a set without labels."""
    assert "missed: 12" in page_of(annotations, NOTHING)
    empty = annotations_of(tmp_path, [], [], [])
    assert "No picture has a mistake." in page_of(empty, NOTHING)
    # Without a box no class has a confidence, and 0.75 is above the usual one.
    assert "invented: 12" in page_of(empty, (FOUND_IMAGES, [[8, 8, 40, 40]] * 12, [0] * 12))


def test_long_names_are_cut(tmp_path):
    """Prevents a class name of a megabyte from being in the page many times."""
    run = run_of(annotations_of(tmp_path))._replace(findings=[("info", "1", "a", "b", "x" * 10**6)])
    hints = {"few boxes": "y" * 10**6}
    text = report_page("loss_1", run, [], Evaluation(None, None, [], None), hints, None)["report"]
    assert "xxx…xxx" in text and "yyy…yyy" in text and len(text) < 50_000


def test_settings_say_what_was_changed(annotations):
    """Prevents a list in which the changed constants are not found, or in which what None stands for is one."""
    rows = settings_rows(run_of(annotations, UnFreeze_Epoch=7, lr_decay_type=max).settings)
    changed = [item[:3] for item in rows if item[3]]
    assert changed == [("UnFreeze_Epoch", "7", "100"), ("lr_decay_type", "'max'", "None")]


def test_a_confusion_matrix_of_many_classes_is_cut():
    """Prevents a table of a thousand columns: the classes with the most boxes stay, and the last row and column."""
    matrix = np.diag(np.arange(1001))
    table = confusion_table(matrix, [f"class {number}" for number in range(1000)])
    assert (len(table.rows), len(table.columns), table.left_out) == (41, 40, 960)
    assert table.rows[0][:2] == ("class 960", 960) and table.rows[0][2][0] == (960, 1.0)
    assert table.rows[-1][:2] == ("", 1000)
    assert confusion_table(np.zeros((3, 3), int), NAMES).rows[0] == ("cat", 0, [(0, 0.0)] * 3)
