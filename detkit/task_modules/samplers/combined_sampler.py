"""Positives by one sampler, negatives by another (Libra R-CNN, https://arxiv.org/abs/1904.02701)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detkit.registry import TASK_UTILS, accepted_arguments, find
from detkit.task_modules.samplers.quota import QuotaSampler

__all__ = ["CombinedSampler", "build_sampler"]


def build_sampler(cfg: Mapping[str, Any], **shared: Any) -> Any:
    """Build a sampler with those of the shared arguments that it takes and ``cfg`` does not set.

    Heads build theirs so, with ``context`` shared: some samplers run the head, most do not know it.

    Args:
        cfg: Config of a registered sampler.
        shared: Arguments by name.

    Raises:
        KeyError: Nobody registered the type.
        TypeError: ``cfg`` has an argument that the sampler does not take, or one is missing.
    """
    kind = cfg.get("type")
    cls = find(kind, TASK_UTILS) if isinstance(kind, str) else kind
    known = set() if cls is None else accepted_arguments(cls).accepted
    return TASK_UTILS.build(cfg, default_args={name: value for name, value in shared.items() if name in known})


@TASK_UTILS.register_module()
class CombinedSampler(QuotaSampler):
    """Draws positives in the order of one sampler and negatives in that of another.

    Args:
        pos_sampler: Config of the sampler of positives; it takes over the arguments below that it does not set.
        neg_sampler: Config of the sampler of negatives, likewise.
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.
        context: The RoI head, for samplers that run it.

    Raises:
        TypeError: One of the two draws by no rule of its own, such as ``PseudoSampler``.
    """

    def __init__(
        self,
        pos_sampler: Mapping[str, Any],
        neg_sampler: Mapping[str, Any],
        num: int,
        pos_fraction: float,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
        context: Any = None,
    ) -> None:
        shared = {
            "num": num,
            "pos_fraction": pos_fraction,
            "neg_pos_ub": neg_pos_ub,
            "add_gt_as_proposals": add_gt_as_proposals,
            "context": context,
        }
        self.pos_sampler = _of_quota(pos_sampler, "pos_sampler", shared)
        self.neg_sampler = _of_quota(neg_sampler, "neg_sampler", shared)
        super().__init__(
            num,
            pos_fraction,
            neg_pos_ub,
            add_gt_as_proposals,
            self.pos_sampler.positive_rule,
            self.neg_sampler.negative_rule,
        )


def _of_quota(cfg: Mapping[str, Any], name: str, shared: Mapping[str, Any]) -> QuotaSampler:
    sampler = build_sampler(cfg, **shared)
    if not isinstance(sampler, QuotaSampler):
        raise TypeError(
            f"CombinedSampler: {name} must draw by a rule, as RandomSampler does; {type(sampler).__name__} does not"
        )
    return sampler
