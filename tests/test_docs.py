"""Holds README and docs/, in both languages, to the code and to each other: constants, commands, links, headings."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from nets import MODELS, build_model
from nets.backbones.torchvision import BACKBONES
from utils.config.cli import convert
from utils.config.constants import read_constants
from utils.config.rules import RULES, TOOL_RULES, check_types, check_values
from utils.weights.download import RELEASES
from utils.weights.formats import FORMATS
from utils.weights.load import load_matching, loading_table
from utils.weights.read import read_weights

ROOT = Path(__file__).parents[1]
ENGLISH = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
CHINESE = [page.replace("README", "README_zh").replace("docs/", "docs/zh/") for page in ENGLISH]
PAGES = ENGLISH + CHINESE
# A reference is looked up, not read to its end: it may grow with the constants.
MOST_LINES_OF_README, MOST_LINES_OF_PAGE, MOST_LINES_OF_REFERENCE = 250, 350, 400
SCRIPTS = re.findall(r"^## (\S+\.py)$", (ROOT / "docs/constants.md").read_text(encoding="utf-8"), re.MULTILINE)
# Drawn once for the repository, and for its writers: nobody needs their constants.
WITHOUT_REFERENCE = {"tools/make_sample.py", "tools/generate_constants.py", "tools/__init__.py"}
# Scripts that take two bare words, the paths of two files.
TWO_WORDS = ("tools/convert_weights.py", "tools/compare.py")
OF_TORCHVISION = "operator torchvision::nms does not exist"
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
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def all_text(pages):
    return "\n".join(map(text_of, pages))


def of_page(name):
    """A page of docs/ in both languages, for parametrize."""
    return pytest.mark.parametrize("page", [f"docs/{name}", f"docs/zh/{name}"])


@functools.cache
def module_of(script):
    """A script as a module, without its being run."""
    name = "docs_" + script.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def constants_of(script):
    """{name: value} of a script's parameter blocks."""
    return read_constants(vars(module_of(script)))


def parameters_of(script):
    """{name: value} of all that a script's command line knows."""
    module = module_of(script)
    return module.constants() if hasattr(module, "constants") else constants_of(script)


def read_value(name, text, constants):
    """A value as the command line reads it."""
    value = convert(text, constants[name])
    check_types({name: value}, constants)
    check_values({name: value}, RULES | TOOL_RULES)
    return value


def constants_table(text, script):
    """[(name, default as written)] of the tables below a script's heading."""
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    part = [section for section in part if section.startswith(f"{script}\n")]
    assert len(part) == 1, f"expected one heading ## {script}"
    rows = [line for line in part[0].splitlines() if line.startswith("| `")]
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
        found.append((situation, {name: read_value(name, value, constants) for name, value in pairs}))
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


