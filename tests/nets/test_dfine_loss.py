import numpy as np
import pytest
import torch

from nets import build_criterion, build_model
from nets.dfine.decoder import DFINERaw, hidden_queries
from nets.dfine.denoising import Noise, denoising_pairs, denoising_queries, layout
from nets.dfine.distributions import bin_values, boxes_to_distances, distances_to_boxes, soft_bins
from nets.dfine.loss import WEIGHTS, Truth, truth_of
from nets.dfine.matcher import _union, match
from tests.nets.dfine_oracle import needs_oracles, oracle, seeded

VALUES = bin_values(torch.tensor([0.5]), torch.tensor([4.0]))
# Of the training oracle; the project draws 100 queries.
QUERIES = 20


def truth_from(wanted, case):
    """The Truth of a case of an oracle."""
    most = max(len(wanted[f"{case}target_labels_{image}"]) for image in range(2))
    classes, boxes = torch.full((2, most), -1), torch.zeros(2, most, 4)
    for image in range(2):
        labels = torch.from_numpy(wanted[f"{case}target_labels_{image}"]).long()
        classes[image, : len(labels)] = labels
        boxes[image, : len(labels)] = torch.from_numpy(wanted[f"{case}target_boxes_{image}"])
    return Truth(classes, boxes, (classes >= 0).sum().clamp(min=1))


def raw_from(wanted, case):
    """The DFINERaw of a case, and its leaves by name."""
    leaves = {
        key.removeprefix(f"{case}/in/"): torch.from_numpy(wanted[key]).requires_grad_()
        for key in wanted.files
        if key.startswith(f"{case}/in/")
    }

    def joined(name):
        return torch.cat([leaves[key] for key in (f"dn_{name}", name) if key in leaves], dim=1)

    kinds = ("logits", "boxes", "corners")
    layers = (torch.stack([joined(f"{kind}_{layer}") for layer in range(3)], dim=1) for kind in kinds)
    keys = (key for key in (f"{case}/dn_ref_points", f"{case}/ref_points") if key in wanted)
    references = torch.cat([torch.from_numpy(wanted[key]) for key in keys], dim=1)
    others = joined("pre_logits"), joined("pre_boxes"), leaves["enc_logits"], leaves["enc_boxes"]
    raw = DFINERaw(*layers, references, *others, torch.zeros(2, 50, dtype=torch.int64), torch.ones(2, 4))
    return raw, leaves


@needs_oracles
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_terms_and_gradients_are_those_of_the_original(monkeypatch, case):
    """Prevents any difference in what is learned: images with boxes, one without, and a batch without."""
    monkeypatch.setattr("nets.dfine.loss.denoising_pairs", lambda classes: denoising_pairs(classes, QUERIES))
    wanted = oracle("dfine_train_oracle.npz")
    raw, leaves = raw_from(wanted, case)
    criterion = build_criterion(build_model("dfine_n", 3))
    terms = criterion.terms(raw, truth_from(wanted, f"{case}/"))
    weighted = {name: WEIGHTS[name.split("_")[0]] * value for name, value in terms.items()}
    expected = {key.split("loss_")[1]: float(wanted[key]) for key in wanted.files if key.startswith(f"{case}/loss/")}
    # The last layer teaches itself nothing.
    assert {name for name in expected if name not in weighted} <= {"ddf_dn_2"}
    for name, value in weighted.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    sum(weighted.values()).backward()
    for name, leaf in leaves.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        largest = np.abs(wanted[f"{case}/grad/{name}"]).max()
        np.testing.assert_allclose(gradient, wanted[f"{case}/grad/{name}"], atol=1e-5 * largest + 1e-9, err_msg=name)


@needs_oracles
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_pairs_are_those_of_the_original(case):
    """Prevents queries from learning other boxes."""
    wanted = oracle("dfine_train_oracle.npz")
    raw, _ = raw_from(wanted, case)
    outputs = [(raw.logits[:, layer, -50:], raw.boxes[:, layer, -50:]) for layer in range(3)]
    outputs += [(raw.first_logits[:, -50:], raw.first_boxes[:, -50:]), (raw.encoder_logits, raw.encoder_boxes)]
    own, union = match(outputs, *truth_from(wanted, f"{case}/")[:2])
    for name, pairs in zip(("aux_0", "aux_1", "main", "pre", "enc_0", "union"), [*own, union], strict=True):
        for image in range(2):
            expected = sorted(map(tuple, wanted[f"{case}/match/{name}/{image}"].T.tolist()))
            chosen = pairs.images == image
            assert sorted(zip(pairs.queries[chosen].tolist(), pairs.boxes[chosen].tolist(), strict=True)) == expected


