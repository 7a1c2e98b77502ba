import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nets import build_criterion, build_model
from nets.dfine.decoder import anchor_logits, hidden_queries
from nets.dfine.encoder import position_table
from nets.losses import LossOptions
from tests.nets.dfine_oracle import ORACLES, RELEASED, needs_oracles, oracle, recipe_images, seeded

# As the authors count: two parameters more, the scales, which learn nothing and are buffers here.
PARAMETERS = {
    "dfine_n": 3_782_693,
    "dfine_s": 10_321_877,
    "dfine_m": 19_590_064,
    "dfine_l": 31_244_152,
    "dfine_x": 62_621_560,
}
FILES = {name: f"dfine_{name[-1]}_recipe_oracle.npz" for name in ("dfine_s", "dfine_m", "dfine_x")}
FILES = {"dfine_n": "dfine_n_oracle.npz"} | FILES


def shapes_of(model_name):
    with torch.device("meta"):
        return build_model(model_name, 80)


@pytest.mark.parametrize("model_name", PARAMETERS)
def test_size(model_name):
    """Prevents a network that is not the published one, so that its weights do not fit."""
    assert sum(parameter.numel() for parameter in shapes_of(model_name).parameters()) == PARAMETERS[model_name] - 2


@pytest.mark.parametrize(("side", "expected"), [(640, 7.16), (416, 3.46), (320, 2.35)])
def test_operations(side, expected):
    """Prevents a network that computes more than the published one."""
    model, images = build_model("dfine_n", 80).eval(), torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert counter.get_total_flops() / 1e9 == pytest.approx(expected, rel=0.01)


@needs_oracles
@pytest.mark.parametrize("model_name", PARAMETERS)
def test_every_tensor_of_the_released_files_has_its_place(model_name):
    """Prevents released weights from loading in part. Anchors of one input size are computed here."""
    lines = (ORACLES / f"keys_{model_name[-1]}.txt").read_text().splitlines()
    expected = {}
    for line in lines:
        key, shape = line.split("\t")[:2]
        expected[key] = tuple(int(side) for side in shape.strip("()").split(",") if side.strip())
    own = {key: tuple(value.shape) for key, value in shapes_of(model_name).state_dict().items()}
    assert {key: shape for key, shape in expected.items() if own.get(key) != shape}.keys() == {
        "decoder.anchors",
        "decoder.valid_mask",
    }
    assert own.keys() <= expected.keys()


@needs_oracles
@pytest.mark.parametrize("size", ["", "_256x352", "_640x640"])
@pytest.mark.parametrize("model_name", FILES)
def test_outputs_are_those_of_the_original(model_name, size):
    """Prevents any difference in the forward pass. Queries are aligned by the token that each came from."""
    wanted = oracle(FILES[model_name])
    if f"pred_logits{size}" not in wanted:
        pytest.skip("the oracle has no such size")
    seed = int(wanted["seed"].ravel()[0])
    side = [int(number) for number in size[1:].split("x")] if size else []
    images = recipe_images((1, 3, *side), seed + 1) if size else torch.from_numpy(wanted["input_u8"])
    model = seeded(model_name, seed)
    with torch.no_grad():
        raw = model(images)
    decoded = model.decode(raw)
    height, width = images.shape[-2:]
    for image, tokens in enumerate(wanted[f"enc_topk_index{size}"]):
        place = {token: query for query, token in enumerate(raw.tokens[image].tolist())}
        order = [place[token] for token in tokens.tolist()]
        np.testing.assert_allclose(decoded.class_logits[image, order], wanted[f"pred_logits{size}"][image], atol=2e-4)
        centre, sides = np.split(wanted[f"pred_boxes{size}"][image], 2, axis=1)
        corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
        np.testing.assert_allclose(
            decoded.boxes_xyxy[image, order] / torch.tensor([width, height] * 2), corners, atol=1e-5
        )
        if not size:
            np.testing.assert_allclose(raw.logits[image][:, order], wanted["layers_logits"][:, image], atol=2e-4)
            np.testing.assert_allclose(raw.first_boxes[image, order], wanted["pre_boxes"][image], atol=1e-5)
            np.testing.assert_allclose(raw.encoder_boxes[image, order], wanted["enc_boxes"][image], atol=1e-5)


def test_positions_are_those_of_the_cells():
    """Prevents crooked places on inputs that are no square, which the released weights are used to."""
    table = position_table(2, 3, 8)
    assert table.shape == (1, 6, 8)
    columns, rows = table[0, :, 0], table[0, :, 4]
    np.testing.assert_allclose(columns, np.sin([0, 1, 2, 0, 1, 2]), rtol=1e-6)
    np.testing.assert_allclose(rows, np.sin([0, 0, 0, 1, 1, 1]), rtol=1e-6)
    crooked = position_table(2, 3, 8, transposed=True)
    np.testing.assert_allclose(crooked[0, :, 0], np.sin([0, 0, 1, 1, 2, 2]), rtol=1e-6)


def test_queries_see_no_other_group():
    """Prevents queries from learning the answers of another group, and real queries from seeing any answer."""
    hidden = hidden_queries(torch.tensor([0, 0, 1]), 2).int().tolist()
    assert hidden == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]


def test_anchors_at_the_border_are_not_used():
    """Prevents infinite numbers in an exported file: what is not used has a large logit, whose box is the whole."""
    logits, is_valid = anchor_logits([(80, 80)])
    assert is_valid.view(80, 80).sum().item() == 78 * 78 and logits.isfinite().all()
    assert logits[0].sigmoid().tolist() == [1.0] * 4