def headings(text):
    """[(level, words)] of all headings."""
    return re.findall(r"^(#+) (.+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def anchors(page):
    """What links to the headings of a page end in."""
    return {re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") for _, words in headings(text_of(page))}


def links(page):
    """(file, anchor or '') of every link of a page to a file of ours, as a path from the root."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            yield file.resolve().relative_to(ROOT).as_posix(), anchor


def file_names(text):
    """Names in a text that look like files or folders of this repository; targets of links are no such names."""
    text = re.sub(r"https?://[^\s)>`]+|\]\([^)]*\)", "", text)
    with_folder = re.findall(r"(?:[\w.-]+/)+(?:[\w-]+(?:\.[\w-]+)*)?", text, re.ASCII)
    top_folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"docs"}
    in_folders = {name for name in with_folder if name.split("/")[0] in top_folders}
    bare = set(re.findall(r"(?<![\w./-])[\w-]+\.(?:py|md|toml)\b|requirements[\w-]*\.txt", text, re.ASCII))
    return {name for name in (in_folders | bare) - OLD_FILES if not USER_MADE.match(name)}


def table_shapes(text):
    """The number of rows of each table."""
    return [len(table.splitlines()) for table in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE)]


@pytest.mark.parametrize(("page", "twin"), [*zip(ENGLISH, CHINESE, strict=True)])
def test_both_languages_have_the_same_shape(page, twin):
    """Prevents a section, a row of a table, a picture or a link to a page that was added to one language only."""
    assert (ROOT / twin).is_file(), f"{page} has no Chinese twin"
    first, second = text_of(page), text_of(twin)
    assert [level for level, _ in headings(first)] == [level for level, _ in headings(second)]
    assert table_shapes(first) == table_shapes(second)
    english = [(file, bool(anchor)) for file, anchor in links(page)][1:]
    chinese = [(file.replace("docs/zh/", "docs/").replace("README_zh", "README"), bool(a)) for file, a in links(twin)][
        1:
    ]
    assert english == chinese
    assert next(links(page)) == (twin, "") and next(links(twin)) == (page, "")


@pytest.mark.parametrize(("page", "twin"), [*zip(ENGLISH, CHINESE, strict=True)])
def test_both_languages_show_the_same_commands(page, twin):
    """Prevents a command that was corrected in one language only."""
    assert code_lines(text_of(page)) == code_lines(text_of(twin))


def test_no_page_is_in_one_language_only():
    """Prevents a Chinese page whose English twin was removed."""
    assert sorted(path.name for path in ROOT.glob("docs/zh/*.md")) == sorted(
        path.name for path in ROOT.glob("docs/*.md")
    )


@pytest.mark.parametrize("page", PAGES)
def test_pages_stay_short(page):
    """Prevents pages that nobody reads to their end."""
    lines = len(text_of(page).splitlines())
    if "constants.md" in page:
        assert lines <= MOST_LINES_OF_REFERENCE
    else:
        assert lines <= (MOST_LINES_OF_README if "README" in page else MOST_LINES_OF_PAGE)


@pytest.mark.parametrize("pages", [ENGLISH, CHINESE])
def test_every_page_can_be_reached(pages):
    """Prevents a page that nothing leads to."""
    index = next(page for page in pages if page.endswith("index.md"))
    listed = {file for file, _ in links(index)}
    assert set(pages) - {index} <= listed
    assert index in {file for file, _ in links(pages[0])}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    """Prevents links to files, pictures and headings that were renamed."""
    for file, anchor in links(page):
        assert (ROOT / file).exists(), f"{page} links to {file}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page} links to {file}#{anchor}, which does not exist"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_named_files_exist(page):
    """Prevents file names that lead nowhere."""
    missing = sorted(name for name in file_names(text_of(page)) if not (ROOT / name).exists())
    assert not missing, f"{page} names what does not exist: {missing}"


def test_file_names_are_found():
    """Prevents a search that finds nothing."""
    text = "See `utils/io/files.py`, train.py, [x](a/b.md), logs/my.pth and https://a.b/nets/c.py"
    assert file_names(text) == {"utils/io/files.py", "train.py"}
    assert file_names("") == set()


@pytest.mark.parametrize("script", SCRIPTS)
@of_page("constants.md")
def test_tables_name_every_constant_with_its_default(page, script):
    """Prevents a reference that lists other constants, in another order, or other defaults than the script has."""
    rows, constants = constants_table(text_of(page), script), constants_of(script)
    found = differences(rows, constants)
    assert not found, f"{page}, constants of {script}:\n  " + "\n  ".join(found)
    assert rows == constants_table(text_of("docs/constants.md"), script)


def test_every_script_has_its_tables():
    """Prevents a tool whose constants nobody can look up."""
    tools = {f"tools/{path.name}" for path in ROOT.glob("tools/*.py")}
    assert set(SCRIPTS) == {"train.py", "predict.py"} | tools - WITHOUT_REFERENCE


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


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_can_be_typed_as_shown(page):
    """Prevents commands that end in an error: scripts and parameters exist, and values have their types."""
    for script, arguments, words in commands(text_of(page)):
        assert (ROOT / script).is_file(), f"{page} calls {script}, which does not exist"
        if arguments == ["help"]:
            continue
        constants = parameters_of(script)
        assert len(words) == 2 * (script in TWO_WORDS), f"{page}: {script} with the words {words}"
        for name, _, value in (argument.partition("=") for argument in arguments):
            assert name in constants, f"{page}: {script} has no parameter {name}"
            read_value(name, value, constants)


def test_commands_are_found():
    """Prevents a search that finds nothing."""
    calls = commands(all_text(ENGLISH))
    assert ("train.py", [], []) in calls and ("predict.py", ["mode=dir_predict"], []) in calls
    assert ("tools/convert_weights.py", [], ["model_data/yolov4.weights", "model_data/yolov4.pth"]) in calls
    assert {script for script, _, _ in calls} >= {"tools/check_data.py", "tools/get_map.py", "tools/compare.py"}


@of_page("recipes.md")
def test_recipes_hold_values_that_train_accepts(page):
    """Prevents a recipe that ends in an error, or that changes nothing."""
    found, defaults = recipes(text_of(page)), constants_of("train.py")
    assert len({situation for situation, _ in found}) == len(found) >= 15
    for situation, changes in found:
        check_values(changes, RULES)
        values = defaults | changes
        assert values != defaults, f"{situation}: these are the defaults"
        assert values["Init_Epoch"] < values["UnFreeze_Epoch"] >= values["Freeze_Epoch"], situation
        assert not (values["train_only"] and (values["freeze_layers"] or values["freeze_blocks"])), situation
        if {"Freeze_batch_size", "Unfreeze_batch_size"} <= set(changes):
            assert 1 <= values["Freeze_batch_size"] / values["Unfreeze_batch_size"] <= 2, situation


@of_page("recipes.md")
def test_recipes_to_go_on_resume(page):
    """Prevents a recipe that begins a new run where one is to go on."""
    found = [changes for _, changes in recipes(text_of(page), GOING_ON)]
    assert found == [{"resume": True}, {"resume": True, "UnFreeze_Epoch": 150}]
    for changes in found:
        check_values(changes, RULES)
    assert constants_of("train.py")["UnFreeze_Epoch"] < 150


@of_page("resume.md")
def test_every_promise_has_its_tests(page):
    """Prevents a promise that nothing holds any more, and a fault test of which nobody knows what it is for."""
    found = promises(text_of(page))
    assert len(found) >= 15
    assert all(promise and how and tests for promise, how, tests in found)
    named = {test for *_, tests in found for test in tests}
    missing = sorted(test for test in named if not (ROOT / test).is_file())
    assert not missing, f"{page} names tests that do not exist: {missing}"
    faults = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/faults").glob("test_*.py")}
    assert faults <= named, f"{page} has no promise held by {sorted(faults - named)}"
    assert [tests for *_, tests in found] == [tests for *_, tests in promises(text_of("docs/resume.md"))]


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


def test_both_languages_have_the_same_recipes():
    """Prevents a recipe that was corrected in one language only."""
    english, chinese = (
        [changes for _, changes in recipes(text_of(page))] for page in ("docs/recipes.md", "docs/zh/recipes.md")
    )
    assert english == chinese


def test_the_recipes_of_train_stand_in_the_docs():
    """Prevents recipes in train.py and in the docs that give different advice."""
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    block = source.split("#   RECIPES")[1].split("\n# ----")[0]
    pairs = re.findall(r"(\w+) = ('[^']*'|\[[^\]]*\]|\{[^}]*\}|[\d.e-]+\d|\d|True|False)", block)
    assert ("train_only", "['head']") in pairs and ("fp16", "True") in pairs
    assert ("Freeze_Epoch", "10") in pairs and ("lr_scale", "{'backbone': 0.1, 'neck': 0.1}") in pairs
    constants = constants_of("train.py")
    page = text_of("docs/recipes.md")
    in_page = [item for _, changes in recipes(page) + recipes(page, GOING_ON) for item in changes.items()]
    missing = [pair for pair in pairs if (pair[0], read_value(*pair, constants)) not in in_page]
    assert not missing, f"docs/recipes.md has no recipe with {missing}"


@of_page("prediction.md")
def test_every_mode_has_a_row_with_its_command(page):
    """Prevents a mode of predict.py of which nobody hears, and a row that shows the command of another."""
    rows = re.findall(
        r"^\| '(\w+)' \| .+ \| `python predict\.py(?: --mode=(\w+))?[^`|]*` \|$", text_of(page), re.MULTILINE
    )
    assert [mode for mode, _ in rows] == list(module_of("predict.py")._MODES)
    assert all(typed == mode for mode, typed in rows if mode != "predict")


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_the_table_of_networks_names_them_all(page):
    """Prevents a network that nobody hears of, and a number of parameters that is not its own."""
    rows = dict(re.findall(r"^\| ((?:yolo|dfine)\w+) \| \d+ \| ([\d.]+) M \|", text_of(page), re.MULTILINE))
    assert list(rows) == list(MODELS)
    assert rows.keys() <= RELEASES.keys()
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build_model(name, 80).parameters()) / 1e6 for name in rows}
    wrong = {name: count for name, count in counts.items() if abs(float(rows[name]) / count - 1) > 0.01}
    assert not wrong


@of_page("models.md")
def test_all_weights_that_can_be_taken_are_named(page):
    """Prevents releases, addresses, backbones or formats in the code that the page lacks, or names otherwise."""
    text = text_of(page)
    rows = re.findall(r"^\| ([\w.-]+) \| \w+ \| .+ \| <(\S+)> \|$", text, re.MULTILINE)
    assert dict(rows) == RELEASES and len(rows) == len(RELEASES)
    listed = re.search(r"resnet18[\w, 、\n]*swin_s", text).group()
    assert re.split(r"(?:, |、)\n?|,\n", listed) == list(BACKBONES)
    assert [name for name in FORMATS if f"'{name}'" not in text] == []


def test_the_table_of_files_follows_the_formats():
    """Prevents a table that tells another order of channels, scale, fit or padding than the code takes."""
    text = text_of("docs/models.md")
    scales = {1.0: "0-255", 255.0: "0-1", 58.395: "ImageNet's mean and deviation"}
    fits = {"topleft": "top-left, 114", "center": "centred, 128", "stretch": "stretched"}
    rows = {
        "an official YOLOX release": "yolox",
        "a state dict of YOLOX": "flat_yolox",
        "a state dict of YOLOv4": "flat_yolov4",
        "Darknet's yolov4.weights": "darknet",
        "an official D-FINE release": "dfine",
    }
    for start, name in rows.items():
        pixels, fit = FORMATS[name].pixel_rule, FORMATS[name].resize_rule
        expected = rf"\| {start}[^|]* \| {pixels['channels']}, {scales[pixels['std'][0]]} \| {fits[fit['mode']]}"
        assert re.search(expected, text), f"docs/models.md has no row {expected}"
        assert fit["mode"] == "stretch" or fits[fit["mode"]].endswith(str(fit["pad"]))


@of_page("models.md")
def test_loading_says_what_the_page_shows(tmp_path, page):
    """Prevents an explanation of lines that training does not print any more."""
    torch.save({"model": build_model("yolox_nano", 80).state_dict()}, tmp_path / "yolox_nano.pth")
    weights = read_weights(tmp_path / "yolox_nano.pth")
    class_names = ["person", "car", "forklift"]
    model = build_model("yolox_nano", len(class_names), weights.metadata["pixel_rule"])
    table = loading_table(model, load_matching(model, weights, class_names))
    first, *shown = re.search(r"```text\n(yolox_nano from .*?)\n```", text_of(page), re.DOTALL).group(1).split("\n")
    assert first == "yolox_nano from model_data/yolox_nano.pth"
    assert shown == [f"  {weights.source}", *table.split("\n")]


@of_page("troubleshooting.md")
def test_quoted_messages_stand_in_the_source(page):
    """Prevents a message that nobody can find, as the program says it otherwise by now."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in code_files())
    # Texts in the source may be broken, and have values in between.
    sources = re.sub(r'"\s*\n?\s*f?"', "", sources)
    section = re.split(r"^## ", text_of(page), flags=re.MULTILINE)[4]
    messages = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]
    assert len(messages) >= 10
    for message in messages:
        if message == OF_TORCHVISION:
            continue
        parts = re.split(r"\.\.\.|\d+ of \d+|A worker process|\b\d+\b|\w+\)", message)
        missing = [part.strip() for part in parts if len(part.strip()) > 3 and part.strip() not in sources]
        assert not missing, f"{page} quotes {message!r}, but no source says {missing}"


def code_files():
    return [
        ROOT / "train.py",
        ROOT / "predict.py",
        *(path for name in ("nets", "utils", "tools") for path in (ROOT / name).rglob("*.py")),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_fill_in(page):
    """Prevents a result that was announced but never written down."""
    left = sorted(set(re.findall(r"\{\{.*?\}\}|TODO|TBD", text_of(page))))
    assert not left, f"{page} still holds {left}"
