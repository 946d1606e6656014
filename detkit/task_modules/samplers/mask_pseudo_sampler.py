"""No sampling of mask predictions (K-Net, https://arxiv.org/abs/2106.14855; Mask2Former)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pseudo_sampler import take_all
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["MaskPseudoSampler", "MaskSamplingResult"]


class MaskSamplingResult(SamplingResult):
    """Sampled mask predictions of one image.

    Args:
        pos_inds: (P,) indices of positive masks.
        neg_inds: (Q,) indices of negative masks.
        masks: (A, H, W).
        gt_masks: (G, H, W).
        assign_result: Assignment of the masks.
        gt_flags: (A,) uint8, 1 where a mask is an object.
        avg_factor_with_neg: Whether negatives count in ``avg_factor``.

    Attributes:
        pos_masks: (P, H, W).
        neg_masks: (Q, H, W).
        pos_gt_masks: (P, H, W) objects of the positives.
    """

    def __init__(
        self,
        pos_inds: Tensor,
        neg_inds: Tensor,
        masks: Tensor,
        gt_masks: Tensor,
        assign_result: AssignResult,
        gt_flags: Tensor,
        avg_factor_with_neg: bool = True,
    ) -> None:
        self._set_indices(pos_inds, neg_inds, assign_result, gt_flags, avg_factor_with_neg)
        self.pos_masks = masks[pos_inds]
        self.neg_masks = masks[neg_inds]
        self.num_gts = gt_masks.shape[0]
        self.pos_gt_masks = gt_masks[self.pos_assigned_gt_inds]

    @property
    def masks(self) -> Tensor:
        """Positive, then negative masks (P + Q, H, W)."""
        return torch.cat([self.pos_masks, self.neg_masks])

    @property
    def info(self) -> Mapping[str, Any]:
        """The main fields by name."""
        return {
            "pos_inds": self.pos_inds,
            "neg_inds": self.neg_inds,
            "pos_masks": self.pos_masks,
            "neg_masks": self.neg_masks,
            "pos_is_gt": self.pos_is_gt,
            "num_gts": self.num_gts,
            "pos_assigned_gt_inds": self.pos_assigned_gt_inds,
        }


@TASK_UTILS.register_module()
class MaskPseudoSampler:
    """Takes all positive and all negative masks."""

    only_for = "samples masks"

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> MaskSamplingResult:
        """All assigned masks of one image.

        Args:
            assign_result: Assignment of the A predictions.
            pred_instances: With ``masks`` (A, H, W).
            gt_instances: With ``masks`` (G, H, W).
            kwargs: What other samplers use of an image; unused.
        """
        return MaskSamplingResult(
            pos_inds=(assign_result.gt_inds > 0).nonzero().squeeze(1),
            neg_inds=(assign_result.gt_inds == 0).nonzero().squeeze(1),
            masks=pred_instances.masks,
            gt_masks=gt_instances.masks,
            assign_result=assign_result,
            gt_flags=torch.zeros_like(assign_result.gt_inds, dtype=torch.uint8),
            avg_factor_with_neg=False,
        )

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> BatchSamplingResult:
        """All assigned masks of N images; see :func:`take_all`."""
        return take_all(assign_result, priors)
