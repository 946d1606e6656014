"""From overlaps of priors and objects to an assignment (Faster R-CNN, https://arxiv.org/abs/1506.01497, 3.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, BatchAssignResult

__all__ = ["EXCLUDED", "OverlapRules", "negative_interval"]

# Overlap of a pair that must not match: a padded object, an invalid prior, a prior in an ignored region.
EXCLUDED = -1.0
# Overlaps that are kept between the two readings; more are computed again. At 4 bytes, 256 MiB.
KEPT_ELEMENTS = 1 << 26


# A threshold that changes in training is a 0-d tensor, so that nothing waits for its value.
Threshold = float | Tensor


def negative_interval(
    name: str, neg_iou_thr: Threshold | Sequence[float], pos_iou_thr: Threshold
) -> tuple[float, Threshold]:
    """The interval of overlaps that makes a prior background, from a number or an interval.

    Raises:
        ValueError: It is not within [0, pos_iou_thr].
    """
    if isinstance(neg_iou_thr, Tensor):
        return 0.0, neg_iou_thr
    interval = neg_iou_thr if isinstance(neg_iou_thr, Sequence) else (0.0, neg_iou_thr)
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= pos_iou_thr:
        raise ValueError(
            f"{name}: neg_iou_thr must be a number or an interval within [0, pos_iou_thr={pos_iou_thr}], "
            f"got {neg_iou_thr}"
        )
    return float(interval[0]), float(interval[1])


@dataclass(frozen=True)
class OverlapRules:
    """The rules of :class:`MaxIoUAssigner`, over any overlaps.

    Attributes:
        pos_iou_thr: Least overlap of a positive.
        negative: Overlaps in [lo, hi) make a prior background.
        min_pos_iou: Least overlap of a match by rule 3.
        gt_max_assign_all: Whether rule 3 takes all priors of equal highest overlap or only the first.
        match_low_quality: Whether rule 3 applies.
        reassign_low_quality: Whether a prior matched by rule 3 learns that object, or the one it overlaps most.
    """

    pos_iou_thr: Threshold
    negative: tuple[float, Threshold]
    min_pos_iou: Threshold
    gt_max_assign_all: bool
    match_low_quality: bool
    reassign_low_quality: bool = True

    def assign(
        self, overlaps: Callable[[], Iterable[Tensor]], ground_truth: GroundTruth, taking_part: Tensor
    ) -> BatchAssignResult:
        """Assign the A priors of N images.

        Args:
            overlaps: Gives the overlaps (N, G, a) of the objects with the next a priors, until there are no more;
                ``EXCLUDED`` for what must not match. May be called twice.
            ground_truth: Objects of the N images.
            taking_part: (N, A) bool; the other priors are ignored.
        """
        num_gts = ground_truth.valid.shape[1]
        empty = torch.where(taking_part, BACKGROUND, IGNORED)
        if taking_part.numel() == 0 or num_gts == 0:
            return BatchAssignResult(empty, torch.zeros_like(empty, dtype=torch.float32), torch.full_like(empty, -1))
        few = taking_part.numel() * num_gts <= KEPT_ELEMENTS
        first = list(overlaps()) if few else overlaps()
        max_overlaps, argmax, gt_max, gt_argmax = self._reduce(first, taking_part.shape)
        gt_inds = torch.full_like(argmax, IGNORED)
        low, high = self.negative
        gt_inds = torch.where((max_overlaps >= low) & (max_overlaps < high), BACKGROUND, gt_inds)
        gt_inds = torch.where(max_overlaps >= self.pos_iou_thr, argmax + 1, gt_inds)
        if self.match_low_quality:
            may_match = (gt_max >= self.min_pos_iou) & ground_truth.valid
            if self.gt_max_assign_all:
                last = _last_at_highest(first if few else overlaps(), gt_max, may_match, taking_part.shape[1])
            else:
                last = _last_at_first_highest(gt_argmax, may_match, taking_part.shape[1])
            gt_inds = torch.where(last > 0, last if self.reassign_low_quality else argmax + 1, gt_inds)

        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        gt_inds = torch.where(has_objects, gt_inds, empty)
        max_overlaps = torch.where(has_objects, max_overlaps, 0.0)
        return BatchAssignResult(gt_inds, max_overlaps, ground_truth.labels_at(gt_inds))

    def _reduce(self, overlaps: Iterable[Tensor], shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best overlap and object of each prior (N, A); best overlap and its first prior of each object (N, G)."""
        start = 0
        for chunk in overlaps:
            stop = start + chunk.shape[2]
            if start == 0:
                # Written into: results of their own would lie between the pieces and keep memory from being used again.
                best, best_index = chunk.new_empty(shape), chunk.new_empty(shape, dtype=torch.int64)
                gt_max = chunk.new_full(chunk.shape[:2], -torch.inf)
                gt_argmax = torch.zeros_like(gt_max, dtype=torch.int64)
            best[:, start:stop], best_index[:, start:stop] = chunk.max(dim=1)
            if self.gt_max_assign_all or not self.match_low_quality:
                gt_max = torch.maximum(gt_max, chunk.amax(dim=2))
            else:
                value, index = chunk.max(dim=2)
                # Strictly greater: of equal priors the first counts, as in one piece.
                gt_argmax = torch.where(value > gt_max, index + start, gt_argmax)
                gt_max = torch.maximum(gt_max, value)
            start = stop
        return best, best_index, gt_max, gt_argmax


def _last_at_highest(overlaps: Iterable[Tensor], gt_max: Tensor, may_match: Tensor, num_priors: int) -> Tensor:
    """Number (N, A), from 1, of the last object that overlaps no prior more than this one; 0 for none."""
    number = torch.arange(1, gt_max.shape[1] + 1, device=gt_max.device, dtype=torch.int32).view(1, -1, 1)
    # No overlap is infinite, so an object that may not match claims nothing.
    highest = torch.where(may_match, gt_max, torch.inf).unsqueeze(-1)
    last = torch.empty(len(gt_max), num_priors, device=gt_max.device, dtype=torch.int64)
    start = 0
    for chunk in overlaps:
        stop = start + chunk.shape[2]
        last[:, start:stop] = ((chunk == highest) * number).amax(dim=1)
        start = stop
    return last


def _last_at_first_highest(gt_argmax: Tensor, may_match: Tensor, num_priors: int) -> Tensor:
    """As :func:`_last_at_highest`, where an object claims only the prior ``gt_argmax`` (N, G)."""
    number = torch.arange(1, gt_argmax.shape[1] + 1, device=gt_argmax.device)
    claims = torch.where(may_match, number, 0)
    return gt_argmax.new_zeros(len(gt_argmax), num_priors).scatter_reduce(1, gt_argmax, claims, "amax")
