"""Simplified optimal transport assignment (YOLOX, https://arxiv.org/abs/2107.08430, 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import check_classes, inside_boxes, of_class, present_only
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.dynamic_k import match_dynamic_k

__all__ = ["SimOTAAssigner"]

# Added to the cost of a prior that is not both inside the object and near its centre; MMDetection's value, and
# with the other sign its overlap of a prior without object.
OUTSIDE_COST = 1e5
EPS = 1e-7
# Least logarithm of a probability, as in torch's binary cross entropy.
LEAST_LOG = -100.0


@TASK_UTILS.register_module()
class SimOTAAssigner:
    """Each object takes the priors whose predictions cost least to make its own.

    1. A prior takes part if it lies inside any object or within ``center_radius`` strides of any object's centre.
    2. Its cost for an object is ``cls_weight`` times the binary cross entropy of its scores, plus ``iou_weight``
        times ``-log IoU``, plus 1e5 unless it lies both inside that object and near its centre.
    3. Each object takes its cheapest priors, see :func:`match_dynamic_k`; all others are background.

    Args:
        center_radius: Half the side of the square around a centre, in strides of the prior.
        candidate_topk: Most priors per object.
        iou_weight: Weight of the box cost.
        cls_weight: Weight of the classification cost.
        iou_calculator: Registered IoU calculator.
    """

    prior_kind = "points with strides"

    def __init__(
        self,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        iou_weight: float = 3.0,
        cls_weight: float = 1.0,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if candidate_topk < 1:
            raise ValueError(f"SimOTAAssigner: candidate_topk must be at least 1, got {candidate_topk}")
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.iou_weight = iou_weight
        self.cls_weight = cls_weight
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
                ``scores`` (A, C), probabilities.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused, as in YOLOX.
            kwargs: What other assigners use of an image; unused.
        """
        batch = self.assign_batch(
            pred_instances.priors,
            GroundTruth.from_instances([gt_instances]),
            bboxes=get_box_tensor(pred_instances.bboxes).unsqueeze(0),
            scores=pred_instances.scores.unsqueeze(0),
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
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4) or (N, A, 4) as (x, y, stride_x, stride_y).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            bboxes: Predicted boxes (N, A, 4).
            scores: Probabilities (N, A, C).

        Raises:
            RuntimeError: Scores outside [0, 1], or an object's label none of the C classes.
        """
        priors, bboxes, scores = full_precision(priors, *present_only(prior_valid, bboxes, scores))
        check_classes(ground_truth, scores.shape[2], "SimOTAAssigner")
        if scores.device.type != "meta":
            in_range = ((scores >= 0) & (scores <= 1)).all()
            torch._assert_async(in_range, "SimOTAAssigner: scores must be probabilities in [0, 1], not logits or NaN")
        shape = bboxes.shape[:2]
        nothing = BatchAssignResult.without_objects(ground_truth, shape[1], prior_valid)
        if 0 in (ground_truth.valid.shape[1], shape[1]):
            return nothing

        points = (priors if priors.dim() == 3 else priors.unsqueeze(0)).transpose(1, 2).contiguous().unsqueeze(2)
        near_any = torch.zeros(shape, dtype=torch.bool, device=bboxes.device)
        for some in chunk_slices(ground_truth.valid.shape[1], shape.numel(), bboxes.device, least=1):
            inside, central = self._regions(points, ground_truth.boxes[:, some])
            near_any = near_any | ((inside | central) & ground_truth.valid[:, some].unsqueeze(2)).any(dim=1)
        negative_log = _log(1 - scores).neg_()  # (N, A, C)
        as_background = negative_log.sum(dim=2).unsqueeze(1)
        by_class, prob = negative_log.transpose(1, 2).contiguous(), scores.transpose(1, 2).contiguous()
        by_coordinate = bboxes.transpose(1, 2).contiguous().transpose(1, 2)

        def pairs(some: slice) -> tuple[Tensor, Tensor]:
            inside, central = self._regions(points, ground_truth.boxes[:, some])
            (iou,) = full_precision(self.iou_calculator(ground_truth.boxes[:, some], by_coordinate))
            labels = ground_truth.labels[:, some]
            # Cross entropy against a one-hot target: that of no class, and the difference that the one class makes.
            cls_cost = (as_background - of_class(by_class, labels)).sub_(_log(of_class(prob, labels)))
            cost = cls_cost.mul_(self.cls_weight).sub_((iou + EPS).log_().mul_(self.iou_weight))
            return cost.add_(~(inside & central) * OUTSIDE_COST), iou

        allowed = near_any & (nothing.gt_inds == BACKGROUND)
        chosen = match_dynamic_k(pairs, allowed, ground_truth.valid, self.candidate_topk)
        gt_inds = torch.where(chosen.gt_inds > 0, chosen.gt_inds, nothing.gt_inds)
        max_overlaps = torch.where(allowed.any(dim=1, keepdim=True), chosen.value.clamp(min=-OUTSIDE_COST), 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))

    def _regions(self, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Which points (N, 4, 1, A) lie inside boxes (N, g, 4), and which near their centres: (N, g, A) bool each."""
        x, y, stride_x, stride_y = points.unbind(1)  # (N, 1, A)
        inside = inside_boxes(x, y, boxes.unsqueeze(2))
        x1, y1, x2, y2 = boxes.unsqueeze(2).unbind(-1)
        from_center = torch.maximum(
            (x - (x1 + x2) * 0.5).abs_().sub_(self.center_radius * stride_x),
            (y - (y1 + y2) * 0.5).abs_().sub_(self.center_radius * stride_y),
        )
        return inside, from_center < 0


def _log(prob: Tensor) -> Tensor:
    return prob.log().clamp_(min=LEAST_LOG)
