"""What every assignment of boxes to predictions ends with: nothing learns two boxes."""

import torch


def resolve_conflicts(cost, cells, num_cells):
    """Give each cell to one box at most.

    cost: (B, G, S), infinite where a cell is not wanted; cells: (B, G, S) int64 positions among num_cells, no two
    wanted ones of a box alike. The lowest cost wins, the first box of equals. Returns (positive (B, num_cells) bool:
    the cell learns a box, box_index (B, num_cells) int64: which of the G, 0 where not positive).
    """
    batch, boxes, _ = cost.shape
    flat_cost, flat_cells = cost.flatten(1), cells.flatten(1)
    lowest = flat_cost.new_full((batch, num_cells), torch.inf).scatter_reduce(1, flat_cells, flat_cost, "amin")
    wins = flat_cost.isfinite() & (flat_cost == lowest.gather(1, flat_cells))
    box = torch.arange(boxes, device=cost.device).view(1, -1, 1).expand_as(cells).flatten(1)
    owner = cells.new_full((batch, num_cells), boxes)
    owner = owner.scatter_reduce(1, flat_cells, torch.where(wins, box, boxes), "amin")
    positive = owner < boxes
    return positive, owner.masked_fill(~positive, 0)
