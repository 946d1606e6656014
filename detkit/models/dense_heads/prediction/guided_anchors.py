"""Anchors of a learnt shape at learnt places (Guided Anchoring, https://arxiv.org/abs/1901.03278, 3.2)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["guided_anchors"]

# Least factor of a side; the largest is its inverse.
LEAST_RATIO = 1e-6


def guided_anchors(squares: Tensor, shapes: Tensor, coder: Any) -> Tensor:
    """Squares stretched around their centres.

    Args:
        squares: (A, 4) or (N, A, 4).
        shapes: (N, A, 2) encoded width and height.
        coder: Box coder of centre, width and height, with a ``wh_ratio_clip``.

    Returns:
        (N, A, 4).
    """
    anchors: Tensor = coder.decode(
        squares.expand(*shapes.shape[:-1], 4), F.pad(shapes, (2, 0)), wh_ratio_clip=LEAST_RATIO
    )
    return anchors
