"""Assignment by highest IoU (Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult

__all__ = ["MaxIoUAssigner"]

# Overlap of a pair that must not match: a padded object, an invalid prior, a prior in an ignored region.
EXCLUDED = -1.0
# Values per chunk of the (N, G, A) overlaps; at 4 bytes and about four temporaries, 256 MiB.
CHUNK_ELEMENTS = 1 << 24


@TASK_UTILS.register_module()
class MaxIoUAssigner:
    """Each prior learns the object it overlaps most.

    1. A prior whose highest IoU is below ``neg_iou_thr`` (or inside ``[lo, hi)``) is background.
    2. One whose highest IoU is at least ``pos_iou_thr`` learns that object.
    3. With ``match_low_quality``, each object also takes the priors it overlaps most, if by at least
        ``min_pos_iou``; of several objects the last wins.
    4. All others are ignored, and so are priors inside an ignored region.

    Args:
        pos_iou_thr: Least IoU of a positive.
        neg_iou_thr: IoU below which a prior is background, or the interval in which it is.
        min_pos_iou: Least IoU of a match by rule 3.
        gt_max_assign_all: Whether rule 3 takes all priors of equal highest IoU or only the first.
        ignore_iof_thr: Overlap with an ignored region above which a prior is ignored; off where <= 0.
        ignore_wrt_candidates: Whether that overlap is over the prior's area or the region's.
        match_low_quality: Whether rule 3 applies.
        gpu_assign_thr: Accepted for MMDetection's configs; large products run in chunks on their device.
        iou_calculator: Registered IoU calculator.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | Sequence[float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        match_low_quality: bool = True,
        gpu_assign_thr: float = -1,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        interval = neg_iou_thr if isinstance(neg_iou_thr, Sequence) else (0.0, neg_iou_thr)
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= pos_iou_thr:
            raise ValueError(
                f"MaxIoUAssigner: neg_iou_thr must be a number or an interval within [0, pos_iou_thr={pos_iou_thr}], "
                f"got {neg_iou_thr}"
            )
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.negative_interval = (float(interval[0]), float(interval[1]))
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.match_low_quality = match_low_quality
        self.gpu_assign_thr = gpu_assign_thr
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
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: With ``bboxes`` (I, 4).
            kwargs: What other assigners use of an image; unused.
        """
        ground_truth = GroundTruth.from_instances([gt_instances], [gt_instances_ignore])
        return self.assign_batch(pred_instances.priors, ground_truth).image(0, len(gt_instances))

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
        """
        batch_size, num_gts = ground_truth.valid.shape
        shape = (batch_size, len(priors))
        taking_part = priors.new_ones(shape, dtype=torch.bool) if prior_valid is None else prior_valid
        if num_gts == 0 or len(priors) == 0:
            gt_inds = torch.where(taking_part, BACKGROUND, IGNORED)
            return BatchAssignResult(gt_inds, priors.new_zeros(shape), torch.full_like(gt_inds, -1))

        max_overlaps, argmax, gt_max, gt_argmax = self._reduce(priors, ground_truth, taking_part)
        gt_inds = torch.full_like(argmax, IGNORED)
        low, high = self.negative_interval
        gt_inds = torch.where((max_overlaps >= low) & (max_overlaps < high), BACKGROUND, gt_inds)
        gt_inds = torch.where(max_overlaps >= self.pos_iou_thr, argmax + 1, gt_inds)
        if self.match_low_quality:
            gt_inds = self._match_low_quality(gt_inds, gt_max, gt_argmax, priors, ground_truth, taking_part)

        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        empty = torch.where(taking_part, BACKGROUND, IGNORED)
        gt_inds = torch.where(has_objects, gt_inds, empty)
        max_overlaps = torch.where(has_objects, max_overlaps, 0.0)
        labels = ground_truth.labels.gather(1, (gt_inds - 1).clamp(min=0))
        return BatchAssignResult(gt_inds, max_overlaps, torch.where(gt_inds > 0, labels, -1))

    def _reduce(
        self, priors: Tensor, ground_truth: GroundTruth, taking_part: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best overlap and object of each prior (N, A), and best overlap and prior of each object (N, G)."""
        best, best_index = [], []
        gt_max: Tensor | None = None
        gt_argmax: Tensor | None = None
        for start, overlaps in self._chunks(priors, ground_truth, taking_part):
            value, index = overlaps.max(dim=1)
            best.append(value)
            best_index.append(index)
            value, index = overlaps.max(dim=2)
            index = index + start
            if gt_max is None or gt_argmax is None:
                gt_max, gt_argmax = value, index
            else:
                # Strictly greater: of equal priors the first counts, as in one piece.
                gt_argmax = torch.where(value > gt_max, index, gt_argmax)
                gt_max = torch.maximum(value, gt_max)
        assert gt_max is not None
        assert gt_argmax is not None
        return torch.cat(best, dim=1), torch.cat(best_index, dim=1), gt_max, gt_argmax

    def _match_low_quality(
        self,
        gt_inds: Tensor,
        gt_max: Tensor,
        gt_argmax: Tensor,
        priors: Tensor,
        ground_truth: GroundTruth,
        taking_part: Tensor,
    ) -> Tensor:
        """Rule 3, over the assignment (N, A) so far."""
        may_match = ((gt_max >= self.min_pos_iou) & ground_truth.valid).unsqueeze(-1)
        number = torch.arange(1, gt_max.shape[1] + 1, device=gt_inds.device).view(1, -1, 1)
        claims = []
        for start, overlaps in self._chunks(priors, ground_truth, taking_part):
            if self.gt_max_assign_all:
                claimed = overlaps == gt_max.unsqueeze(-1)
            else:
                position = torch.arange(start, start + overlaps.shape[2], device=gt_inds.device)
                claimed = position == gt_argmax.unsqueeze(-1)
            claims.append(torch.where(claimed & may_match, number, 0).amax(dim=1))
        last = torch.cat(claims, dim=1)
        return torch.where(last > 0, last, gt_inds)

    def _chunks(self, priors: Tensor, ground_truth: GroundTruth, taking_part: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Overlaps (N, G, a) of the objects with a priors at a time, and the index of the first of these."""
        batch_size, num_gts = ground_truth.valid.shape
        size = max(1, CHUNK_ELEMENTS // (batch_size * num_gts))
        for start in range(0, len(priors), size):
            chunk = priors[start : start + size]
            overlaps = self.iou_calculator(ground_truth.boxes, chunk.unsqueeze(0))
            allowed = taking_part[:, start : start + size]
            if self.ignore_iof_thr > 0 and ground_truth.ignored_boxes.shape[1] > 0:
                allowed = allowed & ~self._in_ignored_region(chunk, ground_truth)
            pairs = allowed.unsqueeze(1) & ground_truth.valid.unsqueeze(2)
            yield start, torch.where(pairs, overlaps, EXCLUDED)

    def _in_ignored_region(self, priors: Tensor, ground_truth: GroundTruth) -> Tensor:
        """Which priors (N, a) lie in an ignored region."""
        regions = ground_truth.ignored_boxes
        if self.ignore_wrt_candidates:
            overlaps = self.iou_calculator(priors.unsqueeze(0), regions, mode="iof").transpose(1, 2)
        else:
            overlaps = self.iou_calculator(regions, priors.unsqueeze(0), mode="iof")
        overlaps = torch.where(ground_truth.ignored_valid.unsqueeze(-1), overlaps, EXCLUDED)
        return overlaps.amax(dim=1) > self.ignore_iof_thr
