"""What parts without access to the runner may ask: epoch, iteration, stage, the step of what is noted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine import hooks as mmengine_hooks

from detkit.engine.reporting.metric_files import scalars
from detkit.registry import HOOKS

__all__ = ["RuntimeInfoHook"]


@HOOKS.register_module()
class RuntimeInfoHook(mmengine_hooks.RuntimeInfoHook):
    """Keeps the message hub's ``epoch``, ``iter``, ``max_epochs``, ``max_iters``, ``loop_stage`` and
    ``dataset_meta``, and the step of the event storage, up to date.

    mmengine's hook also reads every loss at every iteration, waits for the device each time, and appends to a
    history that grows for the whole run; losses are ``LoggerHook``'s here, which reads once per interval.
    """

    def before_run(self, runner: Any) -> None:
        """Note what stays the same for the whole run."""
        facts = {"seed": runner.seed, "experiment_name": runner.experiment_name}
        for key, value in facts.items():
            runner.message_hub.update_info(key, value)
        self.last_loop_stage = None
        runner.events.seed = runner.seed

    def before_train(self, runner: Any) -> None:
        """Note where the run starts."""
        super().before_train(runner)
        runner.events.step = runner.iter

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note the iteration."""
        done = runner.iter
        runner.message_hub.runtime_info["iter"] = done  # update_info would ask each time whether it is resumed
        runner.events.step = done + 1

    # The losses stay where they are.
    after_train_iter = mmengine_hooks.Hook.after_train_iter

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Note the metrics that are numbers as events; one without a prefix of its own gets ``val/``."""
        numbers = scalars(metrics or {})
        named = {name if "/" in name else f"val/{name}": value for name, value in numbers.items()}
        runner.events.put_scalars(named, smoothing=False)

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Leave the metrics to what the test returns."""
