"""A warm-up that starts flat, as YOLOX's: https://arxiv.org/abs/2107.08430, in MMDetection's configs."""

from __future__ import annotations

from typing import Any

from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler.param_scheduler import INF

from detkit.engine.schedulers.multipliers import place
from detkit.registry import PARAM_SCHEDULERS

__all__ = ["QuadraticWarmupLR"]


@PARAM_SCHEDULERS.register_module()
class QuadraticWarmupLR(_ParamScheduler):
    """Learning rate ``base ((t + 1) / (end - begin))^2`` in the t-th step from ``begin``.

    Args:
        optimizer: The optimizer or its wrapper.
        begin: Step at which the warm-up starts.
        end: Step after its last one.
        last_step: Step before the next one; -1 at the start of a run.
        by_epoch: Count epochs; ``convert_to_iter_based=True`` in the config turns them into iterations.
        verbose: Log every value.

    Raises:
        ValueError: ``end`` is not given, or not after ``begin``.
    """

    def __init__(
        self,
        optimizer: Any,
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        if end >= INF:
            raise ValueError(f"{place(self, 'end')}: must be set, as the step at which the warm-up ends")
        self.total_iters = end - begin
        super().__init__(optimizer, "lr", begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(
        cls,
        optimizer: Any,
        begin: int = 0,
        end: int = INF,
        by_epoch: bool = True,
        epoch_length: int = 1,
        verbose: bool = False,
    ) -> QuadraticWarmupLR:
        """Build it with ``begin`` and ``end`` in epochs of ``epoch_length`` iterations."""
        end = end if end >= INF else end * epoch_length
        return cls(optimizer, begin * epoch_length, end, by_epoch=False, verbose=verbose)

    def _get_value(self) -> list[float]:
        part = ((self.last_step + 1) / self.total_iters) ** 2
        return [base * part for base in self.base_values]
