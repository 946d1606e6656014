"""No sampling: every assigned prior is trained on."""

from __future__ import annotations

from typing import Any

from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pool import expand_priors
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["PseudoSampler", "take_all"]


def take_all(assign_result: BatchAssignResult, priors: Tensor | None = None) -> BatchSamplingResult:
    """All assigned priors of N images; only positives count in ``avg_factor``, an image without any as 1.

    Args:
        assign_result: Assignment of the A priors of each.
        priors: (A, 4) or (N, A, 4), handed on.
    """
    gt_inds = assign_result.gt_inds
    positive = gt_inds > 0
    avg_factor = positive.sum(dim=1).clamp(min=1).sum()
    own = expand_priors(priors, len(gt_inds))
    return BatchSamplingResult(positive, gt_inds == 0, avg_factor, own, gt_inds, assign_result.labels)


@TASK_UTILS.register_module()
class PseudoSampler:
    """Takes all positives and all negatives, for losses that weigh them themselves."""

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        """All assigned priors of one image.

        Args:
            assign_result: Assignment of the A priors.
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4).
            kwargs: What other samplers use of an image; unused.
        """
        priors = pred_instances.priors
        return SamplingResult(
            pos_inds=(assign_result.gt_inds > 0).nonzero().squeeze(1),
            neg_inds=(assign_result.gt_inds == 0).nonzero().squeeze(1),
            priors=priors,
            gt_bboxes=gt_instances.bboxes,
            assign_result=assign_result,
            gt_flags=assign_result.gt_inds.new_zeros(len(priors)).byte(),
            avg_factor_with_neg=False,
        )

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> BatchSamplingResult:
        """All assigned priors of N images; see :func:`take_all`."""
        return take_all(assign_result, priors)
