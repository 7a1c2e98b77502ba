import pytest
import torch

from nets.boxes import area, centre_size_to_xyxy, paired_iou


def test_centre_size_to_xyxy_literal_values():
    """Prevents width and height from being swapped, or added whole instead of half."""
    boxes_cxcywh = torch.tensor([[10.0, 20.0, 4.0, 6.0], [0.0, 0.0, 1.0, 0.0]])
    assert centre_size_to_xyxy(boxes_cxcywh).tolist() == [[8.0, 17.0, 12.0, 23.0], [-0.5, 0.0, 0.5, 0.0]]


def test_area_of_boxes_without_area_is_zero():
    """Prevents two negative sides from multiplying to a positive area."""
    boxes_xyxy = torch.tensor([[1.0, 2.0, 4.0, 6.0], [5.0, 5.0, 5.0, 9.0], [4.0, 6.0, 1.0, 2.0], [0.0, 3.0, 2.0, 1.0]])
    assert area(boxes_xyxy).tolist() == [12.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [2, 2, 4, 7], 0.1),
        ([0, 0, 4, 4], [2, 1, 8, 3], 4 / 24),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),
        ([0, 0, 10, 10], [20, 20, 30, 30], 0.0),
        ([0, 0, 10, 10], [3, 3, 3, 8], 0.0),
        ([3, 3, 3, 3], [3, 3, 3, 3], 0.0),
        ([10, 10, 0, 0], [0, 0, 10, 10], 0.0),
    ],
)
def test_paired_iou_literal_values(first, second, expected):
    """Prevents a wrong union, and NaN or a negative value for boxes that touch, miss each other or have no area."""
    first, second = torch.tensor(first).float(), torch.tensor(second).float()
    assert paired_iou(first, second).item() == pytest.approx(expected)
    assert paired_iou(second, first).item() == pytest.approx(expected)


def test_paired_iou_broadcasts_and_takes_no_boxes():
    """Prevents an all-pairs result where pairs are meant, and a crash on an image without boxes."""
    first = torch.rand(2, 3, 5, 4)
    assert paired_iou(first, torch.rand(2, 3, 1, 4)).shape == (2, 3, 5)
    assert paired_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_paired_iou_gradient_is_finite_for_boxes_without_area():
    """Prevents one degenerate box from turning every weight into NaN at the next step."""
    predicted = torch.tensor([[3.0, 3, 3, 3], [0, 0, 10, 10], [0, 0, 5, 5], [9, 9, 1, 1]], requires_grad=True)
    target = torch.tensor([[3.0, 3, 3, 3], [4, 4, 4, 8], [0, 0, 5, 5], [0, 0, 10, 10]])
    paired_iou(predicted, target).sum().backward()
    assert predicted.grad.isfinite().all()
