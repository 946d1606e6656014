"""The numbers of a run: to the screen, the log, ``metrics.jsonl``, TensorBoard and the visualizer's backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from rich.console import Console

from detkit.engine.console import ProgressDisplay, duration
from detkit.engine.hooks.hook import Hook
from detkit.engine.metric_files import MetricFiles, scalars
from detkit.engine.optim.param_groups import summary_lr
from detkit.engine.step_record import StepRecord, StepValues
from detkit.registry import HOOKS

__all__ = ["LoggerHook", "image_paths"]

_NOT_IN_LINE = {"loss", "lr", "time", "data_time", "memory", "step", "epoch"}


@HOOKS.register_module()
class LoggerHook(Hook):
    """Reads what the model reported once per ``interval``, and writes the means since the last line.

    Between two readings nothing waits for the device. A loss that is not finite is found at the next reading,
    before the next checkpoint is written, and stops the run.

    Args:
        interval: Iterations per line, counted within an epoch.
        ignore_last: Give the iterations after an epoch's last full interval no line. An epoch shorter than
            ``interval`` always gets one.
        log_metric_by_epoch: Give the visualizer's backends the epoch, not the iteration, with metrics.
        tensorboard: Write TensorBoard events to ``work_dir/tensorboard``.

    Raises:
        ValueError: ``interval`` is not positive.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        interval: int = 10,
        ignore_last: bool = True,
        log_metric_by_epoch: bool = True,
        tensorboard: bool = True,
    ) -> None:
        if interval < 1:
            raise ValueError(f"LoggerHook: interval must be at least 1, got {interval}")
        self.interval = interval
        self.ignore_last = ignore_last
        self.log_metric_by_epoch = log_metric_by_epoch
        self.tensorboard = tensorboard
        self._record = StepRecord()
        self._unwritten: list[StepValues] = []
        self._files: MetricFiles | None = None
        self._display: ProgressDisplay | None = None

    def before_train(self, runner: Any) -> None:
        """Open the files, and the progress display on a terminal."""
        self._files = MetricFiles(runner.work_dir, runner.iter, self.tensorboard)
        console: Console = runner.console
        if console.is_terminal:
            self._display = ProgressDisplay(console, runner.max_iters)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take over the losses; at an interval, write a line."""
        values = dict(outputs or {})
        grad_norm = getattr(runner.optim_wrapper, "grad_norm", None)
        if grad_norm is not None:
            values["grad_norm"] = grad_norm
        hub = runner.message_hub
        values.update({name: hub.get_info(name) for name in ("time", "data_time") if name in hub.runtime_info})
        self._record.add(runner.iter + 1, values, image_paths(data_batch))
        if self._display is not None:
            self._display.update(runner.iter + 1)
        length = len(runner.train_dataloader)
        short = self.end_of_epoch(runner.train_dataloader, batch_idx) and (
            not self.ignore_last or length < self.interval
        )
        if self.every_n_inner_iters(batch_idx, self.interval) or short:
            self._write_line(runner, batch_idx)

    def after_train_epoch(self, runner: Any) -> None:
        """Look at the losses that get no line."""
        self._record.read()
        self._unwritten = []

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Read what is left, so that no checkpoint is written after a loss that was not finite."""
        self._unwritten += self._record.read()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show on a terminal how far validation is."""
        if self._display is not None:
            self._display.update(runner.iter, tail=f"validating {batch_idx + 1}/{len(runner.val_dataloader)}")

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the metrics of a validation."""
        numbers = scalars(metrics or {})
        # A metric per class would fill the screen; metrics.jsonl has them all.
        text = "  ".join(f"{name} {value:.4f}" for name, value in list(numbers.items())[:6])
        if not isinstance(runner._train_loop, BaseLoop):  # validation by itself has no step to put it at
            runner.logger.info("validation  %s", text)
            return
        runner.logger.info("%s  %s", _progress(runner, runner.epoch, runner.iter), text)
        if self._files is not None:
            self._files.write(runner.iter, runner.epoch, numbers, "val")
        runner.visualizer.add_scalars(numbers, step=runner.epoch if self.log_metric_by_epoch else runner.iter)
        if self._display is not None and numbers:
            name, value = next(iter(numbers.items()))
            self._display.update(runner.iter, tail="", metric=f"{name} {value:.4f}")

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the metrics of a test to the log."""
        numbers = scalars(metrics or {})
        width = max(map(len, numbers), default=0)
        runner.logger.info("\n".join(f"{name:{width}}  {value:.4f}" for name, value in numbers.items()))

    def close(self, runner: Any) -> None:
        """Close the files and the display; the runner calls this also when the run ends in an error."""
        if self._display is not None:
            self._display.close()
            self._display = None
        if self._files is not None:
            self._files.close()
            self._files = None
        runner.visualizer.close()

    def _write_line(self, runner: Any, batch_idx: int) -> None:
        steps = self._unwritten + self._record.read()
        self._unwritten = []
        values = _means(steps)
        values.update(_own_scalars(runner))
        values.update(_learning_rates(runner))
        if runner.device.type == "cuda":
            values["memory"] = torch.cuda.max_memory_allocated(runner.device) / 2**20  # MiB; asks the host only
        if self._files is not None:
            self._files.write(runner.iter + 1, runner.epoch + 1, values, "train")
        runner.visualizer.add_scalars(values, step=runner.iter + 1)
        head = _progress(runner, runner.epoch + 1, runner.iter + 1)
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            head += f"  iter {batch_idx + 1}/{len(runner.train_dataloader)}"
        tail = f"{_losses(values)}  lr {values.get('lr', 0):.4g}"
        if "eta" in runner.message_hub.runtime_info:
            tail += f"  eta {duration(runner.message_hub.get_info('eta'))}"
        # The display shows the line already; the log file keeps it in any case.
        runner.logger.info("%s  %s", head, tail, extra={"console": self._display is None})
        if self._display is not None:
            self._display.update(runner.iter + 1, head, tail)


def _progress(runner: Any, epoch: int, step: int) -> str:
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return f"iter {step}/{runner.max_iters}"
    return f"epoch {epoch}/{runner.max_epochs}"


def image_paths(data_batch: Any) -> list[str]:
    """Paths of a batch's images, as far as its samples know them."""
    samples = data_batch.get("data_samples", ()) if isinstance(data_batch, Mapping) else ()
    return [str(sample.get("img_path")) for sample in samples if hasattr(sample, "get") and "img_path" in sample]


def _means(steps: list[StepValues]) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.values.items():
            collected.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}


def _own_scalars(runner: Any) -> dict[str, float]:
    """Scalars that user code gave the message hub since the last line; taken out, as their history only grows."""
    history = runner.message_hub.log_scalars
    names = [name for name in history if name.startswith("train/")]
    return {name.removeprefix("train/"): float(history.pop(name).mean()) for name in names}


def _learning_rates(runner: Any) -> dict[str, float]:
    """One rate per optimizer: with several parameter groups, that of most parameters."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return {f"{name}.lr": summary_lr(one.optimizer) for name, one in wrapper.items()}
    return {"lr": summary_lr(wrapper.optimizer)}


def _losses(values: Mapping[str, float]) -> str:
    """``loss 0.812 (cls 0.5 bbox 0.312)``."""
    parts = [
        f"{name.removeprefix('loss_')} {value:.4g}"
        for name, value in values.items()
        if "loss" in name and name not in _NOT_IN_LINE
    ]
    total = f"loss {values['loss']:.4g}" if "loss" in values else "loss ?"
    return f"{total} ({' '.join(parts)})" if parts else total
