"""What the losses of a dense head are divided by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.losses.reduction import check_number, reduce_mean
from detkit.registry import MODELS

__all__ = ["EMANormalizer"]


@MODELS.register_module(name="EMA")
class EMANormalizer(nn.Module):
    """Moving average of the number of positives, as Detectron2's RetinaNet divides its losses by.

    ``value = momentum * value + (1 - momentum) * max(number of positives, 1)``, updated before it is used. It is kept
    in checkpoints, so that a resumed run goes on with it. In a distributed run, the number is the mean over the
    processes.

    Args:
        momentum: Weight of the past, in [0, 1].
        init: First value, per process, > 0.

    Raises:
        TypeError: Not a number.
        ValueError: Out of range.
    """

    value: Tensor

    def __init__(self, momentum: float = 0.9, init: float = 100.0) -> None:
        super().__init__()
        name = type(self).__name__
        check_number(name, "momentum", momentum, low=0, high=1)
        check_number(name, "init", init, above=0)
        self.momentum = momentum
        self.register_buffer("value", torch.tensor(float(init)))

    def forward(self, num_positive: Tensor) -> Tensor:
        """Divisor () of losses over ``num_positive`` () positives; where nothing is learnt, the value as it is."""
        if self.training and torch.is_grad_enabled():
            number = reduce_mean(num_positive.detach(), least=1)
            self.value.mul_(self.momentum).add_(number, alpha=1 - self.momentum)
        return self.value.clone()
