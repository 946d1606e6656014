"""Class labels: as targets per class, and whether they, and other values, are in range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_labels",
    "check_num_classes",
    "check_probabilities",
    "check_range",
    "class_weight_tensor",
    "has_classes",
    "one_hot",
]

# Where torch has an assertion that the host does not wait for.
ASSERTING_DEVICES = ("cpu", "cuda")


def one_hot(labels: Tensor, num_classes: int, name: str) -> Tensor:
    """Targets per class; the background label ``num_classes`` gives a row of zeros.

    Args:
        labels: (...,) integers in [0, C].
        num_classes: C.
        name: Who asks, for the message.

    Returns:
        (..., C) bool.

    Raises:
        RuntimeError: A label outside [0, C], see :func:`check_range`.
    """
    check_labels(labels, num_classes, name)
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Refuse labels outside [0, C] as :func:`one_hot` does; ``name`` is who asks."""
    check_range(
        labels, num_classes + 1, f"{name}: a label lies outside [0, {num_classes}] ({num_classes} is background)"
    )


def check_range(values: Tensor, end: float, message: str, ignored: float | None = None) -> None:
    """Refuse values outside [0, ``end``), without waiting for the device.

    Args:
        values: (...).
        end: What they stay below.
        message: Says who asks and what is wrong.
        ignored: One value outside that is fine.

    Raises:
        RuntimeError: There is one. A GPU reports it at a later call, as it does an index that is out of range.
    """
    fine = (values >= 0) & (values < end)
    _assert_all(fine if ignored is None else fine | (values == ignored), message)


def check_probabilities(prob: Tensor, name: str) -> None:
    """Refuse values outside [0, 1] as :func:`check_range` does; ``name`` is who asks."""
    _assert_all((prob >= 0) & (prob <= 1), f"{name}: predictions are probabilities, and one lies outside [0, 1]")


def _assert_all(fine: Tensor, message: str) -> None:
    if fine.device.type in ASSERTING_DEVICES:
        torch._assert_async(fine.all(), message)


def has_classes(labels: Tensor) -> bool:
    """Whether these are whole numbers, as classes are."""
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def check_num_classes(name: str, num_classes: int, own: int) -> None:
    """Refuse a head whose number of classes is not the loss's ``own``."""
    if num_classes != own:
        raise ValueError(f"{name}: the head has {num_classes} classes, the loss num_classes={own}")


def class_weight_tensor(class_weight: Sequence[float] | Tensor | None, name: str) -> Tensor | None:
    """The constructor's factors per class as a tensor (C,), or a ValueError that names the loss."""
    if class_weight is None:
        return None
    try:
        weight = torch.as_tensor(class_weight, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: class_weight needs a number per class, got {class_weight!r}") from error
    if weight.dim() != 1 or weight.numel() == 0:
        raise ValueError(f"{name}: class_weight needs a number per class, got {class_weight!r}")
    return weight
