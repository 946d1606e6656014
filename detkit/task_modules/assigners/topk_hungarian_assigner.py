"""One-to-many assignment of least total cost (DDQ, https://arxiv.org/abs/2303.12776, auxiliary dense head)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.match_problem import MatchProblem

__all__ = ["TopkHungarianAssigner"]


@TASK_UTILS.register_module()
class TopkHungarianAssigner:
    """Each object gets ``topk`` predictions of its own, so that the sum of the match costs is least.

    Where the predictions do not suffice, each object gets as many as divide evenly, and at least one.
    A positive's ``assign_metrics`` is ``score^alpha * IoU^beta`` with its object. Ignored regions do not count.

    Args:
        topk: Most predictions of an object.
        iou_calculator: Registered IoU calculator, for overlaps and metrics.
        cls_cost: Registered match cost of the scores; None is the focal one of weight 2.
        reg_cost: That of the boxes' distance; None is L1 of weight 5.
        iou_cost: That of the boxes' overlap; None is GIoU of weight 2.
    """

    def __init__(
        self,
        topk: int,
        iou_calculator: Mapping[str, Any] | None = None,
        *,
        cls_cost: Mapping[str, Any] | None = None,
        reg_cost: Mapping[str, Any] | None = None,
        iou_cost: Mapping[str, Any] | None = None,
    ) -> None:
        if topk < 1:
            raise ValueError(f"TopkHungarianAssigner: topk must be at least 1, got {topk}")
        self.topk = topk
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})
        self.cls_cost = TASK_UTILS.build(cls_cost or {"type": "FocalLossCost", "weight": 2.0})
        self.reg_cost = TASK_UTILS.build(reg_cost or {"type": "BBoxL1Cost", "weight": 5.0})
        self.iou_cost = TASK_UTILS.build(iou_cost or {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0})

    def assign(
        self,
        pred_scores: Tensor,
        decode_bboxes: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        img_meta: Mapping[str, Any],
        alpha: float = 1,
        beta: float = 6,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the predictions of one image.

        Args:
            pred_scores: (A, C).
            decode_bboxes: (A, 4).
            gt_bboxes: (G, 4).
            gt_labels: (G,).
            img_meta: Facts of the image, with ``img_shape``.
            alpha: Exponent of the score in the metric.
            beta: Exponent of the IoU in the metric.
            kwargs: What other assigners use of an image; unused.

        Returns:
            The assignment; ``max_overlaps`` and ``assign_metrics`` are those of the positives alone, in the order
            of the predictions, and absent without objects.
        """
        batch = self.assign_batch(
            None,
            GroundTruth.from_instances([InstanceData(bboxes=gt_bboxes, labels=gt_labels)]),
            scores=pred_scores.unsqueeze(0),
            bboxes=decode_bboxes.unsqueeze(0),
            img_metas=[img_meta],
            alpha=alpha,
            beta=beta,
        )
        result = batch.image(0, len(gt_bboxes))
        if len(gt_bboxes) == 0:
            result.max_overlaps = result.assign_metrics = None
            return result
        positive = result.gt_inds > 0
        assert result.max_overlaps is not None
        assert result.assign_metrics is not None
        result.max_overlaps, result.assign_metrics = result.max_overlaps[positive], result.assign_metrics[positive]
        return result

    @torch.no_grad()
    def assign_batch(
        self,
        priors: Tensor | None,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        scores: Tensor,
        bboxes: Tensor,
        img_metas: Sequence[Mapping[str, Any]],
        alpha: float = 1,
        beta: float = 6,
    ) -> BatchAssignResult:
        """Assign the predictions of N images; see :func:`match` for the one wait of the host.

        Args:
            priors: Unused; predictions are compared.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which predictions take part; None is all. The others are ignored.
            scores: (N, A, C).
            bboxes: (N, A, 4).
            img_metas: Facts of the N images, with ``img_shape``; errors name an image by ``img_path`` or ``img_id``.
            alpha: Exponent of the score in the metric.
            beta: Exponent of the IoU in the metric.

        Returns:
            The assignment; ``max_overlaps`` is the IoU with the own object, ``metrics`` the metric, 0 elsewhere.

        Raises:
            ValueError: No assignment has a finite cost; names image, prediction and object.
        """
        taking_part = ground_truth.valid.new_ones(scores.shape[:2]) if prior_valid is None else prior_valid
        predictions = {"scores": scores, "bboxes": bboxes}
        objects = {"bboxes": ground_truth.boxes, "labels": ground_truth.labels}
        costs = [("cls_cost", self.cls_cost), ("reg_cost", self.reg_cost), ("iou_cost", self.iou_cost)]
        problem = MatchProblem("TopkHungarianAssigner", costs, predictions, objects, img_metas)
        gt_inds = problem.solve(ground_truth.valid, taking_part, self.topk)
        labels = ground_truth.labels_at(gt_inds)
        scores, bboxes = full_precision(scores, bboxes)
        positive = gt_inds > 0
        own_boxes, _ = ground_truth.matched(gt_inds, bboxes)
        overlaps = torch.where(positive, self.iou_calculator(bboxes, own_boxes, is_aligned=True), 0.0)
        own_scores = scores.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
        metrics = torch.where(positive, own_scores**alpha * overlaps**beta, 0.0)
        return BatchAssignResult(gt_inds, overlaps, labels, metrics)
