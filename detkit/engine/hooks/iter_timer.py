"""How long iterations take, and how long the run will."""

from __future__ import annotations

import time
from typing import Any

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["IterTimerHook"]


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Notes in the message hub the seconds of the last iteration (``time``), of waiting for its data
    (``data_time``), and of the rest of the run (``eta``: validation and saving so far counted in).
    """

    priority = "NORMAL"

    def __init__(self) -> None:
        self._run_start = self._last = time.perf_counter()
        self._first_iter = 0

    def before_train(self, runner: Any) -> None:
        """Start the clock; a resumed run counts from where it goes on."""
        self._run_start = time.perf_counter()
        self._first_iter = runner.iter

    def _before_epoch(self, runner: Any, mode: str = "train") -> None:
        self._last = time.perf_counter()

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        runner.message_hub.update_info("data_time", time.perf_counter() - self._last, resumed=False)

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        now = time.perf_counter()
        runner.message_hub.update_info("time", now - self._last, resumed=False)
        self._last = now
        if mode == "train":
            per_iteration = (now - self._run_start) / (runner.iter - self._first_iter + 1)
            runner.message_hub.update_info("eta", per_iteration * (runner.max_iters - runner.iter - 1), resumed=False)
