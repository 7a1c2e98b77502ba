"""D-FINE's decoder: queries chosen among the tokens of the maps, refined layer by layer to boxes and classes.

Attribute names are those of the public weights. Source: D-FINE (Peng et al. 2024), section 4; Peterande/D-FINE,
src/zoo/dfine/dfine_decoder.py.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import grid_sample

from nets.dfine.distributions import BINS, bin_values, distances_to_boxes, expected_distances
from nets.dfine.encoder import ConvNorm

HEADS = 8
# Anchors whose numbers lie outside are not used, and get a logit so large that its sigmoid is 1.
ANCHOR_SIDE, LEAST_ANCHOR, NO_ANCHOR = 0.05, 0.01, 1e4
LARGEST_POSITION, LARGEST_HALF, OFFSET_SCALE = 10, 65504, 0.5
# The four surest bins of a side and their mean tell how sure a box is.
SUREST_BINS, HIDDEN_QUALITY = 4, 64
CLASS_PRIOR = 0.01
EPSILON = 1e-5


class DFINERaw(NamedTuple):
    """What the network gives: of K denoising queries (0 but in training), then Q queries, in each of L layers.

    logits: (B, L, K + Q, C). boxes: (B, L, K + Q, 4) centre and size as shares of the input, as all boxes here.
    corners: (B, L, K + Q, 4 * 33) logits of the sides' distributions. references: (B, K + Q, 4) boxes that the
    distributions refine. first_logits, first_boxes: of the first layer before any refinement. encoder_logits,
    encoder_boxes: (B, Q, ...) of the tokens that became queries. tokens: (B, Q) int64 which these were. size: (B, 4)
    width, height, width, height of the input in pixels.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    corners: torch.Tensor
    references: torch.Tensor
    first_logits: torch.Tensor
    first_boxes: torch.Tensor
    encoder_logits: torch.Tensor
    encoder_boxes: torch.Tensor
    tokens: torch.Tensor
    size: torch.Tensor


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, sizes, act=nn.ReLU):
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.act = act()

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


class DeformableAttention(nn.Module):
    """Each head of a query looks at a few places of every map, which lie around the query's box."""

    def __init__(self, channels, points):
        super().__init__()
        self.points = points
        scale = [1 / number for number in points for _ in range(number)]
        self.register_buffer("num_points_scale", torch.tensor(scale))
        self.sampling_offsets = nn.Linear(channels, HEADS * sum(points) * 2)
        self.attention_weights = nn.Linear(channels, HEADS * sum(points))
        self._start()

    def _start(self):
        """Start with places in a star: a direction for each head, further out from point to point."""
        angles = torch.arange(HEADS, dtype=torch.float32) * (2 * math.pi / HEADS)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, number + 1, dtype=torch.float32) for number in self.points])
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data.copy_((directions[:, None] * steps[:, None]).flatten())
        for parameter in self.attention_weights.parameters():
            nn.init.zeros_(parameter)

    def forward(self, queries, references, maps):
        """queries: (B, N, D). references: (B, N, 4). maps: for each level (B * heads, D / heads, h, w)."""
        batch, number, channels = queries.shape
        offsets = self.sampling_offsets(queries).float().view(batch, number, HEADS, -1, 2)
        weights = self.attention_weights(queries).float().view(batch, number, HEADS, -1).softmax(-1)
        centre, size = references[:, :, None, None].split(2, dim=-1)
        places = centre + offsets * self.num_points_scale[:, None] * size * OFFSET_SCALE
        grids = (2 * places - 1).transpose(1, 2).flatten(0, 1).split(self.points, dim=2)
        sampled = [
            grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            for values, grid in zip(maps, grids, strict=True)
        ]
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
        attended = (torch.cat(sampled, dim=-1) * weights).sum(-1)
        return attended.view(batch, channels, number).transpose(1, 2).to(queries.dtype)


