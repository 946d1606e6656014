"""Boxes as offsets of centre and log size (R-CNN, https://arxiv.org/abs/1311.2524, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.precision import full_precision

__all__ = ["DeltaXYWHBBoxCoder", "bbox2delta", "delta2bbox"]

Shape = Sequence[int]


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
    px1, py1, px2, py2 = proposals.unbind(-1)
    gx1, gy1, gx2, gy2 = gt.unbind(-1)
    pw, ph, gw, gh = px2 - px1, py2 - py1, gx2 - gx1, gy2 - gy1
    deltas = (
        ((gx1 + gx2) * 0.5 - (px1 + px2) * 0.5) / pw,
        ((gy1 + gy2) * 0.5 - (py1 + py2) * 0.5) / ph,
        torch.log(gw / pw),
        torch.log(gh / ph),
    )
    return torch.stack([(d - m) / s for d, m, s in zip(deltas, means, stds, strict=True)], dim=-1)


def delta2bbox(
    rois: Tensor,
    deltas: Tensor,
    means: Sequence[float] = (0.0,) * 4,
    stds: Sequence[float] = (1.0,) * 4,
    max_shape: Shape | Sequence[Shape] | Tensor | None = None,
    wh_ratio_clip: float = 16 / 1000,
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
    shape = deltas.shape
    rois, deltas = full_precision(rois, deltas)
    deltas = deltas.unflatten(-1, (-1, 4))  # (..., C, 4)
    dx, dy, dw, dh = (d * s + m for d, s, m in zip(deltas.unbind(-1), stds, means, strict=True))
    px1, py1, px2, py2 = rois.unsqueeze(-2).unbind(-1)  # (..., 1)
    pw, ph = px2 - px1, py2 - py1
    move_x, move_y = pw * dx, ph * dy
    max_ratio = abs(math.log(wh_ratio_clip))
    if ctr_clamp is not None:
        move_x, move_y = move_x.clamp(-ctr_clamp, ctr_clamp), move_y.clamp(-ctr_clamp, ctr_clamp)
        dw, dh = dw.clamp(max=max_ratio), dh.clamp(max=max_ratio)
    else:
        dw, dh = dw.clamp(-max_ratio, max_ratio), dh.clamp(-max_ratio, max_ratio)
    gx, gy = (px1 + px2) * 0.5 + move_x, (py1 + py2) * 0.5 + move_y
    half_w, half_h = pw * dw.exp() * 0.5, ph * dh.exp() * 0.5
    x1, y1, x2, y2 = gx - half_w, gy - half_h, gx + half_w, gy + half_h
    if clip_border and max_shape is not None:
        x1, x2 = (_clip(x, max_shape, 1) for x in (x1, x2))
        y1, y2 = (_clip(y, max_shape, 0) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1).reshape(shape)


def _clip(coordinate: Tensor, max_shape: Shape | Sequence[Shape] | Tensor, axis: int) -> Tensor:
    if isinstance(max_shape, Tensor):
        limits = max_shape[..., axis]
    elif isinstance(max_shape[0], Sequence):
        limits = coordinate.new_tensor([one[axis] for one in max_shape])  # type: ignore[index]
    else:
        return coordinate.clamp(0, float(max_shape[axis]))  # type: ignore[arg-type]
    limits = limits.to(coordinate).reshape(*limits.shape, *([1] * (coordinate.dim() - limits.dim())))
    return torch.minimum(coordinate.clamp(min=0), limits)


@TASK_UTILS.register_module()
class DeltaXYWHBBoxCoder:
    """Boxes as offsets of centre and log size of a prior.

    Args:
        target_means: Subtracted from the offsets.
        target_stds: What the offsets are divided by.
        clip_border: Clip decoded boxes to the image.
        add_ctr_clamp: Limit the move of the centre (YOLOF).
        ctr_clamp: That limit, in pixels.
    """

    encode_size = 4

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        clip_border: bool = True,
        add_ctr_clamp: bool = False,
        ctr_clamp: float = 32,
    ) -> None:
        for name, values in (("target_means", target_means), ("target_stds", target_stds)):
            if len(values) != self.encode_size:
                raise ValueError(f"DeltaXYWHBBoxCoder: {name} needs 4 numbers, got {values!r}")
        self.means = tuple(target_means)
        self.stds = tuple(target_stds)
        self.clip_border = clip_border
        self.add_ctr_clamp = add_ctr_clamp
        self.ctr_clamp = ctr_clamp

    def encode(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Offsets (..., 4) from priors ``bboxes`` (..., 4) to ``gt_bboxes`` (..., 4)."""
        if bboxes.shape[-1] != 4 or gt_bboxes.shape[-1] != 4:
            raise ValueError(
                f"DeltaXYWHBBoxCoder.encode: boxes (..., 4) were expected, got {tuple(bboxes.shape)} "
                f"and {tuple(gt_bboxes.shape)}"
            )
        return bbox2delta(bboxes, gt_bboxes, self.means, self.stds)

    def decode(
        self,
        bboxes: Tensor,
        pred_bboxes: Tensor,
        max_shape: Shape | Sequence[Shape] | Tensor | None = None,
        wh_ratio_clip: float | None = 16 / 1000,
    ) -> Tensor:
        """Boxes (..., C * 4) of the offsets ``pred_bboxes`` (..., C * 4) from priors ``bboxes`` (..., 4).

        Args:
            bboxes: Priors; leading dimensions broadcast to those of the offsets.
            pred_bboxes: Offsets, for each of C classes.
            max_shape: See :func:`delta2bbox`.
            wh_ratio_clip: See :func:`delta2bbox`.
        """
        if bboxes.dim() > 1 and bboxes.shape[-2] != pred_bboxes.shape[-2]:
            raise ValueError(
                f"DeltaXYWHBBoxCoder.decode: {bboxes.shape[-2]} priors and {pred_bboxes.shape[-2]} offsets differ"
            )
        return delta2bbox(
            bboxes,
            pred_bboxes,
            self.means,
            self.stds,
            max_shape,
            16 / 1000 if wh_ratio_clip is None else wh_ratio_clip,
            self.clip_border,
            self.ctr_clamp if self.add_ctr_clamp else None,
        )
