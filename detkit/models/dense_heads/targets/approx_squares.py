"""Squares, one for each cell, that learn by the shapes around them (SABL, Guided Anchoring)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.models.dense_heads.targets.anchor_targets import valid_anchors
from detkit.registry import TASK_UTILS
from detkit.task_modules import GridAnchors

__all__ = ["approx_and_square_generators", "approxs_of_squares", "valid_squares"]

Cfg = Mapping[str, Any]


def approx_and_square_generators(
    approx_anchor_generator: Cfg | None, square_anchor_generator: Cfg | None, scale: float, first: int, head: str
) -> tuple[Any, Any]:
    """The generators of the shapes and of the squares of five levels, which fit each other.

    Args:
        approx_anchor_generator: Registered prior generator; None has three scales of three ratios.
        square_anchor_generator: Registered prior generator; None has one square.
        scale: Least side in strides, where a generator is None.
        first: Stride of the first level, where a generator is None; each further level has twice that.
        head: Whose they are.

    Raises:
        ValueError: Their strides differ, or a cell has several squares.
    """
    strides = [first << level for level in range(5)]
    octaves = {"octave_base_scale": scale, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}
    approx = TASK_UTILS.build(approx_anchor_generator or {"type": "AnchorGenerator", **octaves, "strides": strides})
    square = TASK_UTILS.build(
        square_anchor_generator or {"type": "AnchorGenerator", "ratios": [1.0], "scales": [scale], "strides": strides}
    )
    if approx.strides != square.strides:
        raise ValueError(
            f"{head}: strides of approx_anchor_generator {approx.strides} and square_anchor_generator "
            f"{square.strides} must be the same"
        )
    if set(square.num_base_priors) != {1}:
        raise ValueError(
            f"{head}: square_anchor_generator must make one square per cell, it makes {square.num_base_priors}"
        )
    return approx, square


def approxs_of_squares(
    generator: GridAnchors, sizes: Sequence[tuple[int, int]], num_squares: int, device: torch.device
) -> Tensor:
    """Shapes (A, S, 4) of each of A squares, made by ``generator`` for maps of ``sizes``."""
    return torch.cat(generator.grid_priors(sizes, device=device)).view(num_squares, -1, 4)


def valid_squares(
    approxs: Tensor,
    generator: GridAnchors,
    sizes: Sequence[tuple[int, int]],
    metas: Sequence[dict[str, Any]],
    allowed_border: float,
) -> Tensor | None:
    """Squares of which a shape at least takes part in training, (N, A) bool; None where all do.

    Args:
        approxs: (A, S, 4) shapes of each square.
        generator: Of the shapes.
        sizes: Height and width of each feature map.
        metas: Image facts with ``pad_shape`` and ``img_shape``.
        allowed_border: Pixels by which a shape may leave the image; a negative number allows any.
    """
    valid = valid_anchors(approxs.flatten(0, 1), generator, sizes, metas, allowed_border)
    return None if valid is None else valid.unflatten(1, (len(approxs), -1)).any(dim=2)
