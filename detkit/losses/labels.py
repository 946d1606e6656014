"""Class labels as targets per class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one_hot"]


def one_hot(labels: Tensor, num_classes: int, name: str) -> Tensor:
    """Targets per class; the background label ``num_classes`` gives a row of zeros.

    Args:
        labels: (...,) integers in [0, C].
        num_classes: C.
        name: Who asks, for the message.

    Returns:
        (..., C) bool.

    Raises:
        RuntimeError: A label outside [0, C], where the labels are on the CPU; on a GPU the check would
            wait for the device.
    """
    if labels.device.type == "cpu" and labels.numel() > 0:
        in_range = ((labels >= 0) & (labels <= num_classes)).all()
        torch._assert_async(in_range, f"{name}: a label lies outside [0, {num_classes}] ({num_classes} is background)")
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
