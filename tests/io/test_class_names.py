import pytest

from utils.io.class_names import read_class_names


def test_class_names(tmp_path):
    """Prevents a BOM inside the first name, classes made of blank lines, and names that blanks keep from matching."""
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffcat\r\n\r\n  红细胞 \r\ndining  \ttable\n\n", encoding="utf-8")
    assert read_class_names(str(path)) == ["cat", "红细胞", "dining table"]


@pytest.mark.parametrize(
    ("content", "reason"), [("", "is empty"), ("\n \n", "is empty"), ("a\nb\na\n", "names a more than")]
)
def test_class_names_errors(tmp_path, content, reason):
    """Prevents a model without classes, or with one class under two numbers."""
    path = tmp_path / "classes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_class_names(str(path))
    with pytest.raises(FileNotFoundError, match="classes_path"):
        read_class_names(str(tmp_path / "none.txt"))


def test_a_data_yaml_gives_its_names(tmp_path):
    """Prevents the lines of a data.yaml from becoming classes."""
    path = tmp_path / "data.yaml"
    path.write_text("train: images\nnames:\n  0: bolt\n  1: no\n")
    assert read_class_names(str(path)) == ["bolt", "no"]
    path.write_text("train: images\n")
    with pytest.raises(ValueError, match=r"data\.yaml has names: None; expected the class names"):
        read_class_names(str(path))


@pytest.mark.parametrize("name", ["a.json", "a.XML", "a.pth"])
def test_files_that_are_no_list_of_names(tmp_path, name):
    """Prevents the lines of an annotation from becoming classes."""
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(ValueError, match=r"expected a text file with one class name per line, or a data\.yaml"):
        read_class_names(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'path: "C:\\Users\\me"\n', "in double quotes a backslash begins an escape: write paths with / instead"),
        ("names: [螺栓]\n".encode("gbk"), r"is not UTF-8 text; save it with the encoding UTF-8\.$"),
        ("names: [a]\n".encode("utf-16"), r"is not UTF-8 text; save it with the encoding UTF-8\.$"),
    ],
)
def test_a_data_yaml_that_cannot_be_read(tmp_path, content, reason):
    """Prevents the advice to export the file again, which gives the same file."""
    (tmp_path / "data.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_class_names(str(tmp_path / "data.yaml"))


def test_names_that_show_nothing(tmp_path):
    """Prevents a class without a name, and two that look alike."""
    path = tmp_path / "data.yaml"
    path.write_text('names: [bolt, "\\u202e"]\n')
    with pytest.raises(ValueError, match=r"data\.yaml has names: \['bolt', .*; expected the class names"):
        read_class_names(str(path))
    path.write_text('names: [bolt, "bolt\\u202e"]\n')
    with pytest.raises(ValueError, match=r"data\.yaml names bolt more than once"):
        read_class_names(str(path))
