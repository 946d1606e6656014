"""A run that checks its own result, for tests of whole trainings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.runner import BaseLoop

from detkit.engine.hooks.eval_function import EvalFunctionHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.reporting.metric_files import scalars
from detkit.registry import HOOKS, nearest
from detkit.signature import quoted

__all__ = ["ExpectedResultsHook"]


@HOOKS.register_module()
class ExpectedResultsHook(Hook):
    """Fails a training that was completed when its last evaluation is not as expected.

    The last validation counts, and what an ``EvalFunctionHook`` gave last. ``tools/train.py`` exits with status 1.

    Args:
        expected: Entries ``(metric, value, tolerance)``, such as ``("coco/bbox_mAP", 0.37, 0.005)``; or
            ``(task, metric, value, tolerance)`` as in Detectron2, ``("bbox", "AP", 0.37, 0.005)``, which is looked
            up as ``bbox/AP``, else as the COCO metric of that task. A value of detkit's COCO metric is in [0, 1].

    Raises:
        ValueError: An entry of another form, or (after training) every metric that is missing, not finite or
            further from its value than the tolerance.
    """

    priority = "LOWEST"  # after the last evaluation of whatever kind

    def __init__(self, expected: Sequence[Sequence[Any]]) -> None:
        self.expected = [_entry(index, entry) for index, entry in enumerate(expected)]
        self.results: dict[str, float] = {}

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Remember the metrics."""
        if isinstance(runner._train_loop, BaseLoop):
            self.results = scalars(metrics or {})

    def after_train(self, runner: Any) -> None:
        """Compare, if training was completed."""
        if not runner.train_completed:
            return
        results = dict(self.results)
        for hook in runner.hooks:
            if isinstance(hook, EvalFunctionHook):
                results.update(hook.results)
        wrong = [
            text for names, value, tolerance in self.expected if (text := _fault(names, value, tolerance, results))
        ]
        if wrong:
            raise ValueError(f"the results are not the expected ones: {'; '.join(wrong)}")
        runner.logger.info("the results are as expected: %d metrics", len(self.expected))


def _entry(index: int, entry: Sequence[Any]) -> tuple[list[str], float, float]:
    """Names under which the metric is looked up, the value, the tolerance."""
    names = entry[:-2] if not isinstance(entry, str) else ()
    numbers = entry[-2:]
    if (
        len(names) not in (1, 2)
        or not all(isinstance(name, str) for name in names)
        or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        or numbers[1] < 0
    ):
        raise ValueError(
            f"ExpectedResultsHook: expected.{index}: (metric, value, tolerance) or (task, metric, value, tolerance) "
            f"expected, got {entry!r}"
        )
    found = ["/".join(names)]
    match = re.fullmatch(r"AP(50|75|s|m|l)?", names[-1])
    if len(names) == 2 and match:
        found.append(f"coco/{names[0]}_mAP" + (f"_{match[1]}" if match[1] else ""))
    return found, float(numbers[0]), float(numbers[1])


def _fault(names: list[str], value: float, tolerance: float, results: Mapping[str, float]) -> str | None:
    name = next((name for name in names if name in results), None)
    if name is None:
        close = f"did you mean {quoted(nearest(names[-1], results))}?" if results else "nothing was evaluated"
        return f"{names[0]} is missing ({close})"
    if not math.isfinite(results[name]):
        return f"{name} is {results[name]}"
    if abs(results[name] - value) > tolerance:
        return f"{name} is {results[name]:.4f}, expected {value} within {tolerance}"
    return None
