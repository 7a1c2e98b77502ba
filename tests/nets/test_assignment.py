import math

import torch

from nets.losses import resolve_conflicts

INF = math.inf


def resolve(cost, cells, num_cells):
    """The result for one image as two plain lists."""
    cost, cells = torch.tensor(cost), torch.tensor(cells)
    positive, box_index = resolve_conflicts(cost[None], cells[None], num_cells)
    return positive[0].tolist(), box_index[0].tolist()


def test_literal_case():
    """Prevents a cell from going to the dearer box, and cells that nobody wants from learning something.

    Cell 1 is wanted by boxes 0 (cost 2) and 1 (cost 1), cell 3 by all three at cost 5, cell 4 by nobody.
    """
    cost = [[2.0, 5.0, INF], [1.0, 5.0, 0.5], [INF, 5.0, INF]]
    cells = [[1, 3, 4], [1, 3, 0], [1, 3, 4]]
    positive, box_index = resolve(cost, cells, 6)
    assert positive == [True, True, False, True, False, False]
    assert box_index == [1, 1, 0, 0, 0, 0]


def test_first_of_equals_wins_in_any_order_of_cells():
    """Prevents equal boxes from sharing a cell, or from winning by the order in which cells are listed."""
    assert resolve([[3.0, 3.0], [3.0, 3.0]], [[2, 0], [0, 2]], 3) == ([True, False, True], [0, 0, 0])
    assert resolve([[INF, 3.0], [3.0, 3.0]], [[2, 0], [0, 2]], 3) == ([True, False, True], [0, 0, 1])


def test_negative_costs_are_costs():
    """Prevents costs of minus an overlap from being compared by size alone: -0.75 is cheaper than -0.5."""
    assert resolve([[-0.5], [-0.75]], [[0], [0]], 1) == ([True], [1])


def test_images_are_apart():
    """Prevents a box of one image from winning the same cell of another image."""
    cost = torch.tensor([[[1.0], [INF]], [[INF], [2.0]]])
    positive, box_index = resolve_conflicts(cost, torch.ones(2, 2, 1, dtype=torch.int64), 2)
    assert positive.tolist() == [[False, True], [False, True]]
    assert box_index.tolist() == [[0, 0], [0, 1]]


def test_nothing_wanted():
    """Prevents images without boxes, or with padding only, from giving cells an owner or an error."""
    assert resolve([[INF, INF]], [[0, 1]], 3) == ([False] * 3, [0] * 3)
    positive, box_index = resolve_conflicts(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4, dtype=torch.int64), 3)
    assert positive.tolist() == [[False] * 3] * 2
    assert box_index.tolist() == [[0] * 3] * 2
