"""Holds the direction of imports: programs -> utils, nets; and which parts work without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("train", "predict", "tools", "benchmarks")
WITHOUT_TORCH = [
    "utils.draw",
    *(f"utils.data.{name}" for name in ("records", "annotations", "letterbox", "plan", "render")),
]
MOST_LINES = 4500


def sources(*names):
    """Python files of packages and modules of the project's top level."""
    files = [
        path
        for name in names
        for path in ((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / f"{name}.py"])
    ]
    assert len(files) >= len(names)
    return files


def imported_by(source):
    """Dotted names that a Python source imports anywhere, also inside functions: `from a import b` is a.b."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def is_within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offences(files, is_allowed):
    """`file imports name` for each import that is not allowed."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_by(path.read_text(encoding="utf-8"))
        if not is_allowed(name)
    ]


def test_imports_are_read_wherever_they_stand():
    """Prevents this file from passing because it sees no imports."""
    source = "import a.b, c\nfrom d.e import f as g\ndef h():\n    from . import i\n"
    assert imported_by(source) == ["a.b", "c", "d.e.f", "..i"]
    assert is_within("a.b", "a") and is_within("a", "a") and not is_within("ab", "a")
    assert imported_by("") == []


def test_nets_know_nothing_of_files_or_training():
    """Prevents networks and losses from depending on data, configuration or OpenCV."""

    def is_allowed(name):
        return is_within(name, "torch", "torchvision", "nets", "utils.boxes", *sys.stdlib_module_names)

    assert offences(sources("nets"), is_allowed) == []


def test_nobody_imports_the_programs():
    """Prevents circular imports, and programs that run or parse arguments when something else needs one function."""
    assert offences(sources(*PROGRAMS, "utils", "nets"), lambda name: not is_within(name, *PROGRAMS)) == []


def test_utils_build_no_networks():
    """Prevents utils from building models; only utils/infer.py opens a weight file through nets."""
    files = [path for path in sources("utils") if path != ROOT / "utils/infer.py"]
    assert offences(files, lambda name: not is_within(name, "nets")) == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_deployment_parts_import_no_torch(module):
    """Prevents a slow and large dependency of code that needs numpy and OpenCV alone."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    assert offences([file], lambda name: not is_within(name, "torch", "torchvision", "nets")) == []


def test_deployment_parts_load_no_torch():
    """Prevents torch from coming in through a module that they import."""
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; print(sorted({{'torch', 'torchvision'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_the_project_stays_readable_in_an_afternoon():
    """Prevents slow growth; where it fails, look for what is said twice."""
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in sources("train", "predict", "nets", "utils")
    )
    assert 1000 < lines < MOST_LINES
