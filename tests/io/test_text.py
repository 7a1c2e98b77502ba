import pytest

from utils.io.text import amount, counted, did_you_mean, display_width, either, format_table, printable, shorten_list


def test_columns_are_aligned():
    """Prevents a ragged table, and blanks at the end of its lines."""
    rows = [["class", "boxes"], ["cat", "12"], ["", "7"], ["a long name", ""]]
    assert format_table(rows).split("\n") == ["class        boxes", "cat          12", "             7", "a long name"]


def test_columns_on_the_right():
    """Prevents numbers whose units stand below tens, and a table of one column that is aligned as a whole."""
    rows = [["class", "boxes", "AP"], ["cat", "12", "0.5"], ["bird", "1,234", "0.25"]]
    expected = ["class  boxes    AP", "cat       12   0.5", "bird   1,234  0.25"]
    assert format_table(rows, right=(1, 2)).split("\n") == expected
    assert format_table(rows, right={1}).split("\n") == ["class  boxes  AP", "cat       12  0.5", "bird   1,234  0.25"]
    assert format_table([["1"], ["20"]], right=range(1)) == " 1\n20"


def test_wide_characters_take_two_columns():
    """Prevents tables with Chinese names whose columns do not stand below each other."""
    rows = [["类别", "数"], ["cat", "1"], ["红细胞", "22"]]
    lines = format_table(rows, right=[1]).split("\n")
    assert lines == ["类别    数", "cat      1", "红细胞  22"]
    assert [display_width(line) for line in lines] == [10, 10, 10]


@pytest.mark.parametrize(("text", "width"), [("", 0), ("abc", 3), ("猫", 2), ("ａ", 2), ("é", 1), ("a猫,", 4)])
def test_display_width(text, width):
    """Prevents widths counted in characters, or in bytes."""
    assert display_width(text) == width


def test_an_empty_table():
    """Prevents a crash where there is nothing to list, and blanks where all cells are empty."""
    assert format_table([]) == ""
    assert format_table([[], []]) == "\n"
    assert format_table([["", ""]]) == ""


def test_another_gap():
    """Prevents a gap that is not the one asked for."""
    assert format_table([["a", "b"], ["cc", "d"]], gap=" | ") == "a  | b\ncc | d"


def test_rows_of_unequal_length():
    """Prevents cells from being dropped in silence."""
    with pytest.raises(ValueError):
        format_table([["a", "b"], ["c"]])


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(1, "box", "1 box"), (2, "box", "2 boxes"), (0, "class", "0 classes"), (1, "optimiser step", "1 optimiser step")],
)
def test_one_of_a_kind(count, noun, words):
    """Prevents "1 boxes" and "2 boxs"."""
    assert counted(count, noun) == words


def test_large_numbers_can_be_parted():
    """Prevents seven digits in a row beside numbers that have commas."""
    assert (counted(1234567, "batch", ","), counted(3, "image", ",")) == ("1,234,567 batches", "3 images")


def test_amounts():
    """Prevents "50884 MB", and 0.0 GB."""
    assert [amount(count) for count in (0, 4e6, 50.884e9)] == ["0.0 MB", "4.0 MB", "50.9 GB"]


def test_lists_are_shortened():
    """Prevents messages of a thousand names, and a count of what was left out that is off by one."""
    names = [str(number) for number in range(12)]
    assert shorten_list(names) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert shorten_list(names[:10]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shorten_list(names[:3], shown=1) == "0 and 2 more"
    assert shorten_list([]) == ""


@pytest.mark.parametrize(
    ("choices", "expected"), [([], ""), (["a"], "a"), (["a", "b"], "a, or b"), (["a", "b", "c"], "a, b, or c")]
)
def test_a_choice_in_words(choices, expected):
    """Prevents "a, b" that reads as if both were meant, and an "or" before nothing."""
    assert either(choices) == expected


def test_names_that_can_be_shown():
    """Prevents a name that reverses the number beside it, or that cannot be written; names in Hebrew stay."""
    assert printable("cat\u202e\u202a\u2066\u2069 0.125") == "cat 0.125"
    assert [printable(name) for name in ("שלום", "猫", "a\udcff", "")] == ["שלום", "猫", "a?", ""]


def test_did_you_mean():
    """Prevents a question on a word that has nothing in common with what was written."""
    assert did_you_mean("tain.txt", ["test.txt", "train.txt"]) == " Did you mean train.txt?"
    assert did_you_mean("resnet", ["yolox_nano"]) == "" and did_you_mean("a", []) == ""
