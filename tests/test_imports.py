"""Holds the direction of imports: programs -> utils, nets; and which parts work without torch."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("train", "predict", "tools", "benchmarks")
WITHOUT_TORCH = [
    *("utils.draw", "utils.detections", "utils.onnx_infer"),
    *(f"utils.modes.{name}" for name in ("pictures", "label_files", "video", "window", "from_onnx")),
    *(
        f"utils.data.{name}"
        for name in (
            *("records", "annotations", "source", "voc", "list_file", "coco_json", "json_stream", "yolo_txt"),
            *("class_names", "files", "findings", "image_size", "letterbox", "plan", "render"),
        )
    ),
    "utils.weights.download",
    "utils.weights.contract",
]
# Whoever reads a training step needs none of the annotation formats, scores, pictures, advice, faults and ways to
# use a detector: these are rooms of small files.
MOST_LINES_OF_CODE = 8400
NO_CODE = (
    *(tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


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


def lines_of_code(path):
    """How many lines of a file hold code: blank lines, comments and docstrings do not count."""
    with open(path, "rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in NO_CODE]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


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
    assert offences(sources("train", "predict", "utils", "nets"), lambda name: not is_within(name, *PROGRAMS)) == []

    def is_allowed(name):
        return not is_within(name, *PROGRAMS) or is_within(name, "tools.data_report")  # the parts of a tool

    assert offences(sources("tools", "benchmarks"), is_allowed) == []


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


def test_lines_of_code(tmp_path):
    """Prevents a bound on teaching: three of these lines are code."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""Purpose.\n\nMore.\n"""\n\n# Why.\ndef f(x):\n    """图."""\n    return (\n        x)  # why\n', "utf-8"
    )
    assert lines_of_code(path) == 3
    path.write_text("")
    assert lines_of_code(path) == 0


def test_the_project_stays_readable_in_an_afternoon():
    """Prevents slow growth; where it fails, look for what is said twice. Comments and docstrings may grow."""
    assert 1000 < sum(map(lines_of_code, sources("train", "predict", "nets", "utils"))) < MOST_LINES_OF_CODE
