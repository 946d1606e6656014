"""What every coder checks of its arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.structures.boxes import get_box_tensor

__all__ = ["boxes_to_decode", "boxes_to_encode"]


def boxes_to_encode(
    name: str, priors: Tensor | Any, gt_bboxes: Tensor | Any, prior_size: int = 4, box_size: int = 4
) -> tuple[Tensor, Tensor]:
    """Priors (..., prior_size) and boxes (..., box_size) as tensors.

    Raises:
        ValueError: Other last dimensions, or numbers of priors and boxes that differ.
    """
    priors, gt_bboxes = get_box_tensor(priors), get_box_tensor(gt_bboxes)
    if priors.shape[-1] != prior_size or gt_bboxes.shape[-1] != box_size or _counts_differ(priors, gt_bboxes):
        raise ValueError(
            f"{name}.encode: priors (..., N, {prior_size}) and boxes (..., N, {box_size}) were expected, "
            f"got {tuple(priors.shape)} and {tuple(gt_bboxes.shape)}"
        )
    return priors, gt_bboxes


def boxes_to_decode(
    name: str,
    priors: Tensor | Any,
    predictions: Tensor,
    prior_size: int = 4,
    encode_size: int | None = 4,
    box_size: int = 4,
) -> tuple[Tensor, Tensor]:
    """Priors (..., prior_size) as a tensor, and predictions.

    Args:
        name: The coder's.
        priors: Tensor or box type.
        predictions: (..., encode_size), or (..., C * box_size) where that is None.
        prior_size: 4 for boxes, 2 for points.
        encode_size: Numbers per prediction.
        box_size: Numbers per box: 4, or 5 where it is rotated.

    Raises:
        ValueError: Other last dimensions, or numbers of priors and predictions that differ.
    """
    priors = get_box_tensor(priors)
    fits = predictions.shape[-1] % box_size == 0 if encode_size is None else predictions.shape[-1] == encode_size
    if priors.shape[-1] != prior_size or not fits or _counts_differ(priors, predictions):
        wanted = encode_size or f"C * {box_size}"
        raise ValueError(
            f"{name}.decode: priors (..., N, {prior_size}) and predictions (..., N, {wanted}) were expected, "
            f"got {tuple(priors.shape)} and {tuple(predictions.shape)}"
        )
    return priors, predictions


def _counts_differ(first: Tensor, second: Tensor) -> bool:
    return first.dim() > 1 and second.dim() > 1 and first.shape[-2] != second.shape[-2]
