"""In which order an epoch visits the images, and which images each one meets there."""

import numpy as np

# Mosaic and mixup take their partners from so many images that follow each other in the epoch's order, so an image is
# decoded once and used by its neighbours. More would mix images more freely, and wants more memory in each worker.
WINDOW = 32
# Three for the mosaic of a sample, one for mixup, three for that one's mosaic.
PARTNERS = 7


def epoch_order(image_count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order and partners of an epoch: (N,) image indices and (N, PARTNERS) image indices, in that order.

    A pure function of (seed, epoch). The order is cut into windows of WINDOW images (the last one up to twice as long);
    each column of partners is a permutation of every window, so all images are used equally often.
    """
    # The fourth number keeps this stream apart from those of the samples, (seed, epoch, index).
    random = np.random.default_rng((seed, epoch, 0, 1))
    order = random.permutation(image_count)
    windows = np.minimum(np.arange(image_count) // WINDOW, max(image_count // WINDOW - 1, 0))
    columns = [order[np.lexsort((random.random(image_count), windows))] for _ in range(PARTNERS)]
    return order, np.stack(columns, axis=1)
