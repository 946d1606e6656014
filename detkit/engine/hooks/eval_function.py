"""Numbers of a function of one's own, beside the metrics of the validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.engine.data.seeding import fenced_random_numbers
from detkit.engine.distributed import broadcast, is_main_process
from detkit.engine.evaluation.base_loop import evaluation_mode
from detkit.engine.hooks.callback import find_function
from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["EvalFunctionHook", "flatten_results"]


@HOOKS.register_module()
class EvalFunctionHook(Hook):
    """Calls ``func(runner)`` from time to time and reports the dict of numbers that it returns.

    Nested dicts become ``a/b/c``. Without an interval the function runs after each validation and its numbers join
    the metrics, where ``save_best`` and ``EarlyStoppingHook`` find them; with one, they go to the log,
    ``metrics.jsonl`` and the visualizer, and are of the weights that are trained, not of averaged ones.
    The model is in evaluation mode, no gradients are kept, and the random
    numbers of the training go on as if nothing had happened. Every process calls the function and waits for the
    first one, whose numbers count; the others may return None.

    Args:
        func: A function of the runner, or its name in mmengine's registry ``FUNCTIONS``.
        interval: Epochs (or iterations) between calls; 0 for none but the one at the end; None for each validation.
        at_end: Call it once more when training is complete; not after an error.
        by_epoch: Count epochs, else iterations.

    Attributes:
        results: What the last call gave.
        adds_metrics: Whether validations have more metrics than their evaluator gives.

    Raises:
        TypeError: ``func`` returns no dict.
        ValueError: A value in it is no number; a negative interval.
    """

    # After PreciseBNHook has set the statistics; before EMAHook takes its weights back, and before whoever reads.
    priority = 45

    def __init__(
        self,
        func: Callable[[Any], Mapping[str, Any] | None] | str,
        interval: int | None = None,
        at_end: bool = True,
        by_epoch: bool = True,
    ) -> None:
        if interval is not None and interval < 0:
            raise ValueError(f"EvalFunctionHook: interval must be at least 0, or None, got {interval}")
        self.func = find_function(func, "EvalFunctionHook: func")
        self.interval = interval
        self.at_end = at_end
        self.by_epoch = by_epoch
        self.results: dict[str, float] = {}
        self.adds_metrics = interval is None

    def after_train_epoch(self, runner: Any) -> None:
        """Call it at the interval."""
        if self.by_epoch and self._is_due(runner.epoch + 1, runner.max_epochs):
            self._report(runner, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Call it at the interval."""
        if not self.by_epoch and self._is_due(runner.iter + 1, runner.max_iters):
            self._report(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Add to the metrics of a validation."""
        if self.interval is None and metrics is not None:
            metrics.update(self._evaluate(runner))

    def after_train(self, runner: Any) -> None:
        """The last time, if training was completed."""
        if self.interval is not None and self.at_end and runner.train_completed:
            self._report(runner, runner.iter)

    def _is_due(self, done: int, total: int) -> bool:
        # The last one is left to after_train, which is reached only if nothing fails until then.
        return bool(self.interval) and done % (self.interval or 1) == 0 and not (self.at_end and done >= total)

    def _report(self, runner: Any, step: int) -> None:
        numbers = self._evaluate(runner)
        text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        runner.logger.info("after %d iterations  %s", step, text)
        runner.events.put_scalars(numbers, smoothing=False, step=step)

    def _evaluate(self, runner: Any) -> dict[str, float]:
        with evaluation_mode(runner.model), torch.no_grad(), fenced_random_numbers():
            results = self.func(runner)
        # The first process decides: hooks that act on a metric must do the same everywhere. The others wait for it.
        name = getattr(self.func, "__name__", type(self.func).__name__)
        self.results = broadcast(flatten_results(results, name) if is_main_process() else {})
        return self.results


def flatten_results(results: Any, source: str, prefix: str = "") -> dict[str, float]:
    """Nested dicts of numbers as one dict, the keys joined by ``/``.

    Args:
        results: Numbers: Python's, numpy's, or tensors of one element.
        source: Name of what returned them, for messages.
        prefix: Put before each key.

    Raises:
        TypeError: Not a dict.
        ValueError: A value that is no number.
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"{source} must return a dict of numbers, got {type(results).__name__}")
    flat: dict[str, float] = {}
    for key, value in results.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten_results(value, source, f"{name}/"))
        elif isinstance(value, (int, float, np.number)) or (
            isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1
        ):
            flat[name] = float(value)
        else:
            raise ValueError(f"{source} must return numbers, but {name!r} is {value!r}")
    return flat
