"""What parts without access to the runner may ask the message hub: epoch, iteration, stage."""

from __future__ import annotations

from typing import Any

from mmengine import hooks as mmengine_hooks

from detkit.registry import HOOKS

__all__ = ["RuntimeInfoHook"]


@HOOKS.register_module()
class RuntimeInfoHook(mmengine_hooks.RuntimeInfoHook):
    """Keeps ``epoch``, ``iter``, ``max_epochs``, ``max_iters``, ``loop_stage`` and ``dataset_meta`` up to date.

    mmengine's hook also reads every loss at every iteration, waits for the device each time, and appends to a
    history that grows for the whole run; losses are ``LoggerHook``'s here, which reads once per interval.
    """

    def before_run(self, runner: Any) -> None:
        """Note what stays the same for the whole run."""
        facts = {"seed": runner.seed, "experiment_name": runner.experiment_name}
        for key, value in facts.items():
            runner.message_hub.update_info(key, value)
        self.last_loop_stage = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note the iteration."""
        runner.message_hub.update_info("iter", runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Leave the losses where they are."""
