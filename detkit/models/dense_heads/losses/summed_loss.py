"""Losses of heads that divide by a number of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from detkit.registry import MODELS

__all__ = ["build_summed_loss"]


def build_summed_loss(cfg: Mapping[str, Any], where: str) -> nn.Module:
    """Build a registered loss that must sum.

    Args:
        cfg: Registered loss.
        where: Head and argument, for the message.

    Raises:
        ValueError: Its reduction is another.
    """
    loss: nn.Module = MODELS.build(cfg)
    reduction = getattr(loss, "reduction", "sum")
    if reduction != "sum":
        raise ValueError(
            f"{where} must have reduction='sum', got {reduction!r}: the loss runs over all levels and over priors "
            "that learn nothing, so a mean would be another number"
        )
    return loss
