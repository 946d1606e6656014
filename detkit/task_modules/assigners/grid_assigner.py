"""Assignment among the priors of the cell that holds an object's centre (YOLOv3, https://arxiv.org/abs/1804.02767)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.overlap_rules import EXCLUDED, KEPT_ELEMENTS

__all__ = ["GridAssigner"]

# Some priors: which, their highest overlap (N, a) with any object, and overlaps (N, G, a) where they may match.
Chunk = tuple[slice, Tensor, Tensor]


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
        numbers = all(isinstance(limit, Real) for limit in interval)
        if not numbers or len(interval) != 2 or not interval[0] <= interval[1]:
            raise ValueError(f"GridAssigner: neg_iou_thr must be a number or an interval (lo, hi), got {neg_iou_thr!r}")
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
        batch = self.assign_batch(get_box_tensor(pred_instances.priors), ground_truth, responsible_flags=flags)
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
        num_gts = ground_truth.valid.shape[1]
        if num_gts == 0 or empty.numel() == 0:
            return BatchAssignResult(empty, torch.zeros_like(empty, dtype=torch.float32), torch.full_like(empty, -1))
        allowed = responsible & taking_part
        few = empty.numel() * num_gts <= KEPT_ELEMENTS
        chunks: Iterable[Chunk] = self._chunks(priors, ground_truth, allowed)
        chunks = list(chunks) if few else chunks
        any_overlap, max_overlaps, argmax, gt_max, gt_argmax = _reduce(chunks, allowed, num_gts)

        low, high = self.negative_interval
        gt_inds = torch.where((any_overlap > low) & (any_overlap <= high), BACKGROUND, IGNORED)
        gt_inds = torch.where(responsible & (max_overlaps > self.pos_iou_thr), argmax + 1, gt_inds)
        may_match = ground_truth.valid & (gt_max > max(self.min_pos_iou, EXCLUDED))
        if self.gt_max_assign_all:
            chunks = chunks if few else self._chunks(priors, ground_truth, allowed)
            last = _last_at_highest(chunks, torch.where(may_match, gt_max, torch.inf), empty)
        else:
            number = torch.where(may_match, torch.arange(1, num_gts + 1, device=priors.device), 0)
            last = torch.zeros_like(empty).scatter_reduce(1, gt_argmax, number, "amax")
        gt_inds = torch.where(last > 0, last, gt_inds)
        gt_inds = torch.where(taking_part, gt_inds, IGNORED)

        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        gt_inds = torch.where(has_objects, gt_inds, empty)
        max_overlaps = torch.where(has_objects, max_overlaps, 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))

    def _chunks(self, priors: Tensor, ground_truth: GroundTruth, allowed: Tensor) -> Iterator[Chunk]:
        """The overlaps of some priors at a time, excluded for padding and for priors that are not allowed (N, A)."""
        priors = priors if priors.dim() == 3 else priors.unsqueeze(0)
        by_coordinate, padded = priors.transpose(1, 2).contiguous(), ~ground_truth.valid.unsqueeze(2)
        for piece in chunk_slices(allowed.shape[1], ground_truth.valid.numel(), priors.device):
            overlaps = self.iou_calculator(ground_truth.boxes, by_coordinate[..., piece].transpose(1, 2))
            overlaps = overlaps.masked_fill_(padded, EXCLUDED)
            highest = overlaps.amax(dim=1)
            yield piece, highest, overlaps.masked_fill_(~allowed[:, piece].unsqueeze(1), EXCLUDED)


def _reduce(chunks: Iterable[Chunk], allowed: Tensor, num_gts: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the rules need of the overlaps.

    Returns:
        Highest overlap of each prior, and if it is allowed, highest overlap and object, (N, A) each; highest overlap
        of each object with an allowed prior, and the first such prior, (N, G) each.
    """
    # Written into: results of their own would lie between the pieces and keep memory from being used again.
    any_overlap = torch.empty(allowed.shape, device=allowed.device)
    best, index = torch.empty_like(any_overlap), torch.empty_like(any_overlap, dtype=torch.int64)
    gt_best = any_overlap.new_full((len(allowed), num_gts), -torch.inf)
    gt_index = torch.zeros_like(gt_best, dtype=torch.int64)
    for piece, highest, overlaps in chunks:
        any_overlap[:, piece] = highest
        best[:, piece], index[:, piece] = overlaps.max(dim=1)
        value, place = overlaps.max(dim=2)
        # Strictly greater: of equal priors the first counts, as in one piece.
        gt_index = torch.where(value > gt_best, place + piece.start, gt_index)
        gt_best = torch.maximum(value, gt_best)
    return any_overlap, best, index, gt_best, gt_index


def _last_at_highest(chunks: Iterable[Chunk], highest: Tensor, empty: Tensor) -> Tensor:
    """Number (N, A), from 1, of the last object whose overlap is its ``highest`` (N, G); 0 for none."""
    number = torch.arange(1, highest.shape[1] + 1, device=highest.device, dtype=torch.int32).view(1, -1, 1)
    last = torch.zeros_like(empty)
    for piece, _, overlaps in chunks:
        last[:, piece] = ((overlaps == highest.unsqueeze(2)) * number).amax(dim=1)
    return last
