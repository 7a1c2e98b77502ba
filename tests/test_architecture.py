"""The layers of the project, as data, held against its imports; and which parts work without torch."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from nets import MODELS
from utils.config import rules
from utils.weights.download import RELEASES
from utils.weights.formats import FORMATS

ROOT = Path(__file__).parents[1]
# Lowest first; a package imports nothing but what lies in lower layers.
LAYERS = (
    ("utils.io",),
    ("nets", "utils.image", "utils.runtime", "utils.config"),
    ("utils.data", "utils.weights"),
    ("utils.inference", "utils.checkpoint"),
    ("utils.training", "utils.evaluation", "utils.export", "utils.modes", "utils.visualize"),
    ("utils.reporting", "predict", "tools", "benchmarks"),
    ("train",),
)
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}
WITHOUT_TORCH = (
    *("utils.io", "utils.image", "utils.config", "utils.data.formats", "utils.data.quality"),
    *(
        "utils.data.annotations",
        "utils.data.augment",
        "utils.data.draw",
        "utils.data.tiles",
        "utils.weights.metadata",
        "utils.weights.download",
    ),
    *("utils.inference.base", "utils.inference.onnx", "predict"),
    *(f"utils.modes.{name}" for name in ("images", "label_files", "video", "window", "speed", "onnx", "web")),
)
# Lines of code of each package, comments and docstrings left out; docs/architecture.md says when a bound may rise.
MOST_LINES_OF_CODE = {
    "train": 180,
    "predict": 115,
    "nets": 1700,
    "utils.io": 405,
    "utils.image": 365,
    "utils.runtime": 360,
    "utils.config": 660,
    "utils.data": 3210,
    "utils.weights": 680,
    "utils.inference": 455,
    "utils.checkpoint": 420,
    "utils.training": 1490,
    "utils.evaluation": 970,
    "utils.export": 315,
    "utils.modes": 785,
    "utils.visualize": 570,
    "utils.reporting": 980,
}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 45
# The scripts are mostly comments on their constants, and main of train.py is the whole order of a training.
MOST_LINES_OF_TRAIN, MOST_LINES_OF_MAIN = 520, 70
NO_CODE = (
    *(tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


def sources(*packages):
    """{dotted name: path} of the Python files of packages and modules, () for all of the project's."""
    found = {}
    for package in packages or LAYER_OF:
        place = ROOT / package.replace(".", "/")
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        for path in files:
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(source, at_top=False):
    """Dotted names that a Python source imports: `from a import b` is a.b. at_top: outside of functions alone."""
    tree, names = ast.parse(source), []
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def package_of(name):
    """The package of LAYERS that a dotted name belongs to; None for names from outside."""
    return next((package for package in LAYER_OF if is_within(name, package)), None)


def is_within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def upward(modules):
    """`module imports name` for each import that does not lead to a lower layer."""
    return [
        f"{module} imports {name}"
        for module, path in modules.items()
        for name in imported_by(path.read_text(encoding="utf-8"))
        if (other := package_of(name))
        and other != package_of(module)
        and LAYER_OF[other] >= LAYER_OF[package_of(module)]
    ]


