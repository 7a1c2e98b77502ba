"""Augmentation: the random choices of a sample, and its boxes. utils/data/draw.py draws the pixels.

The parameters of a sample are a pure function of the seed and its key, and the keys of an epoch are one of (seed,
epoch), see utils/data/sampling.py. So a sample is the same with any number of workers and ranks and after a resume, and
its boxes follow from the parameters alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.data.annotations import Annotations
from utils.data.copy_paste import Donors, Pasted, choose_pasted
from utils.image.letterbox import PAD, placement

# A box stays a target if this fraction of it is left after clipping, and no side is shorter than this in input pixels.
MIN_VISIBLE = 0.3
MIN_SIDE = 2.0
# The point where the four images of a mosaic meet, as a fraction of the input.
MOSAIC_CENTRE = (0.25, 0.75)
# Both parameters of the beta distribution of mixup weights: nearly all lie between 0.35 and 0.65.
MIXUP_BETA = 32.0
NEUTRAL_GAINS = (0.0, 1.0, 1.0)


class SampleKey(NamedTuple):
    """Which sample: image `index` of an epoch. Index i + len(annotations) is image i again, with choices of its own.

    partners: the images that mosaic and mixup may take: three of the mosaic, that of the mixup, three of its mosaic.
    """

    epoch: int
    index: int
    input_shape: tuple[int, int]  # height, width
    partners: tuple[int, ...]


@dataclass(frozen=True)
class AugmentOptions:
    """What may happen to a training sample. Augmentation is on while epoch < augment_epochs."""

    augment_epochs: int = 0
    mosaic: bool = True
    mosaic_prob: float = 1.0
    mixup: bool = True
    mixup_prob: float = 0.5
    copy_paste: float = 0.0
    donors: Donors | None = None  # what is pasted
    scale_range: tuple[float, float] = (0.5, 1.5)  # times the size at which the image just fits the input
    aspect_jitter: float = 0.25  # width / height changes by up to this fraction
    flip_prob: float = 0.5
    hue_gain: float = 0.015  # fraction of the colour circle
    saturation_gain: float = 0.7
    value_gain: float = 0.4
    resize_mode: str = "topleft"
    pad: int = PAD

    @property
    def rule(self) -> dict:
        """The resize rule of a plain sample, as letterbox takes it."""
        return {"mode": self.resize_mode, "pad": self.pad}


class PlacedImage(NamedTuple):
    """One image in the canvas: canvas pixel = scale * image pixel + offset; visible inside the clip rectangle only.

    The clip rectangle goes back to whole image pixels, so a crop can be resized into it without moving any box.
    """

    index: int
    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float
    clip_yxyx: tuple[int, int, int, int]  # y1, x1, y2, x2 in the canvas


class AugmentParameters(NamedTuple):
    """Placed images, what is pasted onto them, blended with the partner (weight: of these), then colour and flip of the
    painted region."""

    input_shape: tuple[int, int]  # height, width
    images: tuple[PlacedImage, ...]
    partner: "AugmentParameters | None" = None
    weight: float = 1.0
    gains: tuple[float, float, float] = NEUTRAL_GAINS  # hue shift, saturation factor, value factor
    flip: bool = False
    pasted: tuple[Pasted, ...] = ()


def images_of(params: AugmentParameters) -> set[int]:
    """The indices of all images that a sample shows."""
    shown = {part.index for part in params.images + params.pasted}
    return shown | (images_of(params.partner) if params.partner else set())


def largest_scales(annotations: Annotations, shapes: Sequence[tuple[int, int]], options: AugmentOptions) -> np.ndarray:
    """(N,) the largest factor by which any sample of one of the input shapes draws each image."""
    ratios = np.max([np.array(shape) / annotations.sizes_hw for shape in shapes], axis=0)
    fit = ratios.max(axis=1) if options.resize_mode == "stretch" else ratios.min(axis=1)
    if not options.augment_epochs:
        return fit
    return fit * max(1.0, options.scale_range[1] * (1 + options.aspect_jitter) ** 0.5)


def sample_parameters(
    annotations: Annotations, key: SampleKey, seed: int, options: AugmentOptions
) -> AugmentParameters:
    """The random choices of one sample of an epoch."""
    random = np.random.default_rng((seed, key.epoch, key.index))
    image, shape = key.index % len(annotations), key.input_shape
    if key.epoch >= options.augment_epochs:
        return AugmentParameters(shape, (_place_plain(annotations, image, shape, options),))
    images = _place_images(annotations, (image, *key.partners[:3]), shape, random, options)
    pasted = _paste(annotations, images, shape, random, options)
    partner, weight = None, 1.0
    if options.mixup and random.random() < options.mixup_prob:
        partner = AugmentParameters(shape, _place_images(annotations, key.partners[3:], shape, random, options))
        weight = float(random.beta(MIXUP_BETA, MIXUP_BETA))
    hue, saturation, value = random.uniform(-1, 1, 3).tolist()
    gains = (hue * options.hue_gain, 1 + saturation * options.saturation_gain, 1 + value * options.value_gain)
    return AugmentParameters(shape, images, partner, weight, gains, bool(random.random() < options.flip_prob), pasted)


def augmented_targets(annotations: Annotations, params: AugmentParameters) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of a sample: (n, 4) float32 x1, y1, x2, y2 in input pixels and (n,) int64 classes."""
    parts = [_visible_boxes(annotations, placed) for placed in params.images]
    parts += [(np.float32([pasted.box_xyxy]), np.array([pasted.label])) for pasted in params.pasted]
    if params.partner is not None:
        parts.append(augmented_targets(annotations, params.partner))
    boxes_xyxy = np.concatenate([boxes for boxes, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    if params.flip:
        _, left, _, right = painted_yxyx(params)
        boxes_xyxy[:, [0, 2]] = left + right - boxes_xyxy[:, [2, 0]]
    return boxes_xyxy, labels


def painted_yxyx(params: AugmentParameters) -> tuple[int, int, int, int]:
    """y1, x1, y2, x2 of the smallest rectangle around all placed images, the partner's included.

    Colour and flip act inside it, so a plain sample keeps its padding where and as inference has it.
    """
    corners = np.array(
        [placed.clip_yxyx for placed in params.images + (params.partner.images if params.partner else ())]
    )
    y1, x1 = corners[:, :2].min(axis=0).tolist()
    y2, x2 = corners[:, 2:].max(axis=0).tolist()
    return y1, x1, y2, x2


def _place_images(annotations: Annotations, images, input_shape, random: np.random.Generator, options: AugmentOptions):
    """Four images around a random centre, or the first of them somewhere in the canvas."""
    height, width = input_shape
    if not (options.mosaic and random.random() < options.mosaic_prob):
        return (
            _place_at_random(annotations, images[0], input_shape, random, options, (0, 0, height, width), (None, None)),
        )
    centre_y, centre_x = (random.uniform(*MOSAIC_CENTRE, 2) * (height, width)).astype(int).tolist()
    images = list(images)
    random.shuffle(images)
    quadrants = (
        ((0, 0, centre_y, centre_x), ("end", "end")),
        ((0, centre_x, centre_y, width), ("end", "start")),
        ((centre_y, 0, height, centre_x), ("start", "end")),
        ((centre_y, centre_x, height, width), ("start", "start")),
    )
    return tuple(
        _place_at_random(annotations, image, input_shape, random, options, room_yxyx, sides)
        for image, (room_yxyx, sides) in zip(images, quadrants, strict=True)
    )


def _paste(annotations: Annotations, images, input_shape, random: np.random.Generator, options: AugmentOptions):
    """What is pasted onto placed images, () for nothing. Draws no number where copy_paste is off."""
    if not options.copy_paste or options.donors is None or random.random() >= options.copy_paste:
        return ()
    clips_yxyx = [placed.clip_yxyx for placed in images]
    boxes_xyxy = np.concatenate([_visible_boxes(annotations, placed)[0] for placed in images])
    return choose_pasted(annotations, options.donors, clips_yxyx, boxes_xyxy, input_shape, options.scale_range, random)


def _place_at_random(
    annotations: Annotations, image: int, input_shape, random, options, room_yxyx, sides
) -> PlacedImage:
    """An image at a random scale and aspect in a part of the canvas, against one side of it (None: anywhere)."""
    height, width = annotations.sizes_hw[image].tolist()
    scale_draw, aspect_draw, place_y, place_x = random.random(4).tolist()
    low, high = options.scale_range
    fit = min(input_shape[0] / height, input_shape[1] / width)
    scale = fit * (low + (high - low) * scale_draw)
    aspect = (1 + options.aspect_jitter) ** (2 * aspect_draw - 1)
    y1, x1, y2, x2 = room_yxyx
    scale_y, offset_y, top, bottom = _fit_axis(height, scale / aspect**0.5, y1, y2, sides[0], place_y)
    scale_x, offset_x, left, right = _fit_axis(width, scale * aspect**0.5, x1, x2, sides[1], place_x)
    return PlacedImage(image, scale_y, scale_x, offset_y, offset_x, (top, left, bottom, right))


def _fit_axis(length: int, scale: float, start: int, end: int, side: str | None, place: float):
    """Lay `length` image pixels into the canvas range [start, end); place in [0, 1) is the random choice left.

    What is too long is cut to a random part that fills the range; what is shorter lies against its side. Returns scale,
    offset and the canvas range covered; the scale is nudged so that whole image pixels meet whole canvas pixels.
    """
    room, scaled = end - start, max(1, round(length * scale))
    if scaled <= room:
        lead = {"start": 0, "end": room - scaled, None: int(place * (room - scaled + 1))}[side]
        first, visible, begin, stop = 0, length, start + lead, start + lead + scaled
    else:
        visible = min(length, max(1, round(room / scale)))
        first, begin, stop = int(place * (length - visible + 1)), start, end
    exact = (stop - begin) / visible
    return exact, begin - first * exact, begin, stop


def _place_plain(annotations: Annotations, image: int, input_shape, options: AugmentOptions) -> PlacedImage:
    placed = placement(annotations.sizes_hw[image], input_shape, options.resize_mode)
    top, left = placed.offset_y, placed.offset_x
    clip_yxyx = (top, left, top + placed.new_hw[0], left + placed.new_hw[1])
    return PlacedImage(image, placed.scale_y, placed.scale_x, top, left, clip_yxyx)


def _visible_boxes(annotations: Annotations, placed: PlacedImage) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of a placed image that remain visible in its clip rectangle, in canvas pixels."""
    scale = np.array([placed.scale_x, placed.scale_y] * 2, np.float32)
    offset = np.array([placed.offset_x, placed.offset_y] * 2, np.float32)
    whole_xyxy = annotations.boxes(placed.index) * scale + offset
    y1, x1, y2, x2 = placed.clip_yxyx
    boxes_xyxy = np.clip(whole_xyxy, np.float32([x1, y1, x1, y1]), np.float32([x2, y2, x2, y2]))
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    whole_sides = whole_xyxy[:, 2:] - whole_xyxy[:, :2]
    keep = sides.prod(axis=1) >= MIN_VISIBLE * whole_sides.prod(axis=1)
    keep &= (sides >= MIN_SIDE).all(axis=1)
    return boxes_xyxy[keep], annotations.labels(placed.index)[keep]
