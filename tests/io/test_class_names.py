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