def lines_of_code(path):
    """How many lines of a file hold code: blank lines, comments and docstrings do not count."""
    with open(path, "rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in NO_CODE]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_imports_are_read_wherever_they_stand():
    """Prevents this file from passing because it sees no imports."""
    source = "import a.b, c\nfrom d.e import f as g\ndef h():\n    from . import i\n"
    assert imported_by(source) == ["a.b", "c", "d.e.f", "..i"]
    assert imported_by(source, at_top=True) == ["a.b", "c", "d.e.f"]
    assert package_of("utils.data.loader.collate") == "utils.data" and package_of("torch.utils.data") is None
    assert imported_by("") == []


def test_an_import_upward_is_found(tmp_path):
    """Prevents a check that lets everything pass; the same layer is no lower one."""
    path = tmp_path / "module.py"
    path.write_text("import torch\nfrom utils.io import files\nfrom utils.weights import read\nimport train\n")
    found = upward({"utils.data.module": path})
    assert found == ["utils.data.module imports utils.weights.read", "utils.data.module imports train"]


def test_every_module_has_a_layer():
    """Prevents a package, or a loose file, that no rule holds for."""
    modules = [path for folder in ("utils", "nets", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in modules if path not in sources().values() and path.name != "__init__.py"] == []
    assert [path.name for path in (ROOT / "utils").glob("*.py")] == ["__init__.py"]


def test_imports_lead_to_lower_layers():
    """Prevents circles between packages, and a step that knows of files, pictures or command lines."""
    assert upward(sources()) == []


def test_names_that_two_packages_of_a_layer_hold_are_the_same():
    """Prevents a format, release or network that can be read and is refused as a constant."""
    assert ("", *FORMATS) == rules.WEIGHTS_FORMATS
    assert tuple(RELEASES) == rules.RELEASE_NAMES
    assert tuple(MODELS) == rules.MODEL_NAMES


def test_nets_import_torch_and_themselves():
    """Prevents networks and losses from depending on data, configuration or OpenCV."""
    names = {name for path in sources("nets").values() for name in imported_by(path.read_text(encoding="utf-8"))}
    # The assignment of queries is solved on the CPU, by lap.
    allowed = ("torch", "torchvision", "numpy", "lap", "nets", *sys.stdlib_module_names)
    assert sorted(name for name in names if not is_within(name, *allowed)) == []


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_deployment_parts_import_no_torch(package):
    """Prevents a slow and large dependency of code that needs numpy and OpenCV alone."""
    for path in sources(package).values():
        names = imported_by(path.read_text(encoding="utf-8"), at_top=True)
        assert [name for name in names if is_within(name, "torch", "torchvision", "nets")] == []


def test_deployment_parts_load_no_torch():
    """Prevents torch from coming in through a module that they import."""
    modules = ", ".join(module for package in WITHOUT_TORCH for module in sources(package))
    code = f"import sys, {modules}; print(sorted({{'torch', 'torchvision'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_lines_of_code(tmp_path):
    """Prevents a bound on teaching: three of these lines are code."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""Purpose.\n\nMore.\n"""\n\n# Why.\ndef f(x):\n    """图."""\n    return (\n        x)  # why\n', "utf-8"
    )
    assert lines_of_code(path) == 3
    path.write_text("")
    assert lines_of_code(path) == 0


@pytest.mark.parametrize("package", MOST_LINES_OF_CODE)
def test_packages_stay_readable(package):
    """Prevents slow growth; where it fails, look for what is said twice. Comments and docstrings may grow."""
    assert 50 < sum(map(lines_of_code, sources(package).values())) <= MOST_LINES_OF_CODE[package]


def test_every_package_has_a_bound():
    """Prevents a new package that may grow for ever."""
    assert set(MOST_LINES_OF_CODE) == {package for package in LAYER_OF if package not in ("tools", "benchmarks")}


def test_files_have_one_job():
    """Prevents files in which nothing is found."""
    files = sources("nets", *(package for package in LAYER_OF if package.startswith("utils.")))
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FILE} == {}
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_TRAIN


def long_functions(source, most):
    """Names of the functions of a Python source that have more lines than that, docstrings included."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [node.name for node in nodes if node.end_lineno - node.lineno >= most]


def test_functions_fit_a_screen():
    """Prevents functions that have to be scrolled."""
    found = {
        name: long_functions(path.read_text(encoding="utf-8"), MOST_LINES_OF_A_FUNCTION)
        for name, path in sources().items()
    }
    found["train"] = long_functions((ROOT / "train.py").read_text(encoding="utf-8"), MOST_LINES_OF_MAIN)
    assert {name: names for name, names in found.items() if names} == {}
    assert long_functions("def f():\n    a = 1\n    return a\n", 2) == ["f"]
    assert long_functions("def f():\n    a = 1\n    return a\n", 3) == []
