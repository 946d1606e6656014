"""Losses at the numbers that Detectron2 and fvcore state in their own tests, through the switches they need."""

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import CIoULoss, DIoULoss, FocalLoss, GIoULoss, L1Loss, SmoothL1Loss

EPS = 1e-7  # theirs; MMDetection's, the default here, is 1e-6

# Identical boxes; the right half of a square; squares that touch in a corner.
PAIRS = (
    torch.tensor([[-1.0, -1, 1, 1], [-1, -1, 1, 1], [0, 0, 1, 1]]),
    torch.tensor([[-1.0, -1, 1, 1], [0, -1, 1, 1], [1, 1, 2, 2]]),
)


@pytest.mark.parametrize(
    ("build", "options", "expected"),
    [
        (DIoULoss, {}, [0, 0.53125, 1.25]),
        # They count the aspect ratio where boxes overlap by half or less, too.
        (CIoULoss, {"aspect_iou_thr": None}, [0, 0.5345, 1.25]),
    ],
)
def test_distance_losses(build, options, expected):
    def loss(reduction):
        return build(eps=EPS, reduction=reduction, **options)(*PAIRS)

    torch.testing.assert_close(loss("none"), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert loss("sum").item() == pytest.approx(sum(expected), rel=1e-5)
    assert build(eps=EPS, **options)(PAIRS[0][1:], PAIRS[1][1:]).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_by_default_the_aspect_ratio_counts_above_half_an_overlap():
    """MMDetection's CIoU of the second pair is its DIoU."""
    assert CIoULoss()(PAIRS[0][1:2], PAIRS[1][1:2]).item() == pytest.approx(0.53125, rel=1e-5)
    with pytest.raises(ValueError, match="CIoULoss: aspect_iou_thr must be >= 0 and <= 1, got 2"):
        CIoULoss(aspect_iou_thr=2)


def test_generalised_iou():
    """Identical; a quarter; squares that share a side; squares that touch in a corner."""
    pred = torch.tensor([[-1.0, -1, 1, 1], [-1, -1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    target = torch.tensor([[-1.0, -1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]])
    expected = torch.tensor([0, 0.75, 1.0, 1.5])
    torch.testing.assert_close(GIoULoss(eps=EPS, reduction="none")(pred, target), expected)
    assert GIoULoss(eps=EPS, reduction="sum")(pred[2:], target[2:]) == 2.5
    assert GIoULoss(eps=EPS)(pred[2:], target[2:]) == 1.25


@pytest.mark.parametrize(
    ("loss", "beta", "expected"), [(SmoothL1Loss, 0.5, [0.01, 0, 1.25]), (SmoothL1Loss, 0.05, [0.075, 0, 1.475])]
)
def test_smooth_l1(loss, beta, expected):
    pred, target = torch.tensor([1.0, 2, 3]), torch.tensor([1.1, 2, 4.5])
    torch.testing.assert_close(loss(beta=beta, reduction="none")(pred, target), torch.tensor(expected))


def test_smooth_l1_of_no_beta_is_l1():
    """Below 1e-5 theirs is L1; here that is L1Loss, and SmoothL1Loss refuses 0."""
    pred, target = torch.tensor([1.0, 2, 3]), torch.tensor([1.1, 2, 4.5])
    torch.testing.assert_close(L1Loss(reduction="none")(pred, target), torch.tensor([0.1, 0, 1.5]))


@pytest.mark.parametrize("build", [DIoULoss, CIoULoss, GIoULoss, SmoothL1Loss])
def test_the_mean_of_nothing_carries_gradients(build):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = build()(pred, torch.zeros(0, 4))
    loss.backward()
    assert loss == 0
    assert pred.grad is not None


LOGITS = torch.logit(torch.tensor([[0.75], [0.8], [0.12], [0.05]]))
TARGETS = torch.tensor([[1.0], [1.0], [0.0], [0.0]])


def test_focal_loss():
    loss = FocalLoss(gamma=2, alpha=0.25, reduction="none")(LOGITS, TARGETS)
    expected = torch.tensor([0.00449503, 0.00223144, 0.00138060, 9.6175e-5])
    torch.testing.assert_close(loss.squeeze(1), expected, rtol=1e-4, atol=1e-8)
    assert FocalLoss(gamma=2, alpha=0.25, reduction="sum")(LOGITS, TARGETS).item() == pytest.approx(
        0.00820324, rel=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_focal_loss_and_cross_entropy(seed):
    """An alpha of -1, which weighs both sides alike there, is 1/2 with twice the loss weight: exactly the same."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, 3, generator=generator) * 2
    targets = torch.randint(0, 2, (50, 3), generator=generator).float()
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    def loss(**options):
        return FocalLoss(reduction="none", **options)(logits, targets)

    assert torch.equal(loss(gamma=0, alpha=0.5, loss_weight=2), plain)
    p_t = torch.where(targets > 0, logits.sigmoid(), (-logits).sigmoid())
    for gamma in (1.0, 2.0):
        expected = plain * (1 - p_t) ** gamma
        torch.testing.assert_close(loss(gamma=gamma, alpha=0.5, loss_weight=2), expected, rtol=1e-4, atol=1e-6)
        weighted = expected * torch.where(targets > 0, 0.3, 0.7)
        torch.testing.assert_close(loss(gamma=gamma, alpha=0.3), weighted, rtol=1e-4, atol=1e-6)
    assert not loss(alpha=1.0)[targets == 0].any()
    assert loss(alpha=1.0)[targets == 1].all()
    assert not loss(alpha=0.0)[targets == 1].any()
    assert loss(alpha=0.0)[targets == 0].all()
