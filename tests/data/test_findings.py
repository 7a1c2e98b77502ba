import csv

import pytest

from utils.data.quality.findings import (
    KINDS,
    LEVELS,
    REMEDIES,
    Finding,
    by_kind,
    counted,
    findings_table,
    raise_errors,
    write_findings,
)
from utils.io.text import shorten_list

FINDINGS = [
    Finding("background", "b.jpg"),
    Finding("clipped_box", "a.jpg", "'cat': -5, 0, 20, 20"),
    Finding("unknown_class", "图 1.jpg", "'Cat'"),
    Finding("clipped_box", "c.jpg", "'cat': -9, 0, 20, 20"),
]


def test_worst_first():
    """Prevents what matters most from standing below what is only good to know, and kinds that nobody can act upon."""
    assert [KINDS[kind].level for kind in by_kind(FINDINGS)] == ["error", "warning", "info"]
    levels = [list(LEVELS).index(kind.level) for kind in KINDS.values()]
    assert levels == sorted(levels)
    assert set(REMEDIES) == {kind for kind in KINDS if KINDS[kind].level == "error"}
    assert by_kind([]) == {}


def test_table():
    """Prevents a table that hides how many there are or what training does about them."""
    lines = findings_table(FINDINGS).splitlines()
    assert lines[0].split() == ["count", "what", "what", "training", "does", "for", "example"]
    assert lines[1].startswith("error        1  box of a class that classes_path lacks  refuses to start")
    assert lines[2].startswith("warning      2  box reaches beyond its image") and lines[2].endswith(
        "a.jpg: 'cat': -5, 0, 20, 20"
    )
    assert len(lines) == 4
    assert findings_table([]) == ""


def test_file(tmp_path):
    """Prevents a file that spreadsheets garble, that leaves findings out, or that an odd file name ends."""
    path = tmp_path / "findings.csv"
    write_findings(path, [*FINDINGS, Finding("background", "\udcff.jpg")])
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["level", "finding", "image", "detail", "what training does"]
    assert rows[1] == ["error", "box of a class that classes_path lacks", "图 1.jpg", "'Cat'", "refuses to start"]
    assert [row[2] for row in rows[2:]] == ["a.jpg", "c.jpg", "b.jpg", "\\udcff.jpg"]
    write_findings(path, [])
    assert len(path.read_text("utf-8").splitlines()) == 1


def test_raise_errors_says_all_of_them():
    """Prevents one mistake per run, and a training on data that cannot be trained on."""
    raise_errors("list.txt", [finding for finding in FINDINGS if finding.kind != "unknown_class"])
    raise_errors("list.txt", [])
    with pytest.raises(ValueError) as caught:
        raise_errors("list.txt", [*FINDINGS, *FINDINGS, Finding("broken_annotation", "a.xml", "empty")], ["cat", "dog"])
    assert str(caught.value) == (
        "list.txt: annotation cannot be read (once): a.xml: empty. Correct or remove them.\n"
        "list.txt: box of a class that classes_path lacks (2 times): 'Cat' (2 times). classes_path names cat, dog. Set "
        "it to the file of these classes, add the missing names to it, or correct the annotations."
    )
    with pytest.raises(FileNotFoundError, match=r"image does not exist \(2 times\): a, b \(here\)\. Put them there"):
        raise_errors("list.txt", [Finding("missing_image", name, "here") for name in "ab"])


def test_counted():
    """Prevents `1 times`."""
    assert counted("missing_image", 1) == "image does not exist (once)"
    assert counted("unknown_class", 561) == "box of a class that classes_path lacks (561 times)"


def test_images_that_are_left_out_of_the_score():
    """Prevents a score that rises with broken validation images from being taken for a better one."""
    assert KINDS["unreadable_image"].effect == "leaves it out, in validation too (the score looks better)"
    effect = "takes another in its place; in validation its boxes count as missed"
    assert KINDS["undecodable_image"].effect == effect


def test_listed():
    """Prevents messages of 10,000 lines."""
    assert shorten_list(["a", "b"]) == "a, b"
    assert shorten_list([str(number) for number in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert shorten_list([]) == ""


def test_a_class_that_is_a_formula(tmp_path):
    """Prevents a spreadsheet that runs a class name of findings.csv."""
    write_findings(tmp_path / "findings.csv", [Finding("class_without_boxes", "=1+1", "@a")])
    with open(tmp_path / "findings.csv", encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file))[1][2:4] == ["'=1+1", "'@a"]


def test_classes_that_the_weights_do_not_know():
    """Prevents advice on classes_path where the names come from a weight file, which then refuses such names."""
    with pytest.raises(ValueError) as caught:
        raise_errors("val.txt", FINDINGS, ["ace", "jack"], of_weights=True)
    assert str(caught.value) == (
        "val.txt has boxes of classes that the weights do not know: 'Cat' (once). The weights know ace, jack. Let "
        "annotation_path name data of these classes."
    )


@pytest.mark.parametrize("name", ["fish leaf mushroom", "fish,leaf", "fish;leaf"])
def test_names_on_one_line(name):
    """Prevents a list of classes that looks right, of a file whose names stand on one line and are one name."""
    with pytest.raises(ValueError) as caught:
        raise_errors("val.txt", FINDINGS, [name])
    assert str(caught.value).endswith(f"(once). classes_path names 1 class, {name!r}: write one name per line.")
