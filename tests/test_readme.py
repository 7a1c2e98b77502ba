"""Holds both READMEs to the code and to each other: constants and their defaults, commands, files, headings."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

from utils.config import convert, script_constants

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
SCRIPTS = ("train.py", "predict.py", "tools/get_map.py", "tools/voc_annotation.py")
CODE_FOLDERS = ("nets", "utils", "tools", "benchmarks")
# What people and programs make, and what other repos had: no files of ours.
USER_MADE = re.compile(
    r"logs/(?!README)|img_out/|map_out/|VOCdevkit/VOC2007/(?!README)|my_images/|BCCD_Dataset/"
    r"|(?:Annotations|JPEGImages|ImageSets)(?:/|$)|model_data/(?:my|bccd)_classes\.txt|model_data/[\w.]+\.pth"
)
OLD_FILES = {"yolo.py", "get_map.py", "voc_annotation.py", "summary.py", "nets/yolo.py", "nets/yolo_training.py"}
OLD_FILES |= {f"utils/{name}.py" for name in ("dataloader", "utils_fit", "callbacks", "utils_bbox")}


@functools.cache
def text_of(readme):
    return (ROOT / readme).read_text(encoding="utf-8")


@functools.cache
def constants_of(script):
    """{name: value} of a script's parameter blocks, as its command line knows them."""
    name = "readme_" + script.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return script_constants(vars(module))


def table_rows(text, script):
    """[(name, default as written)] of the tables between a script's marker and the end marker."""
    marker = f"<!-- constants: {script} -->"
    assert text.count(marker) == 1, f"expected one line {marker}"
    part = text.split(marker)[1].split("<!-- end of constants -->")[0]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    matches = [re.fullmatch(r"\| `(\w+)` \| `([^`]*)` \| .*\S.* \|", line) for line in rows]
    broken = [line for line, match in zip(rows, matches, strict=True) if match is None]
    assert not broken, f"expected | `name` | `default` | meaning |, found: {broken}"
    return [match.groups() for match in matches]


def differences(rows, constants):
    """Sentences on what a table says that the script does not, and the reverse."""
    names = [name for name, _ in rows]
    found = [f"{name} has no row; the script has {value!r}" for name, value in constants.items() if name not in names]
    found += [f"{name} has {names.count(name)} rows" for name in sorted(set(names)) if names.count(name) > 1]
    for name, written in rows:
        if name not in constants:
            found.append(f"{name} does not exist in the script")
            continue
        try:
            value = ast.literal_eval(written)
        except (ValueError, SyntaxError):
            value = f"{written}, which is no Python value"
        if value != constants[name] or type(value) is not type(constants[name]):
            found.append(f"{name} is `{written}` in the table; the script has `{constants[name]!r}`")
    return found


