"""Training images that live on a GPU, and are drawn there, a batch at a time.

The same choices and the same geometry as utils/data/augment.py, for all pixels of a batch at once; pixels differ from
the CPU's by rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from utils.data.annotations import Annotations
from utils.data.augment import NEUTRAL_GAINS, AugmentOptions, AugmentParameters, PlacedImage, painted_yxyx
from utils.data.copy_paste import Pasted, shown_share
from utils.data.draw import colour_matrix, crop_of
from utils.data.image_cache import RamCache
from utils.image.codec import reduce, reduction_for

# So many pixels are drawn at once: enough to keep a GPU busy, and some hundred MB of memory.
PIXELS_AT_ONCE = 2**22
# An image is drawn from itself or from the smaller copy whose pixels are means of so many by so many.
REDUCTIONS = (1, 2, 4, 8)
# What is never seen: one pixel of nothing.
NOWHERE = (0, 1, 0.0, 0.0, 1.0, 1.0, 0, 0, 0, 0)


class Canvases(NamedTuple):
    """Where the pixels of C canvases come from, K images each. Of the images' crops, in pixels of a level: base (C, K),
    the position of the image in the block; width (C, K) of the image; top, left, height, width of the crop in crop
    (C, K, 4). clip (C, K, 4): y1, x1, y2, x2 in the canvas.
    """

    base: torch.Tensor
    width: torch.Tensor
    crop: torch.Tensor
    clip: torch.Tensor


class DeviceCache:
    """All images of a RamCache on a device, which draws AugmentParameters: cache(batch) -> (B, 3, H, W) uint8.

    smallest_scale: the smallest factor by which an image of the cache is drawn; levels of reduced copies go down to it.
    """

    def __init__(self, ram: RamCache, annotations: Annotations, smallest_scale: float, pad: int, device: torch.device):
        self.annotations, self.pad, self.device = annotations, pad, device
        levels = REDUCTIONS[: REDUCTIONS.index(reduction_for(smallest_scale)) + 1]
        readable = [index for index in range(len(annotations)) if index not in ram.unreadable]
        whole_hw = np.ones((len(annotations), 2), np.int64)
        whole_hw[readable] = np.array([ram(index).shape[:2] for index in readable]).reshape(-1, 2)
        self.sizes_hw = {reduction: (-(-whole_hw // reduction)).tolist() for reduction in levels}
        ends = np.cumsum([height * width for level in self.sizes_hw.values() for height, width in level])
        starts = np.concatenate([[0], ends[:-1]]).reshape(len(levels), -1)
        self.offsets = dict(zip(levels, starts, strict=True))
        # Image by image: beside the block of the RamCache another one would not fit into main memory.
        self.block = torch.zeros((int(ends[-1]), 3), dtype=torch.uint8, device=device)
        for index in readable:
            for reduction, offsets in self.offsets.items():
                pixels = ram(index) if reduction == 1 else reduce(ram(index), reduction)
                pixels = torch.from_numpy(pixels.reshape(-1, 3))
                self.block[offsets[index] : offsets[index] + len(pixels)] = pixels

    def __call__(self, batch: Sequence[AugmentParameters]) -> torch.Tensor:
        """Draw samples of one input shape: (B, 3, H, W) uint8 RGB, channels_last in memory, on the device."""
        height, width = batch[0].input_shape
        step = max(PIXELS_AT_ONCE // (height * width), 1)
        parts = [self._draw(batch[first : first + step], height, width) for first in range(0, len(batch), step)]
        return torch.cat(parts).permute(0, 3, 1, 2)

    def _draw(self, batch: Sequence[AugmentParameters], height: int, width: int) -> torch.Tensor:
        """(B, H, W, 3) uint8."""
        painted = self._tensor([painted_yxyx(params) for params in batch], torch.int64)
        rows = torch.arange(height, device=self.device)
        columns = self._flipped_columns(batch, painted, width)
        images = self._sample(self._canvases([params.images for params in batch]), rows, columns)
        self._paste(images, batch, rows, columns)
        mixed = [number for number, params in enumerate(batch) if params.partner is not None]
        if mixed:
            canvases = self._canvases([batch[number].partner.images for number in mixed])
            partners = self._sample(canvases, rows, columns[mixed])
            weights = self._tensor([batch[number].weight for number in mixed]).view(-1, 1, 1, 1)
            images[mixed] = (images[mixed] * weights + partners * (1 - weights)).round()
        coloured = [number for number, params in enumerate(batch) if params.gains != NEUTRAL_GAINS]
        if coloured:
            y1, x1, y2, x2 = painted[coloured].T[:, :, None, None]
            column = torch.arange(width, device=self.device)
            is_painted = (rows[:, None] >= y1) & (rows[:, None] < y2) & (column >= x1) & (column < x2)
            changed = self._colour(images[coloured], [batch[number].gains for number in coloured])
            images[coloured] = torch.where(is_painted[..., None], changed, images[coloured])
        return images.byte()

    def _paste(self, images: torch.Tensor, batch: Sequence[AugmentParameters], rows, columns) -> None:
        """Draw what is pasted onto the images (B, H, W, 3), in place: the first of each, then the second, and so on."""
        for layer in range(max(len(params.pasted) for params in batch)):
            chosen = [number for number, params in enumerate(batch) if len(params.pasted) > layer]
            canvases = self._canvases([(batch[number].pasted[layer],) for number in chosen])
            y1, x1, y2, x2 = canvases.clip[:, 0].T[..., None]
            share = shown_share(rows, y1, y2)[:, :, None] * shown_share(columns[chosen], x1, x2)[:, None]
            above = self._sample(canvases, rows, columns[chosen])
            images[chosen] = torch.lerp(images[chosen], above, share[..., None]).round()

    def _flipped_columns(self, batch, painted: torch.Tensor, width: int) -> torch.Tensor:
        """(B, W) which column of the sample before it was flipped each column shows."""
        column = torch.arange(width, device=self.device).expand(len(batch), width)
        left, right = painted[:, 1:2], painted[:, 3:4]
        flip = self._tensor([[params.flip] for params in batch], torch.bool)
        return torch.where(flip & (column >= left) & (column < right), left + right - 1 - column, column)

    def _colour(self, images: torch.Tensor, gains) -> torch.Tensor:
        """As change_colour: hue, then saturation and brightness, of float images (B, H, W, 3) with whole values."""
        matrices = self._tensor(np.stack([colour_matrix(hue) for hue, _, _ in gains]))
        images = torch.einsum("bhwc,bdc->bhwd", images, matrices).round().clamp(0, 255)
        share = self._tensor([saturation * value for _, saturation, value in gains]).view(-1, 1, 1, 1)
        value = self._tensor([value for _, _, value in gains]).view(-1, 1, 1, 1)
        return (share * images + (value - share) * images.amax(-1, keepdim=True)).round().clamp(0, 255)

    def _canvases(self, batch: Sequence[Sequence[PlacedImage | Pasted]]) -> Canvases:
        most = max(map(len, batch))
        rows = [[self._source(placed) for placed in images] for images in batch]
        numbers = np.array([row + [NOWHERE] * (most - len(row)) for row in rows], np.float64)
        whole = self._tensor(numbers[..., [0, 1, 6, 7, 8, 9]], torch.int64)
        return Canvases(whole[..., 0], whole[..., 1], self._tensor(numbers[..., 2:6]), whole[..., 2:])

    def _source(self, placed: PlacedImage | Pasted) -> tuple:
        """What Canvases needs of an image: as draw_image and resize_into choose it."""
        index, (y1, x1, y2, x2) = placed.index, placed.clip_yxyx
        height, width = self.sizes_hw[1][index]
        top, bottom, left, right = crop_of(placed, (height, width), self.annotations.sizes_hw[index].tolist())
        reduction = reduction_for(max((y2 - y1) / (bottom - top), (x2 - x1) / (right - left)))
        reduction = min(reduction, max(self.offsets))
        row = self.sizes_hw[reduction][index][1]
        crop = (side / reduction for side in (top, left, bottom - top, right - left))
        return self.offsets[reduction][index], row, *crop, y1, x1, y2, x2

    def _sample(self, canvases: Canvases, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(C, H, W, 3) float32 with whole values: each pixel from the image that lies there, else pad.

        rows: (H,), columns: (C, W), of the canvas.
        """
        y1, x1, y2, x2 = canvases.clip.unbind(-1)  # (C, K)
        inside_y = (rows >= y1[..., None]) & (rows < y2[..., None])
        inside_x = (columns[:, None] >= x1[..., None]) & (columns[:, None] < x2[..., None])
        inside = inside_y[..., None] & inside_x[:, :, None]  # (C, K, H, W)
        image = inside.byte().argmax(1)
        top, left, crop_height, crop_width = canvases.crop.unbind(-1)
        source_y = _source_line(rows[None, None], y1, y2, top, crop_height)  # (C, K, H)
        source_x = _source_line(columns[:, None], x1, x2, left, crop_width)
        canvas = torch.arange(len(image), device=self.device)[:, None, None]
        line, column = torch.arange(image.shape[1], device=self.device)[:, None], torch.arange(image.shape[2]).to(rows)
        base, width = canvases.base[canvas, image], canvases.width[canvas, image]
        (low_y, high_y, share_y), (low_x, high_x, share_x) = (
            (low[canvas, image, number], high[canvas, image, number], share[canvas, image, number, None])
            for (low, high, share), number in ((source_y, line), (source_x, column))
        )
        above = torch.lerp(
            self._pixels(base + low_y * width + low_x), self._pixels(base + low_y * width + high_x), share_x
        )
        below = torch.lerp(
            self._pixels(base + high_y * width + low_x), self._pixels(base + high_y * width + high_x), share_x
        )
        return torch.where(inside.any(1)[..., None], torch.lerp(above, below, share_y).round(), float(self.pad))

    def _pixels(self, positions: torch.Tensor) -> torch.Tensor:
        return self.block.index_select(0, positions.flatten()).view(*positions.shape, 3).float()

    def _tensor(self, values, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        tensor = torch.as_tensor(np.asarray(values), dtype=dtype)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)


