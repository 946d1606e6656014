"""Assignment among the priors of the cell that holds an object's centre (YOLOv3, https://arxiv.org/abs/1804.02767)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.overlap_rules import EXCLUDED

__all__ = ["GridAssigner"]


@TASK_UTILS.register_module()
class GridAssigner:
    """Only priors of a responsible cell, one that holds the centre of an object, may learn an object.

    1. A prior whose highest IoU with any object is at most ``neg_iou_thr`` (or inside ``(lo, hi]``) is background.
    2. A responsible prior whose highest IoU is above ``pos_iou_thr`` learns that object.
    3. Each object takes the responsible priors that it overlaps most, if by more than ``min_pos_iou``; of several
       objects the last wins.
    4. All others are ignored.

    Ignored regions do not count.

    Args:
        pos_iou_thr: IoU above which a responsible prior is positive.
        neg_iou_thr: IoU up to which a prior is background, or the interval in which it is.
        min_pos_iou: IoU above which a match by rule 3 must be.
        gt_max_assign_all: Whether rule 3 takes all priors of equal highest IoU or only the first.
        iou_calculator: Registered IoU calculator.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | Sequence[float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        interval = tuple(neg_iou_thr) if isinstance(neg_iou_thr, Sequence) else (-torch.inf, neg_iou_thr)
        if len(interval) != 2 or not interval[0] <= interval[1]:
            raise ValueError(f"GridAssigner: neg_iou_thr must be a number or an interval (lo, hi), got {neg_iou_thr}")
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.negative_interval = interval
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
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
            pred_instances: With ``priors`` (A, 4) and ``responsible_flags`` (A,), whether the prior's cell holds
                the centre of an object.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused.
            kwargs: What other assigners use of an image; unused.
        """
        ground_truth = GroundTruth.from_instances([gt_instances])
        flags = pred_instances.responsible_flags.unsqueeze(0)
        batch = self.assign_batch(pred_instances.priors, ground_truth, responsible_flags=flags)
        return batch.image(0, len(gt_instances))

    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        responsible_flags: Tensor,
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            responsible_flags: (N, A), whether the prior's cell holds the centre of an object.

        Returns:
            The assignment; ``max_overlaps`` are those of responsible priors, -1 for the others.
        """
        responsible = responsible_flags.bool()
        taking_part = torch.ones_like(responsible) if prior_valid is None else prior_valid
        empty = torch.where(taking_part, BACKGROUND, IGNORED)
        batch_size, num_gts = ground_truth.valid.shape
        if num_gts == 0 or empty.numel() == 0:
            return BatchAssignResult(empty, torch.zeros_like(empty, dtype=torch.float32), torch.full_like(empty, -1))
        priors = priors.expand(batch_size, *priors.shape[-2:])
        found = [
            (overlaps.amax(dim=1), *_exclude(overlaps, responsible[:, piece] & taking_part[:, piece]).max(dim=1))
            for piece, overlaps in self._chunks(priors, ground_truth)
        ]
        any_overlap, max_overlaps, argmax = (torch.cat(column, dim=1) for column in zip(*found, strict=True))

        low, high = self.negative_interval
        gt_inds = torch.where((any_overlap > low) & (any_overlap <= high), BACKGROUND, IGNORED)
        gt_inds = torch.where(responsible & (max_overlaps > self.pos_iou_thr), argmax + 1, gt_inds)
        last = self._last_at_highest(priors, ground_truth, responsible & taking_part)
        gt_inds = torch.where(last > 0, last, gt_inds)
        gt_inds = torch.where(taking_part, gt_inds, IGNORED)

        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        gt_inds = torch.where(has_objects, gt_inds, empty)
        max_overlaps = torch.where(has_objects, max_overlaps, 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))

    def _chunks(self, priors: Tensor, ground_truth: GroundTruth) -> Iterator[tuple[slice, Tensor]]:
        """Overlaps (N, G, a) of the objects with some priors at a time, padded ones excluded."""
        for piece in chunk_slices(priors.shape[1], ground_truth.valid.numel(), priors.device):
            overlaps = self.iou_calculator(ground_truth.boxes, priors[:, piece])
            yield piece, overlaps.masked_fill(~ground_truth.valid.unsqueeze(2), EXCLUDED)

    def _last_at_highest(self, priors: Tensor, ground_truth: GroundTruth, allowed: Tensor) -> Tensor:
        """Number (N, A), from 1, of the last object that overlaps no allowed prior more than this one; 0 for none."""
        highest = priors.new_full(ground_truth.valid.shape, EXCLUDED)
        first = torch.zeros_like(highest, dtype=torch.int64)
        for piece, overlaps in self._chunks(priors, ground_truth):
            value, index = _exclude(overlaps, allowed[:, piece]).max(dim=2)
            # Strictly greater: of equal priors the first counts, as in one piece.
            first = torch.where(value > highest, index + piece.start, first)
            highest = torch.maximum(highest, value)
        may_match = ground_truth.valid & (highest > max(self.min_pos_iou, EXCLUDED))
        number = torch.where(may_match, torch.arange(1, may_match.shape[1] + 1, device=priors.device), 0)
        if not self.gt_max_assign_all:
            return torch.zeros_like(allowed, dtype=torch.int64).scatter_reduce(1, first, number, "amax")
        claims = [
            ((overlaps == highest.unsqueeze(2)) * number.unsqueeze(2)).amax(dim=1)
            for _, overlaps in self._chunks(priors, ground_truth)
        ]
        return torch.where(allowed, torch.cat(claims, dim=1), 0)


def _exclude(overlaps: Tensor, allowed: Tensor) -> Tensor:
    """The overlaps (N, G, a), excluded where the prior is not allowed (N, a)."""
    return overlaps.masked_fill(~allowed.unsqueeze(1), EXCLUDED)
