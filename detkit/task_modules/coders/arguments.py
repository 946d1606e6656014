"""What every coder checks of its arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.structures.boxes import get_box_tensor

__all__ = ["boxes_to_decode", "boxes_to_encode"]


def boxes_to_encode(
    name: str, priors: Tensor | Any, gt_bboxes: Tensor | Any, prior_size: int = 4
) -> tuple[Tensor, Tensor]:
    """Priors (..., prior_size) and boxes (..., 4) as tensors.

    Raises:
        ValueError: Other last dimensions, or numbers of priors and boxes that differ.
    """
    priors, gt_bboxes = get_box_tensor(priors), get_box_tensor(gt_bboxes)
    if priors.shape[-1] != prior_size or gt_bboxes.shape[-1] != 4 or _counts_differ(priors, gt_bboxes):
        raise ValueError(
            f"{name}.encode: priors (..., N, {prior_size}) and boxes (..., N, 4) were expected, "
            f"got {tuple(priors.shape)} and {tuple(gt_bboxes.shape)}"
        )
    return priors, gt_bboxes


def boxes_to_decode(
    name: str, priors: Tensor | Any, predictions: Tensor, prior_size: int = 4, encode_size: int | None = 4
) -> tuple[Tensor, Tensor]:
    """Priors (..., prior_size) as a tensor, and predictions.

    Args:
        name: The coder's.
        priors: Tensor or box type.
        predictions: (..., encode_size), or (..., C * 4) where that is None.
        prior_size: 4 for boxes, 2 for points.
        encode_size: Numbers per prediction.

    Raises:
        ValueError: Other last dimensions, or numbers of priors and predictions that differ.
    """
    priors = get_box_tensor(priors)
    fits = predictions.shape[-1] % 4 == 0 if encode_size is None else predictions.shape[-1] == encode_size
    if priors.shape[-1] != prior_size or not fits or _counts_differ(priors, predictions):
        raise ValueError(
            f"{name}.decode: priors (..., N, {prior_size}) and predictions (..., N, {encode_size or 'C * 4'}) were "
            f"expected, got {tuple(priors.shape)} and {tuple(predictions.shape)}"
        )
    return priors, predictions


def _counts_differ(first: Tensor, second: Tensor) -> bool:
    return first.dim() > 1 and second.dim() > 1 and first.shape[-2] != second.shape[-2]