def _source_line(position: torch.Tensor, start, stop, first, length):
    """Between which two lines of an image, and how far, each line of the canvas lies: as a bilinear resize of a crop.

    position: (C or 1, 1, L) lines of the canvas. start, stop: (C, K) of the clip rectangle. first, length: (C, K) of
    the crop. Returns (line before, line after, share of the latter), (C, K, L) each.
    """
    scale = length / (stop - start).clamp(min=1)
    last = (length.ceil() - 1)[..., None]
    source = ((position - start[..., None] + 0.5) * scale[..., None] - 0.5).clamp(min=0).minimum(last)
    source = source + first[..., None]
    low = source.floor()
    high = torch.minimum(low + 1, first[..., None].floor() + last)
    return low.long(), high.long(), source - low


def smallest_scale(shapes: Sequence[tuple[int, int]], options: AugmentOptions) -> float:
    """The smallest factor by which an image is drawn that just fits the largest of these input shapes."""
    sides = [min(shape) for shape in shapes]
    return options.scale_range[0] / (1 + options.aspect_jitter) ** 0.5 * min(sides) / max(sides)


def fits_device(needed: float, device: torch.device) -> tuple[bool, str]:
    """Whether so many bytes may be taken from a GPU's memory, half of what is free at most, and a sentence."""
    if device.type != "cuda":
        return False, "cache is 'gpu', but the training runs on the CPU: 'ram' takes its place."
    free = torch.cuda.mem_get_info(device)[0] / 2
    words = f"cache 'gpu': images take {needed / 1e9:.2f} GB; half of what is free on the GPU is {free / 1e9:.1f} GB"
    return needed <= free, words if needed <= free else f"{words}: 'ram' takes its place."
