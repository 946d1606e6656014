"""What each prior of one image, or of a batch, is to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth

__all__ = ["BACKGROUND", "IGNORED", "AssignResult", "BatchAssignResult"]

# Values of ``gt_inds`` besides i + 1 for the i-th object.
BACKGROUND = 0
IGNORED = -1


class AssignResult:
    """Assignment of the A priors of one image.

    Attributes:
        num_gts: Number of objects.
        gt_inds: (A,) int64: ``i + 1`` for the i-th object, 0 background, -1 ignored.
        max_overlaps: (A,) highest overlap with any object, or None where the assigner has no overlaps.
        labels: (A,) int64 label of the object, -1 where there is none.
        assign_metrics: (A,) alignment of score and box where the assigner has one (TOOD), else None.
    """

    def __init__(self, num_gts: int, gt_inds: Tensor, max_overlaps: Tensor | None, labels: Tensor) -> None:
        self.num_gts = num_gts
        self.gt_inds = gt_inds
        self.max_overlaps = max_overlaps
        self.labels = labels
        self.assign_metrics: Tensor | None = None
        self._extra_properties: dict[str, Any] = {}

    @property
    def num_preds(self) -> int:
        """Number of priors."""
        return len(self.gt_inds)

    @property
    def info(self) -> Mapping[str, Any]:
        """All fields by name, extra properties included."""
        return {
            "num_gts": self.num_gts,
            "num_preds": self.num_preds,
            "gt_inds": self.gt_inds,
            "max_overlaps": self.max_overlaps,
            "labels": self.labels,
            **self._extra_properties,
        }

    def set_extra_property(self, key: str, value: Any) -> None:
        """Attach what a particular assigner wants to hand on."""
        if key in self.info:
            raise KeyError(f"AssignResult: the property {key!r} exists already")
        self._extra_properties[key] = value

    def get_extra_property(self, key: str) -> Any:
        """What was attached, or None."""
        return self._extra_properties.get(key)

    def add_gt_(self, gt_labels: Tensor) -> None:
        """Prepend the objects themselves as priors that match perfectly, in place.

        Args:
            gt_labels: (G,) int64.
        """
        own = torch.arange(1, len(gt_labels) + 1, dtype=torch.int64, device=gt_labels.device)
        self.gt_inds = torch.cat([own, self.gt_inds])
        if self.max_overlaps is not None:
            self.max_overlaps = torch.cat([self.max_overlaps.new_ones(len(gt_labels)), self.max_overlaps])
        self.labels = torch.cat([gt_labels.long(), self.labels])


class BatchAssignResult(NamedTuple):
    """Assignment of the A priors of N images; see :class:`AssignResult`.

    Attributes:
        gt_inds: (N, A) int64.
        max_overlaps: (N, A), or None where the assigner has no overlaps.
        labels: (N, A) int64.
        metrics: (N, A) alignment of score and box where the assigner has one (TOOD), else None.
        extra: What a particular assigner hands on besides, (N, ...) by name; see its ``assign_batch``.
    """

    gt_inds: Tensor
    max_overlaps: Tensor | None
    labels: Tensor
    metrics: Tensor | None = None
    extra: Mapping[str, Tensor] | None = None

    @classmethod
    def without_objects(
        cls, ground_truth: GroundTruth, num_priors: int, prior_valid: Tensor | None
    ) -> BatchAssignResult:
        """Every prior is background, or ignored where ``prior_valid`` (N, A) says that it takes no part."""
        shape = (len(ground_truth.valid), num_priors)
        taking_part = ground_truth.valid.new_ones(shape) if prior_valid is None else prior_valid
        gt_inds = torch.where(taking_part, BACKGROUND, IGNORED)
        return cls(gt_inds, ground_truth.boxes.new_zeros(shape), torch.full_like(gt_inds, -1))

    def image(self, index: int, num_gts: int) -> AssignResult:
        """The assignment of one image; ``metrics`` as its attribute ``assign_metrics``."""
        overlaps = None if self.max_overlaps is None else self.max_overlaps[index]
        result = AssignResult(num_gts, self.gt_inds[index], overlaps, self.labels[index])
        if self.metrics is not None:
            result.assign_metrics = self.metrics[index]
        return result
