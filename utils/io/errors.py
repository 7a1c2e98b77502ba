"""Errors whose message is written for the user: scripts show it as it stands, without a trace."""


class UserError(ValueError):
    """A mistake of the user, in one sentence: the file or constant, what was found, what was expected, what to do."""

    exit_status = 1


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a constant names and that does not exist."""
