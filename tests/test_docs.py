"""Holds both READMEs to the code and to each other: constants and their defaults, commands, files, headings."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from nets import build_model
from nets.backbones.torchvision import BACKBONES
from utils.config.cli import convert, script_constants
from utils.config.rules import RULES, check_values
from utils.weights.download import RELEASES
from utils.weights.formats import FORMATS
from utils.weights.load import load_matching, loading_table
from utils.weights.read import read_weights

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
SCRIPTS = ("train.py", "predict.py", "tools/get_map.py", "tools/compare.py", "tools/label_suspects.py")
SCRIPTS += ("tools/convert_weights.py", "tools/summary.py", "tools/voc_annotation.py", "tools/check_data.py")
SCRIPTS += ("tools/kmeans_for_anchors.py",)
# Scripts that take two bare words, the paths of two files.
TWO_WORDS = ("tools/convert_weights.py", "tools/compare.py")
CODE_FOLDERS = ("nets", "utils", "tools", "benchmarks")
GOING_ON = "recipes: going on"
# What people and programs make, and what other repos had: no files of ours.
USER_MADE = re.compile(
    r"logs/(?!README)|img_out/|map_out/|VOCdevkit/VOC2007/(?!README)|my_images/|BCCD_Dataset/"
    r"|(?:Annotations|JPEGImages|ImageSets)(?:/|$)|model_data/(?:my|bccd)_(?:classes|anchors)\.txt"
    r"|model_data/[\w.-]+\.(?:pth|weights)"
)
OLD_FILES = {"yolo.py", "get_map.py", "voc_annotation.py", "summary.py", "kmeans_for_anchors.py", "nets/yolo.py"}
OLD_FILES |= {"nets/yolo_training.py"}
OLD_FILES |= {f"utils/{name}.py" for name in ("dataloader", "utils_fit", "callbacks", "utils_bbox")}


@functools.cache
def text_of(readme):
    return (ROOT / readme).read_text(encoding="utf-8")


@functools.cache
def module_of(script):
    """A script as a module, without its being run."""
    name = "readme_" + script.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def constants_of(script):
    """{name: value} of a script's parameter blocks."""
    return script_constants(vars(module_of(script)))


def parameters_of(script):
    """{name: value} of all that a script's command line knows."""
    module = module_of(script)
    return module.constants() if hasattr(module, "constants") else constants_of(script)


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


def part_of(text, name):
    """What stands between the two marks of a part, which has one of each."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    for mark in marks:
        assert text.count(mark) == 1, f"expected one line {mark}"
    return text.split(marks[0])[1].split(marks[1])[0]


def recipes(text, part="recipes"):
    """[(situation, {constant: value})] of the recipe tables, values read as the command line reads them.

    part: 'recipes' begin a run, 'recipes: going on' take one up again.
    """
    part = part_of(text, part)
    constants, found = constants_of("train.py"), []
    for line in re.findall(r"^\|(?!---).*\|$", part, re.MULTILINE):
        situation, items, why = (cell.strip() for cell in line.strip("|").split("|"))
        if items in ("Constants", "常量"):
            continue
        assert re.fullmatch(r"`\w+=[^`]+`( `\w+=[^`]+`)*", items), f"expected `name=value` `name=value`, found: {items}"
        assert why, f"{situation}: no word on why"
        pairs = re.findall(r"`(\w+)=([^`]+)`", items)
        unknown = [name for name, _ in pairs if name not in constants]
        assert not unknown, f"{situation}: train.py has no constant {unknown}"
        assert len(pairs) == len(dict(pairs)), f"{situation}: a constant stands there twice"
        found.append((situation, {name: convert(name, value, constants[name]) for name, value in pairs}))
    return found


def promises(text):
    """[(promise, how, [test file, ...])] of the table of promises."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part_of(text, "promises").splitlines()]
    rows = [cells for cells in rows if len(cells) == 3 and "`" in cells[2]]
    return [(promise, how, re.findall(r"`([^`]+)`", tests)) for promise, how, tests in rows]


