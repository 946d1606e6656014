"""Dynamic soft label assignment (RTMDet, https://arxiv.org/abs/2212.07784, 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import NO_OVERLAP, check_classes, inside_boxes, of_class, present_only
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.dynamic_k import match_dynamic_k

__all__ = ["DynamicSoftLabelAssigner", "center_of_mass"]

EPS = 1e-7
LOG_10 = math.log(10)


def center_of_mass(masks: Tensor) -> Tensor:
    """Centres (..., 2) as (x, y) of masks (..., H, W); (0, 0) for an empty one."""
    masks = masks.float()
    area = masks.sum(dim=(-2, -1)).clamp(min=EPS)
    x = (masks.sum(dim=-2) * torch.arange(masks.shape[-1], device=masks.device)).sum(dim=-1)
    y = (masks.sum(dim=-1) * torch.arange(masks.shape[-2], device=masks.device)).sum(dim=-1)
    return torch.stack([x, y], dim=-1) / area.unsqueeze(-1)


@TASK_UTILS.register_module()
class DynamicSoftLabelAssigner:
    """Each object takes the priors whose predictions cost least to make its own, scores held against their IoU.

    1. A prior takes part if it lies inside any object.
    2. Its cost for an object is the cross entropy of its scores, of which the object's class should reach the IoU,
        weighted by the squared error (eq. 5), plus ``iou_weight`` times ``-log IoU`` (eq. 4), plus
        ``10 ** (distance - soft_center_radius)``, the distance to the object's centre in strides (eq. 6).
    3. Each object takes its cheapest priors, see :func:`match_dynamic_k`; all others are background.

    Args:
        soft_center_radius: Distance in strides at which the centre costs 1.
        topk: Most priors per object.
        iou_weight: Weight of the box cost.
        iou_calculator: Registered IoU calculator.
    """

    prior_kind = "points with strides"
    # What it calls scores: logits, where other assigners take probabilities.
    takes_logits = True

    def __init__(
        self,
        soft_center_radius: float = 3.0,
        topk: int = 13,
        iou_weight: float = 3.0,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if topk < 1:
            raise ValueError(f"DynamicSoftLabelAssigner: topk must be at least 1, got {topk}")
        self.soft_center_radius = soft_center_radius
        self.topk = topk
        self.iou_weight = iou_weight
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4) as (x, y, stride_x, stride_y), predicted ``bboxes`` (A, 4) and
                logits ``scores`` (A, C).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,); ``masks``, (G, H, W) or of a mask class, put
                the centres at their centres of mass.
            gt_instances_ignore: Unused, as in RTMDet.
            kwargs: What other assigners use of an image; unused.
        """
        centers = None
        if "masks" in gt_instances and len(gt_instances) > 0:
            masks = gt_instances.masks
            if not isinstance(masks, Tensor):
                masks = masks.to_tensor(torch.float32, pred_instances.priors.device)
            centers = center_of_mass(masks).unsqueeze(0)
        batch = self.assign_batch(
            pred_instances.priors,
            GroundTruth.from_instances([gt_instances]),
            bboxes=get_box_tensor(pred_instances.bboxes).unsqueeze(0),
            scores=pred_instances.scores.unsqueeze(0),
            gt_centers=centers,
        )
        return batch.image(0, len(gt_instances))

    @torch.no_grad()
    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        bboxes: Tensor,
        scores: Tensor,
        gt_centers: Tensor | None = None,
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4) or (N, A, 4) as (x, y, stride_x, stride_y).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            bboxes: Predicted boxes (N, A, 4).
            scores: Logits (N, A, C).
            gt_centers: Centres (N, G, 2) of the objects as (x, y); None is those of their boxes.

        Raises:
            RuntimeError: An object's label is none of the C classes.
        """
        priors, bboxes, scores = full_precision(priors, *present_only(prior_valid, bboxes, scores))
        check_classes(ground_truth, scores.shape[2], "DynamicSoftLabelAssigner")
        shape = bboxes.shape[:2]
        nothing = BatchAssignResult.without_objects(ground_truth, shape[1], prior_valid)
        boxes, num_gts = ground_truth.boxes, ground_truth.valid.shape[1]
        if num_gts == 0 or shape[1] == 0:
            return nothing
        centers = (boxes[..., :2] + boxes[..., 2:]) * 0.5 if gt_centers is None else gt_centers
        points = (priors if priors.dim() == 3 else priors.unsqueeze(0)).transpose(1, 2).contiguous()
        x, y, stride = points[:, :3].unsqueeze(2).unbind(1)  # (N, 1, A)

        inside_any = torch.zeros(shape, dtype=torch.bool, device=bboxes.device)
        for some in chunk_slices(num_gts, shape.numel(), bboxes.device, least=1):
            inside = inside_boxes(x, y, boxes[:, some].unsqueeze(2)) & ground_truth.valid[:, some].unsqueeze(2)
            inside_any = inside_any | inside.any(dim=1)
        logits = scores.transpose(1, 2).contiguous()  # (N, C, A)
        prob, as_negative = logits.sigmoid(), F.softplus(logits)
        against_zero = as_negative * prob.square()
        as_background = against_zero.sum(dim=1, keepdim=True)
        by_coordinate = bboxes.transpose(1, 2).contiguous().transpose(1, 2)

        def pairs(some: slice) -> tuple[Tensor, Tensor]:
            (iou,) = full_precision(self.iou_calculator(boxes[:, some], by_coordinate))
            labels = ground_truth.labels[:, some]
            # Only the object's own class has a target other than 0.
            own = of_class(as_negative, labels).sub_(of_class(logits, labels).mul_(iou))
            own.mul_((iou - of_class(prob, labels)).square_())
            cost = own.add_(as_background).sub_(of_class(against_zero, labels))
            cost = cost.sub_((iou + EPS).log_().mul_(self.iou_weight))
            center = centers[:, some].unsqueeze(2)
            squared = (x - center[..., 0]).square_().add_((y - center[..., 1]).square_())
            distance = squared.sqrt_().div_(stride).sub_(self.soft_center_radius)
            # Far from the centre the power overflows; such a prior is still cheaper than one that takes no part.
            return cost.add_(distance.mul_(LOG_10).exp_()).clamp_(max=torch.finfo(cost.dtype).max), iou

        allowed = inside_any & (nothing.gt_inds == BACKGROUND)
        chosen = match_dynamic_k(pairs, allowed, ground_truth.valid, self.topk)
        gt_inds = torch.where(chosen.gt_inds > 0, chosen.gt_inds, nothing.gt_inds)
        max_overlaps = torch.where(allowed.any(dim=1, keepdim=True), chosen.value.clamp(min=NO_OVERLAP), 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))
