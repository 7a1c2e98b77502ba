import numpy as np
import pytest

from utils.data.sampling import PARTNERS, WINDOW, epoch_order


@pytest.mark.parametrize("count", [0, 1, 5, WINDOW, 2 * WINDOW - 1, 2 * WINDOW, 1000])
def test_every_image_once_and_as_often_a_partner(count):
    """Prevents images that are seen much more often than others, and a failure on small sets."""
    order, partners = epoch_order(count, 3, 0)
    assert partners.shape == (count, PARTNERS)
    for column in (order, *partners.T):
        assert sorted(column.tolist()) == list(range(count))


def test_partners_come_from_the_window():
    """Prevents decoding an image anew for each of its uses: 100 images are windows of 32, 32 and 36."""
    order, partners = epoch_order(100, 3, 0)
    for start, stop in ((0, 32), (32, 64), (64, 100)):
        assert set(partners[start:stop].ravel().tolist()) == set(order[start:stop].tolist())


def test_a_pure_function_of_seed_and_epoch():
    """Prevents an order that depends on a global random state, and epochs or seeds that repeat another."""
    first = epoch_order(50, 3, 1)
    np.random.seed(0)
    again = epoch_order(50, 3, 1)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for seed, epoch in ((3, 2), (4, 1)):
        for one, other in zip(first, epoch_order(50, seed, epoch), strict=True):
            assert not np.array_equal(one, other)


def test_columns_differ():
    """Prevents mosaics of one image four times."""
    order, partners = epoch_order(1000, 0, 0)
    columns = np.column_stack([order, partners])
    for first in range(PARTNERS + 1):
        for second in range(first):
            assert (columns[:, first] == columns[:, second]).mean() < 0.08
