"""How long iterations take, where the rest of the time goes, and how long the run will take."""

from __future__ import annotations

import time
from typing import Any

from detkit.engine.hooks.hook import Hook
from detkit.engine.reporting.console import duration
from detkit.events import EventStorage
from detkit.registry import HOOKS

__all__ = ["IterTimerHook", "time_left"]


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Notes seconds in the run's event storage, and says at the end where they went.

    ``time`` is that of loading a batch and training on it; ``data_time`` that of waiting for the batch;
    ``hook_time`` that of all hooks since the step before, saving and logging included; ``val_time`` that of a
    validation. mmengine's hook books validation and saving into ``time`` and ``data_time``.

    The first iterations, slower than all others, have no ``time``: with ``warmup_iters`` 3 the third one is the
    first that counts, so that 50 iterations give 48 values.

    Args:
        warmup_iters: First iteration that counts, from where the run starts or goes on.

    Raises:
        ValueError: ``warmup_iters`` is not positive.
    """

    priority = "VERY_HIGH"  # the first at each stage: what other hooks do is not the step's time

    def __init__(self, warmup_iters: int = 3) -> None:
        if warmup_iters < 1:
            raise ValueError(f"IterTimerHook: warmup_iters must be at least 1, got {warmup_iters}")
        self.warmup_iters = warmup_iters
        self._run_begin: float | None = None  # None before and after training
        self._reset()

    def _reset(self) -> None:
        self._stream: Any = None
        self._done = 0
        self._step_begin = self._step_end = self._val_begin = 0.0
        self._validated = 0.0  # seconds of validation since the last step
        self._measured, self._measured_begin, self._measured_time = 0, 0.0, 0.0  # since the warm-up
        self._step_time = self._val_time = 0.0  # of the whole run

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self._reset()
        self._stream = getattr(runner.train_loop, "stream", None)  # a loop that is not detkit's has none
        self._run_begin = self._step_end = self._measured_begin = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note when the step begins."""
        self._step_begin = time.perf_counter()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note how long the step took, its data, and what came before it."""
        now = time.perf_counter()
        loading = 0.0 if self._stream is None else self._stream.load_time
        seconds = now - self._step_begin + loading
        hooks = self._step_begin - loading - self._step_end - self._validated
        self._step_end, self._validated = now, 0.0
        self._step_time += seconds
        self._done += 1
        times = {"data_time": loading, "hook_time": hooks}
        if self._done >= self.warmup_iters:
            times["time"] = seconds
            self._measured += 1
            self._measured_time += seconds
        else:
            self._measured_begin = now
        runner.events.put_owned(times, runner.iter + 1)

    def before_val(self, runner: Any) -> None:
        """Note when validation begins."""
        self._val_begin = time.perf_counter()

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Note how long validation took, for the line of its metrics."""
        seconds = time.perf_counter() - self._val_begin
        runner.events.put_scalar("val_time", seconds, smoothing=False, step=runner.events.step)

    def after_val(self, runner: Any) -> None:
        """Keep validation apart from the other hooks."""
        seconds = time.perf_counter() - self._val_begin
        self._validated += seconds
        self._val_time += seconds

    def book_wait(self, seconds: float) -> None:
        """Book into the last step what a hook waited for the device to finish it."""
        self._step_end += seconds
        self._step_time += seconds
        self._measured_time += seconds if self._measured else 0.0

    def eta(self, events: EventStorage, remaining: int) -> float | None:
        """Seconds that ``remaining`` iterations will take with their share of validation and of all hooks.

        None during the warm-up.
        """
        if not self._measured:
            return None
        overhead = time.perf_counter() - self._measured_begin - self._measured_time
        return time_left(events, remaining, overhead / self._measured)

    def close(self, runner: Any) -> None:
        """Say where the time went, also after an error."""
        if self._run_begin is None:
            return
        total = time.perf_counter() - self._run_begin
        self._run_begin = None
        if self._measured:
            text = "training speed: %d iterations in %s, %.4g s each"
            seconds = self._measured_time
            runner.logger.info(text, self._measured, duration(seconds), seconds / self._measured)
        hooks = max(0.0, total - self._step_time - self._val_time)
        text = "training time: %s, of which %s on hooks and %s on validation"
        runner.logger.info(text, duration(total), duration(hooks), duration(self._val_time))


def time_left(events: EventStorage, remaining: int, overhead: float = 0.0) -> float | None:
    """Seconds that ``remaining`` iterations will take.

    Args:
        events: Has ``time``.
        remaining: Iterations.
        overhead: Seconds per iteration that are not in ``time``.

    Returns:
        The median of the last 1000 values of ``time`` and the overhead, per iteration; None where there is no value.
    """
    times = events.histories().get("time")
    if times is None or not len(times):
        return None
    return remaining * (times.median(1000) + overhead)
