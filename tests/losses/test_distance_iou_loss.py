"""DIoU, CIoU, EIoU and SIoU losses by hand, in their limits and by laws that all losses of boxes share."""

import math

import pytest
import torch

from detkit.losses import (
    CIoULoss,
    DIoULoss,
    EIoULoss,
    SIoULoss,
    bounded_iou_loss,
    ciou_loss,
    diou_loss,
    eiou_loss,
    giou_loss,
    iou_loss,
    siou_loss,
)

SQUARE = torch.tensor([[0.0, 0.0, 2.0, 2.0]])


def siou_loss_of_the_paper(pred, target):
    return siou_loss(pred, target, neg_gamma=True)


def per_pair(function, pred, target):
    loss = function(pred, target)
    return loss.sum(dim=-1) if loss.dim() == pred.dim() else loss


EVERY_LOSS = [
    iou_loss,
    giou_loss,
    bounded_iou_loss,
    diou_loss,
    ciou_loss,
    eiou_loss,
    siou_loss,
    siou_loss_of_the_paper,
]
every_loss = pytest.mark.parametrize("function", EVERY_LOSS)


def box_pairs(num=20):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, num, 2, dtype=torch.float64, generator=generator) * 20
    size = torch.rand(2, num, 2, dtype=torch.float64, generator=generator) * 20 + 5
    return torch.cat([corner, corner + size], dim=-1).unbind(0)


@pytest.mark.parametrize("function", [diou_loss, ciou_loss])
def test_distance_of_disjoint_squares_by_hand(function):
    # IoU 0, centres 4 apart, the enclosing box is 6 x 2: 1 + 16 / 40
    torch.testing.assert_close(function(SQUARE + torch.tensor([4.0, 0, 4, 0]), SQUARE), torch.tensor([1.4]))


def test_ciou_counts_the_aspect_ratio_by_hand():
    pred, target = torch.tensor([[0.0, 0.0, 4.0, 3.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    # IoU 3/4, centres 1/2 apart, diagonal^2 32
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(4 / 3)) ** 2
    expected = 1 - 0.75 + 0.25 / 32 + v / (1 - 0.75 + v) * v
    torch.testing.assert_close(ciou_loss(pred, target), torch.tensor([expected]))


def test_ciou_ignores_the_aspect_ratio_of_boxes_that_overlap_little():
    pred, target = torch.tensor([[0.0, 0.0, 4.0, 1.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    torch.testing.assert_close(ciou_loss(pred, target), diou_loss(pred, target))


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        # e = 0.05 < 0.1: quadratic
        ([0.0, 0.0, 100.0, 95.0], 0.5 * 0.05**2 / 0.1),
        # e = 0.5: linear
        ([0.0, 0.0, 50.0, 100.0], 0.5 - 0.05),
        # 100 apart in x: intersection -100 * 100, union 30000, e = 4/3
        ([200.0, 0.0, 300.0, 100.0], 4 / 3 - 0.05),
        # 100 apart in both: each counts with its distance 200 from the enclosing corner: 2 * (100^2 - 200^2)
        ([200.0, 200.0, 300.0, 300.0], 1 + 60000 / 80000 - 0.05),
    ],
)
def test_eiou_loss_by_hand(pred, expected):
    target = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    torch.testing.assert_close(eiou_loss(torch.tensor([pred]), target), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("pred", "sign", "expected"),
    [
        # Shifted by 1 along x: IoU 1/3, no angle, gamma 2, rho (1/3)^2
        ([1.0, 0.0, 3.0, 2.0], -1, 1 - 1 / 3 + 0.5 * (1 - math.exp(-2 / 9))),
        ([1.0, 0.0, 3.0, 2.0], 1, 1 - 1 / 3 + 0.5 * (1 - math.exp(2 / 9))),
        # Shifted by 1 along both: IoU 1/7, full angle cost, gamma 1
        ([1.0, 1.0, 3.0, 3.0], -1, 1 - 1 / 7 + (1 - math.exp(-1 / 9))),
        # Twice as high about the same centre: IoU 1/2, omega 1/2
        ([0.0, -1.0, 2.0, 3.0], -1, 1 - 1 / 2 + 0.5 * (1 - math.exp(-0.5)) ** 4),
    ],
)
def test_siou_loss_by_hand(pred, sign, expected):
    loss = siou_loss(torch.tensor([pred]), SQUARE, neg_gamma=sign < 0)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=1e-5, atol=1e-5)  # eps in the denominators


def test_siou_has_no_angle_where_eps_cancels_the_shift():
    pred = (SQUARE + 0.5).requires_grad_()  # the target's centre lies 0.5 left of it and above, and eps is added
    loss = siou_loss(pred, SQUARE, eps=0.5)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pred.grad).all()


def test_siou_keeps_the_digits_of_small_shifts():
    """The sum of the sides of ``pred`` has a bit more than float32."""
    target = torch.tensor([[2048.0, 2048.0, 2049.0, 2049.0]])
    pred = target + torch.tensor([[2**-12, 0.0, 2**-11, 0.0]])
    single, double = pred.clone().requires_grad_(), pred.double().requires_grad_()
    siou_loss(single, target).sum().backward()
    siou_loss(double, target.double()).sum().backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-5, atol=1e-6)


