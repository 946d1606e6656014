"""Online hard example mining, Shrivastava et al., https://arxiv.org/abs/1604.03540."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.samplers.pool import Pool
from detkit.task_modules.samplers.quota import QuotaSampler
from detkit.task_modules.samplers.roi_outputs import RUNS_ROI_HEAD, bbox_head_of, roi_outputs

__all__ = ["OHEMSampler"]


@TASK_UTILS.register_module()
class OHEMSampler(QuotaSampler):
    """The positives and the negatives with the highest losses (section 4, without suppression).

    ``sample`` and ``sample_batch`` need ``feats``, what the RoI head extracts its features from.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        context: The RoI head, whose box head computes the losses.
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.
        loss_key: Which of the box head's losses counts.
    """

    only_for = RUNS_ROI_HEAD

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        context: Any,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
        loss_key: str = "loss_cls",
    ) -> None:
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals, self.losses, self.losses)
        self.context = context
        self.bbox_head = bbox_head_of(context, "OHEMSampler")
        self.loss_key = loss_key

    def losses(self, candidates: Tensor, quota: Tensor, pool: Pool) -> Tensor:
        """The rule: losses of all priors (N, A), computed once for positives and negatives."""
        return pool.once(
            self, lambda: roi_outputs(self.context, self.bbox_head, pool, self.loss_key, "OHEMSampler").loss
        )
