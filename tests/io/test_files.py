import csv
import os

import pytest

from utils.io.files import files_below, write_csv


def test_folders_that_cannot_be_read_are_said_once(tmp_path, monkeypatch, capsys):
    """Prevents half of a data set, whose folder belongs to another user, from being left out without a word."""
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    scandir = os.scandir

    def refuse(folder):
        if os.path.basename(folder) == "b":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [files_below(str(tmp_path), (".jpg",)) for _ in range(2)] == [["a/1.jpg"]] * 2
    said = capsys.readouterr()
    assert (said.out + said.err).count(
        f"{tmp_path}/b cannot be read (Permission denied), so its files are left out"
    ) == 1


def test_a_folder_without_files(tmp_path, capsys):
    """Prevents a warning on an empty folder."""
    assert files_below(str(tmp_path), (".jpg",)) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1", "'+1"),
        ("-cat", "'-cat"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("a=b", "a=b"),
        ("", ""),
        (-1.23456, "-1.235"),
        (-3, "-3"),
        (None, ""),
    ],
)
def test_no_cell_is_a_formula(tmp_path, value, expected):
    """Prevents a name in a downloaded data set from being run by a spreadsheet, and negative numbers that become
    text."""
    write_csv(tmp_path / "a.csv", ("first", "second"), [{"first": value, "second": 1}])
    with open(tmp_path / "a.csv", encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["first", "second"], [expected, "1"]]
