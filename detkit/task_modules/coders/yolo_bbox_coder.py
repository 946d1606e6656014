"""Boxes as YOLOv3 predicts them, https://arxiv.org/abs/1804.02767, section 2.1: a place in the cell and a log size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode

__all__ = ["YOLOBBoxCoder"]


@TASK_UTILS.register_module()
class YOLOBBoxCoder:
    """The centre in units of the cell, in [0, 1] after a sigmoid, and the size as logarithm of the prior's.

    Args:
        eps: Centres are kept this far from the border of the cell, and sizes from 0.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    prior_kind = "boxes with strides"

    encode_size = 4

    def __init__(self, eps: float = 1e-6, use_box_type: bool = False) -> None:
        self.eps = eps
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any, stride: Tensor | float) -> Tensor:
        """Targets (..., 4): centre x and y in the cell, log width, log height.

        Args:
            bboxes: Priors (..., 4) around the centres of their cells.
            gt_bboxes: (..., 4).
            stride: Pixels per cell, of all, or (...) or (..., 1) of each prior.
        """
        bboxes, gt_bboxes = full_precision(*boxes_to_encode("YOLOBBoxCoder", bboxes, gt_bboxes))
        (px1, py1, px2, py2), (x1, y1, x2, y2) = bboxes.unbind(-1), gt_bboxes.unbind(-1)
        stride = _per_prior(stride, bboxes.shape[:-1])
        x = ((x1 + x2) * 0.5 - (px1 + px2) * 0.5) / stride + 0.5
        y = ((y1 + y2) * 0.5 - (py1 + py2) * 0.5) / stride + 0.5
        width = ((x2 - x1) / (px2 - px1)).clamp(min=self.eps).log()
        height = ((y2 - y1) / (py2 - py1)).clamp(min=self.eps).log()
        x, y = x.clamp(self.eps, 1 - self.eps), y.clamp(self.eps, 1 - self.eps)
        return torch.stack([x, y, width, height], dim=-1)

    def decode(self, bboxes: Tensor | Any, pred_bboxes: Tensor, stride: Tensor | float) -> Tensor:
        """Boxes (..., 4) of predictions (..., 4).

        Args:
            bboxes: Priors (..., 4); leading dimensions broadcast to those of the predictions.
            pred_bboxes: As encoded; the centre after the sigmoid.
            stride: As encoded.
        """
        bboxes, pred_bboxes = full_precision(*boxes_to_decode("YOLOBBoxCoder", bboxes, pred_bboxes))
        (px1, py1, px2, py2), (x, y, width, height) = bboxes.unbind(-1), pred_bboxes.unbind(-1)
        stride = _per_prior(stride, bboxes.shape[:-1])
        cx, cy = (px1 + px2) * 0.5 + (x - 0.5) * stride, (py1 + py2) * 0.5 + (y - 0.5) * stride
        half_w, half_h = (px2 - px1) * 0.5 * width.exp(), (py2 - py1) * 0.5 * height.exp()
        return stack_corners(cx - half_w, cy - half_h, cx + half_w, cy + half_h)


def _per_prior(stride: Tensor | float, shape: Sequence[int]) -> Tensor | float:
    """Strides that broadcast to one number per prior; a last dimension for the coordinates goes."""
    if not isinstance(stride, Tensor) or stride.dim() == 0 or stride.shape[-1] != 1:
        return stride
    return stride.squeeze(-1) if stride.dim() > len(shape) or shape[-1] != 1 else stride
