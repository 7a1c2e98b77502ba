"""Lists and tables in words."""

from collections.abc import Sequence

SHOWN = 10


def listed(items: Sequence[str]) -> str:
    """The first few items, separated by commas, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
