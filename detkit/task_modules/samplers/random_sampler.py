"""Random sampling of a fixed number of priors (Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.3)."""

from __future__ import annotations

from detkit.registry import TASK_UTILS
from detkit.task_modules.samplers.quota import QuotaSampler, random_rule

__all__ = ["RandomSampler"]


@TASK_UTILS.register_module()
class RandomSampler(QuotaSampler):
    """Positives and negatives at random.

    The random numbers come from the default generator of the priors' device, which a run seeds at every
    iteration and restores when it resumes.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.
    """

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True) -> None:
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals, random_rule, random_rule)
