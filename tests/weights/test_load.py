import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from nets import build_model
from tests.weights.test_read import layout, outputs, random_network, saved, without_prefix
from utils.inference.detector import open_network
from utils.weights.load import LoadResult, carry_rows, load_matching, loading_table
from utils.weights.metadata import make_metadata
from utils.weights.read import WeightFile, read_weights
from utils.weights.save import save_weights

TOP_LEFT = {"mode": "topleft", "pad": 114}
NAMES = ["fish", "key", "叶"]
YOLOX_ROWS = [f"head.cls_preds.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")]


def rows_of(model, names):
    return {name: model.state_dict()[name].clone() for name in names}


@pytest.fixture(scope="module")
def nano():
    return random_network("yolox_nano", 3)


@pytest.fixture(scope="module")
def tiny():
    model = random_network("yolov4_tiny", 3)
    for name in ("P4", "P5"):
        nn.init.normal_(model.get_submodule(f"yolo_head{name}.1").bias)
    return model


@pytest.fixture(scope="module")
def nano_path(nano, tmp_path_factory):
    """A weight file of this project for three classes."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    save_weights(path, nano, make_metadata(nano, NAMES, (320, 416), TOP_LEFT))
    return path


@pytest.fixture(scope="module")
def tiny_path(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_weights(path, tiny, make_metadata(tiny, NAMES, (320, 416), TOP_LEFT))
    return path


def numbered(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_rows_of_classes_without_a_group():
    """Prevents class rows from landing at a wrong class: YOLOX has one row for each class and nothing before it."""
    fresh, stored = numbered(0, 0, 0, 0), numbered(10, 11, 12)
    assert carry_rows(fresh, stored, 1, 0, [(0, 3), (2, 1)]).tolist() == [0, 12, 0, 10]
    assert carry_rows(fresh, stored, 1, 0, []).tolist() == [0, 0, 0, 0]
    assert carry_rows(fresh, stored, 1, 0, [(0, 0), (1, 1), (2, 2)]).tolist() == [10, 11, 12, 0]
    assert (fresh.tolist(), stored.tolist()) == ([0, 0, 0, 0], [10, 11, 12])


def test_rows_of_classes_in_groups():
    """Prevents anchors from mixing: two anchors here, each with two rows of its own, from three classes to two."""
    fresh = numbered(-1, -2, -3, -4, -5, -6, -7, -8)
    stored = numbered(10, 11, 12, 13, 14, 20, 21, 22, 23, 24)
    assert carry_rows(fresh, stored, 2, 2, [(2, 0)]).tolist() == [10, 11, 14, -4, 20, 21, 24, -8]
    assert carry_rows(fresh, stored, 2, 2, []).tolist() == [10, 11, -3, -4, 20, 21, -7, -8]
    kernels = carry_rows(fresh.view(8, 1, 1, 1), stored.view(10, 1, 1, 1).half(), 2, 2, [(0, 1)])
    assert (kernels.shape, kernels.dtype) == ((8, 1, 1, 1), torch.float32)
    assert kernels.flatten().tolist() == [10, 11, -3, 12, 20, 21, -7, 22]


@pytest.mark.parametrize(
    ("fresh", "stored", "groups", "pairs"),
    [
        (torch.zeros(4, 8, 1, 1), torch.zeros(3, 16, 1, 1), 1, []),  # of a wider network
        (torch.zeros(4), torch.zeros(3, 1), 1, []),
        (torch.zeros(9), torch.zeros(8), 3, []),  # not the same number of anchors
        (torch.zeros(4), torch.zeros(3), 1, [(3, 0)]),  # fewer rows than the file has names
    ],
)
def test_rows_that_cannot_be_carried(fresh, stored, groups, pairs):
    """Prevents a trace, or rows of something else, where the tensors do not belong together."""
    assert carry_rows(fresh, stored, groups, 0, pairs) is None


def test_which_parameters_have_a_row_for_each_class():
    """Prevents boxes and objectness from starting fresh with the classes."""
    with torch.device("meta"):
        assert build_model("yolox_nano", 3).class_rows() == dict.fromkeys(YOLOX_ROWS, (1, 0))
        tiny, large = build_model("yolov4_tiny", 3), build_model("yolov4", 3)
    keys = [f"yolo_headP{number}.1.{kind}" for number in (5, 4) for kind in ("weight", "bias")]
    assert tiny.class_rows() == dict.fromkeys(keys, (3, 5))
    keys = [f"yolo_head{number}.1.{kind}" for number in (3, 2, 1) for kind in ("weight", "bias")]
    assert large.class_rows() == dict.fromkeys(keys, (3, 5))


def test_all_tensors_load_into_the_same_network(nano, nano_path):
    """Prevents a start from noise where the user believes in trained weights."""
    other = build_model("yolox_nano", 3)
    result = load_matching(other, read_weights(nano_path), NAMES)
    assert (len(result.loaded), result.by_class, result.missing_keys, result.unexpected_keys) == (642, {}, {}, [])
    own = nano.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())


def test_classes_go_on_by_their_names(nano, nano_path):
    """Prevents classes that change places: those with the same name keep their rows, wherever they stand now."""
    names = ["dog", "叶", "fish", "cat", "bird"]
    other = build_model("yolox_nano", 5)
    fresh = rows_of(other, YOLOX_ROWS)
    result = load_matching(other, read_weights(nano_path), names)
    assert (result.by_class, result.missing_keys, result.unexpected_keys) == (dict.fromkeys(YOLOX_ROWS, 2), {}, [])
    assert len(result.loaded) == 636 and not set(result.loaded) & set(YOLOX_ROWS)
    own, old = other.state_dict(), nano.state_dict()
    for key in YOLOX_ROWS:
        expected = [fresh[key][0], old[key][2], old[key][0], fresh[key][3], fresh[key][4]]
        assert all(torch.equal(row, wanted) for row, wanted in zip(own[key], expected, strict=True))
    assert all(torch.equal(own[key], old[key]) for key in result.loaded)


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        (["key", "fish", "叶"], [1, 0, 2]),
        (["fish"], [0]),
        (["cat", "dog", "bird"], [None, None, None]),  # as many classes, and other ones
    ],
)
def test_the_same_count_of_other_classes(nano, nano_path, names, sources):
    """Prevents names that only changed their order, or became others, from keeping the rows at their positions."""
    other = build_model("yolox_nano", len(names))
    fresh = rows_of(other, YOLOX_ROWS)
    result = load_matching(other, read_weights(nano_path), names)
    overlap = sum(source is not None for source in sources)
    assert (result.by_class, result.missing_keys) == (dict.fromkeys(YOLOX_ROWS, overlap), {})
    for key in YOLOX_ROWS:
        for row, source in enumerate(sources):
            expected = fresh[key][row] if source is None else nano.state_dict()[key][source]
            assert torch.equal(other.state_dict()[key][row], expected)


@pytest.mark.parametrize(("names", "sources"), [(["叶", "cat"], (2, None)), (["cat", "dog"], (None, None))])
def test_anchors_keep_boxes_and_objectness(tiny, tiny_path, names, sources):
    """Prevents a head with anchors from forgetting boxes and objectness, which share a tensor with the classes."""
    other = build_model("yolov4_tiny", 2)
    keys = [f"yolo_headP{number}.1.{kind}" for number in (5, 4) for kind in ("weight", "bias")]
    fresh = rows_of(other, keys)
    result = load_matching(other, read_weights(tiny_path), names)
    assert result.by_class == dict.fromkeys(keys, sum(source is not None for source in sources))
    for key in keys:
        own, old = other.state_dict()[key], tiny.state_dict()[key]
        for anchor in range(3):
            assert torch.equal(own[7 * anchor : 7 * anchor + 5], old[8 * anchor : 8 * anchor + 5])
            for row, source in enumerate(sources):
                expected = fresh[key][7 * anchor + 5 + row] if source is None else old[8 * anchor + 5 + source]
                assert torch.equal(own[7 * anchor + 5 + row], expected)


def test_unknown_names_and_the_same_count(nano, tmp_path):
    """Prevents a foreign file for the user's own classes from losing them: its names are not known, its rows go over
    as they stand."""
    weights = read_weights(saved({"model": nano.state_dict()}, tmp_path))
    other = build_model("yolox_nano", 3)
    result = load_matching(other, weights, ["a", "b", "c"])
    assert (result.by_class, len(result.loaded)) == ({}, 642)
    assert torch.equal(outputs(other.eval()), outputs(nano))


@pytest.mark.parametrize("name", ["yolox_nano", "yolov4_tiny"])
def test_unknown_names_and_another_count(request, tmp_path, name):
    """Prevents rows of unknown classes from being taken for the first of the user's; of anchors boxes and objectness
    go on all the same."""
    source = request.getfixturevalue("nano" if name == "yolox_nano" else "tiny")
    weights = read_weights(saved(source.state_dict(), tmp_path))
    other = build_model(name, 2)
    fresh = rows_of(other, other.class_rows())
    result = load_matching(other, weights, ["a", "b"])
    assert result.by_class == dict.fromkeys(other.class_rows(), 0)
    for key, (groups, offset) in other.class_rows().items():
        own = other.state_dict()[key].unflatten(0, (groups, -1))
        old = source.state_dict()[key].unflatten(0, (groups, -1))
        assert torch.equal(own[:, offset:], fresh[key].unflatten(0, (groups, -1))[:, offset:])
        assert torch.equal(own[:, :offset], old[:, :offset])


def test_names_of_coco_that_the_user_has_too(tmp_path):
    """Prevents public weights from being taken for trained on the first of the user's classes: person is COCO's class
    0, car its class 2, and fish none."""
    coco = random_network("yolox_nano", 80)
    weights = read_weights(saved({"model": coco.state_dict()}, tmp_path))
    other = build_model("yolox_nano", 3)
    fresh = rows_of(other, YOLOX_ROWS)
    result = load_matching(other, weights, ["car", "fish", "person"])
    assert result.by_class == dict.fromkeys(YOLOX_ROWS, 2)
    for key in YOLOX_ROWS:
        own, old = other.state_dict()[key], coco.state_dict()[key]
        assert torch.equal(own, torch.stack((old[2], fresh[key][1], old[0])))


@pytest.mark.parametrize(("name", "prefix"), [("yolox_nano", "backbone.backbone."), ("yolov4_tiny", "backbone.")])
def test_a_backbone_alone(request, tmp_path, name, prefix):
    """Prevents the keys of a backbone from missing their places, and neck or head from being touched."""
    source = request.getfixturevalue("nano" if name == "yolox_nano" else "tiny")
    other = build_model(name, 5)
    before = rows_of(other, other.state_dict())
    weights = read_weights(saved(without_prefix(source.state_dict(), prefix), tmp_path))
    result = load_matching(other, weights, list("abcde"))
    assert (result.by_class, result.unexpected_keys) == ({}, [])
    assert all(key.startswith(prefix) for key in result.loaded)
    assert not any(key.startswith(prefix) for key in result.missing_keys)
    for key, value in other.state_dict().items():
        expected = source.state_dict()[key] if key.startswith(prefix) else before[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("model_name", ["yolox_nano", "yolov4_tiny"])
def test_a_backbone_of_torchvision(tmp_path, model_name):
    """Prevents ImageNet weights from missing their places under another neck; their classifier has none."""
    source = resnet18()
    for part in source.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
    model = build_model(model_name, 3, backbone="resnet18")
    result = load_matching(model, read_weights(saved(source.state_dict(), tmp_path)), NAMES)
    prefix = model.extractor_prefix()
    assert result.unexpected_keys == [f"{prefix}fc.weight", f"{prefix}fc.bias"]
    assert len(result.loaded) == 120 and not any(model.part_of(key) == "backbone" for key in result.missing_keys)
    own = model.feature_extractor.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in source.state_dict().items() if not key.startswith("fc."))


def test_weights_of_another_network_are_refused_and_change_nothing(nano_path):
    """Prevents a training that silently starts from noise, with a few tensors that fit by chance."""
    other = build_model("yolox_tiny", 3)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_matching(other, read_weights(nano_path), NAMES)
    assert str(caught.value) == (
        f"{nano_path} (yolox_nano, 3 classes, written by this project) does not fit yolox_tiny: 175 of the backbone's "
        "175 tensors do not (first: backbone.backbone.stem.conv.conv.weight, 16x12x3x3 in the file, 24x12x3x3 here). "
        "Set model_name and backbone to what the file was trained with, or model_path to a file of this network."
    )
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_backbone_that_is_not_whole_needs_a_constant(nano, nano_path):
    """Prevents a damaged backbone from passing because most of it fits, and refusing what the user explicitly allows;
    a file of which nothing fits stays refused."""
    weights = read_weights(nano_path)
    lost = "backbone.backbone.stem.conv.bn.running_var"
    del weights.state[lost]
    with pytest.raises(ValueError, match=f"1 of the backbone's 235 tensors do not .first: {lost}, not in the file."):
        load_matching(build_model("yolox_nano", 3), weights, NAMES)
    other = build_model("yolox_nano", 3)
    result = load_matching(other, weights, NAMES, allow_partial_backbone=True)
    assert result.missing_keys == {lost: "not in the file"}
    own = nano.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items() if key != lost)
    head = {key: value for key, value in weights.state.items() if key.startswith("head.")}
    with pytest.raises(ValueError, match="235 of the backbone's 235 tensors do not"):
        load_matching(build_model("yolox_nano", 3), weights._replace(state=head), NAMES, allow_partial_backbone=True)


def test_counters_of_batchnorm_may_be_missing(nano, nano_path):
    """Prevents files of older torch versions, which lack num_batches_tracked, from counting as not whole."""
    weights = read_weights(nano_path)
    state = {key: value for key, value in weights.state.items() if not key.endswith("num_batches_tracked")}
    result = load_matching(build_model("yolox_nano", 3), weights._replace(state=state), NAMES)
    assert (result.missing_keys, result.unexpected_keys, len(result.loaded)) == ({}, [], len(state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_and_change_nothing(nano_path, value):
    """Prevents a training from the remains of one that failed: its loss would be NaN from the first step."""
    weights = read_weights(nano_path)
    weights.state["head.obj_preds.0.bias"][0] = value
    other = build_model("yolox_nano", 3)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_matching(other, weights, NAMES)
    assert str(caught.value) == (
        f"{nano_path} holds values that are no finite numbers (1 tensors, first: head.obj_preds.0.bias); it is "
        "damaged, or from a training that had failed. Take another file."
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


def test_broken_rows_of_a_class_that_is_not_taken_do_no_harm(nano_path):
    """Prevents a file from being refused for numbers that nothing uses."""
    weights = read_weights(nano_path)
    weights.state["head.cls_preds.0.bias"][0] = float("nan")  # fish
    weights.state["something.else"] = torch.full((1,), float("nan"))
    result = load_matching(build_model("yolox_nano", 1), weights, ["key"])
    assert (result.by_class["head.cls_preds.0.bias"], result.unexpected_keys) == (1, ["something.else"])


def test_the_table_of_whole_weights(nano, nano_path):
    """Prevents a table whose columns do not add up, or that counts what no file needs to hold."""
    result = load_matching(build_model("yolox_nano", 3), read_weights(nano_path), NAMES)
    assert loading_table(nano, result) == (
        "    part  tensors  loaded  by class  fresh\n"
        "backbone      235     235         0      0\n"
        "    neck      150     150         0      0\n"
        "    head      153     153         0      0"
    )


def test_the_table_says_what_was_skipped_and_why(nano, nano_path):
    """Prevents a file that fits only in part from looking whole."""
    weights = read_weights(nano_path)
    state = {key: value for key, value in weights.state.items() if not key.startswith("head.stems.")}
    state["head.obj_preds.0.bias"] = torch.zeros(2)
    state |= {"mask_head.weight": torch.zeros(1), "mask_head.bias": torch.zeros(1)}
    model = build_model("yolox_nano", 4)
    result = load_matching(model, weights._replace(state=state), ["key", "cat", "dog", "叶"])
    assert loading_table(model, result) == (
        "    part  tensors  loaded  by class  fresh\n"
        "backbone      235     235         0      0\n"
        "    neck      150     150         0      0\n"
        "    head      153     131         6     16\n"
        "  class predictions: 2 of 4 classes go on from the file, by their names\n"
        "  fresh: head.obj_preds.0.bias (2 in the file, 1 here)\n"
        "  fresh: head.stems.0.conv.weight (not in the file)\n"
        "  fresh: head.stems.0.bn.weight (not in the file)\n"
        "  fresh: head.stems.0.bn.bias (not in the file)\n"
        "  fresh: head.stems.0.bn.running_mean (not in the file)\n"
        "  fresh: head.stems.0.bn.running_var (not in the file)\n"
        "  fresh: 10 more\n"
        "  2 tensors of the file have no place here (the first: mask_head.weight)"
    )


@pytest.mark.parametrize(("name", "head"), [("yolox_nano", "153 147 0 6"), ("yolov4_tiny", "14 10 4 0")])
def test_the_table_of_classes_that_the_file_does_not_know(name, head):
    """Prevents class predictions of which no row was loaded from being counted as such; those of yolov4_tiny hold rows
    of boxes too, which go on."""
    model = build_model(name, 2)
    weights = WeightFile("a.pth", build_model(name, 2).state_dict(), {"class_names": ["cat", "dog"]}, "a test")
    lines = loading_table(model, load_matching(model, weights, ["ace", "jack"])).splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:-1]}
    assert rows["head"] == head and rows["backbone"].endswith(" 0 0")
    assert lines[-1] == "  class predictions: 0 of 2 classes go on from the file, by their names"


def test_the_table_of_nothing(nano):
    """Prevents a trace where not a single tensor was loaded."""
    lines = loading_table(nano, LoadResult([], {}, {}, [])).splitlines()
    assert [line.split()[1:] for line in lines[1:]] == [[count, "0", "0", "0"] for count in ("235", "150", "153")]


def test_a_network_without_tensors_in_the_file_is_refused():
    """Prevents an empty file from passing as partial, even where partial backbones are allowed."""
    with pytest.raises(ValueError, match="235 of the backbone's 235 tensors"):
        load_matching(build_model("yolox_nano", 1), WeightFile("a.pth", {}, {}, "nothing"), ["a"], True)


def test_yolov4_loads_from_its_public_keys(tmp_path):
    """Prevents a renamed layer of the large network, which no other test here loads."""
    model = build_model("yolov4", 2)
    state = {key: value + number for number, (key, value) in enumerate(layout("yolov4", 2).items())}
    state = {key: value[(0,) * value.ndim].expand(value.shape) for key, value in state.items()}
    result = load_matching(model, read_weights(saved(state, tmp_path)), ["a", "b"])
    assert (len(result.loaded), result.by_class, result.missing_keys, result.unexpected_keys) == (
        len(state),
        {},
        {},
        [],
    )
    first = [value.flatten()[0].item() for value in model.state_dict().values()]
    assert first == list(range(len(state)))


def test_the_official_file_loads_whole(real_data):
    """Prevents public weights from starting with anything fresh but the classes that COCO does not have."""
    weights = read_weights(real_data / "weights/yolox_nano_coco.pth")
    model, _ = open_network(weights)
    result = load_matching(model, weights, weights.metadata["class_names"])
    assert (len(result.loaded), result.by_class, result.missing_keys, result.unexpected_keys) == (642, {}, {}, [])
    result = load_matching(build_model("yolox_nano", 3), weights, ["fish", "dog", "bus"])
    assert (len(result.loaded), result.by_class, result.missing_keys) == (636, dict.fromkeys(YOLOX_ROWS, 2), {})


@pytest.fixture(scope="module")
def dfine():
    """A D-FINE for COCO whose rows can be told apart."""
    torch.manual_seed(0)
    model = build_model("dfine_n", 80)
    for name in model.class_rows():
        nn.init.normal_(model.get_parameter(name))
    return model


def test_dfine_carries_classes_over_by_their_names(dfine, tmp_path):
    """Prevents a class that the file knows from being learned anew in one of the heads, and padding from moving."""
    read = read_weights(saved({"model": dfine.state_dict()}, tmp_path))
    assert (read.metadata["model_name"], read.metadata["num_classes"]) == ("dfine_n", 80)
    assert read.metadata["decode_rule"] == {"transposed_positions": True, "activation": "relu"}
    fresh = build_model("dfine_n", 3, decode_rule=read.metadata["decode_rule"])
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    result = load_matching(fresh, read, ["forklift", "dog", "person"])
    assert set(result.by_class) == set(fresh.class_rows()) and not result.missing_keys
    assert set(result.by_class.values()) == {2}
    for name in fresh.class_rows():
        ours, theirs = fresh.state_dict()[name], dfine.state_dict()[name]
        assert torch.equal(ours[1:3], theirs[[16, 0]]) and torch.equal(ours[0], before[name][0])
    embedding = "decoder.denoising_class_embed.weight"
    assert torch.equal(fresh.state_dict()[embedding][3], before[embedding][3])


def test_checkpoints_of_dfine_give_their_average(dfine, tmp_path):
    """Prevents the last weights of a training from being taken where the file has their average, which is scored."""
    average = {
        f"module.{name}": value + 1 if value.is_floating_point() else value
        for name, value in dfine.state_dict().items()
    }
    content = {"model": dfine.state_dict(), "ema": {"module": average, "updates": 7}, "last_epoch": 3}
    state = read_weights(saved(content, tmp_path)).state
    assert torch.equal(state["decoder.enc_score_head.bias"], dfine.decoder.enc_score_head.bias + 1)


def test_deim_is_told_by_its_backbone_or_the_constant(dfine, tmp_path):
    """Prevents SiLU from being computed as ReLU: of l and x the file shows it, of the others weights_format says it."""
    path = saved({"model": dfine.state_dict()}, tmp_path)
    assert read_weights(path, "deim").metadata["decode_rule"]["activation"] == "silu"
    with torch.device("meta"):
        large = build_model("dfine_l", 80).state_dict()
    large = {
        name: torch.zeros(value.shape)
        for name, value in large.items()
        if value.ndim < 2 or "proj.0" in name or "score" in name
    }
    assert read_weights(saved(large, tmp_path)).metadata["decode_rule"]["activation"] == "relu"
    large["backbone.stem.stem1.bn.num_batches_tracked"] = torch.tensor(1)
    assert read_weights(saved(large, tmp_path)).metadata["decode_rule"]["activation"] == "silu"