@needs_oracles
@pytest.mark.parametrize("case", ["a", "b"])
def test_denoising_queries_are_those_of_the_original(case):
    """Prevents other noise, another order, or answers that other queries see."""
    wanted = oracle("dfine_train_oracle.npz")
    names = ("label_mask", "new_label", "sign01", "part")
    mask, classes, sign, part = (torch.from_numpy(wanted[f"{case}/dn_draw_{name}"]) for name in names)
    noise = Noise(mask < 0.25, classes.long(), sign > 0, part)
    truth = truth_from(wanted, f"{case}/")
    queries = denoising_queries(truth.classes, truth.boxes, 3, QUERIES, noise)
    assert (queries.classes == torch.from_numpy(wanted[f"{case}/dn_class"])).all()
    np.testing.assert_allclose(queries.box_logits, wanted[f"{case}/dn_boxes_unact"], atol=1e-5)
    assert (hidden_queries(queries.groups[0], 50) == torch.from_numpy(wanted[f"{case}/dn_attn_mask"])).all()
    pairs = denoising_pairs(truth.classes, QUERIES)
    for image in range(2):
        expected = sorted(wanted[f"{case}/dn_positive_{image}"].tolist())
        assert sorted(pairs.queries[pairs.images == image].tolist()) == expected


@needs_oracles
def test_a_whole_step_is_that_of_the_original():
    """Prevents a difference between network and loss: every term, and the gradient of every parameter."""
    wanted = oracle("dfine_n_step_oracle.npz")
    model = seeded("dfine_n", int(wanted["seed"]), 3)
    images, classes = torch.from_numpy(wanted["input_u8"]), torch.from_numpy(wanted["dn_class"]).long()
    groups = (torch.arange(198) // 6).expand(2, -1)
    raw = model(images, classes, torch.from_numpy(wanted["dn_boxes_unact"]), groups)
    terms = build_criterion(model).terms(raw, truth_from(wanted, ""))
    weighted = {name: WEIGHTS[name.split("_")[0]] * value for name, value in terms.items()}
    for name, value in weighted.items():
        assert value.item() == pytest.approx(float(wanted[f"bn_eval/loss/loss_{name}"]), rel=2e-5), name
    sum(weighted.values()).backward()
    keys = {name: f"bn_eval/gradnorm/{name}" for name, _ in model.named_parameters()}
    norms = {name: float(wanted[key]) for name, key in keys.items() if key in wanted}
    assert len(norms) > 400
    for name, norm in norms.items():
        if norm > 1e-3 * max(norms.values()):
            assert model.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=5e-3), name


@needs_oracles
@pytest.mark.parametrize("scale", [4, 8])
def test_bins_are_those_of_the_original(scale):
    """Prevents boxes of the wrong size without any error, as with the scale of another network."""
    expected = oracle("dfine_train_oracle.npz")[f"weighting_function_up0.5_scale{scale}"]
    np.testing.assert_array_equal(bin_values(torch.tensor([0.5]), torch.tensor([float(scale)])), expected)


def test_distances_are_inverses():
    """Prevents targets of the distributions that mean another box."""
    reference = torch.tensor([[0.5, 0.4, 0.2, 0.3]])
    boxes = torch.tensor([[0.45, 0.42, 0.3, 0.1]])
    distances = boxes_to_distances(reference, boxes, 4.0)
    torch.testing.assert_close(distances_to_boxes(reference, distances, 4.0), boxes)
    torch.testing.assert_close(distances_to_boxes(reference, torch.zeros(1, 4), 4.0), reference)


def test_bins_around_a_distance():
    """Prevents weight on bins that do not hold the distance, and an index beyond the ends."""
    left, left_weight, right_weight = soft_bins(torch.tensor([-9.0, 0.0, 9.0, VALUES[20].item()]), VALUES)
    assert left.tolist() == [0, 16, 31, 20]
    assert left_weight.tolist() == [1.0, 1.0, 0.0, 1.0] and right_weight.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_the_union_keeps_the_most_frequent_box():
    """Prevents pairs that depend on the order of equal counts: the first box wins then."""
    assert _union([[(1, 0)], [(1, 2)], [(1, 2)], [(3, 1)], [(3, 0)]]) == [(1, 2), (3, 0)]
    assert _union([[], []]) == []


def test_more_boxes_than_queries():
    """Prevents a failure on a crowded mosaic: as many boxes as there are queries are learned."""
    boxes = torch.rand(1, 5, 4) * 0.2 + 0.2
    own, union = match([(torch.zeros(1, 3, 2), torch.rand(1, 3, 4))], torch.zeros(1, 5, dtype=torch.int64), boxes)
    assert len(own[0].queries) == len(union.queries) == 3


def test_targets_in_shares_without_their_padding():
    """Prevents pixels from being taken for shares, and padding from being learned, wherever it lies."""
    targets = torch.tensor([[[0.0, 0, 0, 0, -1], [10, 20, 30, 60, 2]], [[0, 0, 0, 0, -1], [0, 0, 0, 0, -1]]])
    truth = truth_of(targets, torch.tensor([[100.0, 200, 100, 200]]).expand(2, 4))
    assert (truth.classes.tolist(), truth.number.item()) == ([[2], [-1]], 1)
    torch.testing.assert_close(truth.boxes[0], torch.tensor([[0.2, 0.2, 0.2, 0.2]]))


@pytest.mark.parametrize(("boxes", "expected"), [(1, (100, 2)), (3, (33, 6)), (150, (1, 300))])
def test_groups_of_denoising_queries(boxes, expected):
    """Prevents a memory that grows with the number of boxes of an image."""
    assert layout(boxes) == expected