@every_loss
def test_identical_boxes_cost_nothing(function):
    boxes = box_pairs()[0].float().requires_grad_()
    loss = per_pair(function, boxes, boxes.detach())
    torch.testing.assert_close(loss, torch.zeros(20), rtol=0, atol=1e-5)
    loss.sum().backward()
    assert torch.isfinite(boxes.grad).all()


@every_loss
def test_points_have_a_finite_loss_and_gradient(function):
    point = torch.tensor([[3.0, 4.0, 3.0, 4.0]], requires_grad=True)
    for target in (point.detach(), SQUARE):
        loss = per_pair(function, point, target)
        (grad,) = torch.autograd.grad(loss.sum(), point)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()


@every_loss
def test_inverted_predictions_have_a_finite_loss_and_gradient(function):
    # Their enclosing box is far smaller than the distance of the centres.
    pred = torch.tensor([[0.45, 0.12, 0.71, 0.05], [34.0, 51.0, -1.5, 82.0]], requires_grad=True)
    target = torch.tensor([[0.49, 0.0655, 0.85, 0.0666], [4.0, 56.0, 4.5, 78.0]])
    loss = per_pair(function, pred, target)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(pred.grad).all()


@every_loss
def test_place_and_scale_do_not_matter(function):
    pred, target = box_pairs()
    expected = per_pair(function, pred, target)
    # eps of 1e-3 pixels in the bounded IoU's denominators
    torch.testing.assert_close(per_pair(function, 8 * pred + 40, 8 * target + 40), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("function", [f for f in EVERY_LOSS if f is not bounded_iou_loss])
def test_pred_and_target_may_change_places(function):
    pred, target = box_pairs()
    torch.testing.assert_close(function(pred, target), function(target, pred), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [giou_loss, diou_loss, ciou_loss, eiou_loss])
def test_disjoint_boxes_are_drawn_together(function):
    pred = (SQUARE - 10).requires_grad_()
    function(pred, SQUARE).sum().backward()
    # Descending moves the far corner of a box, which lies left and above, to the right and down.
    assert (pred.grad[0, 2:] < 0).all()


def test_siou_adds_eps_to_heights_alone():
    pred, target = SQUARE, torch.tensor([[0.0, -1.0, 2.0, 3.0]])  # heights 2 and 4 about the same centre
    upright = siou_loss(pred, target, eps=1.0)
    lying = siou_loss(pred[:, [1, 0, 3, 2]], target[:, [1, 0, 3, 2]], eps=1.0)
    # The relative differences are 2 / (4 + 1) and 2 / 4.
    expected = 0.5 * ((1 - math.exp(-0.5)) ** 4 - (1 - math.exp(-0.4)) ** 4)
    torch.testing.assert_close(lying - upright, torch.tensor([expected]))


@every_loss
def test_boxes_are_compared_one_by_one(function):
    with pytest.raises(ValueError, match=r"IoULoss: pred \(2, 4\) and target \(1, 4\) differ in shape"):
        function(SQUARE.expand(2, 4), SQUARE)


@pytest.mark.parametrize("build", [DIoULoss, CIoULoss, EIoULoss, SIoULoss])
def test_eps_must_be_positive(build):
    with pytest.raises(ValueError, match=rf"{build.__name__}: eps must be > 0, got 0"):
        build(eps=0)


def test_smooth_point_must_be_positive():
    with pytest.raises(ValueError, match="EIoULoss: smooth_point must be > 0, got 0"):
        EIoULoss(smooth_point=0)