def test_few_tokens_give_fewer_queries():
    """Prevents a failure at a small input: 128 x 128 has 80 tokens, and 300 queries are asked for."""
    model = build_model("dfine_n", 3).eval()
    with torch.no_grad():
        decoded = model.decode(model(torch.zeros(1, 3, 128, 128, dtype=torch.uint8)))
    assert decoded.boxes_xyxy.shape == (1, 80, 4) and decoded.objectness is None


@pytest.mark.parametrize("rule", [{"transposed_positions": 1}, {"activation": "gelu"}, {"anchors": []}])
def test_rules_that_are_none(rule):
    """Prevents a file with another rule from being computed otherwise than it was trained."""
    with pytest.raises(ValueError, match=r"decode_rule is|has no anchors"):
        build_model("dfine_n", 3, None, rule)


@pytest.mark.parametrize(
    "options", [{"iou_type": "ciou"}, {"label_smoothing": 0.1}, {"focal_loss": True}, {"map_weights": (1,)}]
)
def test_options_of_other_losses_are_refused(options):
    """Prevents a constant from being ignored."""
    with pytest.raises(ValueError, match="dfine_n has a loss of its own: set iou_type = ''"):
        build_criterion(build_model("dfine_n", 3), LossOptions(**options))


def test_a_small_input_is_told():
    """Prevents objects from being missed because a small input has fewer places than there are queries."""
    model = build_model("dfine_n", 3)
    assert model.remarks((256, 256)) == ()
    words = "An input of 224x224 has 245 places, so the network finds 245 objects at most."
    assert model.remarks([224, 224]) == (words,)


def test_a_backbone_of_torchvision_is_refused():
    """Prevents a constant from being ignored."""
    with pytest.raises(ValueError, match=r"dfine_n has a backbone of its own: set backbone = ''"):
        build_model("dfine_n", 3, backbone="resnet18")


def test_mixed_precision_stays_near():
    """Prevents boxes that are not finite, or far off, in bfloat16: box heads and sampling keep float32."""
    torch.manual_seed(0)
    model, images = build_model("dfine_n", 3).eval(), torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
    assert half.boxes.dtype == torch.float32 and half.boxes.isfinite().all()
    # Nearly equal scores exchange their places, so that queries are compared by the place that they came from.
    both = [{token: at for at, token in enumerate(raw.tokens[0].tolist())} for raw in (exact, half)]
    shared = both[0].keys() & both[1].keys()
    assert len(shared) > 280
    ours, theirs = (
        raw.logits[0, -1, [places[token] for token in shared]] for raw, places in zip((exact, half), both, strict=True)
    )
    assert (ours - theirs).abs().max() < 0.05


def test_a_step_trains_every_parameter():
    """Prevents a part without a gradient; the class embedding of padding is none that learns."""
    torch.manual_seed(0)
    model = build_model("dfine_n", 3).train()
    criterion = build_criterion(model)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    targets = torch.tensor([[[10.0, 10, 60, 60, 0], [50, 20, 90, 90, 2]], [[5, 5, 40, 100, 1], [0, 0, 0, 0, -1]]])
    losses = criterion(model(images, *criterion.extra_inputs(targets, images)), targets)
    assert losses.keys() == {"loss", "cls", "box", "fine", "dn", "count"}
    assert losses["count"].tolist() == [3, 1]
    losses["loss"].backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert dead == []


def test_a_batch_without_boxes():
    """Prevents a division by zero, or a failure of the denoising, where no image of a batch has an object."""
    model = build_model("dfine_n", 3).train()
    criterion = build_criterion(model)
    images, targets = torch.zeros(2, 3, 128, 128, dtype=torch.uint8), torch.full((2, 3, 5), -1.0)
    assert criterion.extra_inputs(targets, images) == ()
    losses = criterion(model(images), targets)
    assert losses["loss"].isfinite() and losses["box"] == 0 == losses["dn"]
    assert losses["count"].tolist() == [0, 1]  # it has no share of a step that has boxes elsewhere
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_norms_that_no_file_fills_learn():
    """Prevents a large network from scratch that sees nothing: behind frozen norms without statistics the maps fade."""
    torch.manual_seed(0)
    model = build_model("dfine_l", 1).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    faded = [level.std() for level in model.feature_extractor(model.normalize(images))]
    model.adapt_to({})
    maps = [level.std() for level in model.feature_extractor(model.normalize(images))]
    assert max(faded) < 1e-3 and min(maps) > 0.1


@pytest.mark.parametrize(
    ("key", "learns"),
    [
        ("backbone.stem.stem1.bn.num_batches_tracked", True),
        ("backbone.stem.stem1.bn.running_mean", False),
        ("encoder.input_proj.0.norm.num_batches_tracked", False),
    ],
)
def test_norms_learn_where_they_learned_in_the_file(key, learns):
    """Prevents a resumed training, or one from weights of DEIM, whose BatchNorm stands still."""
    with torch.device("meta"):
        model = build_model("dfine_x", 1)
        model.adapt_to({key: torch.zeros(1)})
    assert isinstance(model.backbone.stem.stem1.bn, nn.BatchNorm2d) == learns


def test_released_rules_reach_the_network():
    """Prevents a file of the authors from being computed with other places than it was trained with."""
    model = build_model("dfine_n", 3, None, RELEASED)
    assert model.encoder.transposed_positions and model.decode_rule == RELEASED
    silu = build_model("dfine_n", 3, None, {"activation": "silu"})
    assert type(silu.decoder.decoder.layers[0].act).__name__ == "SiLU"
