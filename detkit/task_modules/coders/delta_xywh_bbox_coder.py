"""Boxes as offsets of centre and log size (R-CNN, https://arxiv.org/abs/1311.2524, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode

__all__ = [
    "DeltaXYWHBBoxCoder",
    "bbox2delta",
    "check_statistics",
    "delta2bbox",
    "delta_of_sizes",
    "sizes_of_delta",
]

WH_RATIO_CLIP = 16 / 1000
Quad = tuple[Tensor, Tensor, Tensor, Tensor]


def delta_of_sizes(prior: Quad, gt: Quad, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    """Normalised offsets (..., 4) between centres and sizes (eq. 6 to 9).

    Args:
        prior: Centre x, y, width and height, each (...).
        gt: The same of the boxes.
        means: Subtracted from the offsets.
        stds: What the offsets are divided by then.
    """
    (px, py, pw, ph), (gx, gy, gw, gh) = prior, gt
    deltas = ((gx - px) / pw, (gy - py) / ph, torch.log(gw / pw), torch.log(gh / ph))
    return torch.stack([(d - m) / s for d, m, s in zip(deltas, means, stds, strict=True)], dim=-1)


def sizes_of_delta(
    prior: Quad,
    deltas: Tensor,
    means: Sequence[float],
    stds: Sequence[float],
    wh_ratio_clip: float = WH_RATIO_CLIP,
    ctr_clamp: float | None = None,
) -> Quad:
    """The inverse of :func:`delta_of_sizes` (eq. 1 to 4): centre x, y, width and height, each (..., C).

    Args:
        prior: Centre x, y, width and height, each (...).
        deltas: (..., C, 4).
        means: As encoded.
        stds: As encoded.
        wh_ratio_clip: Least ratio of the sizes, and its inverse the largest.
        ctr_clamp: Largest move of the centre in pixels; then sizes have an upper limit only.
    """
    dx, dy, dw, dh = (d * s + m for d, s, m in zip(deltas.unbind(-1), stds, means, strict=True))
    px, py, pw, ph = (part.unsqueeze(-1) for part in prior)
    move_x, move_y = pw * dx, ph * dy
    max_ratio = abs(math.log(wh_ratio_clip))
    if ctr_clamp is None:
        dw, dh = dw.clamp(-max_ratio, max_ratio), dh.clamp(-max_ratio, max_ratio)
    else:
        move_x, move_y = move_x.clamp(-ctr_clamp, ctr_clamp), move_y.clamp(-ctr_clamp, ctr_clamp)
        dw, dh = dw.clamp(max=max_ratio), dh.clamp(max=max_ratio)
    return px + move_x, py + move_y, pw * dw.exp(), ph * dh.exp()


def _center_size(boxes: Tensor) -> Quad:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1


def bbox2delta(
    proposals: Tensor, gt: Tensor, means: Sequence[float] = (0.0,) * 4, stds: Sequence[float] = (1.0,) * 4
) -> Tensor:
    """Offsets from ``proposals`` to ``gt``: dx, dy in sizes of the proposal, dw, dh as logarithms.

    Args:
        proposals: (..., 4).
        gt: (..., 4).
        means: Subtracted from the offsets.
        stds: What the offsets are divided by then.

    Returns:
        (..., 4), float32 at least.
    """
    proposals, gt = full_precision(proposals, gt)
    return delta_of_sizes(_center_size(proposals), _center_size(gt), means, stds)


def delta2bbox(
    rois: Tensor,
    deltas: Tensor,
    means: Sequence[float] = (0.0,) * 4,
    stds: Sequence[float] = (1.0,) * 4,
    max_shape: MaxShape | None = None,
    wh_ratio_clip: float = WH_RATIO_CLIP,
    clip_border: bool = True,
    ctr_clamp: float | None = None,
) -> Tensor:
    """The inverse of :func:`bbox2delta`.

    Args:
        rois: (..., 4).
        deltas: (..., C * 4), offsets for each of C classes.
        means: As encoded.
        stds: As encoded.
        max_shape: Image height and width, of all or (with leading dimension N) of each image; may have
            further entries, such as channels.
        wh_ratio_clip: Least ratio of the sizes, and its inverse the largest.
        clip_border: Clip to ``max_shape``.
        ctr_clamp: Largest move of the centre in pixels; then sizes have an upper limit only.

    Returns:
        (..., C * 4), float32 at least.
    """
    rois, deltas = full_precision(rois, deltas)
    classes = deltas.unflatten(-1, (-1, 4))  # (..., C, 4)
    x, y, width, height = sizes_of_delta(_center_size(rois), classes, means, stds, wh_ratio_clip, ctr_clamp)
    half_w, half_h = width * 0.5, height * 0.5
    boxes = stack_corners(x - half_w, y - half_h, x + half_w, y + half_h, max_shape if clip_border else None)
    return boxes.flatten(-2)


def check_statistics(name: str, target_means: Sequence[float], target_stds: Sequence[float], count: int = 4) -> None:
    """ValueError if means or standard deviations are not ``count`` numbers, or a standard deviation is not above 0."""
    for what, values in (("target_means", target_means), ("target_stds", target_stds)):
        if not isinstance(values, Iterable) or [isinstance(value, Real) for value in values] != [True] * count:
            raise ValueError(f"{name}: {what} needs {count} numbers, got {values!r}")
    if not all(value > 0 for value in target_stds):
        raise ValueError(f"{name}: target_stds must be above 0, got {target_stds!r}")


@TASK_UTILS.register_module()
class DeltaXYWHBBoxCoder:
    """Boxes as offsets of centre and log size of a prior.

    Args:
        target_means: Subtracted from the offsets.
        target_stds: What the offsets are divided by.
        clip_border: Clip decoded boxes to the image.
        add_ctr_clamp: Limit the move of the centre (YOLOF).
        ctr_clamp: That limit, in pixels.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    encode_size = 4

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        clip_border: bool = True,
        add_ctr_clamp: bool = False,
        ctr_clamp: float = 32,
        use_box_type: bool = False,
    ) -> None:
        check_statistics(type(self).__name__, target_means, target_stds)
        self.means = tuple(target_means)
        self.stds = tuple(target_stds)
        self.clip_border = clip_border
        self.add_ctr_clamp = add_ctr_clamp
        self.ctr_clamp = ctr_clamp
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> Tensor:
        """Offsets (..., 4) from priors ``bboxes`` (..., 4) to ``gt_bboxes`` (..., 4)."""
        bboxes, gt_bboxes = boxes_to_encode(type(self).__name__, bboxes, gt_bboxes)
        return bbox2delta(bboxes, gt_bboxes, self.means, self.stds)

    def decode(
        self,
        bboxes: Tensor | Any,
        pred_bboxes: Tensor,
        max_shape: MaxShape | None = None,
        wh_ratio_clip: float | None = WH_RATIO_CLIP,
    ) -> Tensor:
        """Boxes (..., C * 4) of the offsets ``pred_bboxes`` (..., C * 4) from priors ``bboxes`` (..., 4).

        Args:
            bboxes: Priors; leading dimensions broadcast to those of the offsets.
            pred_bboxes: Offsets, for each of C classes.
            max_shape: See :func:`delta2bbox`.
            wh_ratio_clip: See :func:`delta2bbox`.
        """
        bboxes, pred_bboxes = boxes_to_decode(type(self).__name__, bboxes, pred_bboxes, encode_size=None)
        return delta2bbox(
            bboxes,
            pred_bboxes,
            self.means,
            self.stds,
            max_shape,
            WH_RATIO_CLIP if wh_ratio_clip is None else wh_ratio_clip,
            self.clip_border,
            self.ctr_clamp if self.add_ctr_clamp else None,
        )
