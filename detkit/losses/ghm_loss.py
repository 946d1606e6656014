"""Gradient harmonizing losses: samples weigh the less, the more others have a gradient of about the same size.

Li et al., Gradient Harmonized Single-stage Detector, https://arxiv.org/abs/1811.05181.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.labels import one_hot
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["GHMC", "GHMR", "authentic_smooth_l1_loss", "density_weights"]

# End of the last unit region: gradient norms of probabilities reach 1; those of boxes lie below 1.
GHMC_LAST_EDGE = 1 + 1e-6
GHMR_LAST_EDGE = 1e3


@torch.no_grad()
def density_weights(
    gradient: Tensor,
    valid: Tensor,
    total: Tensor,
    edges: Tensor,
    momentum: float = 0.0,
    acc_sum: Tensor | None = None,
) -> Tensor:
    """Harmonizing parameters: the number of elements over the gradient density of each, by unit regions.

    Args:
        gradient: Gradient norms (N, ...), >= 0.
        valid: Which elements count, same shape, bool.
        total: Number of elements, 0-d.
        edges: Ascending edges (bins + 1,) of the unit regions.
        momentum: Weight of the past in the number of elements per region, in [0, 1); 0 has no memory.
        acc_sum: The remembered numbers (bins,), updated in place; needed where ``momentum`` > 0.

    Returns:
        Weights, same shape; 0 where not valid or outside the edges. With no memory, they add up to ``total``,
        and to the same in every region that is not empty.
    """
    # 0 is below the first edge, where what is not valid goes; then the regions; then above the last edge.
    region = torch.bucketize(gradient.masked_fill(~valid, -1), edges.to(gradient.dtype), right=True)
    # One row of counters for all would have millions of atomic additions meet in one address.
    columns = region.unsqueeze(-1).flatten(1)
    counters = gradient.new_zeros(len(edges) + 1, columns.shape[1])
    counters.scatter_add_(0, columns, gradient.new_ones(()).expand_as(columns))
    count = counters.sum(dim=1)[1:-1]
    occupied = count > 0
    num = count
    if momentum > 0:
        assert acc_sum is not None
        acc_sum.copy_(torch.where(occupied, momentum * acc_sum + (1 - momentum) * count, acc_sum))
        num = acc_sum.to(count)
    weight = total / torch.where(occupied, num, 1) / occupied.sum().clamp(min=1)
    weight = F.pad(weight * occupied, (1, 1))
    return weight.index_select(0, region.flatten()).view_as(gradient)


def authentic_smooth_l1_loss(pred: Tensor, target: Tensor, mu: float = 0.02) -> tuple[Tensor, Tensor]:
    """Authentic smooth L1, ``sqrt(d^2 + mu^2) - mu``, and the size of its gradient.

    Args:
        pred: (...).
        target: Same shape.
        mu: Difference up to which the loss is about quadratic, > 0.

    Returns:
        Loss and gradient norm in [0, 1), each of the same shape; the norm carries no gradient.
    """
    diff = pred - target
    root = (diff * diff + mu * mu).sqrt()
    return root - mu, (diff / root).abs().detach()


def _edges(bins: int, momentum: float, last: float, name: str) -> Tensor:
    """Edges (bins + 1,) of equal regions of [0, 1], of which the last one is open to ``last``."""
    check_number(name, "bins", bins, low=1, whole=True)
    check_number(name, "momentum", momentum, low=0)
    if momentum >= 1:
        raise ValueError(f"{name}: momentum must be < 1, got {momentum}")
    return _open_to(last, torch.arange(bins + 1).float() / bins)


def _open_to(last: float, edges: Tensor) -> Tensor:
    """The same edges in float32, the last one exact; in half precision, it would leave out what is entirely wrong."""
    return F.pad(edges[:-1].float(), (0, 1), value=last)


@MODELS.register_module()
class GHMC(ElementwiseLoss):
    """Gradient harmonizing loss for classification with sigmoids, GHM-C.

    The mean divides by the number of valid elements (N * C of them where all N samples count); the ``avg_factor``
    that heads pass is not used, as in MMDetection. Therefore ``sum``, which excludes an average factor, is refused.
    With ``momentum``, each process remembers the samples that it sees itself.

    By position, ``avg_factor`` comes before ``reduction_override`` as in every other loss; MMDetection has
    ``reduction_override`` alone.

    Args:
        bins: Number of unit regions.
        momentum: Weight of the past in the number of elements per region, in [0, 1).
        use_sigmoid: Must be True; a softmax form is not defined.
        loss_weight: Factor on the result.
        reduction: ``none`` or ``mean``.

    Raises:
        TypeError: A number was expected.
        ValueError: An argument out of range, unknown reduction or ``sum``, or a softmax.
    """

    learns = "labels"

    counts_itself = True
    edges: Tensor
    acc_sum: Tensor | None

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction, loss_weight)
        if not use_sigmoid:
            raise ValueError("GHMC: use_sigmoid=False has no definition; use CrossEntropyLoss for a softmax")
        self.use_sigmoid = use_sigmoid
        self.bins = bins
        self.momentum = momentum
        self.register_buffer("edges", _edges(bins, momentum, GHMC_LAST_EDGE, "GHMC"))
        self.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Harmonised, reduced loss.

        Args:
            pred: Logits (N, C).
            target: Labels (N,) in [0, C], C is background; or targets per class (N, C).
            label_weight: (N,), or (N, C) with targets per class; only whether it is > 0 counts.
            avg_factor: Not used, see above; accepted because heads pass it.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; the shape of ``pred`` with reduction ``none``.

        Raises:
            ValueError: Unknown reduction or ``sum``, or shapes that do not fit.
            RuntimeError: A label outside [0, C] that counts, on the CPU.
        """
        self.resolve(avg_factor, reduction_override)
        (pred,) = full_precision(pred)
        valid = torch.ones_like(target, dtype=torch.bool) if label_weight is None else label_weight > 0
        if valid.shape != target.shape:
            raise ValueError(f"GHMC: label_weight {tuple(valid.shape)} does not fit target {tuple(target.shape)}")
        if target.dim() != pred.dim():
            target = one_hot(torch.where(valid, target, pred.shape[-1]), pred.shape[-1], "GHMC")
            valid = valid.unsqueeze(-1).expand_as(target)
        if target.shape != pred.shape:
            raise ValueError(
                f"GHMC: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}; "
                "labels (N,) or targets (N, C) were expected"
            )
        target = target.to(pred.dtype)
        gradient = (pred.detach().sigmoid() - target).abs()
        total = valid.sum()
        edges = _open_to(GHMC_LAST_EDGE, self.edges)
        weight = density_weights(gradient, valid, total, edges, self.momentum, self.acc_sum)
        loss = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
        return self.reduced(loss, weight, total, reduction_override)


