"""No coding: boxes are regressed as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, get_box_tensor, stack_corners

__all__ = ["PseudoBBoxCoder"]


@TASK_UTILS.register_module()
class PseudoBBoxCoder:
    """Boxes are their own code.

    Args:
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    encode_size = 4

    def __init__(self, use_box_type: bool = False) -> None:
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> Tensor:
        """``gt_bboxes`` (..., 4), whatever the priors."""
        return get_box_tensor(gt_bboxes)

    def decode(self, bboxes: Tensor | Any, pred_bboxes: Tensor, max_shape: MaxShape | None = None) -> Tensor:
        """``pred_bboxes`` (..., 4), clipped to the images where ``max_shape`` gives their height and width."""
        boxes = get_box_tensor(pred_bboxes)
        if max_shape is None:
            return boxes
        x1, y1, x2, y2 = boxes.unbind(-1)
        return stack_corners(x1, y1, x2, y2, max_shape)
