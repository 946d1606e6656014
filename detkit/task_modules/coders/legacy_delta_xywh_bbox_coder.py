"""The box coder of MMDetection 1.x: a box is ``x2 - x1 + 1`` wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode
from detkit.task_modules.coders.delta_xywh_bbox_coder import (
    WH_RATIO_CLIP,
    Quad,
    check_statistics,
    delta_of_sizes,
    sizes_of_delta,
)

__all__ = ["LegacyDeltaXYWHBBoxCoder", "legacy_bbox2delta", "legacy_delta2bbox"]


def _center_size(boxes: Tensor) -> Quad:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1 + 1, y2 - y1 + 1


def legacy_bbox2delta(
    proposals: Tensor, gt: Tensor, means: Sequence[float] = (0.0,) * 4, stds: Sequence[float] = (1.0,) * 4
) -> Tensor:
    """As ``bbox2delta``, with sizes one pixel larger: (..., 4), float32 at least."""
    proposals, gt = full_precision(proposals, gt)
    return delta_of_sizes(_center_size(proposals), _center_size(gt), means, stds)


def legacy_delta2bbox(
    rois: Tensor,
    deltas: Tensor,
    means: Sequence[float] = (0.0,) * 4,
    stds: Sequence[float] = (1.0,) * 4,
    max_shape: MaxShape | None = None,
    wh_ratio_clip: float = WH_RATIO_CLIP,
) -> Tensor:
    """As ``delta2bbox``, with sizes one pixel larger.

    Not quite the inverse of :func:`legacy_bbox2delta`: boxes come back half a pixel larger on each side. The
    models trained with this coder were tuned and tested so. Boxes are clipped to the last pixel.

    Args:
        rois: (..., 4).
        deltas: (..., C * 4).
        means: As encoded.
        stds: As encoded.
        max_shape: As of ``delta2bbox``.
        wh_ratio_clip: As of ``delta2bbox``.

    Returns:
        (..., C * 4), float32 at least.
    """
    rois, deltas = full_precision(rois, deltas)
    classes = deltas.unflatten(-1, (-1, 4))
    x, y, width, height = sizes_of_delta(_center_size(rois), classes, means, stds, wh_ratio_clip)
    half_w, half_h = width * 0.5, height * 0.5
    return stack_corners(x - half_w, y - half_h, x + half_w, y + half_h, max_shape, margin=1).flatten(-2)


@TASK_UTILS.register_module()
class LegacyDeltaXYWHBBoxCoder:
    """Boxes as offsets of centre and log size of a prior, counted in whole pixels.

    Args:
        target_means: Subtracted from the offsets.
        target_stds: What the offsets are divided by.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    encode_size = 4

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        use_box_type: bool = False,
    ) -> None:
        check_statistics(type(self).__name__, target_means, target_stds)
        self.means = tuple(target_means)
        self.stds = tuple(target_stds)
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> Tensor:
        """Offsets (..., 4) from priors ``bboxes`` (..., 4) to ``gt_bboxes`` (..., 4)."""
        bboxes, gt_bboxes = boxes_to_encode(type(self).__name__, bboxes, gt_bboxes)
        return legacy_bbox2delta(bboxes, gt_bboxes, self.means, self.stds)

    def decode(
        self,
        bboxes: Tensor | Any,
        pred_bboxes: Tensor,
        max_shape: MaxShape | None = None,
        wh_ratio_clip: float | None = WH_RATIO_CLIP,
    ) -> Tensor:
        """Boxes (..., C * 4) of the offsets ``pred_bboxes`` (..., C * 4) from priors ``bboxes`` (..., 4)."""
        bboxes, pred_bboxes = boxes_to_decode(type(self).__name__, bboxes, pred_bboxes, encode_size=None)
        ratio = WH_RATIO_CLIP if wh_ratio_clip is None else wh_ratio_clip
        return legacy_delta2bbox(bboxes, pred_bboxes, self.means, self.stds, max_shape, ratio)
