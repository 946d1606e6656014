"""Which priors of an image, or of a batch, are trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.structures.boxes import get_box_tensor
from detkit.task_modules.assigners.assign_result import AssignResult

__all__ = ["BatchSamplingResult", "CompactSample", "SamplingResult"]


class SamplingResult:
    """Sampled priors of one image.

    Args:
        pos_inds: (P,) indices of positive priors.
        neg_inds: (Q,) indices of negative priors.
        priors: (A, 4).
        gt_bboxes: (G, 4).
        assign_result: Assignment of the priors.
        gt_flags: (A,) uint8, 1 where a prior is an object that was added as a proposal.
        avg_factor_with_neg: Whether negatives count in ``avg_factor``.

    Attributes:
        num_pos: P, at least 1.
        num_neg: Q, at least 1.
        avg_factor: ``num_pos``, and ``num_neg`` where negatives count.
        pos_priors: (P, 4).
        neg_priors: (Q, 4).
        pos_is_gt: (P,) uint8.
        num_priors: A, with the objects that were added as proposals.
        num_gts: G.
        pos_assigned_gt_inds: (P,) index of the object of each positive.
        pos_gt_labels: (P,) its label.
        pos_gt_bboxes: (P, 4) its box.
    """

    def __init__(
        self,
        pos_inds: Tensor,
        neg_inds: Tensor,
        priors: Tensor,
        gt_bboxes: Tensor,
        assign_result: AssignResult,
        gt_flags: Tensor,
        avg_factor_with_neg: bool = True,
    ) -> None:
        priors, gt_bboxes = get_box_tensor(priors), get_box_tensor(gt_bboxes)
        self._set_indices(pos_inds, neg_inds, assign_result, gt_flags, avg_factor_with_neg)
        self.pos_priors = priors[pos_inds]
        self.neg_priors = priors[neg_inds]
        self.num_gts = gt_bboxes.shape[0]
        self.pos_gt_labels = assign_result.labels[pos_inds]
        self.pos_gt_bboxes = gt_bboxes.view(-1, 4)[self.pos_assigned_gt_inds]

    def _set_indices(
        self, pos_inds: Tensor, neg_inds: Tensor, assign_result: AssignResult, gt_flags: Tensor, with_neg: bool
    ) -> None:
        """What results of boxes and of masks share."""
        self.pos_inds = pos_inds
        self.neg_inds = neg_inds
        self.num_pos = max(pos_inds.numel(), 1)
        self.num_neg = max(neg_inds.numel(), 1)
        self.avg_factor_with_neg = with_neg
        self.avg_factor = self.num_pos + self.num_neg if with_neg else self.num_pos
        self.num_priors = len(gt_flags)
        self.pos_is_gt = gt_flags[pos_inds]
        self.pos_assigned_gt_inds = assign_result.gt_inds[pos_inds] - 1

    @property
    def priors(self) -> Tensor:
        """Positive, then negative priors (P + Q, 4)."""
        return torch.cat([self.pos_priors, self.neg_priors])

    @property
    def bboxes(self) -> Tensor:
        """The former name of ``priors``."""
        return self._renamed("bboxes", "priors")

    @property
    def pos_bboxes(self) -> Tensor:
        """The former name of ``pos_priors``."""
        return self._renamed("pos_bboxes", "pos_priors")

    @property
    def neg_bboxes(self) -> Tensor:
        """The former name of ``neg_priors``."""
        return self._renamed("neg_bboxes", "neg_priors")

    def _renamed(self, old: str, new: str) -> Tensor:
        warnings.warn(f"{type(self).__name__}.{old} is now called {new}", DeprecationWarning, stacklevel=3)
        return getattr(self, new)

    def to(self, device: torch.device | str) -> SamplingResult:
        """Move every tensor, in place; returns itself."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @property
    def info(self) -> Mapping[str, Any]:
        """The main fields by name."""
        return {
            "pos_inds": self.pos_inds,
            "neg_inds": self.neg_inds,
            "pos_priors": self.pos_priors,
            "neg_priors": self.neg_priors,
            "pos_is_gt": self.pos_is_gt,
            "num_gts": self.num_gts,
            "pos_assigned_gt_inds": self.pos_assigned_gt_inds,
            "num_pos": self.num_pos,
            "num_neg": self.num_neg,
            "avg_factor": self.avg_factor,
        }

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}" for name, value in self.info.items()
        )
        return f"{type(self).__name__}({shapes})"


class CompactSample(NamedTuple):
    """The sampled priors of N images as exactly R rows each: positives, then negatives, then padding.

    Attributes:
        indices: (N, R) int64 index of the prior; 0 in padding.
        valid: (N, R) bool, False in padding.
        positive: (N, R) bool.
    """

    indices: Tensor
    valid: Tensor
    positive: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The rows (N, R, ...) of what is given per prior (N, A, ...); those of padding mean nothing."""
        if values.shape[1] == 0:
            return values.new_zeros(*self.indices.shape, *values.shape[2:])
        index = self.indices.view(*self.indices.shape, *(1,) * (values.dim() - 2))
        return values.gather(1, index.expand(*self.indices.shape, *values.shape[2:]))


class BatchSamplingResult(NamedTuple):
    """Sampled priors of N images, as masks.

    Where a sampler adds the objects as proposals, A counts these too: the G padded objects of each image come
    first. Padding is neither positive nor negative.

    Attributes:
        positive: (N, A) bool.
        negative: (N, A) bool.
        avg_factor: () what the losses are divided by: per image at least 1, summed.
        priors: (N, A, 4), or None where the sampler was given none.
        gt_inds: (N, A) int64, ``i + 1`` for the i-th padded object, 0 background, -1 ignored.
        labels: (N, A) int64 label of that object, -1 where there is none.
        is_gt: (N, A) bool, which priors are objects added as proposals; None where none were.
    """

    positive: Tensor
    negative: Tensor
    avg_factor: Tensor
    priors: Tensor | None = None
    gt_inds: Tensor | None = None
    labels: Tensor | None = None
    is_gt: Tensor | None = None

    def compact(self, num: int) -> CompactSample:
        """The first ``num`` sampled priors of each image: positives in order, then negatives in order."""
        count = self.positive.shape[1]
        # Positives get keys in (2A, 3A], negatives in (A, 2A], the others in (0, A]; the earlier, the higher.
        kind = torch.where(self.positive, 2 * count, torch.where(self.negative, count, 0))
        key = kind + torch.arange(count, 0, -1, device=kind.device)
        key, index = key.topk(min(num, count), dim=1)
        padding = (0, num - key.shape[1])
        key, index = F.pad(key, padding), F.pad(index, padding)
        valid = key > count
        return CompactSample(torch.where(valid, index, 0), valid, key > 2 * count)
