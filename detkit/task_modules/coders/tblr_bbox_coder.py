"""Boxes as distances of their sides from the prior's centre (FSAF, https://arxiv.org/abs/1903.00621, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode

__all__ = ["TBLRBBoxCoder", "bboxes2tblr", "tblr2bboxes"]

Normalizer = float | Sequence[float]


def bboxes2tblr(priors: Tensor, gts: Tensor, normalizer: Normalizer = 4.0, normalize_by_wh: bool = True) -> Tensor:
    """Distances from the centres of priors to the top, bottom, left and right side of boxes.

    Args:
        priors: (..., 4).
        gts: (..., 4).
        normalizer: What distances are divided by, or one such number for each of the four.
        normalize_by_wh: Divide by the height (top, bottom) and width (left, right) of the prior too.

    Returns:
        (..., 4), float32 at least.
    """
    priors, gts = full_precision(priors, gts)
    (px1, py1, px2, py2), (x1, y1, x2, y2) = priors.unbind(-1), gts.unbind(-1)
    cx, cy = (px1 + px2) / 2, (py1 + py2) / 2
    distances = [cy - y1, y2 - cy, cx - x1, x2 - cx]
    if normalize_by_wh:
        width, height = px2 - px1, py2 - py1
        distances = [d / size for d, size in zip(distances, (height, height, width, width), strict=True)]
    return torch.stack([d / n for d, n in zip(distances, _four(normalizer), strict=True)], dim=-1)


def tblr2bboxes(
    priors: Tensor,
    tblr: Tensor,
    normalizer: Normalizer = 4.0,
    normalize_by_wh: bool = True,
    max_shape: MaxShape | None = None,
    clip_border: bool = True,
) -> Tensor:
    """The inverse of :func:`bboxes2tblr`.

    Args:
        priors: (..., 4).
        tblr: (..., 4).
        normalizer: As encoded.
        normalize_by_wh: As encoded.
        max_shape: Image height and width, of all or (with leading dimension N) of each image.
        clip_border: Clip to ``max_shape``.

    Returns:
        Boxes (..., 4), float32 at least.
    """
    priors, tblr = full_precision(priors, tblr)
    px1, py1, px2, py2 = priors.unbind(-1)
    distances = [d * n for d, n in zip(tblr.unbind(-1), _four(normalizer), strict=True)]
    if normalize_by_wh:
        width, height = px2 - px1, py2 - py1
        distances = [d * size for d, size in zip(distances, (height, height, width, width), strict=True)]
    top, bottom, left, right = distances
    cx, cy = (px1 + px2) / 2, (py1 + py2) / 2
    return stack_corners(cx - left, cy - top, cx + right, cy + bottom, max_shape if clip_border else None)


def _four(normalizer: Normalizer) -> Sequence[float]:
    return [normalizer] * 4 if isinstance(normalizer, (int, float)) else normalizer


@TASK_UTILS.register_module()
class TBLRBBoxCoder:
    """Boxes as distances of their sides from the prior's centre, in sizes of the prior.

    Args:
        normalizer: What distances are divided by, or one such number for top, bottom, left and right.
        clip_border: Clip decoded boxes to the image.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    encode_size = 4

    def __init__(self, normalizer: Normalizer = 4.0, clip_border: bool = True, use_box_type: bool = False) -> None:
        four = _four(normalizer) if isinstance(normalizer, (int, float, Sequence)) else []
        if [isinstance(value, Real) and value > 0 for value in four] != [True] * 4:
            raise ValueError(f"TBLRBBoxCoder: normalizer must be a number or 4 numbers, above 0, got {normalizer!r}")
        self.normalizer = normalizer
        self.clip_border = clip_border
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> Tensor:
        """Distances (..., 4) from priors ``bboxes`` (..., 4) to ``gt_bboxes`` (..., 4)."""
        bboxes, gt_bboxes = boxes_to_encode("TBLRBBoxCoder", bboxes, gt_bboxes)
        return bboxes2tblr(bboxes, gt_bboxes, self.normalizer)

    def decode(self, bboxes: Tensor | Any, pred_bboxes: Tensor, max_shape: MaxShape | None = None) -> Tensor:
        """Boxes (..., 4) of the distances ``pred_bboxes`` (..., 4) from priors ``bboxes`` (..., 4).

        Args:
            bboxes: Priors; leading dimensions broadcast to those of the distances.
            pred_bboxes: Distances.
            max_shape: See :func:`tblr2bboxes`.
        """
        bboxes, pred_bboxes = boxes_to_decode("TBLRBBoxCoder", bboxes, pred_bboxes)
        return tblr2bboxes(bboxes, pred_bboxes, self.normalizer, max_shape=max_shape, clip_border=self.clip_border)
