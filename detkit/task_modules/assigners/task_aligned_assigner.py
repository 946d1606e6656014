"""Task-aligned assignment (TOOD, https://arxiv.org/abs/2108.07755, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_xyxy_to_cxcywh, get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import (
    CENTER_MARGIN,
    NO_OVERLAP,
    at_candidates,
    check_classes,
    chosen_by_best,
    inside_boxes,
    of_class,
    present_only,
)
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["TaskAlignedAssigner"]


@TASK_UTILS.register_module()
class TaskAlignedAssigner:
    """Each object takes the priors that already score and locate it best together.

    1. A prior's alignment with an object is ``score ** alpha * IoU ** beta`` (eq. 1), of its score for the object's
        class and its predicted box.
    2. Each object takes the ``topk`` priors of highest alignment, if it is above 0 and their centre lies inside.
    3. A prior that several objects take goes to the one its box overlaps most. All others are background.

    Args:
        topk: Most priors per object.
        iou_calculator: Registered IoU calculator.
    """

    def __init__(self, topk: int, iou_calculator: Mapping[str, Any] | None = None) -> None:
        if topk < 1:
            raise ValueError(f"TaskAlignedAssigner: topk must be at least 1, got {topk}")
        self.topk = topk
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        alpha: float = 1,
        beta: float = 6,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4), predicted ``bboxes`` (A, 4) and ``scores`` (A, C), probabilities.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused, as in TOOD.
            alpha: Exponent of the score.
            beta: Exponent of the IoU.
        """
        batch = self.assign_batch(
            get_box_tensor(pred_instances.priors),
            GroundTruth.from_instances([gt_instances]),
            bboxes=get_box_tensor(pred_instances.bboxes).unsqueeze(0),
            scores=pred_instances.scores.unsqueeze(0),
            alpha=alpha,
            beta=beta,
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
        alpha: float = 1,
        beta: float = 6,
    ) -> BatchAssignResult:
        """Assign the priors of N images; ``metrics`` of the result is their alignment, 0 where not positive.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            bboxes: Predicted boxes (N, A, 4).
            scores: Probabilities (N, A, C).
            alpha: Exponent of the score.
            beta: Exponent of the IoU.

        Raises:
            RuntimeError: An object's label is none of the C classes.
        """
        priors, bboxes, scores = full_precision(priors, *present_only(prior_valid, bboxes, scores))
        check_classes(ground_truth, scores.shape[2], "TaskAlignedAssigner")
        shape = bboxes.shape[:2]
        metrics = bboxes.new_zeros(shape)
        nothing = BatchAssignResult.without_objects(ground_truth, shape[1], prior_valid)._replace(metrics=metrics)
        boxes, num_gts = ground_truth.boxes, ground_truth.valid.shape[1]
        if num_gts == 0 or shape[1] == 0:
            return nothing

        taking_part = (nothing.gt_inds == BACKGROUND).unsqueeze(1)
        by_class = scores.transpose(1, 2).contiguous()  # (N, C, A)
        by_coordinate = bboxes.transpose(1, 2).contiguous().transpose(1, 2)
        k = min(self.topk, shape[1])
        # Written into: results of their own would lie between the pieces and keep memory from being used again.
        index = torch.empty(*ground_truth.valid.shape, k, dtype=torch.int64, device=bboxes.device)
        alignment, overlaps = bboxes.new_empty(index.shape), bboxes.new_empty(index.shape)
        for some in chunk_slices(num_gts, shape.numel(), bboxes.device, least=1):
            (iou,) = full_precision(self.iou_calculator(boxes[:, some], by_coordinate))
            score = of_class(by_class, ground_truth.labels[:, some])
            aligned = _power(score, alpha).mul(_power(iou, beta)).mul_(taking_part)
            alignment[:, some], index[:, some] = aligned.topk(k, dim=2)
            overlaps[:, some] = iou.gather(2, index[:, some])

        per_image = (priors if priors.dim() == 3 else priors.unsqueeze(0)).expand(len(bboxes), -1, -1)
        x, y, _, _ = bbox_xyxy_to_cxcywh(at_candidates(per_image[..., :4], index)).unbind(-1)
        positive = (alignment > 0) & inside_boxes(x, y, boxes.unsqueeze(2), CENTER_MARGIN)
        positive = positive & ground_truth.valid.unsqueeze(2)
        chosen = chosen_by_best(index, positive, overlaps, shape[1])
        gt_inds = torch.where(chosen.gt_inds > 0, chosen.gt_inds, nothing.gt_inds)

        flat = index.flatten(1)
        number = torch.arange(1, num_gts + 1, device=index.device).view(1, -1, 1)
        wins = positive & (chosen.gt_inds.gather(1, flat).view_as(index) == number)
        metrics = metrics.scatter_add(1, flat, torch.where(wins, alignment, 0.0).flatten(1))
        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        max_overlaps = torch.where(has_objects, chosen.value.clamp(min=NO_OVERLAP), 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds), metrics)


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``; a small whole exponent by products, ten times as fast and the same in every piece."""
    if exponent not in range(1, 9):
        return base.pow(exponent)
    result = base
    for bit in f"{int(exponent):b}"[1:]:
        result = result * result * base if bit == "1" else result * result
    return result