def code_lines(text):
    """Lines of all fenced blocks, without comments and empty lines."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"(^|\s+)# .*", "", line).rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def commands(text):
    """[(script, [name=value, ...])] of every call of a script of ours, in blocks and in running text."""
    calls = re.findall(r"(?:python|torchrun\b[^`\n]*?) +([\w/]+\.py)((?: +\"?--[^`\n]*)?)", text, re.ASCII)
    return [(script, re.findall(r'--([^\s"]+)', rest)) for script, rest in calls if script not in OLD_FILES]


def file_names(text):
    """Names in a text that look like files or folders of this repository; web addresses are no such names."""
    text = re.sub(r"https?://[^\s)>`]+", "", text)
    with_folder = re.findall(r"(?:[\w.-]+/)+(?:[\w-]+(?:\.[\w-]+)*)?", text, re.ASCII)
    top_folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"docs"}
    in_folders = {name for name in with_folder if name.split("/")[0] in top_folders}
    bare = set(re.findall(r"(?<![\w./-])[\w-]+\.(?:py|md|toml)\b|requirements[\w-]*\.txt", text, re.ASCII))
    return {name for name in (in_folders | bare) - OLD_FILES if not USER_MADE.match(name)}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("readme", READMES)
def test_tables_name_every_constant_with_its_default(readme, script):
    """Prevents a README that lists other constants or other defaults than the script has."""
    found = differences(table_rows(text_of(readme), script), constants_of(script))
    assert not found, f"{readme}, constants of {script}:\n  " + "\n  ".join(found)


def test_differences_are_found():
    """Prevents a comparison that lets drift pass: wrong value, wrong type, missing, double and unknown name."""
    constants = {"a": 1, "b": True, "c": "x", "d": 0.01, "e": [1]}
    rows = [("a", "2"), ("b", "1"), ("d", "1e-2"), ("d", "0.01"), ("e", "[1]"), ("f", "oops")]
    assert differences(rows, constants) == [
        "c has no row; the script has 'x'",
        "d has 2 rows",
        "a is `2` in the table; the script has `1`",
        "b is `1` in the table; the script has `True`",
        "f does not exist in the script",
    ]
    assert differences([], {}) == []


def test_the_chinese_readme_teaches_every_constant_of_train():
    """Prevents a constant that stands in the Chinese table but is explained nowhere."""
    prose = "\n".join(line for line in text_of("README_zh.md").splitlines() if not line.startswith("|"))
    part = prose.split("<!-- constants: train.py -->")[1].split("<!-- end of constants -->")[0]
    missing = [name for name in constants_of("train.py") if f"`{name}" not in part]
    assert not missing, f"README_zh.md explains these nowhere below the tables of train.py: {missing}"


def test_both_readmes_have_the_same_sections():
    """Prevents a section that was added to one language only."""
    levels = [re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL), re.M) for name in READMES]
    assert levels[0].count("##") >= 8
    assert levels[0] == levels[1]


def test_both_readmes_show_the_same_commands():
    """Prevents a command that was corrected in one language only."""
    english, chinese = (code_lines(text_of(readme)) for readme in READMES)
    assert "pip install -r requirements.txt" in english
    assert english == chinese


@pytest.mark.parametrize("readme", READMES)
def test_commands_can_be_typed_as_shown(readme):
    """Prevents commands that end in an error: scripts and parameters exist, and values have their types."""
    calls = commands(text_of(readme))
    assert ("train.py", []) in calls and ("predict.py", ["mode=dir_predict"]) in calls
    for script, arguments in calls:
        assert (ROOT / script).is_file(), f"{readme} calls {script}, which does not exist"
        if script == "tools/make_sample.py":  # has a parser of its own
            continue
        constants = constants_of(script)
        for name, _, value in (argument.partition("=") for argument in arguments):
            assert name in constants, f"{readme}: {script} has no parameter {name}"
            convert(name, value, constants[name])


@pytest.mark.parametrize("readme", READMES)
def test_named_files_exist(readme):
    """Prevents links, pictures and file names that lead nowhere."""
    names = file_names(text_of(readme))
    assert {"train.py", "requirements.txt", "utils/infer.py", "docs/images/sample_prediction.jpg"} <= names
    missing = sorted(name for name in names if not (ROOT / name).exists())
    assert not missing, f"{readme} names what does not exist: {missing}"


@pytest.mark.parametrize("readme", READMES)
def test_the_map_of_the_code_is_whole(readme):
    """Prevents a module that the map of files forgets."""
    modules = [path.relative_to(ROOT).as_posix() for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    missing = sorted(name for name in modules if f"| `{name}` |" not in text_of(readme) and "__init__" not in name)
    assert "utils/data/plan.py" in modules
    assert not missing, f"{readme} has no row for {missing}"


@pytest.mark.parametrize("readme", READMES)
def test_nothing_is_left_to_fill_in(readme):
    """Prevents a result that was announced but never written down."""
    left = sorted(set(re.findall(r"\{\{.*?\}\}", text_of(readme))))
    assert not left, f"{readme} still holds {left}"
