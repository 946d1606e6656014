"""IoU, generalised and bounded IoU losses by hand, in their limits and by their laws."""

import math

import pytest
import torch

from detkit.losses import BoundedIoULoss, GIoULoss, IoULoss, bounded_iou_loss, giou_loss, iou_loss

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("log", math.log(2)), ("linear", 0.5), ("square", 0.75)],  # of an IoU of 1/2
)
def test_iou_loss_by_hand(mode, expected):
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    torch.testing.assert_close(iou_loss(half, BOX, mode=mode), torch.tensor([expected]))


def test_iou_loss_of_disjoint_boxes_is_bounded_and_has_no_gradient():
    pred = (BOX + 20).requires_grad_()
    loss = iou_loss(pred, BOX, eps=1e-3)
    torch.testing.assert_close(loss, torch.tensor([-math.log(1e-3)]))
    loss.sum().backward()
    assert not pred.grad.any()


def test_linear_is_the_older_name_of_a_mode():
    half = torch.tensor([[0.0, 0.0, 10.0, 5.0]])
    assert IoULoss(linear=True)(half, BOX) == IoULoss(mode="linear")(half, BOX) == 0.5
    assert IoULoss(linear=True, mode="square").mode == "linear"


def test_an_unknown_mode_is_refused_at_once():
    with pytest.raises(ValueError, match=r"IoULoss: mode 'cubic' is not one of 'linear', 'square', 'log'"):
        IoULoss(mode="cubic")


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        # A gap as wide as the box: IoU 0, union 200, enclosing 300
        ([20.0, 0.0, 30.0, 10.0], 1 + 100 / 300),
        # A quarter inside: IoU 1/4, union = enclosing
        ([0.0, 0.0, 5.0, 5.0], 0.75),
        # Corner to corner: IoU 0, union 200, enclosing 400
        ([10.0, 10.0, 20.0, 20.0], 1 + 200 / 400),
    ],
)
def test_giou_loss_by_hand(pred, expected):
    torch.testing.assert_close(giou_loss(torch.tensor([pred]), BOX), torch.tensor([expected]))


def test_eps_is_the_least_area_of_giou():
    # Two points, 2 apart in x: no union, no enclosing area. With eps 4: IoU 0 / 4, and (0 - 4) / 4 of it is missing.
    pred, target = torch.tensor([[2.0, 0.0, 2.0, 0.0]]), torch.zeros(1, 4)
    torch.testing.assert_close(giou_loss(pred, target, eps=4.0), torch.tensor([1.0]))
    # Squares of side 1, the gap 1: union 2, enclosing 3; with eps 8 both are 8, with eps 2.5 the union is.
    pred, target = torch.tensor([[2.0, 0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(giou_loss(pred, target, eps=8.0), torch.tensor([1.0]))
    torch.testing.assert_close(giou_loss(pred, target, eps=2.5), torch.tensor([1 + 0.5 / 3]))
    torch.testing.assert_close(GIoULoss(eps=2.5)(pred, target), torch.tensor(1 + 0.5 / 3))


def test_bounded_iou_loss_by_hand():
    # Shifted by 1 of 10: the IoU is at most (10 - 2) / (10 + 2), a loss of 1/3; half as high: at most 1/2.
    pred = torch.tensor([[1.0, 2.5, 11.0, 7.5]])
    loss = bounded_iou_loss(pred, BOX, beta=0.4, eps=0.0)
    # The first lies below beta, where the loss is quadratic.
    torch.testing.assert_close(loss, torch.tensor([[0.5 * (1 / 3) ** 2 / 0.4, 0.0, 0.0, 0.5 - 0.2]]))


def test_bounded_iou_loss_has_no_gradient_of_its_target():
    target = BOX.clone().requires_grad_()
    assert not bounded_iou_loss(BOX + 1, target).requires_grad


def test_weights_per_coordinate_count_by_their_mean():
    pred, weight = BOX + torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 1.0, 1.0]])
    target = BOX.expand(2, 4)
    torch.testing.assert_close(GIoULoss()(pred, target, weight), GIoULoss()(pred, target, weight.mean(dim=1)))
    with pytest.raises(ValueError, match=r"GIoULoss: weight \(2, 2\) does not fit losses \(2,\)"):
        GIoULoss()(pred, target, weight[:, :2])


@pytest.mark.parametrize("build", [IoULoss, GIoULoss, BoundedIoULoss])
def test_leading_dimensions_are_free_and_anything_but_boxes_is_refused(build):
    pred, target = BOX.expand(2, 3, 4) + 1, BOX.expand(2, 3, 4)
    per_pair = build(reduction="none")(pred, target)
    assert per_pair.shape[:2] == (2, 3)
    torch.testing.assert_close(per_pair[0, 0], build(reduction="none")(BOX + 1, BOX)[0])
    with pytest.raises(ValueError, match=rf"{build.__name__}: boxes have shape \(1, 5\), expected \(..., 4\)"):
        build()(torch.zeros(1, 5), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=rf"{build.__name__}: pred \(2, 4\) and target \(1, 4\) differ in shape"):
        build()(torch.zeros(2, 4), torch.zeros(1, 4))


def test_an_empty_target_hides_no_error():
    for target in (torch.zeros(0, 7), torch.zeros(0, 4)):
        with pytest.raises(ValueError, match=r"GIoULoss: pred \(5, 4\) and target \(0, \d\) differ in shape"):
            GIoULoss()(torch.zeros(5, 4), target)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_of_whole_numbers(dtype):
    pred, target = BOX.expand(2, 4) + torch.tensor([[1.0], [2.0]]), BOX.expand(2, 4)
    per_box = torch.tensor([1, 0])
    for weight in (per_box, per_box.unsqueeze(1).expand(2, 4)):
        torch.testing.assert_close(IoULoss()(pred, target, weight.to(dtype)), IoULoss()(pred, target, weight.float()))


@pytest.mark.parametrize("build", [IoULoss, GIoULoss, BoundedIoULoss])
@pytest.mark.parametrize("eps", [0, -1])
def test_eps_must_be_positive(build, eps):
    with pytest.raises(ValueError, match=rf"{build.__name__}: eps must be > 0, got {eps}"):
        build(eps=eps)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="BoundedIoULoss: beta must be > 0, got 0"):
        BoundedIoULoss(beta=0)