@MODELS.register_module()
class GHMR(ElementwiseLoss):
    """Gradient harmonizing loss for box regression, GHM-R.

    The mean divides by the sum of ``label_weight``; the ``avg_factor`` that heads pass is not used, as in
    MMDetection. Therefore ``sum``, which excludes an average factor, is refused. With ``momentum``, each process
    remembers the samples that it sees itself.

    Args:
        mu: Difference up to which the loss is about quadratic, > 0.
        bins: Number of unit regions.
        momentum: Weight of the past in the number of elements per region, in [0, 1).
        loss_weight: Factor on the result.
        reduction: ``none`` or ``mean``.

    Raises:
        TypeError: A number was expected.
        ValueError: An argument out of range, unknown reduction or ``sum``.
    """

    learns = "coordinates"

    counts_itself = True
    edges: Tensor
    acc_sum: Tensor | None

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "mu", mu, above=0)
        self.mu = mu
        self.bins = bins
        self.momentum = momentum
        self.register_buffer("edges", _edges(bins, momentum, GHMR_LAST_EDGE, "GHMR"))
        self.register_buffer("acc_sum", torch.zeros(bins) if momentum > 0 else None)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Harmonised, reduced loss.

        Args:
            pred: (N, 4), or any shape.
            target: Same shape.
            label_weight: Same shape; an element of weight > 0 counts, and the weights' sum is the number of elements.
            avg_factor: Not used, see above; accepted because heads pass it.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; the shape of ``pred`` with reduction ``none``.

        Raises:
            ValueError: Unknown reduction or ``sum``, or shapes that do not fit.
        """
        self.resolve(avg_factor, reduction_override)
        pred, target = full_precision(pred, target)
        label_weight = torch.ones_like(pred) if label_weight is None else label_weight.to(pred.dtype)
        for name, value in (("target", target), ("label_weight", label_weight)):
            if value.shape != pred.shape:
                raise ValueError(f"GHMR: {name} {tuple(value.shape)} does not fit pred {tuple(pred.shape)}")
        loss, gradient = authentic_smooth_l1_loss(pred, target, self.mu)
        total = label_weight.sum().clamp(min=1)
        edges = _open_to(GHMR_LAST_EDGE, self.edges)
        weight = density_weights(gradient, label_weight > 0, total, edges, self.momentum, self.acc_sum)
        return self.reduced(loss, weight, total, reduction_override)