class Gateway(nn.Module):
    """Two maps mixed by gates that both of them set."""

    def __init__(self, channels):
        super().__init__()
        self.gate, self.norm = nn.Linear(2 * channels, 2 * channels), nn.LayerNorm(channels)
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)

    def forward(self, first, second):
        gates = self.gate(torch.cat((first, second), dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(gates[0] * first + gates[1] * second)


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the maps, feed-forward."""

    def __init__(self, channels, hidden, points, act):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn, self.gateway = DeformableAttention(channels, points), Gateway(channels)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.act, self.norm3 = act(), nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, content, positions, references, maps, hidden_from):
        """content, positions: (B, N, D). hidden_from: (N, N) bool, which query does not see which; None for none."""
        queries = content + positions
        attended = self.self_attn(queries, queries, content, attn_mask=hidden_from, need_weights=False)[0]
        content = self.norm1(content + attended)
        content = self.gateway(content, self.cross_attn(content + positions, references, maps))
        content = content + self.linear2(self.act(self.linear1(content)))
        return self.norm3(content.clamp(-LARGEST_HALF, LARGEST_HALF))


class QualityHead(nn.Module):
    """How much surer a query's classes are because its box is sure: (B, N, 4 * 33) -> (B, N, 1)."""

    def __init__(self, act):
        super().__init__()
        self.reg_conf = MLP((4 * (SUREST_BINS + 1), HIDDEN_QUALITY, 1), act)
        zero_last(self.reg_conf)

    def forward(self, corners):
        probabilities = corners.float().unflatten(-1, (4, BINS + 1)).softmax(-1)
        surest = probabilities.topk(SUREST_BINS, dim=-1).values
        return self.reg_conf(torch.cat((surest, surest.mean(-1, keepdim=True)), dim=-1).flatten(-2))


class Layers(nn.Module):
    """The decoder's layers, with what belongs to them in the files."""

    def __init__(self, channels, hidden, points, count, act, reg_scale):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, hidden, points, act) for _ in range(count))
        self.lqe_layers = nn.ModuleList(QualityHead(act) for _ in range(count))
        register_scales(self, reg_scale)


class DFINEDecoder(nn.Module):
    """Maps (B, in_channels, h, w) of ascending stride -> DFINERaw.

    channels: D of the queries. hidden: of the feed-forward layers. points: that a head looks at, for each level.
    """

    def __init__(self, num_classes, in_channels, channels, hidden, points, layers, queries, reg_scale, act=nn.ReLU):
        super().__init__()
        self.num_classes, self.queries, levels = num_classes, queries, len(points)
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == channels else ConvNorm(in_channels, channels, 1, act=False)
            for _ in range(levels)
        )
        self.decoder = Layers(channels, hidden, points, layers, act, reg_scale)
        register_scales(self, reg_scale)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, channels, padding_idx=num_classes)
        self.query_pos_head = MLP((4, 2 * channels, channels), act)
        self.enc_output = nn.Sequential()
        self.enc_output.add_module("proj", nn.Linear(channels, channels))
        self.enc_output.add_module("norm", nn.LayerNorm(channels))
        self.enc_score_head = score_head(channels, num_classes)
        self.enc_bbox_head = zero_last(MLP((channels, channels, channels, 4), act))
        self.pre_bbox_head = zero_last(MLP((channels, channels, channels, 4), act))
        self.dec_score_head = nn.ModuleList(score_head(channels, num_classes) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(
            zero_last(MLP((channels, channels, channels, 4 * (BINS + 1)), act)) for _ in range(layers)
        )
        for linear in (self.enc_output.proj, *self.query_pos_head.layers):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, features, classes=None, box_logits=None, groups=None):
        """Denoising queries, in training: classes (B, K) int64, box_logits (B, K, 4), groups (B, K) int64."""
        maps = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        content, reference_logits, chosen = self.choose(maps)
        hidden_from = None
        if classes is not None:
            content = torch.cat((self.denoising_class_embed(classes).to(content.dtype), content), dim=1)
            reference_logits = torch.cat((box_logits, reference_logits), dim=1)
            hidden_from = hidden_queries(groups[0], chosen[2].shape[1])
        elif self.training:
            # Distributed training waits for a gradient of every parameter, also where a batch has no box.
            content = content + 0 * self.denoising_class_embed.weight.sum()
        values = [level.float().unflatten(1, (HEADS, -1)).flatten(0, 1) for level in maps]
        refined = self.refine(content, reference_logits.float().sigmoid(), values, hidden_from)
        # Sizes stay symbols here, so that an exported file takes batches and inputs of any size.
        height, width = (
            torch.full((), 32 * side, dtype=torch.float32, device=content.device) for side in features[-1].shape[-2:]
        )
        size = torch.stack((width, height, width, height)).expand(content.shape[0], 4)
        return DFINERaw(*refined, *chosen, size)

    def choose(self, maps):
        """The tokens that become queries: their content, detached, box logits, detached, and (logits, boxes, which)."""
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        anchors, is_valid = anchor_logits([x.shape[-2:] for x in maps], memory.device)
        tokens = self.enc_output(memory * is_valid.to(memory.dtype))
        logits = self.enc_score_head(tokens)
        best = logits.float().amax(-1).topk(min(self.queries, logits.shape[1]), dim=1).indices
        content = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))
        box_logits = in_float32(self.enc_bbox_head, content) + anchors[best]
        logits = logits.gather(1, best[..., None].expand(-1, -1, self.num_classes))
        return content.detach(), box_logits.detach(), (logits, box_logits.sigmoid(), best)

    def refine(self, content, references, maps, hidden_from):
        """All layers: (logits, boxes, corners, references, first_logits, first_boxes) of DFINERaw."""
        scale = self.reg_scale.float()
        values = bin_values(self.up, scale)
        corners, earlier, found = 0, 0, []
        for number, layer in enumerate(self.decoder.layers):
            positions = self.query_pos_head(references).clamp(-LARGEST_POSITION, LARGEST_POSITION)
            content = layer(content, positions, references, maps, hidden_from)
            if number == 0:
                first_boxes = (in_float32(self.pre_bbox_head, content) + inverse_sigmoid(references)).sigmoid()
                first_logits, base = self.dec_score_head[0](content), first_boxes.detach()
            corners = in_float32(self.dec_bbox_head[number], content + earlier) + corners
            boxes = distances_to_boxes(base, expected_distances(corners, values), scale)
            quality = in_float32(self.decoder.lqe_layers[number], corners)
            found.append((self.dec_score_head[number](content).float() + quality, boxes, corners))
            references, earlier = boxes.detach(), content.detach()
        logits, boxes, corners = (torch.stack(part, dim=1) for part in zip(*found, strict=True))
        return logits, boxes, corners, base, first_logits, first_boxes


