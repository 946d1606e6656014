"""Adaptive training sample selection (ATSS, https://arxiv.org/abs/1912.02424, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_xyxy_to_cxcywh, get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import (
    CENTER_MARGIN,
    NO_OVERLAP,
    at_candidates,
    check_classes,
    chosen_by_best,
    inside_boxes,
    present_only,
)
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.ignored_regions import in_ignored_region

__all__ = ["ATSSAssigner"]

# Squared distance of a prior in an ignored region: beyond any other, and still a candidate where a level has no others.
FAR = 1e16


@TASK_UTILS.register_module()
class ATSSAssigner:
    """Each object takes the near priors that overlap it more than is usual among its near ones.

    1. Of each level, the ``topk`` priors whose centres are nearest to the object's are its candidates.
    2. The object's threshold is the mean of its candidates' overlaps plus their standard deviation.
    3. Candidates of at least that overlap, with their centre inside the object, are positive.
    4. A prior that several objects take goes to the one it overlaps most. All others are background, or ignored
        where they lie in an ignored region. Such a region moves candidates elsewhere, and so may make other priors
        positive.

    Args:
        topk: Candidates of each level.
        alpha: None measures overlap by IoU. A number in [0, 1] measures it by
            ``score ** (1 - alpha) * IoU(predicted box) ** alpha`` (DDOD, https://arxiv.org/abs/2107.02963, eq. 2).
        iou_calculator: Registered IoU calculator.
        ignore_iof_thr: Overlap with an ignored region, over the prior's area, above which a prior is ignored;
            off where <= 0.
    """

    # What it calls scores: logits, where other assigners take probabilities.
    takes_logits = True

    def __init__(
        self,
        topk: int,
        alpha: float | None = None,
        iou_calculator: Mapping[str, Any] | None = None,
        ignore_iof_thr: float = -1,
    ) -> None:
        if topk < 1:
            raise ValueError(f"ATSSAssigner: topk must be at least 1, got {topk}")
        self.topk = topk
        self.alpha = alpha
        self.also_needs = () if alpha is None else ("bboxes", "scores")
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})
        self.ignore_iof_thr = ignore_iof_thr

    def assign(
        self,
        pred_instances: InstanceData,
        num_level_priors: Sequence[int],
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4); with ``alpha`` also ``bboxes`` (A, 4) and logits ``scores`` (A, C).
            num_level_priors: Number of priors of each level.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: With ``bboxes`` (I, 4).
        """
        predictions = {
            name: get_box_tensor(pred_instances[name]).unsqueeze(0)
            for name in ("bboxes", "scores")
            if self.alpha is not None and name in pred_instances
        }
        batch = self.assign_batch(
            get_box_tensor(pred_instances.priors)[:, :4],
            GroundTruth.from_instances([gt_instances], [gt_instances_ignore]),
            num_level_priors=num_level_priors,
            **predictions,
        )
        return batch.image(0, len(gt_instances))

    @torch.no_grad()
    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        num_level_priors: Sequence[int],
        bboxes: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            num_level_priors: Number of priors of each level; their sum is A.
            bboxes: Predicted boxes (N, A, 4), with ``alpha``.
            scores: Logits (N, A, C), with ``alpha``.

        Raises:
            ValueError: Levels that do not add up to A, or ``alpha`` without predictions.
        """
        (priors,) = full_precision(priors)
        num_images, num_gts = ground_truth.valid.shape
        num_priors = priors.shape[-2]
        if sum(num_level_priors) != num_priors:
            raise ValueError(f"ATSSAssigner: levels of {list(num_level_priors)} priors do not add up to {num_priors}")
        if self.alpha is not None and (bboxes is None or scores is None):
            raise ValueError(f"ATSSAssigner: alpha={self.alpha} needs bboxes and scores of the predictions")
        if bboxes is not None and scores is not None:
            bboxes, scores = present_only(prior_valid, bboxes, scores)
        nothing = BatchAssignResult.without_objects(ground_truth, num_priors, prior_valid)
        if num_gts == 0 or num_priors == 0:
            return nothing

        ignored = in_ignored_region(priors, ground_truth, self.ignore_iof_thr, self.iou_calculator)
        index, distance = self._candidates(priors, ground_truth, prior_valid, ignored, num_level_priors)
        counted = distance.isfinite() & ground_truth.valid.unsqueeze(-1)
        per_image = (priors if priors.dim() == 3 else priors.unsqueeze(0)).expand(num_images, -1, -1)
        candidate_priors = at_candidates(per_image, index)  # (N, G, K, 4)
        overlaps = self._overlaps(candidate_priors, index, ground_truth, bboxes, scores)
        x, y, _, _ = bbox_xyxy_to_cxcywh(candidate_priors).unbind(-1)
        positive = counted & (overlaps >= _threshold(overlaps, counted))
        positive = positive & inside_boxes(x, y, ground_truth.boxes.unsqueeze(2), CENTER_MARGIN)
        chosen = chosen_by_best(index, positive, overlaps, num_priors)

        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        others = nothing.gt_inds if ignored is None else torch.where(ignored & has_objects, IGNORED, nothing.gt_inds)
        gt_inds = torch.where(chosen.gt_inds > 0, chosen.gt_inds, others)
        max_overlaps = torch.where(has_objects, chosen.value.clamp(min=NO_OVERLAP), 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))

    def _candidates(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None,
        ignored: Tensor | None,
        num_level_priors: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Rule 1: priors (N, G, K) near each object and their squared distance, infinite where they take no part."""
        num_images, num_gts = ground_truth.valid.shape
        prior_x, prior_y, _, _ = bbox_xyxy_to_cxcywh(priors if priors.dim() == 3 else priors.unsqueeze(0)).unbind(-1)
        prior_x, prior_y = prior_x.contiguous().unsqueeze(1), prior_y.contiguous().unsqueeze(1)  # (1 or N, 1, A)
        gt_x, gt_y, _, _ = bbox_xyxy_to_cxcywh(ground_truth.boxes).unsqueeze(2).unbind(-1)  # (N, G, 1)
        counts = [min(self.topk, count) for count in num_level_priors]
        # Written into: results of their own would lie between the pieces and keep memory from being used again.
        index = torch.empty(num_images, num_gts, sum(counts), dtype=torch.int64, device=priors.device)
        nearest = torch.empty_like(index, dtype=gt_x.dtype)
        for some in chunk_slices(num_gts, num_images * priors.shape[-2], priors.device, least=1):
            distance = (prior_x - gt_x[:, some]).square_().add_((prior_y - gt_y[:, some]).square_())
            if ignored is not None:
                distance.masked_fill_(ignored.unsqueeze(1), FAR)
            if prior_valid is not None:
                distance.masked_fill_(~prior_valid.unsqueeze(1), torch.inf)
            start = place = 0
            for level, count in zip(distance.split(list(num_level_priors), dim=2), counts, strict=True):
                own = slice(place, place + count)
                nearest[:, some, own], found = level.topk(count, dim=2, largest=False)
                index[:, some, own] = found + start
                start, place = start + level.shape[2], place + count
        return index, nearest

    def _overlaps(
        self,
        candidate_priors: Tensor,
        index: Tensor,
        ground_truth: GroundTruth,
        bboxes: Tensor | None,
        scores: Tensor | None,
    ) -> Tensor:
        """Overlap (N, G, K) of each object with its candidates."""
        boxes = ground_truth.boxes.unsqueeze(2)
        if self.alpha is None:
            return full_precision(self.iou_calculator(candidate_priors, boxes).squeeze(-1))[0]
        assert bboxes is not None
        assert scores is not None
        bboxes, scores = full_precision(bboxes, scores)
        check_classes(ground_truth, scores.shape[2], "ATSSAssigner")
        (iou,) = full_precision(self.iou_calculator(at_candidates(bboxes, index), boxes).squeeze(-1))
        # The one class of each object, where whole rows of candidates would be C times as much.
        place = index * scores.shape[2] + ground_truth.labels.unsqueeze(2)
        score = scores.flatten(1).gather(1, place.flatten(1)).view_as(iou).sigmoid()
        return score.pow(1 - self.alpha) * iou.pow(self.alpha)


def _threshold(overlaps: Tensor, counted: Tensor) -> Tensor:
    """Rule 2: mean plus standard deviation (N, G, 1) of the overlaps (N, G, K) that count."""
    count = counted.sum(dim=2, keepdim=True)
    mean = (overlaps * counted).sum(dim=2, keepdim=True) / count.clamp(min=1)
    variance = ((overlaps - mean).square() * counted).sum(dim=2, keepdim=True) / (count - 1).clamp(min=1)
    return mean + variance.sqrt()
