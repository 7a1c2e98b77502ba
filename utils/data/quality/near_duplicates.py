"""Finding nearly identical images: re-saved, resized, brightened, slightly cropped, or the next frame of a video."""

from typing import NamedTuple

import numpy as np

from utils.image.opencv import cv2

# Of 64 bits, how many may differ. Measured on photographs, drawings and blood smears: images that were re-saved,
# resized or brightened differ in up to 6 bits, those that lost 2 % at each side in up to 12, and images of different
# things in 14 and more.
MAX_DIFFERENT_BITS = 12
# The same images' thumbnails correlate by 0.92 and more, those of different things by up to 0.76.
MIN_CORRELATION = 0.9
HASHED_SIDE, FREQUENCIES, THUMBNAIL_SIDE = 32, 8, 16
# The correlation is a check, so the nearest few hashes suffice.
MAX_CANDIDATES = 50


class ImageHashes(NamedTuple):
    """How images look. hashes: (N,) uint64. thumbnails: (N, 256) uint8, 16 x 16 grey values."""

    hashes: np.ndarray
    thumbnails: np.ndarray


def perceptual_hash(image_rgb: np.ndarray) -> tuple[int, np.ndarray]:
    """The hash of an image, 64 bits, and its thumbnail, (256,) uint8.

    image_rgb: (h, w, 3) uint8. The hash says of each of the 64 lowest frequencies whether it is stronger than their
    median. Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.
    """
    grey = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY)
    waves = cv2.dct(_shrink(grey, HASHED_SIDE).astype(np.float32))[:FREQUENCIES, :FREQUENCIES].ravel()
    waves[0] = 0  # the mean brightness is no matter of likeness
    bits = np.packbits(waves > np.median(waves))
    return int(bits.view(np.uint64)[0]), _shrink(grey, THUMBNAIL_SIDE).ravel()


def join_hashes(looked: list[tuple[int, np.ndarray]]) -> ImageHashes:
    """The results of perceptual_hash in arrays."""
    hashes = np.array([number for number, _ in looked], np.uint64)
    thumbnails = np.array([thumbnail for _, thumbnail in looked], np.uint8)
    return ImageHashes(hashes, thumbnails.reshape(-1, THUMBNAIL_SIDE**2))


def near_duplicates(train: ImageHashes, val: ImageHashes):
    """For each image of val that has near duplicates in train: (its index, the most similar one's index, how many).

    Compares everything with everything, one row at a time: 100,000 images with 10,000 in seconds and little memory.
    Images without any contrast look like nothing.
    """
    for index, (number, thumbnail) in enumerate(zip(*val, strict=True)):
        bits = np.bitwise_count(train.hashes ^ number)
        near = np.flatnonzero(bits <= MAX_DIFFERENT_BITS)
        if len(near) > MAX_CANDIDATES:
            near = near[np.argpartition(bits[near], MAX_CANDIDATES)[:MAX_CANDIDATES]]
        likeness = _correlation(train.thumbnails[near], thumbnail)
        if (likeness >= MIN_CORRELATION).any():
            yield index, int(near[likeness.argmax()]), int((likeness >= MIN_CORRELATION).sum())


def _correlation(thumbnails: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    """(N,) Pearson correlation of (N, P) thumbnails with one (P,), which brightness and contrast do not change."""
    first = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    second = thumbnail - thumbnail.mean()
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second)
    return np.divide(first @ second, norms, out=np.zeros(len(first)), where=norms > 0)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