def register_scales(module, reg_scale):
    module.register_buffer("up", torch.tensor([0.5]))
    module.register_buffer("reg_scale", torch.tensor([reg_scale]))


def score_head(channels, num_classes):
    head = nn.Linear(channels, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
    return head


def zero_last(mlp):
    """The same MLP, which gives zeros until it learns."""
    nn.init.zeros_(mlp.layers[-1].weight)
    nn.init.zeros_(mlp.layers[-1].bias)
    return mlp


def in_float32(module, x):
    """module(x) with all digits whatever the precision of the rest: boxes of half precision are not finite for long."""
    if not torch.amp.is_autocast_available(x.device.type):  # shapes alone, on the device "meta"
        return module(x.float())
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def inverse_sigmoid(x):
    x = x.clamp(0, 1)
    return (x.clamp(min=EPSILON) / (1 - x).clamp(min=EPSILON)).log()


def anchor_logits(sizes_hw, device="cpu"):
    """((N, 4) float32 logits of a box around each token of maps of these sizes, (N, 1) whether it is used)."""
    boxes = []
    for level, (height, width) in enumerate(sizes_hw):
        places = (torch.arange(number, device=device) for number in (height, width))
        rows, columns = torch.meshgrid(*places, indexing="ij")
        centres = torch.stack(((columns + 0.5) / width, (rows + 0.5) / height), dim=-1).flatten(0, 1)
        boxes.append(torch.cat((centres, torch.full_like(centres, ANCHOR_SIDE * 2**level)), dim=-1))
    boxes = torch.cat(boxes)
    is_valid = ((boxes > LEAST_ANCHOR) & (boxes < 1 - LEAST_ANCHOR)).all(-1, keepdim=True)
    return torch.where(is_valid, (boxes / (1 - boxes)).log(), NO_ANCHOR), is_valid


def hidden_queries(groups, queries):
    """(N, N) bool: which query (row) does not see which (column): nobody sees denoising ones but those of their group.

    groups: (K,) of the denoising queries, which come first. queries: how many others follow.
    """
    group = torch.cat((groups, groups.new_full((queries,), -1)))
    return (group[None] >= 0) & (group[:, None] != group[None])
