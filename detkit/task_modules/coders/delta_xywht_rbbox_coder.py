"""Rotated boxes as offsets of centre, log size and angle (RRPN, https://arxiv.org/abs/1703.01086, eq. 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.signature import nearest, quoted
from detkit.structures.boxes import MaxShape, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode
from detkit.task_modules.coders.delta_xywh_bbox_coder import (
    WH_RATIO_CLIP,
    check_statistics,
    delta_of_sizes,
    sizes_of_delta,
)

__all__ = ["DeltaXYWHTRBBoxCoder"]

# First angle of a range, and after how much the same box comes again, in full turns.
ANGLE_RANGES: dict[str, tuple[float, float] | None] = {
    "oc": None,
    "le135": (-1 / 8, 1 / 2),
    "le90": (-1 / 4, 1 / 2),
    "r360": (-1 / 2, 1.0),
}


@TASK_UTILS.register_module()
class DeltaXYWHTRBBoxCoder:
    """Rotated boxes (centre x, y, width, height, angle) as offsets of a rotated prior.

    MMRotate's coder. Detectron2's is ``angle_version="r360"``, ``degrees=True`` and, of its weights, ``target_stds``
    ``(1 / wx, 1 / wy, 1 / ww, 1 / wh, 1 / wa)``; offsets of the angle are radians either way.

    Args:
        target_means: Subtracted from the five offsets.
        target_stds: What the offsets are divided by.
        angle_version: Range of angles and of their offsets: ``le135`` [-45, 135) degrees, ``le90`` [-90, 90), ``r360``
            [-180, 180); ``oc`` leaves them as they are.
        norm_factor: Offsets of angles are in ``norm_factor`` half turns instead of radians; None is radians.
        edge_swap: Let a prior learn the sides of the object that need the least turn; decoded boxes are at least as
            wide as high.
        proj_xy: Measure the move of the centre along the sides of the prior instead of the image's.
        add_ctr_clamp: Limit the move of the centre (YOLOF).
        ctr_clamp: That limit, in pixels.
        use_box_type: Accepted for MMRotate's configs; boxes are plain tensors either way.
        degrees: Whether the angles of boxes are degrees instead of radians.

    Raises:
        ValueError: Not five numbers of statistics, or an unknown ``angle_version``.
    """

    prior_kind = "rotated boxes"

    encode_size = 5

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0),
        angle_version: str = "oc",
        norm_factor: float | None = None,
        edge_swap: bool = False,
        proj_xy: bool = False,
        add_ctr_clamp: bool = False,
        ctr_clamp: float = 32,
        use_box_type: bool = False,
        degrees: bool = False,
    ) -> None:
        name = type(self).__name__
        check_statistics(name, target_means, target_stds, count=5)
        if angle_version not in ANGLE_RANGES:
            close = quoted(nearest(str(angle_version), ANGLE_RANGES))
            raise ValueError(
                f"{name}: angle_version {angle_version!r} is not one of {quoted(ANGLE_RANGES)}; did you mean {close}?"
            )
        self.means = tuple(target_means)
        self.stds = tuple(target_stds)
        self.angle_range = ANGLE_RANGES[angle_version]
        self.norm_factor = norm_factor
        self.edge_swap = edge_swap
        self.proj_xy = proj_xy
        self.ctr_clamp = ctr_clamp if add_ctr_clamp else None
        self.use_box_type = use_box_type
        self.full_turn = 360.0 if degrees else 2 * math.pi
        # How many units of an angle offset are a unit of a box's angle.
        self.offset_per_angle = 2 * math.pi / self.full_turn / (1.0 if norm_factor is None else norm_factor * math.pi)

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> Tensor:
        """Offsets (..., 5) from priors ``bboxes`` (..., 5) to ``gt_bboxes`` (..., 5), float32 at least."""
        bboxes, gt_bboxes = boxes_to_encode(type(self).__name__, bboxes, gt_bboxes, prior_size=5, box_size=5)
        bboxes, gt_bboxes = full_precision(bboxes, gt_bboxes)
        (px, py, pw, ph, p_angle), (gx, gy, gw, gh, g_angle) = bboxes.unbind(-1), gt_bboxes.unbind(-1)
        move_x, move_y = gx - px, gy - py
        if self.proj_xy:
            move_x, move_y = self._rotated(move_x, move_y, -p_angle)
        turn = self._in_range(g_angle - p_angle)
        if self.edge_swap:
            other = self._in_range(g_angle - p_angle + self.full_turn / 4)
            same = turn.abs() < other.abs()
            turn = torch.where(same, turn, other)
            gw, gh = torch.where(same, gw, gh), torch.where(same, gh, gw)
        nowhere = torch.zeros_like(px)
        sizes = delta_of_sizes((nowhere, nowhere, pw, ph), (move_x, move_y, gw, gh), self.means[:4], self.stds[:4])
        angle = (turn * self.offset_per_angle - self.means[4]) / self.stds[4]
        return torch.cat([sizes, angle.unsqueeze(-1)], dim=-1)

    def decode(
        self,
        bboxes: Tensor | Any,
        pred_bboxes: Tensor,
        max_shape: MaxShape | None = None,
        wh_ratio_clip: float | None = WH_RATIO_CLIP,
    ) -> Tensor:
        """Boxes (..., C * 5) of the offsets ``pred_bboxes`` (..., C * 5) from priors ``bboxes`` (..., 5).

        Args:
            bboxes: Priors; leading dimensions broadcast to those of the offsets.
            pred_bboxes: Offsets, for each of C classes.
            max_shape: Image height and width, of all or of each image, to which centres are clipped.
            wh_ratio_clip: Least ratio of the sizes, and its inverse the largest.

        Returns:
            float32 at least.
        """
        name = type(self).__name__
        bboxes, pred_bboxes = boxes_to_decode(name, bboxes, pred_bboxes, prior_size=5, encode_size=None, box_size=5)
        bboxes, pred_bboxes = full_precision(bboxes, pred_bboxes)
        px, py, pw, ph, p_angle = bboxes.unbind(-1)
        deltas = pred_bboxes.unflatten(-1, (-1, 5))  # (..., C, 5)
        nowhere = torch.zeros_like(px)
        clip = WH_RATIO_CLIP if wh_ratio_clip is None else wh_ratio_clip
        prior = (nowhere, nowhere, pw, ph)
        move_x, move_y, width, height = sizes_of_delta(
            prior, deltas[..., :4], self.means[:4], self.stds[:4], clip, self.ctr_clamp
        )
        p_angle = p_angle.unsqueeze(-1)
        if self.proj_xy:
            move_x, move_y = self._rotated(move_x, move_y, p_angle)
        x, y = px.unsqueeze(-1) + move_x, py.unsqueeze(-1) + move_y
        if max_shape is not None:
            x, y = stack_corners(x, y, x, y, max_shape, margin=1.0).unbind(-1)[:2]
        turn = (deltas[..., 4] * self.stds[4] + self.means[4]) / self.offset_per_angle
        angle = self._in_range(p_angle + turn)
        if self.edge_swap:
            wide = width > height
            angle = torch.where(wide, angle, self._in_range(angle + self.full_turn / 4))
            width, height = torch.where(wide, width, height), torch.where(wide, height, width)
        return torch.stack([x, y, width, height, angle], dim=-1).flatten(-2)

    def _in_range(self, angle: Tensor) -> Tensor:
        """The same angle (...) within the range."""
        if self.angle_range is None:
            return angle
        start, period = (part * self.full_turn for part in self.angle_range)
        return (angle - start) % period + start

    def _rotated(self, x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        radians = angle * (2 * math.pi / self.full_turn)
        cos, sin = radians.cos(), radians.sin()
        return x * cos - y * sin, x * sin + y * cos
