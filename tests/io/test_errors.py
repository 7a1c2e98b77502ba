import pytest

from utils.io.errors import MissingFileError, UserError


def test_mistakes_of_the_user_are_still_the_usual_errors():
    """Prevents programs around this project, which catch ValueError or FileNotFoundError, from ending in a trace."""
    for kinds, error in (
        ((UserError, ValueError), UserError("nms_iou is 2; expected 0 to 1.")),
        ((MissingFileError, UserError, ValueError, FileNotFoundError, OSError), MissingFileError("a.pth is missing.")),
    ):
        for kind in kinds:
            with pytest.raises(kind):
                raise error


def test_the_message_stands_as_it_is():
    """Prevents the brackets and the errno of OSError in what the user reads, and an exit status that says success."""
    for kind in (UserError, MissingFileError):
        error = kind("model_path: logs/best.pth does not exist. Train first.")
        assert str(error) == "model_path: logs/best.pth does not exist. Train first."
        assert error.exit_status == 1


def test_a_missing_file_is_told_from_another_mistake():
    """Prevents a file that exists and is wrong from being reported as missing."""
    assert not isinstance(UserError("a"), FileNotFoundError)
    assert not issubclass(UserError, OSError)