def code_lines(text):
    """Lines of all fenced blocks, without comments and empty lines."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"(^|\s+)# .*", "", line).rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def commands(text):
    """[(script, [name=value, ...], [bare word, ...])] of every call of a script of ours, in blocks and running text."""
    calls = re.findall(r"(?:python|torchrun\b[^`\n]*?) +([\w/]+\.py)((?: +[^`\n]*)?)", text, re.ASCII)
    calls = [(script, rest.split(" #")[0]) for script, rest in calls if script not in OLD_FILES]
    return [
        (script, re.findall(r'--([^\s"]+)', rest), re.findall(r'(?<!\S)[^\s"-]\S*', rest)) for script, rest in calls
    ]


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
    assert ("train.py", [], []) in calls and ("predict.py", ["mode=dir_predict"], []) in calls
    assert ("tools/convert_weights.py", [], ["model_data/yolov4.weights", "model_data/yolov4.pth"]) in calls
    for script, arguments, words in calls:
        assert (ROOT / script).is_file(), f"{readme} calls {script}, which does not exist"
        if script == "tools/make_sample.py":  # has a parser of its own
            continue
        constants = parameters_of(script)
        assert len(words) == 2 * (script in TWO_WORDS), f"{readme}: {script} with the words {words}"
        for name, _, value in (argument.partition("=") for argument in arguments):
            assert name in constants, f"{readme}: {script} has no parameter {name}"
            convert(name, value, constants[name])


@pytest.mark.parametrize("readme", READMES)
def test_recipes_hold_values_that_train_accepts(readme):
    """Prevents a recipe that ends in an error, or that changes nothing."""
    found, defaults = recipes(text_of(readme)), constants_of("train.py")
    assert len({situation for situation, _ in found}) == len(found) >= 15
    for situation, changes in found:
        check_values(changes, RULES)
        values = defaults | changes
        assert values != defaults, f"{situation}: these are the defaults"
        assert values["Init_Epoch"] < values["UnFreeze_Epoch"] >= values["Freeze_Epoch"], situation
        assert not (values["train_only"] and (values["freeze_layers"] or values["freeze_blocks"])), situation
        if {"Freeze_batch_size", "Unfreeze_batch_size"} <= set(changes):
            assert 1 <= values["Freeze_batch_size"] / values["Unfreeze_batch_size"] <= 2, situation


@pytest.mark.parametrize("readme", READMES)
def test_recipes_to_go_on_resume(readme):
    """Prevents a recipe that begins a new run where one is to go on."""
    found = [changes for _, changes in recipes(text_of(readme), GOING_ON)]
    assert found == [{"resume": True}, {"resume": True, "UnFreeze_Epoch": 150}]
    for changes in found:
        check_values(changes, RULES)
    assert constants_of("train.py")["UnFreeze_Epoch"] < 150


@pytest.mark.parametrize("readme", READMES)
def test_every_promise_has_its_tests(readme):
    """Prevents a promise that nothing holds any more, and a fault test of which nobody knows what it is for."""
    found = promises(text_of(readme))
    assert len(found) >= 15
    assert all(promise and how and tests for promise, how, tests in found)
    named = {test for *_, tests in found for test in tests}
    missing = sorted(test for test in named if not (ROOT / test).is_file())
    assert not missing, f"{readme} names tests that do not exist: {missing}"
    faults = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/faults").glob("test_*.py")}
    assert faults <= named, f"{readme} has no promise held by {sorted(faults - named)}"
    assert [tests for *_, tests in found] == [tests for *_, tests in promises(text_of("README.md"))]


def test_broken_recipes_are_found():
    """Prevents a reader of the tables that passes over what it does not understand."""

    def read(items):
        table = f"| Situation | Constants | Why |\n|---|---|---|\n| a | {items} | why |\n"
        return recipes(f"<!-- recipes -->\n{table}<!-- end of recipes -->\n")

    assert read("`Init_lr=1e-2` `train_only=['head']`") == [("a", {"Init_lr": 0.01, "train_only": ["head"]})]
    assert recipes("<!-- recipes --><!-- end of recipes -->") == []
    for items, message in [
        ("", "expected `name=value`"),
        ("`Init_lr=1e-2`, or so", "expected `name=value`"),
        ("`Init_rl=1e-2`", "no constant"),
        ("`seed=1` `seed=2`", "twice"),
    ]:
        with pytest.raises(AssertionError, match=message):
            read(items)
    with pytest.raises(ValueError, match="Freeze_Train"):
        read("`Freeze_Train=no`")


def test_both_readmes_have_the_same_recipes():
    """Prevents a recipe that was corrected in one language only."""
    english, chinese = ([changes for _, changes in recipes(text_of(readme))] for readme in READMES)
    assert english == chinese


def test_the_recipes_of_train_stand_in_the_readme():
    """Prevents recipes in train.py and in the README that give different advice."""
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    block = source.split("#   RECIPES")[1].split("\n# ----")[0]
    pairs = re.findall(r"(\w+) = ('[^']*'|\[[^\]]*\]|\{[^}]*\}|[\d.e-]+\d|\d|True|False)", block)
    assert ("train_only", "['head']") in pairs and ("fp16", "True") in pairs
    assert ("Init_lr", "1e-2") in pairs and ("lr_scale", "{'backbone': 0.1, 'neck': 0.1}") in pairs
    constants = constants_of("train.py")
    readme = text_of("README.md")
    in_readme = [item for _, changes in recipes(readme) + recipes(readme, GOING_ON) for item in changes.items()]
    missing = [pair for pair in pairs if (pair[0], convert(*pair, constants[pair[0]])) not in in_readme]
    assert not missing, f"README.md has no recipe with {missing}"


@pytest.mark.parametrize("readme", READMES)
def test_named_files_exist(readme):
    """Prevents links, pictures and file names that lead nowhere."""
    names = file_names(text_of(readme))
    assert {"train.py", "requirements.txt", "utils/inference/detector.py", "docs/images/sample_prediction.jpg"} <= names
    missing = sorted(name for name in names if not (ROOT / name).exists())
    assert not missing, f"{readme} names what does not exist: {missing}"


@pytest.mark.parametrize("readme", READMES)
def test_links_to_sections_lead_there(readme):
    """Prevents a link to a heading that was renamed."""
    headings = re.findall(r"^#+ (.+)", re.sub(r"```.*?```", "", text_of(readme), flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", text_of(readme))
    assert len(links) >= 8
    assert [link for link in links if link not in anchors] == []


@pytest.mark.parametrize("readme", READMES)
def test_every_mode_has_a_row_with_its_command(readme):
    """Prevents a mode of predict.py of which nobody hears, and a row that shows the command of another."""
    rows = re.findall(
        r"^\| '(\w+)' \| .+ \| `python predict\.py(?: --mode=(\w+))?[^`|]*` \|$", text_of(readme), re.MULTILINE
    )
    assert [mode for mode, _ in rows] == list(module_of("predict.py")._MODES)
    assert all(typed == mode for mode, typed in rows if mode != "predict")


def weights_section(readme):
    """The section on weights, which stands at the same place in both READMEs."""
    number = re.findall(r"^## (.+)", text_of("README.md"), re.MULTILINE).index("Weights")
    return re.split(r"^## ", text_of(readme), flags=re.MULTILINE)[number + 1]


@pytest.mark.parametrize("readme", READMES)
def test_all_weights_that_can_be_taken_are_named(readme):
    """Prevents releases, addresses, backbones or formats in the code that the README lacks, or names otherwise."""
    text = weights_section(readme)
    rows = re.findall(r"^\| ([\w.-]+) \| \w+ \| .+ \| <(\S+)> \|$", text, re.MULTILINE)
    assert dict(rows) == RELEASES and len(rows) == len(RELEASES)
    listed = re.search(r"resnet18[\w, 、\n]*swin_s", text).group()
    assert re.split(r"(?:, |、)\n?|,\n", listed) == list(BACKBONES)
    assert [name for name in FORMATS if f"'{name}'" not in text] == []


def test_the_table_of_files_follows_the_formats():
    """Prevents a table that tells another order of channels, scale, fit or padding than the code takes."""
    text = weights_section("README.md")
    scales = {1.0: "0-255", 255.0: "0-1", 58.395: "ImageNet's mean and deviation"}
    fits = {"topleft": "top-left, 114", "center": "centred, 128", "stretch": "stretched"}
    rows = {
        "an official YOLOX release": "yolox",
        "a state dict of YOLOX": "flat_yolox",
        "a state dict of YOLOv4": "flat_yolov4",
        "Darknet's yolov4.weights": "darknet",
    }
    for start, name in rows.items():
        pixels, fit = FORMATS[name].pixel_rule, FORMATS[name].resize_rule
        expected = rf"\| {start}[^|]* \| {pixels['channels']}, {scales[pixels['std'][0]]} \| {fits[fit['mode']]}"
        assert re.search(expected, text), f"README.md has no row {expected}"
        assert fit["mode"] == "stretch" or fits[fit["mode"]].endswith(str(fit["pad"]))


@pytest.mark.parametrize("readme", READMES)
def test_loading_says_what_the_readme_shows(tmp_path, readme):
    """Prevents an explanation of lines that training does not print any more."""
    torch.save({"model": build_model("yolox_nano", 80).state_dict()}, tmp_path / "yolox_nano.pth")
    weights = read_weights(tmp_path / "yolox_nano.pth")
    class_names = ["person", "car", "forklift"]
    model = build_model("yolox_nano", len(class_names), weights.contract["pixel_rule"])
    table = loading_table(model, load_matching(model, weights, class_names))
    first, *shown = re.search(r"```text\n(yolox_nano from .*?)\n```", text_of(readme), re.DOTALL).group(1).split("\n")
    assert first == "yolox_nano from model_data/yolox_nano.pth"
    assert shown == [f"  {weights.source}", *table.split("\n")]


@pytest.mark.parametrize("readme", READMES)
def test_nothing_is_left_to_fill_in(readme):
    """Prevents a result that was announced but never written down."""
    left = sorted(set(re.findall(r"\{\{.*?\}\}", text_of(readme))))
    assert not left, f"{readme} still holds {left}"
