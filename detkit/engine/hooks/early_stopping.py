"""Ending a training that no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmengine.runner import BaseLoop

from detkit.engine.hooks.best_metric import rule_by_name
from detkit.engine.hooks.hook import Hook
from detkit.engine.reporting.metric_files import scalars
from detkit.registry import HOOKS, nearest
from detkit.signature import quoted

__all__ = ["EarlyStoppingHook"]


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Stops when a metric has not improved for ``patience`` validations.

    mmengine's asks for an improvement of 0.1 by default, which stops any training by mAP; it also forgets the best
    value when a run is resumed.

    Args:
        monitor: The metric, such as ``coco/bbox_mAP`` or ``val/loss``.
        rule: ``greater`` or ``less``; by default ``less`` for names with ``loss`` or ``err``.
        min_delta: What counts as an improvement over the best value, in units of the metric; improvements that
            are smaller add up.
        strict: Fail at each validation that lacks the metric; otherwise only at the first.
        check_finite: Stop at a value that is not finite; otherwise it counts as no improvement.
        patience: Validations without improvement before the training stops.
        stopping_threshold: Stop at once when the metric is better than this.

    Attributes:
        best_score: The best value so far, None before the first.
        wait_count: Validations since then.

    Raises:
        ValueError: A rule, ``min_delta`` or ``patience`` that makes no sense; a run without validation.
        KeyError: The evaluator gives no such metric.
    """

    priority = "LOWEST"  # after the best checkpoint is written

    def __init__(
        self,
        monitor: str,
        rule: str | None = None,
        min_delta: float = 0.001,
        strict: bool = False,
        check_finite: bool = True,
        patience: int = 5,
        stopping_threshold: float | None = None,
    ) -> None:
        if rule not in (None, "greater", "less"):
            raise ValueError(f"EarlyStoppingHook: rule must be 'greater', 'less' or None, got {rule!r}")
        if min_delta < 0 or patience < 1:
            raise ValueError(
                f"EarlyStoppingHook: min_delta >= 0 and patience >= 1 expected, got {min_delta} and {patience}"
            )
        self.monitor = monitor
        self.rule = rule or rule_by_name(monitor)
        self._sign = 1 if self.rule == "greater" else -1
        self.min_delta = min_delta
        self.strict = strict
        self.check_finite = check_finite
        self.patience = patience
        self.stopping_threshold = stopping_threshold
        self.best_score: float | None = None
        self.wait_count = 0
        self._seen = False

    def state_dict(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return {"best_score": self.best_score, "wait_count": self.wait_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on waiting."""
        self.best_score, self.wait_count = state["best_score"], state["wait_count"]

    def before_train(self, runner: Any) -> None:
        """Refuse a loop that cannot be stopped, and a run without validation, which would never be."""
        if not hasattr(runner.train_loop, "stop_training"):
            raise TypeError(f"EarlyStoppingHook: {type(runner.train_loop).__name__} has no attribute stop_training")
        if runner.val_loop is None:
            raise ValueError(
                f"EarlyStoppingHook: {self.monitor!r} comes from validation, of which there is none; set "
                "val_dataloader, val_cfg and val_evaluator, or leave the hook out"
            )
        # Resumed from its end; a job that a cluster starts again and again would train an interval more each time.
        self._stop(runner, None if self.best_score is None else self._verdict(self.best_score))

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Look at the metric, and stop the loop if it is time."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation by itself
        numbers = scalars(metrics or {})
        if self.monitor not in numbers:
            return self._miss(runner, numbers)
        self._seen = True
        self._stop(runner, self._reason_to_stop(numbers[self.monitor]))

    def _stop(self, runner: Any, reason: str | None) -> None:
        if reason is not None:
            runner.train_loop.stop_training = True
            runner.logger.info("training stops after %d iterations: %s", runner.iter, reason)

    def _reason_to_stop(self, score: float) -> str | None:
        best, sign = self.best_score, self._sign
        if not math.isfinite(score) and self.check_finite:
            return f"{self.monitor} is {score}"
        if math.isfinite(score) and (best is None or (sign * (score - best) >= self.min_delta and score != best)):
            self.best_score, self.wait_count = score, 0
        else:
            self.wait_count += 1
        return self._verdict(score)

    def _verdict(self, score: float) -> str | None:
        threshold = self.stopping_threshold
        if threshold is not None and self._sign * (score - threshold) > 0:
            return f"{self.monitor} is {score:.4f}, better than stopping_threshold={threshold}"
        if self.wait_count < self.patience:
            return None
        found = "no finite value" if self.best_score is None else f"the best is {self.best_score:.4f}"
        return (
            f"{self.monitor} has not improved by min_delta={self.min_delta} in {self.wait_count} validations; {found}"
        )

    def _miss(self, runner: Any, numbers: Mapping[str, float]) -> None:
        if self.strict or not (self._seen or self.best_score is not None):
            close = quoted(nearest(self.monitor, numbers, count=3))
            raise KeyError(f"EarlyStoppingHook: the evaluator gives no {self.monitor!r}; did you mean {close}?")
        runner.logger.warning("EarlyStoppingHook: this validation gave no %s", self.monitor)
