"""The evaluator: mmengine's, with results gathered from any number of processes, each counted once."""

from __future__ import annotations

import logging
from itertools import chain, zip_longest
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from mmengine.evaluator.metric import _to_cpu
from mmengine.logging import print_log

from detkit.engine.distributed import broadcast, gather, get_rank
from detkit.registry import EVALUATOR

__all__ = ["Evaluator"]

_MISSING = object()


@EVALUATOR.register_module()
class Evaluator(MMEngineEvaluator):
    """Computes several metrics from the predictions of all processes.

    mmengine gathers results through files in the current directory, drops some where processes have different
    numbers of them, and leaves the others waiting when a metric fails on the first process.

    Args:
        metrics: A metric, its config, or a list of them.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        """Compute all metrics, the same on every process, and forget the results.

        Args:
            size: Samples in the dataset; of more results, the last are taken for a sampler's repetitions.

        Raises:
            ValueError: Two metrics report the same name, or a metric failed on the first process.
        """
        found: dict[str, Any] = {}
        for metric in self.metrics:
            for name, value in _evaluate(metric, size).items():
                if name in found:
                    raise ValueError(f"two metrics of the evaluator report {name!r}; give one of them another prefix")
                found[name] = value
        return found


def _evaluate(metric: BaseMetric, size: int) -> dict[str, Any]:
    if type(metric).evaluate is not BaseMetric.evaluate:
        return metric.evaluate(size)
    # In turns, as samplers hand samples out.
    parts = gather(_to_cpu(metric.results))
    metric.results.clear()
    error: Exception | None = None
    values: dict[str, Any] = {}
    if get_rank() == 0:
        results = [one for one in chain.from_iterable(zip_longest(*parts, fillvalue=_MISSING)) if one is not _MISSING]
        if not results:
            name = type(metric).__name__
            print_log(f"{name}: there is nothing to evaluate", logger="current", level=logging.WARNING)
        try:
            values = metric.compute_metrics(results[:size])
        except Exception as failure:
            error = failure
    reason = broadcast(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if reason is not None:
        raise ValueError(f"{type(metric).__name__} failed on the first process: {reason}")
    values = broadcast(values)
    return {f"{metric.prefix}/{name}": value for name, value in values.items()} if metric.prefix else values
