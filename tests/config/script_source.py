"""A script out of a text, for tests of what is read from it."""

import runpy


def namespace_of(folder, source):
    """The globals() of a script with this source, which is run."""
    path = folder / "script.py"
    path.write_text(source, encoding="utf-8")
    return runpy.run_path(str(path))
