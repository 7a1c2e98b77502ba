"""D-FINE's loss: classes whose target is the overlap, boxes, and the distributions behind the boxes.

Source: D-FINE (Peng et al. 2024), section 4.2 and appendix; Peterande/D-FINE, src/zoo/dfine/dfine_criterion.py. A
network of L layers has terms for each layer, for the first boxes (pre), for the tokens that became queries (enc), and
for the denoising queries (dn).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, one_hot

from nets.boxes import centre_size_to_xyxy, paired_giou, paired_iou
from nets.dfine.denoising import denoising_pairs, denoising_queries
from nets.dfine.distributions import BINS, bin_values, boxes_to_distances, soft_bins
from nets.dfine.matcher import match
from nets.losses import Criterion, LossOptions

WEIGHTS = {"vfl": 1, "bbox": 5, "giou": 2, "fgl": 0.15, "ddf": 1.5}
# What is logged: {name: terms}, those of the denoising queries apart.
PARTS = {"cls": ("vfl",), "box": ("bbox", "giou"), "fine": ("fgl", "ddf")}
ALPHA, GAMMA, TEMPERATURE = 0.75, 2, 5


class Layer(NamedTuple):
    """One layer's view of N queries: logits (B, N, C), boxes (B, N, 4), corners (B, N, 4 * 33) or None."""

    logits: torch.Tensor
    boxes: torch.Tensor
    corners: torch.Tensor | None = None


class Truth(NamedTuple):
    """The boxes to be learned: classes (B, G), -1 for padding behind them, boxes (B, G, 4) as shares; how many, at
    least 1."""

    classes: torch.Tensor
    boxes: torch.Tensor
    number: torch.Tensor


class DFINELoss(Criterion):
    """criterion(DFINERaw, targets) -> {"loss", part ..., "count"}. options: LossOptions. Raises ValueError for those
    that this loss does not have."""

    needs_host = True

    def __init__(self, model, options=None):
        super().__init__()
        options = options or LossOptions()
        if options.iou_type or options.label_smoothing or options.focal_loss or options.map_weights:
            raise ValueError(
                f"{model.name} has a loss of its own: set iou_type = '', label_smoothing = 0, focal_loss = False and "
                "map_weights = []."
            )
        decoder = model.decoder
        self.num_classes, self.reg_scale = decoder.num_classes, float(decoder.reg_scale)
        self.register_buffer("values", bin_values(decoder.up.float(), decoder.reg_scale.float()), persistent=False)

    def extra_inputs(self, targets, images):
        """Denoising queries of the targets; none where the batch has no box."""
        height, width = images.shape[-2:]
        truth = truth_of(targets, targets.new_tensor([width, height, width, height]).expand(len(targets), 4))
        if not truth.classes.shape[1]:
            return ()
        queries = denoising_queries(truth.classes, truth.boxes, self.num_classes)
        return tuple(part.to(images.device, non_blocking=True) for part in queries)

    def forward(self, raw, targets):
        truth = truth_of(targets, raw.size)
        terms = self.terms(raw, truth)
        weighted = {name: WEIGHTS[name.split("_")[0]] * value for name, value in terms.items()}
        losses = {"loss": sum(weighted.values())}
        plain = {name: value for name, value in weighted.items() if "_dn" not in name}
        for part, kinds in PARTS.items():
            losses[part] = sum(value for name, value in plain.items() if name.split("_")[0] in kinds)
        # Also where a batch has no box, so that all steps have the same parts.
        losses["dn"] = losses["loss"] - sum(plain.values())
        # Each term divides by the number of boxes: so must the sum over several batches. One without any adds none.
        number = (truth.classes >= 0).sum()
        return losses | {"count": torch.stack([number, torch.ones_like(number)]).float()}

    def terms(self, raw, truth):
        """{name of the term in the original: scalar}, not weighted."""
        denoised = raw.logits.shape[2] - raw.tokens.shape[1]
        queries, noisy = slice(denoised, None), slice(0, denoised)
        layers = layers_of(raw, queries)
        first = Layer(raw.first_logits[:, queries], raw.first_boxes[:, queries])
        encoder = Layer(raw.encoder_logits, raw.encoder_boxes)
        pairs, union = match([layer[:2] for layer in (*layers, first, encoder)], truth.classes, truth.boxes)
        bins = self.target_bins(raw.references[:, queries], truth, union)
        terms, shares = {}, side_shares(union, layers[-1])
        for number, layer in enumerate(layers):
            name = f"_aux_{number}" if number < len(layers) - 1 else ""
            terms |= self.layer_terms(name, layer, layers[-1], truth, pairs[number], union, bins, shares)
        for name, layer, own in (("_pre", first, pairs[-2]), ("_enc_0", encoder, pairs[-1])):
            terms |= self.layer_terms(name, layer, None, truth, own, union, None, None)
        return terms | (self.denoising_terms(raw, noisy, truth, shares) if denoised else {})

    def denoising_terms(self, raw, noisy, truth, shares):
        pairs = denoising_pairs(truth.classes)
        layers = layers_of(raw, noisy)
        bins, terms = self.target_bins(raw.references[:, noisy], truth, pairs), {}
        groups = len(pairs.images) // max(int((truth.classes >= 0).sum()), 1)
        truth = truth._replace(number=truth.number * groups)
        for number, layer in enumerate(layers):
            name = f"_dn_{number}"
            terms |= self.layer_terms(name, layer, layers[-1], truth, pairs, pairs, bins, shares)
        first = Layer(raw.first_logits[:, noisy], raw.first_boxes[:, noisy])
        return terms | self.layer_terms("_dn_pre", first, None, truth, pairs, pairs, None, None)

    def layer_terms(self, name, layer, teacher, truth, own, union, bins, shares):
        """The terms of one layer. own, union: Pairs for the classes, and for the boxes. bins: of the union's boxes."""
        logits, boxes = layer.logits.float(), layer.boxes.float()
        terms = {"vfl": varifocal_loss(logits, boxes, truth, own)}
        found = boxes[union.images, union.queries]
        wanted = truth.boxes[union.images, union.boxes]
        number = max(len(union.images), 1)
        terms["bbox"] = (found - wanted).abs().sum() / number
        corners_xyxy = centre_size_to_xyxy(found), centre_size_to_xyxy(wanted)
        terms["giou"] = (1 - paired_giou(*corners_xyxy)).sum() / number
        if layer.corners is not None:
            iou = paired_iou(*corners_xyxy).detach()
            corners = layer.corners.float()
            sides = corners[union.images, union.queries].unflatten(-1, (4, BINS + 1))
            terms["fgl"] = (fine_grained_loss(sides, *bins).sum(-1) * iou).sum() / number
            if layer is not teacher:
                terms["ddf"] = distillation_loss(corners, teacher, union, iou, shares)
        return {f"{key}{name}": value for key, value in terms.items()}

    def target_bins(self, references, truth, pairs):
        """What the sides of the pairs' queries should say: see soft_bins; (P, 4) each."""
        wanted = truth.boxes[pairs.images, pairs.boxes]
        distances = boxes_to_distances(references[pairs.images, pairs.queries], wanted, self.reg_scale)
        return soft_bins(distances, self.values)


