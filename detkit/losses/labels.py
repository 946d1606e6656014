"""Class labels: as targets per class, and whether they are in range."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_labels", "check_range", "one_hot"]


def one_hot(labels: Tensor, num_classes: int, name: str) -> Tensor:
    """Targets per class; the background label ``num_classes`` gives a row of zeros.

    Args:
        labels: (...,) integers in [0, C].
        num_classes: C.
        name: Who asks, for the message.

    Returns:
        (..., C) bool.

    Raises:
        RuntimeError: A label outside [0, C], where the labels are on the CPU.
    """
    check_labels(labels, num_classes, name)
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Refuse labels outside [0, C] as :func:`one_hot` does; ``name`` is who asks."""
    check_range(
        labels, num_classes + 1, f"{name}: a label lies outside [0, {num_classes}] ({num_classes} is background)"
    )


def check_range(values: Tensor, end: float, message: str, ignored: float | None = None) -> None:
    """Refuse values outside [0, ``end``), where that costs nothing.

    Args:
        values: (...).
        end: What they stay below.
        message: Says who asks and what is wrong.
        ignored: One value outside that is fine.

    Raises:
        RuntimeError: There is one, on the CPU; on a GPU the check would wait for the device.
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return
    fine = (values >= 0) & (values < end)
    if ignored is not None:
        fine = fine | (values == ignored)
    torch._assert_async(fine.all(), message)
