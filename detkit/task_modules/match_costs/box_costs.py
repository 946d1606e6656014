"""Costs of boxes: L1 distance and IoU (DETR, https://arxiv.org/abs/2005.12872, equation 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.ops.image_sizes import image_sizes
from detkit.registry import TASK_UTILS
from detkit.structures.boxes import OVERLAP_MODES, bbox_overlaps, bbox_xyxy_to_cxcywh
from detkit.task_modules.match_costs.match_cost import Fields, ImgMetas, MatchCost

__all__ = ["BBoxL1Cost", "IoUCost"]


@TASK_UTILS.register_module()
class BBoxL1Cost(MatchCost):
    """L1 distance of boxes, in units of the image's width and height.

    Reads ``bboxes`` of predictions and objects, and ``img_shape`` (height, width) of the image's facts.

    Args:
        box_format: ``xyxy`` compares corners, ``xywh`` centres and sizes.
        weight: What the cost is multiplied by.
    """

    def __init__(self, box_format: str = "xyxy", weight: float = 1.0) -> None:
        super().__init__(weight)
        if box_format not in ("xyxy", "xywh"):
            raise ValueError(f"BBoxL1Cost: box_format must be 'xyxy' or 'xywh', got {box_format!r}")
        self.box_format = box_format

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [0, inf)."""
        boxes = self.field(predictions, "bboxes", "predictions")
        gt_boxes = self.field(objects, "bboxes", "objects").to(boxes.dtype)
        if self.box_format == "xywh":
            boxes, gt_boxes = bbox_xyxy_to_cxcywh(boxes), bbox_xyxy_to_cxcywh(gt_boxes)
        size = image_sizes([None] * len(boxes) if img_metas is None else img_metas, boxes, "BBoxL1Cost")
        return torch.cdist(boxes / size, gt_boxes / size, p=1)


@TASK_UTILS.register_module()
class IoUCost(MatchCost):
    """Overlap of boxes, negated; reads ``bboxes`` of predictions and objects.

    Args:
        iou_mode: ``iou``, ``iof`` or ``giou``.
        weight: What the cost is multiplied by.
    """

    def __init__(self, iou_mode: str = "giou", weight: float = 1.0) -> None:
        super().__init__(weight)
        if iou_mode not in OVERLAP_MODES:
            raise ValueError(f"IoUCost: iou_mode must be one of {', '.join(OVERLAP_MODES)}, got {iou_mode!r}")
        self.iou_mode = iou_mode

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [-1, 0], or [-1, 1] for GIoU."""
        boxes = self.field(predictions, "bboxes", "predictions")
        return -bbox_overlaps(boxes, self.field(objects, "bboxes", "objects").to(boxes.dtype), self.iou_mode)
