"""Several objects for each proposal, in crowds (CrowdDet, https://arxiv.org/abs/2003.09163, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.first_highest import first_highest
from detkit.task_modules.assigners.overlap_rules import EXCLUDED, negative_interval

__all__ = ["MultiInstanceAssigner"]

FOREGROUND = 1


@TASK_UTILS.register_module()
class MultiInstanceAssigner:
    """Each proposal gets the ``num_instance`` objects it overlaps most; the boxes themselves are proposals too.

    1. The k-th object of a proposal is the one of k-th highest IoU.
    2. Where that IoU is below ``pos_iou_thr``, and the k-th highest share of the proposal inside an ignored region
       is higher, that region takes its place.
    3. An object overlapped by at least ``pos_iou_thr`` is foreground, label 1; what is overlapped by less than
       ``neg_iou_thr`` is background, label 0. Between the two, an object of class c has label c + 1.
       A region overlapped by at least ``neg_iou_thr`` has label -1: ignored.

    Args:
        num_instance: Objects of a proposal.
        pos_iou_thr: Least IoU of a positive.
        neg_iou_thr: IoU below which an object is background, or the interval in which it is.
        min_pos_iou: Unused, like the five that follow: MMDetection's configs state them.
        gt_max_assign_all: Unused.
        ignore_iof_thr: Unused.
        ignore_wrt_candidates: Unused.
        match_low_quality: Unused.
        gpu_assign_thr: Unused.
        iou_calculator: Registered IoU calculator.
    """

    prior_kind = "proposals, several objects to each"

    def __init__(
        self,
        num_instance: int = 2,
        *,
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
        if num_instance < 1:
            raise ValueError(f"MultiInstanceAssigner: num_instance must be at least 1, got {num_instance}")
        self.num_instance = num_instance
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.negative_interval = negative_interval("MultiInstanceAssigner", neg_iou_thr, pos_iou_thr)
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the proposals of one image.

        Args:
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: With ``bboxes`` (I, 4).
            kwargs: What other assigners use of an image; unused.

        Returns:
            The assignment of A + G + I proposals (K = ``num_instance``): ``gt_inds`` (A + G + I, K) from 0,
            counting objects and then ignored regions; ``max_overlaps`` and ``labels`` of the same shape. Without
            any box it is empty, as in MMDetection, whose sampler then takes nothing from the image.
        """
        ground_truth = GroundTruth.from_instances([gt_instances], [gt_instances_ignore])
        num_boxes = ground_truth.valid.shape[1] + ground_truth.ignored_valid.shape[1]
        batch = self.assign_batch(get_box_tensor(pred_instances.priors), ground_truth)
        result = batch.image(0, num_boxes)
        if num_boxes == 0:
            assert result.max_overlaps is not None
            return AssignResult(0, result.gt_inds[:0], result.max_overlaps[:0], result.labels[:0])
        return result

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the proposals of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images, padded to G, and regions, padded to I.
            prior_valid: (N, A) bool, which proposals take part; None is all. The others have label -1.

        Returns:
            The assignment of A + G + I proposals to K = ``num_instance`` objects each, all (N, A + G + I, K):
            ``gt_inds`` from 0, counting the G objects and then the I regions, padding included; ``labels`` 1, 0
            and -1 by rule 3, and -1 for padding.
        """
        boxes, valid, labels = self._columns(ground_truth)
        own = torch.cat([ground_truth.boxes, ground_truth.ignored_boxes], dim=1)
        present = torch.cat([ground_truth.valid, ground_truth.ignored_valid], dim=1)
        priors = priors.to(own.dtype).expand(len(own), *priors.shape[-2:])
        taking_part = present.new_ones(priors.shape[:2]) if prior_valid is None else prior_valid
        proposals, present = torch.cat([priors, own], dim=1), torch.cat([taking_part, present], dim=1)
        index = torch.zeros(*present.shape, self.num_instance, dtype=torch.int64, device=own.device)
        overlaps, own_labels = torch.zeros_like(index, dtype=own.dtype), torch.zeros_like(index)
        for piece in chunk_slices(proposals.shape[1], valid.numel(), own.device):
            some = self._assign_some(proposals[:, piece], boxes, valid, labels)
            index[:, piece], overlaps[:, piece], own_labels[:, piece] = some
        return BatchAssignResult(index, overlaps, torch.where(present.unsqueeze(2), own_labels, IGNORED))

    def _columns(self, ground_truth: GroundTruth) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, M, 4), which there are (N, M) and labels (N, M), of objects and regions, at least K of them."""
        boxes = torch.cat([ground_truth.boxes, ground_truth.ignored_boxes], dim=1)
        valid = torch.cat([ground_truth.valid, ground_truth.ignored_valid], dim=1)
        regions = torch.full_like(ground_truth.ignored_valid, IGNORED, dtype=torch.int64)
        labels = torch.where(valid, torch.cat([ground_truth.labels + 1, regions], dim=1), BACKGROUND)
        # An image may have fewer boxes than a proposal is to get; those that are missing overlap nothing.
        missing = max(0, self.num_instance - boxes.shape[1])
        return F.pad(boxes, (0, 0, 0, missing)), F.pad(valid, (0, missing)), F.pad(labels, (0, missing))

    def _assign_some(
        self, proposals: Tensor, boxes: Tensor, valid: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, overlaps and labels (N, R, K) of proposals (N, R, 4) and the boxes of :meth:`_columns`."""
        is_region, exists = (labels == IGNORED).unsqueeze(1), valid.unsqueeze(1)
        overlaps = self.iou_calculator(proposals, boxes).masked_fill(is_region, 0).masked_fill(~exists, EXCLUDED)
        inside = self.iou_calculator(proposals, boxes, mode="iof")
        inside = inside.masked_fill(~is_region, 0).masked_fill(~exists, EXCLUDED)
        best, index = first_highest(overlaps, self.num_instance)
        region_best, region_index = first_highest(inside, self.num_instance)
        replaced = (best < self.pos_iou_thr) & (region_best > best)
        best, index = torch.where(replaced, region_best, best), torch.where(replaced, region_index, index)
        found = labels.unsqueeze(1).expand(-1, proposals.shape[1], -1).gather(2, index)
        index, best = torch.where(best < 0, 0, index), best.clamp(min=0)
        low, high = self.negative_interval
        found = torch.where((best >= self.pos_iou_thr) & (found != IGNORED), FOREGROUND, found)
        found = torch.where((best >= low) & (best < high), BACKGROUND, found)
        return index, best, found
