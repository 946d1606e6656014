"""Parts of a network that do not learn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["freeze", "hold_statistics"]


def freeze(modules: Iterable[nn.Module]) -> None:
    """Put modules into evaluation mode and take their parameters out of training."""
    for module in modules:
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad = False


def hold_statistics(module: nn.Module) -> None:
    """Let the batch norms of ``module`` use, and leave, their running statistics."""
    for one in module.modules():
        if isinstance(one, _BatchNorm):
            one.eval()
