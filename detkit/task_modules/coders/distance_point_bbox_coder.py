"""Boxes as distances of their sides from a point (FCOS, https://arxiv.org/abs/1904.01355, eq. 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, bbox2distance, distance2bbox
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode

__all__ = ["DistancePointBBoxCoder"]


@TASK_UTILS.register_module()
class DistancePointBBoxCoder:
    """Boxes as distances to the left, upper, right and lower side from a point, in the unit of both.

    Args:
        clip_border: Clip decoded boxes to the image.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    prior_kind = "points"

    encode_size = 4

    def __init__(self, clip_border: bool = True, use_box_type: bool = False) -> None:
        self.clip_border = clip_border
        self.use_box_type = use_box_type

    def encode(self, points: Tensor, gt_bboxes: Tensor | Any, max_dis: float | None = None, eps: float = 0.1) -> Tensor:
        """Distances (..., 4) from ``points`` (..., 2) to the sides of ``gt_bboxes`` (..., 4).

        Args:
            points: x and y.
            gt_bboxes: Boxes.
            max_dis: Distances are clamped to ``[0, max_dis - eps]``; None leaves them as they are.
            eps: Keeps the largest distance below ``max_dis``.
        """
        points, gt_bboxes = boxes_to_encode("DistancePointBBoxCoder", points, gt_bboxes, prior_size=2)
        return bbox2distance(points, gt_bboxes, max_dis, eps)

    def decode(self, points: Tensor, pred_bboxes: Tensor, max_shape: MaxShape | None = None) -> Tensor:
        """Boxes (..., 4) of the distances ``pred_bboxes`` (..., 4) from ``points`` (..., 2).

        Args:
            points: x and y; leading dimensions broadcast to those of the distances.
            pred_bboxes: Distances.
            max_shape: Image height and width, of all or (with leading dimension N) of each image.
        """
        points, pred_bboxes = boxes_to_decode("DistancePointBBoxCoder", points, pred_bboxes, prior_size=2)
        return distance2bbox(points, pred_bboxes, max_shape if self.clip_border else None)