def layers_of(raw, queries):
    parts = (raw.logits, raw.boxes, raw.corners)
    return [Layer(*(part[:, number, queries] for part in parts)) for number in range(raw.logits.shape[1])]


def truth_of(targets, size):
    """The Truth of targets (B, G, 5), corners in pixels and class, -1 for padding. size: (B, 4) of the input."""
    classes = targets[..., 4].long()
    order = (classes < 0).to(torch.int8).argsort(dim=1, stable=True)
    most = int((classes >= 0).sum(1).max()) if classes.numel() else 0
    order = order[:, :most]
    classes = classes.gather(1, order)
    corners_xyxy = targets[..., :4].gather(1, order[..., None].expand(-1, -1, 4)).float() / size[:, None]
    centre, sides = (corners_xyxy[..., :2] + corners_xyxy[..., 2:]) / 2, corners_xyxy[..., 2:] - corners_xyxy[..., :2]
    return Truth(classes, torch.cat((centre, sides), dim=-1), (classes >= 0).sum().clamp(min=1))


def varifocal_loss(logits, boxes, truth, pairs):
    """Cross entropy whose target is the overlap of a matched query's box; sure mistakes weigh most.

    Source: Zhang et al. 2021, "VarifocalNet", section 3.2. Divided by the number of boxes.
    """
    wanted = truth.boxes[pairs.images, pairs.boxes]
    found = boxes[pairs.images, pairs.queries].detach()
    overlap = paired_iou(centre_size_to_xyxy(found), centre_size_to_xyxy(wanted))
    labels = one_hot(truth.classes[pairs.images, pairs.boxes], logits.shape[-1]).float()
    is_class, score = torch.zeros_like(logits), torch.zeros_like(logits)
    is_class[pairs.images, pairs.queries] = labels
    score[pairs.images, pairs.queries] = labels * overlap[:, None]
    weight = ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - is_class) + score
    return binary_cross_entropy_with_logits(logits, score, weight, reduction="sum") / truth.number


def fine_grained_loss(sides, left, left_weight, right_weight):
    """Cross entropy of the two bins around the wanted distance. sides: (P, 4, 33) logits. Returns (P, 4)."""
    logits = sides.flatten(0, 1)
    losses = [cross_entropy(logits, index.flatten(), reduction="none") for index in (left, left + 1)]
    return losses[0].view_as(left) * left_weight + losses[1].view_as(left) * right_weight


def side_shares(union, layer):
    """Square roots of how many sides are matched and how many are not: their weights in distillation_loss."""
    total = 4 * layer.boxes.shape[0] * layer.boxes.shape[1]
    matched = layer.boxes.new_tensor(4.0 * len(union.images), dtype=torch.float32)
    return matched.sqrt(), (total - matched).sqrt()


def distillation_loss(corners, teacher, union, iou, shares):
    """How far a layer's distributions are from the last layer's, for matched queries by their overlap, for others by
    how sure the last layer is of a class."""
    weight = teacher.logits.detach().float().sigmoid().amax(-1)
    weight[union.images, union.queries] = iou
    is_matched = torch.zeros_like(weight, dtype=torch.bool)
    is_matched[union.images, union.queries] = True
    student, wanted = (
        values.unflatten(-1, (4, BINS + 1)) / TEMPERATURE for values in (corners, teacher.corners.detach().float())
    )
    losses = kl_div(student.log_softmax(-1), wanted.softmax(-1), reduction="none").sum(-1)
    losses = losses * weight[..., None] * TEMPERATURE**2
    means = [
        (losses * chosen[..., None]).sum() / (4 * chosen.sum()).clamp(min=1) for chosen in (is_matched, ~is_matched)
    ]
    return sum(mean * share for mean, share in zip(means, shares, strict=True)) / sum(shares)
